"""Make another network of the same weights, by its name in :mod:`bksdm.engines.variants`."""

from __future__ import annotations

import onnx

from bksdm.engines.errors import EngineError
from bksdm.engines.variants import CLIP_SKIP, CONTROLLED, DEEP, HINT, HINTED, SHALLOW
from bksdm.optimize.clip_skip import skip_layers
from bksdm.optimize.control import keep_hint, take_hint, take_residuals
from bksdm.optimize.feature_reuse import keep_shallow, show_deep_features


def apply_variant(proto: onnx.ModelProto, variant: str) -> None:
    """Change a graph in place; the empty name changes nothing.

    Raises
    ------
    EngineError
        The name is unknown, or the graph has not what the change needs.
    """
    if variant == DEEP:
        show_deep_features(proto)
    elif variant == SHALLOW:
        keep_shallow(proto)
    elif variant == CONTROLLED:
        take_residuals(proto)
    elif variant == HINT:
        keep_hint(proto)
    elif variant == HINTED:
        take_hint(proto)
    elif variant.startswith(CLIP_SKIP):
        skip_layers(proto, int(variant.removeprefix(CLIP_SKIP)))
    elif variant:
        raise EngineError(f"unknown variant {variant!r} of a network")
