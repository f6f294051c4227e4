"""A tokenizer's folder, read as transformers' ``CLIPTokenizer.from_pretrained`` reads it.

Several files can state the same thing, and which of them counts depends on which others are there:
``PreTrainedTokenizerBase._from_pretrained`` merges them, and ``TokenizersBackend.__init__`` adds
the tokens to a tokenizer that ``CLIPTokenizer.__init__`` builds from vocabulary and merges alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from bksdm.engines.errors import BundleError
from bksdm.runtime.added_tokens import Ambiguous, added_tokens
from bksdm.runtime.bundle import read_json, read_text

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
CONTEXT = 77
UNLIMITED = 10**20
"""From here on transformers takes ``model_max_length`` for no limit at all."""
NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
CLIP_TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
"""``CLIPTokenizer``'s own, where no file names others."""

Settings = dict[str, Any]


class _Unusable(ValueError):
    """A setting says what cannot be done."""


@dataclass(frozen=True)
class TokenizerFiles:
    """A folder's tokenizer.

    Attributes
    ----------
    backend : tokenizers.Tokenizer
        Adds the start and end tokens by itself; neither cuts nor pads.
    pad_id : int
        Of the token that fills a row.
    length : int
        Tokens in a row, start and end included.
    pads_left, cuts_left : bool
        Whether padding goes, and what does not fit is cut, in front.
    named : mapping
        The tokens that have a role, by its name; the unknown one can be None.
    """

    backend: Backend
    pad_id: int
    length: int
    pads_left: bool
    cuts_left: bool
    named: Mapping[str, str | None]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """Read ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``, and what goes with them.

        Raises
        ------
        BundleError
            A file is missing or damaged, or asks for what transformers or Stable Diffusion cannot
            do; names it.
        """
        whole = folder / "tokenizer.json"
        source = whole if whole.exists() else folder / "vocab.json"
        try:
            content = read_json(whole) if source == whole else _content(folder)
            settings, roles, listed = _merged(folder, content)
            named = _named(settings, roles)
            backend = _backend(content["model"], named)
            backend.encode_special_tokens = settings.get("split_special_tokens", False)
            extra = settings.get("extra_special_tokens")
            if not isinstance(extra, list | None):
                raise _Unusable(f"extra_special_tokens is {extra!r}, no list of tokens")
            backend.add_tokens(added_tokens(listed, named, extra or (), backend.normalizer))
            ids = {name: _id(backend, named, name) for name in ("bos_token", "eos_token")}
            start, end = ((str(named[name]), index) for name, index in ids.items())
            backend.post_processor = processors.RobertaProcessing(end, start, False, False)
            return cls(
                backend,
                _id(backend, named, "pad_token"),
                _length(settings),
                _left(settings, "padding_side", content.get("padding")),
                _left(settings, "truncation_side", content.get("truncation")),
                {name: None if token is None else str(token) for name, token in named.items()},
            )
        except BundleError:
            raise
        except _Unusable as error:
            raise BundleError(f"{folder / 'tokenizer_config.json'}: {error}") from error
        except Ambiguous as error:
            raise BundleError(f"{folder}: added_tokens: {error}") from error
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{source}: not a CLIP tokenizer ({error})") from error


def _content(folder: Path) -> dict[str, Any]:
    """Read vocabulary and merges into the form of ``tokenizer.json``."""
    vocabulary = read_json(folder / "vocab.json")
    path = folder / "merges.txt"
    lines = re.split(r"\r\n?|\n", read_text(path))
    merges = [line.split() for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise BundleError(f"{path}: every line must hold two tokens")
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}


def _merged(
    folder: Path, content: Mapping[str, Any]
) -> tuple[Settings, Settings, list[AddedToken]]:
    """Return the settings, roles of the model's own, and the added tokens that a file lists.

    ``special_tokens_map.json``, ``added_tokens.json`` and the list in ``tokenizer.json`` count
    only where ``tokenizer_config.json`` has no ``added_tokens_decoder``; the map then overrules the
    settings.
    """
    path = folder / "tokenizer_config.json"
    settings = _optional(path)
    for name in ("init_inputs", "fast_tokenizer_files"):
        if settings.get(name):
            raise BundleError(f"{path}: {name} is not supported")
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    own = {
        name: value
        for name, value in settings.items()
        if _is_role(name, value) and name not in NAMED_TOKENS
    }
    settings = {name: value for name, value in settings.items() if name not in own}
    # transformers writes the others under this name too, and reads it where they are not there.
    written = settings.pop("model_specific_special_tokens", None)
    roles = (own | _popped_roles(settings)) or ({} if written is None else written)
    if not isinstance(roles, dict):
        raise _Unusable(f"model_specific_special_tokens is {roles!r}, not an object")
    listed: list[tuple[int, AddedToken]] = []
    if "added_tokens_decoder" in settings:
        for index, token in settings["added_tokens_decoder"].items():
            listed.append((int(index), AddedToken(**token)))
    else:
        for name, value in _optional(folder / "special_tokens_map.json").items():
            settings[name] = _mapped(name, value, settings)
        roles |= _popped_roles(settings)
        special = {str(settings[name]) for name in NAMED_TOKENS if settings.get(name)}
        special |= {str(token) for token in settings.get("extra_special_tokens") or ()}
        for text, index in _optional(folder / "added_tokens.json").items():
            made = AddedToken(text, normalized=text not in special, special=text in special)
            listed.append((index, made))
        for token in content.get("added_tokens", ()):
            stated = {name: value for name, value in token.items() if name != "id"}
            listed.append((token["id"], AddedToken(**stated)))
    if "additional_special_tokens" in settings:
        settings.setdefault("extra_special_tokens", settings["additional_special_tokens"])
    settings, roles = _typed(settings), _typed(roles)
    by_text = {str(token): token for _, token in listed}
    for name in NAMED_TOKENS:
        if settings.get(name) is not None:
            settings[name] = by_text.get(str(settings[name]), settings[name])
    return settings, roles, [token for _, token in sorted(dict(listed).items())]


