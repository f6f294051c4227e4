"""Find ControlNets, and check that they were made for a checkpoint's UNet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bksdm.engines.errors import ExportError
from bksdm.export.controlnet import COLOURS, picture_scale, residual_channels
from bksdm.export.hub import CONTROLNET_FILES, fetch
from bksdm.export.json_files import read_json
from bksdm.export.weights import choose, files_of
from bksdm.runtime.bundle import CONTROLNET

CLASS = "ControlNetModel"
# What diffusers' ControlNetModel and UNet2DConditionModel take where a configuration is silent.
_DEFAULTS: Mapping[str, Any] = {
    "in_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "conditioning_channels": COLOURS,
}
# Options that ask for inputs which the exported graph does not have.
_EXTRAS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds")


def resolve_controlnet(
    name: str, source: str, token: str | None, report: Callable[[str], None]
) -> Path:
    """Return the folder of a ControlNet in diffusers' format, downloading it if need be.

    Parameters
    ----------
    name
        What pictures will ask for it by.
    source
        A folder, that of a whole pipeline included, or a hub id.
    token, report
        As of `bksdm.export.source.resolve`.

    Raises
    ------
    ExportError
        It is neither, or no ControlNet.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or source.count("/") != 1 or source.startswith((".", "~", "/")):
            what = "a file" if folder.exists() else "no such folder"
            raise ExportError(
                f"{source}: {what}; --controlnet takes a diffusers folder or a hub id: "
                f"{name}=FOLDER"
            )
        component = f"{CONTROLNET}{name}"
        folder = fetch(
            source,
            None,
            token,
            choose=partial(_weights_at_top, component),
            check=lambda small: _require_class(small / "config.json"),
            report=report,
            small=CONTROLNET_FILES,
        )
    inside = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    _require_class(inside / "config.json")
    return inside


def _weights_at_top(component: str, files: Collection[str]) -> list[str]:
    chosen = choose([f"{component}/{file}" for file in files], component)
    return [file.removeprefix(f"{component}/") for file in chosen]


def _require_class(path: Path) -> None:
    if not path.is_file():
        raise ExportError(f"{path.parent}: no config.json in it; --controlnet takes a {CLASS}")
    found = read_json(path).get("_class_name")
    if found != CLASS:
        raise ExportError(f"{path}: _class_name is {found!r}; --controlnet takes a {CLASS}")


def require_fit(checkpoint: Path, components: Sequence[str]) -> None:
    """Refuse ControlNets that were made for another UNet, before anything is traced.

    Parameters
    ----------
    checkpoint
        A diffusers folder.
    components
        Folders of ControlNets in it.

    Raises
    ------
    ExportError
        Names the configuration, and what differs.
    """
    unet_file = checkpoint / "unet" / "config.json"
    unet, vae = _read(unet_file), read_json(checkpoint / "vae" / "config.json")
    if components and unet["mid_block_type"] is None:
        raise ExportError(
            f"{unet_file}: the UNet has no mid block, as in BK-SDM-Small and -Tiny, and a "
            "ControlNet adds to what that makes; --controlnet is for BK-SDM-Base and Stable "
            "Diffusion"
        )
    for component in components:
        file = checkpoint / component / "config.json"
        found = _read(file)
        for name in _EXTRAS:
            if found.get(name) is not None:
                raise ExportError(f"{file}: {name} is {found[name]!r} (SDXL …), supported is null")
        made, taken = residual_channels(found), residual_channels(unet)
        if len(made) != len(taken):
            raise ExportError(
                f"{file}: the ControlNet makes {len(made)} residuals, but the UNet takes "
                f"{len(taken)}: it was made for another UNet, whose layers_per_block is "
                f"{found['layers_per_block']}, not {unet['layers_per_block']}, or with other blocks"
            )
        for index, (mine, theirs) in enumerate(zip(made, taken, strict=True)):
            if mine != theirs:
                raise ExportError(
                    f"{file}: residual {index + 1} of the ControlNet has {mine} channels, but the "
                    f"UNet takes {theirs}; it was made for another UNet"
                )
        for name, wanted in (
            ("in_channels", unet["in_channels"]),
            ("cross_attention_dim", _one(unet["cross_attention_dim"])),
            ("conditioning_channels", COLOURS),
        ):
            if _one(found[name]) != wanted:
                raise ExportError(
                    f"{file}: {name} is {found[name]!r}, but {wanted!r} is needed for this UNet"
                )
        scale = 2 ** (len(vae.get("block_out_channels", [0])) - 1)
        if picture_scale(found) != scale:
            raise ExportError(
                f"{file}: conditioning_embedding_out_channels has "
                f"{len(found['conditioning_embedding_out_channels'])} entries, which divides sides "
                f"by {picture_scale(found)}; the VAE divides them by {scale}"
            )
        files_of(checkpoint, component)


def _read(path: Path) -> dict[str, Any]:
    return {**_DEFAULTS, **read_json(path)}


def _one(value: Any) -> Any:
    """Return what stands there once for all blocks."""
    alike = isinstance(value, list) and value and all(entry == value[0] for entry in value)
    return value[0] if alike else value
