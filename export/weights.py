"""Choose and read the weight files of a checkpoint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bksdm.engines.errors import ExportError
from bksdm.export.json_files import is_lfs_pointer, read_json
from bksdm.export.library_errors import reason
from bksdm.runtime.bundle import CONTROLNET
from bksdm.storage.files import open_regular

HALF = "fp16"
"""The hub's name for weights in float16, also part of their file names."""

_FORMATS = (".safetensors", ".bin")
_DIFFUSERS, _TRANSFORMERS = ("diffusion_pytorch_model",) * 2, ("model", "pytorch_model")
# Stem of the files by format.
_STEMS = {
    "text_encoder": _TRANSFORMERS,
    "unet": _DIFFUSERS,
    "vae": _DIFFUSERS,
    "vae_decoder_tiny": _DIFFUSERS,
    "safety_checker": _TRANSFORMERS,
}
_SHARD = r"-\d{5}-of-\d{5}"
# Levels of transformers' modules that version 5 has dropped; files of before still have them.
_OLD_LEVEL = re.compile(r"^text_model\.|(?<=^vision_model\.)vision_model\.")
# What transformers' models compute by now, and parts of CLIP that a text encoder has no use for.
_COMPUTED = re.compile(r"(^|\.)position_ids$")
_OTHER_PARTS = ("vision_model", "visual_projection", "text_projection", "logit_scale")
_OLD_ATTENTION = "; old attention, made of convolutions, which diffusers does not load either"
_NAMED = 3


def choose(files: Collection[str], subfolder: str, variant: str | None = None) -> list[str]:
    """Choose the files of one network from a repository's listing.

    Parameters
    ----------
    files
        All paths of the repository, or of a folder in which it lies.
    subfolder
        ``text_encoder``, ``unet``, ``vae``, ``vae_decoder_tiny``, ``safety_checker`` or that of a
        ControlNet.
    variant
        As diffusers has it: ``fp16`` asks for ``model.fp16.safetensors`` and the like. A network
        that has no such files is taken without.

    Returns
    -------
    list of str
        One file; or an index, always the first, and its shards. Safetensors where there are any,
        else a pickle. Nothing but float16 is taken if nothing else is there. Empty where there are
        no weights at all.
    """
    stems = _stems(subfolder)
    for name in dict.fromkeys((variant, None, HALF)):
        mark = f".{name}" if name else ""
        for stem, suffix in zip(stems, _FORMATS, strict=True):
            path = f"{subfolder}/{stem}"
            single = [file for file in (f"{path}{mark}{suffix}",) if file in files]
            sharded = _sharded(files, path, suffix, mark)
            # Where there are both, each of the libraries has its own preference.
            chosen = sharded or single if stems == _DIFFUSERS else single or sharded
            if chosen:
                return chosen
    return []


def files_of(checkpoint: Path, subfolder: str, variant: str | None = None) -> list[str]:
    """Choose the files of one network in a folder, as `choose` does.

    Raises
    ------
    ExportError
        There are none.
    """
    if chosen := choose(listing(checkpoint), subfolder, variant):
        return chosen
    needed = f"{_stems(subfolder)[0]}{_FORMATS[0]}"
    found = [path for path in sorted((checkpoint / subfolder).glob("*")) if path.suffix in _FORMATS]
    for path in found:
        if not path.is_file():
            what = "a link to nothing" if path.is_symlink() else "no regular file"
            raise ExportError(f"{path}: {what}; needed is a file {needed}")
    shown = ", ".join(path.name for path in found) or "no weights"
    raise ExportError(f"{checkpoint / subfolder}: {shown} found, needed is {needed}")


def listing(checkpoint: Path) -> list[str]:
    """Return the files of the networks' folders, with ``/`` on every system."""
    return [
        f"{subfolder}/{path.name}"
        for subfolder in (*_STEMS, *controlnets_in(checkpoint))
        for path in sorted((checkpoint / subfolder).glob("*"))
        if path.is_file()
    ]


def controlnets_in(checkpoint: Path) -> list[str]:
    """Return the folders of ControlNets that lie beside the networks of a checkpoint."""
    return sorted(path.name for path in checkpoint.glob(f"{CONTROLNET}*") if path.is_dir())


def _stems(subfolder: str) -> tuple[str, str]:
    return _DIFFUSERS if subfolder.startswith(CONTROLNET) else _STEMS[subfolder]


def _sharded(files: Collection[str], stem: str, suffix: str, mark: str) -> list[str]:
    """Return an index and its shards, if there is one."""
    # The second form is what older versions wrote.
    forms = {
        f"{stem}{suffix}.index{mark}.json": f"{stem}{mark}{_SHARD}{suffix}",
        f"{stem}{suffix}{mark}.index.json": f"{stem}{_SHARD}{mark}{suffix}",
    }
    index = next((index for index in forms if index in files), None)
    if index is None:
        return []
    shard = re.compile(forms[index])
    return [index, *sorted(file for file in files if shard.fullmatch(file))]


def variants(files: Iterable[str]) -> set[str]:
    """Return the variants of which a listing has weights for some network."""
    stems = "|".join({stem for pair in _STEMS.values() for stem in pair})
    pattern = re.compile(
        rf"({'|'.join(_STEMS)})/({stems})({_SHARD})?\.(?P<variant>[^./]+?)"
        rf"({_SHARD})?\.(safetensors|bin)"
    )
    return {match["variant"] for file in files if (match := pattern.fullmatch(file))}


