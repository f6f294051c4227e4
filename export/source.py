"""Find a checkpoint, on disk or on the hub, and validate early that it can be exported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from bksdm.engines.errors import ExportError
from bksdm.export.hub import fetch
from bksdm.export.json_files import is_lfs_pointer
from bksdm.export.json_files import read_json as read_json
from bksdm.export.weights import HALF, choose, files_of, listing, variants
from bksdm.runtime.bundle import TINY_VAE

_SUPPORTED = (
    "supported: a diffusers StableDiffusionPipeline folder, or a checkpoint in one file (SD 1.x, "
    "SD 2.x, BK-SDM)"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What is written like a place on disk cannot be meant as an id of the hub.
_PLACE = re.compile(r"[.~/\\]|.*[\\/]$|.*/.*/|\w:")
_PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", TINY_VAE),
    "text_encoder": ("CLIPTextModel",),
    # transformers has called the same tokenizer CLIPTokenizerFast.
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
_WEIGHTED = ("unet", "vae", "text_encoder")
FILES = (
    "model_index.json",
    "scheduler",
    *_CLASSES,
    "vae_decoder_tiny",
    "safety_checker",
    "feature_extractor",
)
"""Everything in a checkpoint's folder that an export reads."""
# UNet options that ask for inputs which the exported graph does not have.
_UNET_EXTRAS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
)


