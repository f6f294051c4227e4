"""Fluent Emoji pictures: rasterised once, placed on coloured backgrounds in batches."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import resvg_py
import torch
from concepts import BACKGROUNDS, CONCEPTS, ICONS
from PIL import Image
from torch import Tensor
from torch.nn import functional

SIDE = 128
"""Pixels of a training picture along each side."""


def load_icons(package: Path, side: int = SIDE) -> Tensor:
    """Rasterise the concepts' icons.

    Parameters
    ----------
    package : Path
        The unpacked npm package ``@iconify-json/fluent-emoji-flat``.
    side : int
        Pixels along each side.

    Returns
    -------
    Tensor, float32, shape [concepts, 4, side, side]
        Premultiplied RGBA in 0 … 1, in the order of ``CONCEPTS``.
    """
    table = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    return torch.stack([_rasterise(table, ICONS[concept], side) for concept in CONCEPTS])


def _rasterise(table: dict[str, object], name: str, side: int) -> Tensor:
    icons = table["icons"]
    assert isinstance(icons, dict)
    icon = icons[name]
    box = [icon.get("left", 0), icon.get("top", 0)]
    box += [icon.get(key, table.get(key, 16)) for key in ("width", "height")]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(str(v) for v in box)}" width="{side}" height="{side}">'
        f"{icon['body']}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as picture:
        rgba = torch.from_numpy(np.array(picture.convert("RGBA"))).permute(2, 0, 1) / 255
    rgba[:3] *= rgba[3:]
    return rgba


def background(colours: Sequence[str], jitter: float) -> Tensor:
    """Return RGB in 0 … 1, shape [len(colours), 3], each but white varied by ``jitter``."""
    rgb = torch.tensor([BACKGROUNDS[colour] for colour in colours]) / 255
    varied = torch.tensor([colour != "white" for colour in colours])[:, None]
    return (rgb + jitter * varied * torch.randn_like(rgb)).clamp(0, 1)


def render(
    icons: Tensor,
    size: Tensor,
    centre: Tensor,
    rgb: Tensor,
    corner: Tensor | None = None,
    window: int = SIDE,
) -> Tensor:
    """Place one icon per picture on a plain background.

    Parameters
    ----------
    icons : Tensor, shape [batch, 4, h, w]
        Premultiplied RGBA.
    size : Tensor, shape [batch]
        Side of the icon in pixels of the whole picture.
    centre : Tensor, shape [batch, 2]
        Its centre (x, y) in pixels.
    rgb : Tensor, shape [batch, 3]
        Background in 0 … 1.
    corner : Tensor, shape [batch, 2], optional
        Upper left corner (x, y) of the part that is rendered; by default the picture's own.
    window : int
        Side of that part in pixels.

    Returns
    -------
    Tensor, float32, shape [batch, 3, window, window]
        In −1 … 1, stored channels last.
    """
    corner = torch.zeros_like(centre) if corner is None else corner
    transform = torch.zeros(len(icons), 2, 3)
    for axis in range(2):
        transform[:, axis, axis] = window / size
        transform[:, axis, 2] = (corner[:, axis] + window / 2 - centre[:, axis]) * 2 / size
    grid = functional.affine_grid(transform, [len(icons), 4, window, window], align_corners=False)
    placed = functional.grid_sample(icons, grid, align_corners=False, padding_mode="zeros")
    mixed = placed[:, :3] + (1 - placed[:, 3:]) * rgb[:, :, None, None]
    return (mixed * 2 - 1).contiguous(memory_format=torch.channels_last)
