"""Read LoRA files as pairs of factors, in the naming of any common program."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import LoraError
from bksdm.runtime.lora.safetensors_file import parse_safetensors
from bksdm.runtime.lora.scaling import (
    HEADER,
    PEFT_CONFIG,
    PEFT_PREFIX,
    adapter_config,
    peft_config,
    scaling_of,
)
from bksdm.storage.files import read_regular

Tensors = Mapping[str, NDArray[np.float32]]
# What stands before a layer's name, and the network it means, if it means one. The last one is of
# the files that diffusers' `unet.save_attn_procs` writes.
_COMPONENTS: dict[str, str | None] = {
    "unet.": "unet",
    "lora_unet_": "unet",
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    PEFT_PREFIX: None,
    "": "unet",
}
# peft does not say which network a file is for, but no name is one of both.
_TEXT_LAYERS = ("text_model.", "encoder.")
_FACTOR = re.compile(
    r"(?P<layer>.+)(?P<joint>_lora\.|\.lora\.|\.lora_linear_layer\.|\.lora_)"
    # Where peft has given its adapter a name, that stands before the last word.
    r"(?P<half>down|up|A|B)(\.[^.]+)?\.weight"
)
_HALVES = {"down": "down", "A": "down", "up": "up", "B": "up"}
# diffusers' attention processors of old had layers of their own beside those of the network.
_OLD_PROCESSORS = {
    "unet": {"to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}
# As peft calls them, in the order in which it looks for them.
_PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "Tucker decomposition",
}


@dataclass(frozen=True, kw_only=True)
class LoraLayer:
    """The two factors for the weight of one layer.

    Attributes
    ----------
    name : str
        As the file has it, for messages.
    component : str
        ``unet`` or ``text_encoder``.
    module : str
        The layer's name inside the network; in Kohya's files with ``_`` for every ``.``.
    down : ndarray, float32
        [r, in], or [r, in, k, k] of a convolution.
    up : ndarray, float32
        [out, r], or [out, r, 1, 1].
    scaling : float
        ``alpha / r``, or what the file says in place of it.
    """

    name: str
    component: str
    module: str
    down: NDArray[np.float32]
    up: NDArray[np.float32]
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that the product of the factors is added to."""
        return (self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class Lora:
    """One file.

    Attributes
    ----------
    path : Path
        The file.
    scale : float
        Strength; 1 is the strength it was trained for.
    sha256 : str
        Of the file.
    layers : tuple of LoraLayer
        In the order of their names, as safetensors lists them.
    """

    path: Path
    scale: float
    sha256: str
    layers: tuple[LoraLayer, ...]

    def of(self, component: str) -> list[LoraLayer]:
        """Return the layers of one network."""
        return [layer for layer in self.layers if layer.component == component]


def split_scale(text: str) -> tuple[Path, float]:
    """Split ``FILE[:scale]``; a colon may also be part of the name, if there is such a file.

    Raises
    ------
    LoraError
        What follows the last colon is no finite number.
    """
    name, colon, number = text.rpartition(":")
    if not colon or os.path.exists(text):  # unlike Path's, False for a name that is too long
        return Path(text), 1.0
    try:
        scale = float(number)
    except ValueError as error:
        raise LoraError(f"{text}: no such file, and {number!r} is no scale") from error
    if not math.isfinite(scale):
        raise LoraError(f"{text}: the scale must be a finite number, not {number}")
    return Path(name), scale


def read_lora(path: Path, scale: float = 1.0) -> Lora:
    """Read a file in the naming of diffusers, peft or Kohya.

    Parameters
    ----------
    path : Path
        Safetensors, in any type; or a folder that peft's ``save_pretrained`` wrote.
    scale : float
        Strength.

    Raises
    ------
    LoraError
        Missing, damaged, a pickle, or as of :func:`lora_of`.
    """
    path = file_of(path)
    if path.suffix in PICKLES:
        raise LoraError(
            f"{path}: a pickle, which can hold code; save it as safetensors, or merge it when "
            "exporting: `bksdm export --lora FILE:SCALE`"
        )
    try:
        content = read_regular(path)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else error.strerror or "cannot be read"
        raise LoraError(f"{path}: {reason}; a LoRA is FILE or FILE:scale") from error
    tensors, header = parse_safetensors(path, content)
    return lora_of(path, scale, hashlib.sha256(content).hexdigest(), tensors, header)


def lora_of(
    path: Path, scale: float, sha256: str, tensors: Tensors, header: Mapping[str, str]
) -> Lora:
    """Return the LoRA of a file whose tensors are read.

    Parameters
    ----------
    path : Path
        The file, for messages; peft's configuration lies beside it.
    scale : float
        Strength.
    sha256 : str
        Of the file.
    tensors : mapping
        By the names in the file.
    header : mapping
        The file's ``__metadata__``.

    Raises
    ------
    LoraError
        Not a LoRA, of a kind other than two factors (LoHa, LoKr, DoRA, Tucker), half a pair,
        factors that do not fit each other, values that are not finite, or by peft without its
        ``adapter_config.json``; names the file and the layer.
    """
    pairs: dict[tuple[str, str], dict[str, NDArray[np.float32]]] = {}
    for key, tensor in tensors.items():
        prefix, module, part = _place(path, key)
        if not np.isfinite(tensor).all():
            raise LoraError(f"{path}: {key} holds values that are not finite numbers")
        if part in pairs.setdefault((prefix, module), {}):
            raise LoraError(f"{path}: {key} duplicates another of its tensors")
        pairs[prefix, module][part] = tensor
    if not pairs:
        raise LoraError(f"{path}: not a LoRA file, it holds no tensors")
    if any(prefix == PEFT_PREFIX for prefix, _ in pairs):
        config, origin = peft_config(path), f"{path.parent / PEFT_CONFIG}"
    else:
        config, origin = adapter_config(path, header), f"{path}: {HEADER}"
    layers = tuple(_layer(path, *place, parts, config, origin) for place, parts in pairs.items())
    return Lora(path, scale, sha256, layers)


def file_of(path: Path) -> Path:
    """Return the file of tensors in a folder that peft has saved; any other path unchanged."""
    if not os.path.exists(path / PEFT_CONFIG):
        return path
    return next((file for name in _PEFT_FILES if (file := path / name).exists()), path)


def _place(path: Path, key: str) -> tuple[str, str, str]:
    """Return prefix, module, and which of ``down``, ``up`` and ``alpha`` a tensor is."""
    for word, kind in _OTHER_KINDS.items():
        if word in key:
            raise LoraError(f"{path}: {key} belongs to {kind}; only plain LoRA is supported")
    match = _FACTOR.fullmatch(key)
    if match is None and not key.endswith(".alpha"):
        raise LoraError(f"{path}: not a LoRA file that can be used, it holds {key}")
    layer = match["layer"] if match else key.removesuffix(".alpha")
    prefix = next(known for known in _COMPONENTS if layer.startswith(known))
    module = layer.removeprefix(prefix).replace(".processor.", ".")
    if match and match["joint"] == "_lora.":
        parents, dot, last = module.rpartition(".")
        module = parents + dot + _OLD_PROCESSORS[_component(prefix, module)].get(last, last)
    return prefix, module, _HALVES[match["half"]] if match else "alpha"


def _component(prefix: str, module: str) -> str:
    of_text = module.startswith(_TEXT_LAYERS)
    return _COMPONENTS[prefix] or ("text_encoder" if of_text else "unet")


def _layer(
    path: Path,
    prefix: str,
    module: str,
    parts: Tensors,
    config: Mapping[str, object],
    config_from: str,
) -> LoraLayer:
    where = f"{path}: {prefix}{module}"
    for half in ("down", "up"):
        if half not in parts:
            raise LoraError(f"{where} has {' and '.join(parts)}, but no {half}")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0] if down.ndim in (2, 4) else 0
    if not rank or up.ndim not in (2, 4) or up.shape[1:] != (rank, *(1,) * (up.ndim - 2)):
        raise LoraError(
            f"{where}: down {list(down.shape)} and up {list(up.shape)} do not fit each other"
        )
    if "alpha" not in parts:
        scaling = scaling_of(config_from, config, prefix, module, rank)
    elif parts["alpha"].size == 1:
        scaling = float(parts["alpha"].item()) / rank
    else:
        raise LoraError(f"{where}: alpha is {list(parts['alpha'].shape)}, not one number")
    return LoraLayer(
        name=prefix + module,
        component=_component(prefix, module),
        module=module,
        down=down,
        up=up,
        scaling=scaling,
    )