def read_tensors(checkpoint: Path, files: Sequence[str]) -> dict[str, Tensor]:
    """Read the files that `choose` returned, without running code in a pickle.

    Parameters
    ----------
    checkpoint
        Folder of the files.
    files
        Of one network.

    Returns
    -------
    dict
        By the names in the files, in their types; mapped from the disk where the format allows it.

    Raises
    ------
    ExportError
        A file is missing, empty, damaged, a pointer of Git LFS, or not just tensors; names it.
    """
    first = checkpoint / files[0]
    if not files[0].endswith(".json"):
        return _read_file(first)
    tensors: dict[str, Tensor] = {}
    for name in _shards(first):
        tensors |= _read_file(first.parent / name)
    return tensors


def fit(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Rename tensors to a network's own names, and check that they are complete.

    Parameters
    ----------
    model
        As diffusers or transformers build it; without weights (on torch's device ``meta``) will do.
    tensors
        As `read_tensors` returns them.
    where
        File or folder, for messages.

    Raises
    ------
    ExportError
        Tensors are missing, of another shape or type, or too many; says how many, and which first.
    """
    renamed = dict(tensors)
    # Old VAEs have other names for their attention.
    rename: Any = getattr(model, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(renamed)
    wanted = model.state_dict()
    by_plain = {_OLD_LEVEL.sub("", name): name for name in wanted}
    found: dict[str, Tensor] = {}
    others = []
    for key, tensor in renamed.items():
        name = by_plain.get(_OLD_LEVEL.sub("", key))
        if name is not None and name not in found:
            found[name] = tensor
        elif name is not None or not _is_leftover(key, model, wanted):
            others.append(key)
    wrong = [name for name in found if not _same_kind(found[name], wanted[name])]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "not fitting": [f"{name} {_told(found[name])} for {_told(wanted[name])}" for name in wrong],
        "unknown": others,
    }
    if said := [
        f"{len(names)} {what} ({_first(names)})" for what, names in problems.items() if names
    ]:
        hint = _OLD_ATTENTION if _is_old_attention(found, wanted, wrong) else ""
        raise ExportError(
            f"{where}: not the {len(wanted)} tensors of this network: {', '.join(said)}{hint}"
        )
    return {name: found[name] for name in wanted}


def _is_leftover(key: str, model: nn.Module, wanted: Collection[str]) -> bool:
    """Return whether a tensor is of a part that was taken out, or transformers ignores it too."""
    if getattr(model, key.partition(".")[0], model) is None:
        return True
    if not any(_COMPUTED.search(name) for name, _ in model.named_buffers()):
        return False
    part = key.partition(".")[0]
    own = any(name.partition(".")[0] == part for name in wanted)
    return bool(_COMPUTED.search(key)) or (part in _OTHER_PARTS and not own)


def _same_kind(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and found.is_floating_point() == wanted.is_floating_point()


def _is_old_attention(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Sequence[str]
) -> bool:
    """Return whether an attention's tensors are 1×1 convolutions instead of linear layers."""
    return bool(names) and all(
        ".to_" in name and found[name].shape == (*wanted[name].shape, 1, 1) for name in names
    )


def _told(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{str(tensor.dtype).removeprefix('torch.')} "
    return f"{kind}{list(tensor.shape)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


def _shards(index: Path) -> list[str]:
    """Return the files that an index names, which all have to lie beside it."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ExportError(f"{index}: weight_map must name a file for every tensor")
    names = sorted({*map(str, places.values())})
    if any(Path(name).name != name for name in names):
        raise ExportError(f"{index}: weight_map names files that do not lie beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ExportError(f"{index}: {len(missing)} of its files missing ({_first(missing)})")
    return names


def _read_file(path: Path) -> dict[str, Tensor]:
    with readable(path):
        return read_safetensors(path) if path.suffix == _FORMATS[0] else read_pickle(path)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Refuse a file that is empty or a pointer, and name it if the block cannot read it.

    Raises
    ------
    ExportError
        In one of these cases.
    """
    try:
        if path.stat().st_size == 0:
            raise ExportError(f"{path}: is empty")
        if is_lfs_pointer(path):
            raise ExportError(f"{path}: a pointer of Git LFS, not the file; run `git lfs pull`")
        yield
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, mapped from the disk.

    Raises
    ------
    ExportError
        It is damaged; names it.
    OSError
        It cannot be opened.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ExportError(f"{path}: damaged, no safetensors file ({reason(error)})") from error
    return tensors


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a pickle of torch, without running code in it.

    Raises
    ------
    ExportError
        It is damaged, or holds something else; names it.
    OSError
        It cannot be opened.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise ExportError(f"{path}: contains something other than named tensors")
    return {str(name): tensor for name, tensor in content.items()}


def load_pickle(path: Path) -> Any:
    """Return what a pickle of torch holds: tensors, numbers, text and containers of these.

    Code in it is never run.

    Raises
    ------
    ExportError
        It is damaged, or holds something else; names it.
    OSError
        It cannot be opened.
    """
    import zipfile

    # What cannot be opened is no damage; where a damaged file breaks off, torch may raise the same.
    open_regular(path).close()
    try:
        with warnings.catch_warnings():
            # torch warns of what it then refuses.
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # of many types, depending on where a damaged file breaks off
        raise ExportError(
            f"{path}: damaged, or a pickle of more than tensors; convert it to safetensors"
        ) from error
