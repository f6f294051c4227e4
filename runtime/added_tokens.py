"""The tokens that a folder of files adds to CLIP's vocabulary, and which of them are no use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokenizers import AddedToken
from tokenizers.normalizers import Normalizer


class Ambiguous(ValueError):
    """The tokens of a text would depend on chance, or on more than the files say."""


def added_tokens(
    listed: Iterable[AddedToken],
    named: Mapping[str, str | AddedToken | None],
    extra: Iterable[str | AddedToken],
    normalizer: Normalizer,
) -> list[AddedToken]:
    """Return all tokens to add to the vocabulary's, in their order.

    Parameters
    ----------
    listed
        By the files, in the order of their numbers.
    named
        Those that have a role.
    extra
        ``extra_special_tokens`` of the settings.
    normalizer
        What the vocabulary's tokens and some of the added ones are looked for behind.

    Raises
    ------
    Ambiguous
        A token is listed as special and as not, or two are the same once normalized.
    """
    added: list[str | AddedToken] = list(listed)
    known = {str(token) for token in added}
    more = [token for token in named.values() if token is not None]
    for token in (*more, *extra):
        if str(token) not in known and token not in added:
            added.append(token)
    roles = {str(token) for token in more}
    tokens = []
    for token in added:
        made = AddedToken(token, special=True) if isinstance(token, str) else token
        made.special = made.special or str(made) in roles
        tokens.append(made)
    _refuse_contradictions(tokens)
    _refuse_twins(tokens, normalizer)
    return tokens


def _refuse_contradictions(tokens: Iterable[AddedToken]) -> None:
    """Refuse a token that is special and is not.

    It stays special to the library whatever is said later, and the files that it writes have what
    was said last. Of all other flags the last ones count.
    """
    special: dict[str, bool] = {}
    for token in tokens:
        if special.setdefault(str(token), token.special) != token.special:
            raise Ambiguous(f"{str(token)!r} stands there twice, as special and as not")


def _refuse_twins(tokens: Iterable[AddedToken], normalizer: Normalizer) -> None:
    """Refuse tokens that the library looks for in the same text; it takes one at random."""
    first: dict[str, str] = {}
    for token in tokens:
        if not token.normalized:
            continue
        text = normalizer.normalize_str(str(token))
        if (other := first.setdefault(text, str(token))) != str(token):
            raise Ambiguous(f"{other!r} and {str(token)!r} are the same in lower case, {text!r}")
