"""Download the files of a hub checkpoint that an export needs, or find them in the cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from bksdm.engines.errors import ExportError
from bksdm.export.library_errors import reason

_SMALL_FILES = (
    "model_index.json",
    "*/config.json",
    "scheduler/*.json",
    "tokenizer/*",
    "feature_extractor/*",
)
CONTROLNET_FILES = ("config.json",)
"""Small files of a repository that is one ControlNet."""
# By the class of the hub's errors, the special before the general.
_ADVICE = {
    "GatedRepoError": "accept its conditions on its web page, and pass --token",
    "RevisionNotFoundError": "there is no such revision",
    "RepositoryNotFoundError": "check the name; if it is private, pass --token",
}


def fetch(
    hub_id: str,
    revision: str | None,
    token: str | None,
    choose: Callable[[Collection[str]], list[str]],
    check: Callable[[Path], None],
    report: Callable[[str], None],
    small: Sequence[str] = _SMALL_FILES,
) -> Path:
    """Download a checkpoint, or take it from the cache if the hub cannot be reached.

    Parameters
    ----------
    hub_id
        ``owner/name``.
    revision
        Branch, tag or commit.
    token
        Access token; by default that of the account that is logged in.
    choose
        Given all paths of the repository, returns those with the weights that are wanted.
    check
        Called with the folder before the weights are fetched, to refuse it.
    report
        Called with a line where the cache has to do.
    small
        Patterns of the files that are fetched first; the first is the name of one that every such
        repository has.

    Returns
    -------
    Path
        The snapshot's folder.

    Raises
    ------
    ExportError
        It can be had from neither; says why and what to do.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    where = f"{hub_id}@{revision}" if revision else hub_id
    try:
        folder = Path(
            snapshot_download(hub_id, revision=revision, token=token, allow_patterns=list(small))
        )
        # Of the same commit, even if there is a newer one by now.
        info = HfApi(token=token).model_info(hub_id, revision=folder.name)
    except HFValidationError as error:
        raise ExportError(f"{hub_id}: no such folder, and no id of the hub") from error
    except Exception as error:  # the hub's client has errors of its own, its transport others
        cached = _cached(hub_id, revision, small[0])
        if cached is None:
            raise ExportError(_cannot_fetch(where, error)) from error
        report(f"{where}: the hub cannot be reached ({reason(error)}); taken from its cache")
        return cached
    files = {sibling.rfilename for sibling in info.siblings or ()}
    check(folder)
    try:
        snapshot_download(hub_id, revision=folder.name, token=token, allow_patterns=choose(files))
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(_cannot_fetch(where, error)) from error
    return folder


def _cached(hub_id: str, revision: str | None, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def _cannot_fetch(where: str, error: Exception) -> str:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    advice = next((text for name, text in _ADVICE.items() if name in kinds), None)
    return (
        f"{where}: no such folder, and it cannot be fetched from the hub ({reason(error)}); "
        f"{advice or 'check the connection, or name a folder'}"
    )
