"""The type that the networks of a bundle compute in."""

from __future__ import annotations

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import RequestError
from bksdm.engines.registry import backends
from bksdm.runtime.bundle import Bundle
from bksdm.storage.precision import BFLOAT16, FLOAT32, FP8, INT8, LOWER, PRECISIONS, QUANTIZED

KNOWN = (*PRECISIONS, BFLOAT16, *QUANTIZED)
OTHER_NAMES = {
    **{"half": "float16", "float": "float32", "double": "float64"},
    **{"fp16": "float16", "fp32": "float32", "bf16": "bfloat16"},
}
"""Types as torch calls them too, and as many programs do."""


def type_name(value: object) -> str:
    """Return the name of what may be torch's or numpy's type, or a word for one."""
    name = getattr(value, "__name__", str(value)).removeprefix("torch.")
    return OTHER_NAMES.get(name, name)


def precision_for(bundle: Bundle, wanted: object, engine: Capabilities) -> str:
    """Return what a bundle's UNet and VAE compute in on an engine: by default its own type.

    A bundle in float32 may be computed in bfloat16; every other type is made before: float16 by
    ``bksdm export``, int8 and fp8 by ``bksdm quantize``.

    Raises
    ------
    RequestError
        The type is unknown, the bundle has another, or the engine does not compute in it.
    """
    own = bundle.precision
    precision = own if wanted is None else type_name(wanted)
    if precision not in KNOWN:
        raise RequestError(f"unknown precision {wanted!r:.60}; known: {', '.join(KNOWN)}")
    if precision != own and (precision, own) != (BFLOAT16, FLOAT32.name):
        raise RequestError(f"{bundle.path} is {own}, not {precision}; {_make(precision)}")
    if precision not in engine.precisions:
        engines = backends().values()
        able = [each.name for each in engines if precision in each.capabilities.precisions]
        raise RequestError(
            f"precision {precision} is not for the engine {engine.name}; use {' or '.join(able)}"
        )
    return precision


def precision_of(network: str, precision: str) -> str:
    """Return what a network of a bundle computes in that computes in ``precision`` where it can.

    The text encoder takes a hundredth of the time, and its errors are in every step.
    """
    exact = network in ("text_encoder", "safety_checker") and precision in LOWER
    return FLOAT32.name if exact else precision


def _make(precision: str) -> str:
    if precision == INT8:
        return "make an int8 bundle of one in float32: bksdm quantize BUNDLE -o NEW"
    if precision == FP8:
        return "make an fp8 bundle of one in float16: bksdm quantize BUNDLE --to fp8 -o NEW"
    dtype = FLOAT32.name if precision == BFLOAT16 else precision
    return f"export the model with --dtype {dtype}"