def resolve(
    source: str | Path,
    revision: str | None = None,
    safety_checker: bool = True,
    variant: str | None = None,
    token: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the folder of a checkpoint that can be exported, downloading it if need be.

    Parameters
    ----------
    source
        A local diffusers folder, or a hub id ``owner/name``.
    revision
        Branch, tag or commit on the hub; only with a hub id.
    safety_checker
        Whether to download the checker's weights, if there is one.
    variant
        Of the weight files, as diffusers has it: ``fp16`` takes ``model.fp16.safetensors`` and
        the like where there are any.
    token
        Of an account on the hub that may read the checkpoint.
    report
        Called with a line for every network of which only float16 weights are there, and where the
        hub's cache has to do.

    Returns
    -------
    Path
        A folder that passed `validate`. A hub snapshot holds only the files that an export needs,
        safetensors rather than pickles where the repository has both.

    Raises
    ------
    ExportError
        Neither a folder nor a hub id, the download failed, or the checkpoint is not supported.
    """
    name = os.fspath(source)
    if name and os.path.isdir(name):
        if revision is not None:
            raise ExportError(f"{name} is a local folder; a revision ({revision}) is for hub ids")
        folder = Path(name)
    elif os.path.lexists(name):
        raise ExportError(f"{name} is no folder; {_SUPPORTED}")
    elif Path(name).suffix in (".safetensors", ".ckpt"):
        raise ExportError(f"{name}: no such file")
    elif _HUB_ID.fullmatch(name) and not _PLACE.match(name):
        folder = fetch(
            name,
            revision,
            token,
            choose=partial(_wanted, name, safety_checker, variant),
            check=lambda small: _validate_unet(small / "unet" / "config.json"),
            report=report,
        )
    else:
        raise ExportError(
            f"{name!r} is neither a folder nor a hub id (owner/name): no such folder; {_SUPPORTED}"
        )
    validate(folder, variant)
    if variant != HALF:
        for subfolder in _WEIGHTED:
            file = files_of(folder, subfolder, variant)[0]
            if f".{HALF}." in file:
                report(f"{subfolder}: there are only float16 weights, {file}")
    return folder


def validate(folder: Path, variant: str | None = None) -> None:
    """Check that a folder holds a pipeline which the exporter knows.

    Parameters
    ----------
    folder
        A diffusers checkpoint.
    variant
        Of the weight files.

    Raises
    ------
    ExportError
        Names the file and field that differ, and the supported values.
    """
    index_path = folder / "model_index.json"
    if not os.path.lexists(index_path):
        raise ExportError(f"{folder} {_describe_folder(folder)}; {_SUPPORTED}")
    _validate_fetched(folder)
    if is_bundle(folder, variant):
        raise ExportError(
            f"{folder} is a bundle already, without weights for torch; `bksdm generate --model` "
            "runs it"
        )
    index = read_json(index_path)
    if index.get("_class_name") not in _PIPELINES:
        raise ExportError(
            f"{index_path}: _class_name is {index.get('_class_name')!r}; {_SUPPORTED}"
        )
    for name, wanted in _CLASSES.items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if found not in wanted:
            raise ExportError(
                f"{index_path}: {name} is {found!r}, supported is {' or '.join(wanted)}"
            )
    _validate_unet(folder / "unet" / "config.json")
    _validate_rest(folder)
    _validate_variant(folder, listing(folder), variant)
    for name in _WEIGHTED:
        files_of(folder, name, variant)


def is_bundle(folder: Path, variant: str | None = None) -> bool:
    """Return whether a folder contains graphs and lacks weights, which torch would need."""
    if not (folder / "unet" / "model.onnx").is_file():
        return False
    files = listing(folder)
    return not all(choose(files, name, variant) for name in _WEIGHTED)


def has_safety_checker(folder: Path, variant: str | None = None) -> bool:
    """Return whether a checkpoint that `validate` accepted has a safety checker with weights.

    Raises
    ------
    ExportError
        It is of a class that is not supported, or lacks weights or the preprocessing's settings.
    """
    index_path = folder / "model_index.json"
    entry = read_json(index_path).get("safety_checker")
    if not isinstance(entry, list) or entry[1:] in ([], [None]):
        return False
    if not (folder / "safety_checker").is_dir():
        return False
    if entry[1] != "StableDiffusionSafetyChecker":
        raise ExportError(
            f"{index_path}: safety_checker is {entry[1]!r}, supported is "
            "StableDiffusionSafetyChecker; export without it by --no-safety-checker"
        )
    read_json(folder / "feature_extractor" / "preprocessor_config.json")
    read_json(folder / "safety_checker" / "config.json")
    files_of(folder, "safety_checker", variant)
    return True


def weight_files(
    files: Collection[str], safety_checker: bool = True, variant: str | None = None
) -> list[str]:
    """Choose the weight files of every network from a repository's listing.

    Parameters
    ----------
    files
        All paths of the repository.
    safety_checker
        Whether its weights are among them, if there are any.
    variant
        Of the files, see `bksdm.export.weights.choose`.

    Returns
    -------
    list of str
        A network without weights is left out, for `validate` to name.
    """
    names = (*_WEIGHTED, "safety_checker") if safety_checker else _WEIGHTED
    return [file for name in names for file in choose(files, name, variant)]


def _wanted(
    hub_id: str, safety_checker: bool, variant: str | None, files: Collection[str]
) -> list[str]:
    """Return the files to download from a repository that has the right kind of pipeline."""
    if "model_index.json" not in files:
        raise ExportError(f"{hub_id} has no model_index.json on the hub; {_SUPPORTED}")
    _validate_variant(hub_id, files, variant)
    return weight_files(files, safety_checker, variant)


def _validate_variant(where: str | Path, files: Collection[str], variant: str | None) -> None:
    if variant is not None and variant not in (known := variants(files)):
        raise ExportError(
            f"{where}: no weights of variant {variant!r}; known: {', '.join(sorted(known)) or '–'}"
        )


def _validate_fetched(folder: Path) -> None:
    """Check that Git LFS has replaced its pointers to the small files."""
    for pattern in ("*.json", "*/*.json", "tokenizer/*.txt"):
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and is_lfs_pointer(path):
                raise ExportError(f"{path}: a pointer of Git LFS, not the file; run `git lfs pull`")


def _validate_unet(path: Path) -> None:
    config = read_json(path)
    latents = read_json(path.parents[1] / "vae" / "config.json").get("latent_channels", 4)
    channels, out_channels = config.get("in_channels", 4), config.get("out_channels", 4)
    if channels != latents:
        kinds = {9: " (an inpainting UNet)", 8: " (an InstructPix2Pix UNet)", 7: " (an upscaler)"}
        kind = kinds.get(channels, "") if isinstance(channels, int) else ""
        raise ExportError(f"{path}: in_channels is {channels!r}{kind}, supported is {latents}")
    if out_channels != latents:
        raise ExportError(f"{path}: out_channels is {out_channels!r}, supported is {latents}")
    width = config.get("cross_attention_dim", 1280)
    blocks = config.get("down_block_types", [""] * 4)
    per_block = isinstance(width, list) and isinstance(blocks, list) and len(width) == len(blocks)
    one = width[0] if per_block and len({*map(repr, width)}) == 1 else width
    if not isinstance(one, int):
        raise ExportError(
            f"{path}: cross_attention_dim is {width!r}, supported is one integer, or the same one "
            "for every block"
        )
    for name in _UNET_EXTRAS:
        if config.get(name) is not None:
            raise ExportError(f"{path}: {name} is {config[name]!r} (SDXL …), supported is null")


def _validate_rest(folder: Path) -> None:
    read_json(folder / "text_encoder" / "config.json")
    read_json(folder / "scheduler" / "scheduler_config.json")
    tokenizer = folder / "tokenizer"
    pair = (tokenizer / "vocab.json", tokenizer / "merges.txt")
    if not (tokenizer / "tokenizer.json").exists() and not all(file.exists() for file in pair):
        raise ExportError(f"{tokenizer}: needs vocab.json and merges.txt, or tokenizer.json")


def _describe_folder(folder: Path) -> str:
    if any("lora" in file.name.lower() for file in folder.glob("*.safetensors")):
        return "holds a LoRA and no model_index.json"
    if (folder / "adapter_config.json").is_file():
        return "holds an adapter and no model_index.json"
    return "has no model_index.json"
