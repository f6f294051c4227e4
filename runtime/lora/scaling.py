"""Read the scale of a LoRA that is stored apart from its tensors, by diffusers or peft."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm.engines.errors import BundleError, LoraError
from bksdm.runtime.bundle import read_json

HEADER = "lora_adapter_metadata"
"""Key under which diffusers writes it."""
PEFT_CONFIG = "adapter_config.json"
"""File that peft writes beside the tensors."""
PEFT_PREFIX = "base_model.model."
"""Prefix of layer names in peft's files, for every network."""
# peft's ways to start a training that change the network's own weights as well.
_CHANGES_NETWORK = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Fields of peft's that make more of the factors than a product, or of the network.
_NOT_PLAIN = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
)
# Without groups no pattern takes longer than the square of a name's length or so.
_PATTERN = re.compile(r"[\w.\\^$*+?|\[\]-]{1,200}")
_LARGEST = 1e30


def adapter_config(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of ``peft.LoraConfig`` that diffusers' ``save_lora_weights`` keeps.

    Parameters
    ----------
    path : Path
        The file, for messages.
    header : mapping
        The file's ``__metadata__``.

    Returns
    -------
    dict
        Keys such as ``unet.lora_alpha``; empty if the file has no such field.

    Raises
    ------
    LoraError
        The field is no JSON object.
    """
    try:
        config = json.loads(header.get(HEADER) or "{}")
    except (ValueError, RecursionError) as error:
        raise LoraError(f"{path}: {HEADER} in its header is not valid JSON") from error
    if not isinstance(config, dict):
        raise LoraError(f"{path}: {HEADER} in its header is no JSON object")
    return config


def peft_config(path: Path) -> dict[str, Any]:
    """Return the fields of the ``peft.LoraConfig`` beside a file, as :func:`adapter_config` does.

    Raises
    ------
    LoraError
        There is none, and the tensors alone do not say what they are multiplied by; or it is no
        JSON object, or asks for more than a product of two factors.
    """
    config = path.parent / PEFT_CONFIG
    if not config.exists():
        raise LoraError(
            f"{path}: saved by peft, whose {PEFT_CONFIG} says what it is multiplied by; put that "
            "beside it"
        )
    try:
        fields = read_json(config)
    except BundleError as error:
        raise LoraError(str(error)) from error
    for name in _NOT_PLAIN:
        if fields.get(name):
            raise LoraError(f"{config}: {name} is set; only plain LoRA is supported")
    return {PEFT_PREFIX + name: value for name, value in fields.items()}


def scaling_of(where: str, config: Mapping[str, Any], prefix: str, module: str, rank: int) -> float:
    """Return the factor of ``up @ down`` of a layer; 1 if none is stated.

    As peft's ``LoraLayer`` has it: ``alpha / r``, or ``alpha / sqrt(r)`` where the rank is
    stabilised (Kalajdzievski 2023, arXiv 2312.03732). An alpha of ``alpha_pattern`` counts for the
    modules whose name its key, a regular expression, matches as a whole or after a dot.

    Parameters
    ----------
    where : str
        What the fields were read from, for messages.
    config : mapping
        Of :func:`adapter_config` or :func:`peft_config`.
    prefix : str
        ``unet.``, ``text_encoder.``, peft's or nothing; as before the layers' names.
    module : str
        The layer's name after the prefix.
    rank : int
        Of the factors.

    Raises
    ------
    LoraError
        A field is of the wrong type, or asks for more than a product of two factors.
    """
    start = config.get(f"{prefix}init_lora_weights")
    if config.get(f"{prefix}use_dora"):
        raise LoraError(f"{where}: {prefix}{module} uses DoRA; only plain LoRA is supported")
    if isinstance(start, str) and start.startswith(_CHANGES_NETWORK):
        raise LoraError(f"{where}: made with {start}, which changes the network's own weights too")
    field, alpha = f"{prefix}lora_alpha", config.get(f"{prefix}lora_alpha", rank)
    patterns = config.get(f"{prefix}alpha_pattern") or {}
    try:
        for pattern, value in patterns.items():
            if not _PATTERN.fullmatch(pattern):
                raise LoraError(
                    f"{where}: {prefix}alpha_pattern has {pattern[:80]!r}, not a pattern of module "
                    "names without groups"
                )
            if re.match(rf"(.*\.)?({pattern})$", module):
                field, alpha = f"{prefix}alpha_pattern", value
                break
    except (AttributeError, TypeError, re.error) as error:
        raise LoraError(f"{where}: {prefix}alpha_pattern is not valid") from error
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not number or not -_LARGEST <= alpha <= _LARGEST:
        shown = repr(alpha)[:80]
        raise LoraError(f"{where}: {field} is {shown}, not a finite number")
    stabilised = config.get(f"{prefix}use_rslora")
    return float(alpha) / (math.sqrt(rank) if stabilised else rank)
