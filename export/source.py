"""Find a checkpoint, on disk or on the hub, and say early whether it can be exported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bksdm.engines.errors import ExportError

_SUPPORTED = "supported: a diffusers StableDiffusionPipeline folder (SD 1.x, SD 2.x, BK-SDM)"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}
# Stems of the weight files, per folder; ".safetensors" is tried before ".bin".
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_BINARY = {**_WEIGHTS, "text_encoder": "pytorch_model", "safety_checker": "pytorch_model"}
_OPTIONAL_WEIGHTS = {"safety_checker": "model"}
_SMALL_FILES = (
    "model_index.json", "*/config.json", "scheduler/*.json", "tokenizer/*", "feature_extractor/*",
)  # fmt: skip
# UNet options that ask for inputs which the exported graph does not have.
_UNET_EXTRAS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)


def resolve(source: str | Path, revision: str | None = None, safety_checker: bool = True) -> Path:
    """Return the folder of a checkpoint that can be exported, downloading it if need be.

    Parameters
    ----------
    source
        A local diffusers folder, or a hub id ``owner/name``.
    revision
        Branch, tag or commit on the hub; only with a hub id.
    safety_checker
        Whether to download the checker's weights, if there is one.

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
    path = Path(source)
    if str(source) and path.is_dir():
        if revision is not None:
            raise ExportError(f"{path} is a local folder; a revision ({revision}) is for hub ids")
        folder = path
    elif path.is_file():
        raise ExportError(f"{path} is {_describe_file(path)}; {_SUPPORTED}")
    elif _HUB_ID.fullmatch(str(source)):
        folder = _download(str(source), revision, safety_checker)
    else:
        raise ExportError(
            f"{str(source)!r} is neither a folder nor a hub id (owner/name); {_SUPPORTED}"
        )
    validate(folder)
    return folder


def validate(folder: Path) -> None:
    """Check that a folder holds a pipeline which the exporter knows.

    Parameters
    ----------
    folder
        A diffusers checkpoint.

    Raises
    ------
    ExportError
        Naming the file and field that was found to differ, and what is supported.
    """
    index_path = folder / "model_index.json"
    if not index_path.is_file():
        raise ExportError(f"{folder} {_describe_folder(folder)}; {_SUPPORTED}")
    index = read_json(index_path)
    if index.get("_class_name") != "StableDiffusionPipeline":
        raise ExportError(
            f"{index_path}: _class_name is {index.get('_class_name')!r}; {_SUPPORTED}"
        )
    for name, wanted in _CLASSES.items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        # transformers has called the same tokenizer CLIPTokenizerFast.
        if found != wanted and (name, found) != ("tokenizer", "CLIPTokenizerFast"):
            raise ExportError(f"{index_path}: {name} is {found!r}, supported is {wanted}")
    _validate_unet(folder / "unet" / "config.json")
    _validate_rest(folder)
    for name in _WEIGHTS:
        _validate_weights(folder / name, name)


def has_safety_checker(folder: Path) -> bool:
    """Whether a checkpoint that `validate` accepted has a safety checker, with its weights.

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
    _validate_weights(folder / "safety_checker", "safety_checker")
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ExportError
        The file is missing, unreadable, not JSON or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or 'unreadable'}; {_SUPPORTED}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: not valid JSON; {_SUPPORTED}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path}: {type(content).__name__} found, a JSON object is needed")
    return content


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
            raise ExportError(
                f"{path}: {name} is {config[name]!r} (SDXL, LCM …), supported is null"
            )


def _validate_rest(folder: Path) -> None:
    read_json(folder / "text_encoder" / "config.json")
    path = folder / "scheduler" / "scheduler_config.json"
    if not isinstance(read_json(path).get("_class_name"), str):
        raise ExportError(f"{path}: _class_name is missing; a diffusers scheduler names its class")
    tokenizer = folder / "tokenizer"
    pair = (tokenizer / "vocab.json", tokenizer / "merges.txt")
    if not (tokenizer / "tokenizer.json").is_file() and not all(file.is_file() for file in pair):
        raise ExportError(f"{tokenizer}: needs vocab.json and merges.txt, or tokenizer.json")


def _validate_weights(folder: Path, name: str) -> None:
    stem = (_WEIGHTS | _OPTIONAL_WEIGHTS)[name]
    wanted = [f"{stem}.safetensors", f"{_BINARY[name]}.bin"]
    accepted = [*wanted, *(f"{file}.index.json" for file in wanted)]
    if any((folder / file).is_file() for file in accepted):
        return
    found = sorted(
        file.name for file in folder.glob("*") if file.suffix in {".safetensors", ".bin"}
    )
    raise ExportError(f"{folder}: {', '.join(found) or 'no weights'} found, needed is {wanted[0]}")


def _describe_file(path: Path) -> str:
    """Say what kind of single file was given, from the names of its tensors."""
    if path.suffix != ".safetensors":
        return f"a single {path.suffix or 'unnamed'} file"
    try:
        from safetensors import safe_open

        with safe_open(str(path), framework="numpy") as file:
            keys = list(file.keys())
    except Exception:  # safetensors raises its own type, not an OSError, on a damaged file
        return "a damaged .safetensors file"
    return (
        "a LoRA file" if any("lora" in key.lower() for key in keys) else "a single-file checkpoint"
    )


def _describe_folder(folder: Path) -> str:
    if any("lora" in file.name.lower() for file in folder.glob("*.safetensors")):
        return "holds a LoRA and no model_index.json"
    if (folder / "adapter_config.json").is_file():
        return "holds an adapter and no model_index.json"
    return "has no model_index.json"


def _download(hub_id: str, revision: str | None, safety_checker: bool) -> Path:
    """Fetch the small files first: what they say decides whether gigabytes follow."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi().model_info(hub_id, revision=revision)
        # The commit, not the branch: both downloads and the listing are then of one state.
        commit = info.sha
        files = {sibling.rfilename for sibling in info.siblings or ()}
        folder = Path(snapshot_download(hub_id, revision=commit, allow_patterns=list(_SMALL_FILES)))
        if "model_index.json" not in files:
            raise ExportError(f"{hub_id} has no model_index.json on the hub; {_SUPPORTED}")
        _validate_unet(folder / "unet" / "config.json")
        snapshot_download(
            hub_id, revision=commit, allow_patterns=weight_files(files, safety_checker)
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()
        where = f"{hub_id}@{revision}" if revision else hub_id
        what = reason[0] if reason else type(error).__name__
        raise ExportError(f"cannot fetch {where} from the hub: {what}") from error
    return folder


def weight_files(files: set[str], safety_checker: bool = True) -> list[str]:
    """Choose one weight file per network from a repository's listing.

    Parameters
    ----------
    files
        All paths of the repository.
    safety_checker
        Whether its weights are among them, if there are any.

    Returns
    -------
    list of str
        Safetensors where there is one, else the pickle; half-precision and non-EMA variants are
        never chosen. A network without weights is left out, for `validate` to name.
    """
    chosen = []
    stems = _WEIGHTS | (_OPTIONAL_WEIGHTS if safety_checker else {})
    for name, stem in stems.items():
        for file in (f"{name}/{stem}.safetensors", f"{name}/{_BINARY[name]}.bin"):
            if file in files:
                chosen.append(file)
                break
    return chosen