def _is_role(name: str, value: Any) -> bool:
    return name.endswith("_token") and isinstance(value, (str, AddedToken))


def _popped_roles(settings: Settings) -> Settings:
    """Take out the tokens of the model's own that are named in an object of their own."""
    roles = settings.get("extra_special_tokens")
    return settings.pop("extra_special_tokens") if isinstance(roles, dict) else {}


def _mapped(name: str, value: Any, settings: Settings) -> Any:
    """Return a value of ``special_tokens_map.json`` as it is merged into the settings."""
    if name == "extra_special_tokens" and isinstance(value, list):
        merged = list(settings.get(name) or ())
        made = [AddedToken(**t, special=True) if isinstance(t, dict) else t for t in value]
        return merged + [token for token in made if token not in merged]
    if isinstance(value, dict) and name != "extra_special_tokens":
        return AddedToken(**{**value, "special": True})
    return value


def _typed(value: Any) -> Any:
    """Turn tokens of a settings file, which mark themselves as such, into tokens."""
    if isinstance(value, list):
        return [_typed(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.get("__type") == "AddedToken":
        return AddedToken(**{name: entry for name, entry in value.items() if name != "__type"})
    return {name: _typed(entry) for name, entry in value.items()}


def _named(settings: Settings, roles: Settings) -> dict[str, str | AddedToken | None]:
    """Return the tokens that have a role, CLIP's and those of the model's own, by their names."""
    named = {name: settings.get(name, CLIP_TOKENS.get(name)) for name in NAMED_TOKENS}
    for name, value in settings.items():
        if _is_role(name, value):
            named[name] = value
    named |= roles
    for name, value in named.items():
        # Without an unknown token there is none; every byte has a token of its own.
        optional = name not in CLIP_TOKENS or name == "unk_token"
        if not isinstance(value, (str, AddedToken)) and not (value is None and optional):
            raise _Unusable(f"{name} is {value!r}, not a token")
    return {name: t for name, t in named.items() if t is not None or name in CLIP_TOKENS}


def _id(backend: Backend, named: Mapping[str, str | AddedToken | None], name: str) -> int:
    """Return the number of a token; one without any has the unknown token's."""
    for token in (named[name], named["unk_token"]):
        index = backend.token_to_id(str(token))
        if index is not None:
            return index
    raise _Unusable(f"{name} is {named[name]!r}, not a token")


def _backend(model: Mapping[str, Any], named: Mapping[str, str | AddedToken | None]) -> Backend:
    """Build CLIP's tokenizer; of ``tokenizer.json`` only vocabulary and merges count."""
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']!r}, not BPE")
    pairs = (m.split(" ") if isinstance(m, str) else m for m in model.get("merges", ()))
    backend = Backend(
        models.BPE(
            vocab=model["vocab"],
            merges=[(first, second) for first, second in pairs],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=str(named["unk_token"]),
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _length(settings: Settings) -> int:
    length = settings.get("model_max_length", settings.get("max_len"))
    number = isinstance(length, (int, float)) and not isinstance(length, bool)
    if length is None or (number and length >= UNLIMITED):
        # diffusers then fails; what every Stable Diffusion was trained with is a better answer.
        return CONTEXT
    if not isinstance(length, int) or isinstance(length, bool) or not 2 < length <= 4096:
        raise _Unusable(f"model_max_length is {length!r}, not an integer from 3 to 4096")
    return length


def _left(settings: Settings, name: str, section: Any) -> bool:
    """Whether something happens on the left, which ``tokenizer.json`` may say as well."""
    default = section["direction"].lower() if section else "right"
    side = settings.get(name, default)
    if side not in ("left", "right"):
        raise _Unusable(f"{name} is {side!r}, neither left nor right")
    return bool(side == "left")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
