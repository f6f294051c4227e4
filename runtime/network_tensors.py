"""The names by which the runtime hands tensors to a bundle's networks; they are Optimum's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from bksdm.engines.errors import BundleError
from bksdm.engines.protocol import Engine
from bksdm.engines.variants import CONTROL_IMAGE, DOWN_RESIDUAL, MID_RESIDUAL
from bksdm.runtime.bundle import CONTROLNET

Opened = TypeVar("Opened", bound=Engine)

TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text_encoder": (("input_ids",), ("last_hidden_state",)),
    "unet": (("sample", "timestep", "encoder_hidden_states"), ("out_sample",)),
    "vae_decoder": (("latent_sample",), ("sample",)),
    "vae_decoder_tiny": (("latent_sample",), ("sample",)),
    # Its only output has had several names.
    "vae_encoder": (("sample",), ()),
    CONTROLNET: (
        ("sample", "timestep", "encoder_hidden_states", CONTROL_IMAGE),
        (f"{DOWN_RESIDUAL}0", MID_RESIDUAL),
    ),
    "safety_checker": (("clip_input",), ("scores",)),
}
"""Of each network the inputs and outputs that it cannot do without."""


def require_tensors(engine: Opened, model: Path) -> Opened:
    """Return an engine whose graph is the network that its folder says.

    Parameters
    ----------
    engine : Engine
        What was opened of the graph.
    model : Path
        ``model.onnx`` in the network's folder.

    Raises
    ------
    BundleError
        As of :func:`require_names`.
    """
    require_names(model, engine.inputs, engine.outputs)
    return engine


def require_names(model: Path, inputs: Collection[str], outputs: Collection[str]) -> None:
    """Check that a graph is the network that its folder says.

    Parameters
    ----------
    model : Path
        ``model.onnx`` in the network's folder.
    inputs, outputs : collection of str
        The graph's.

    Raises
    ------
    BundleError
        The graph lacks an input or output; it may be another network's.
    """
    network = model.parent.name
    needed = TENSORS[CONTROLNET if network.startswith(CONTROLNET) else network]
    for kind, wanted, found in (("input", needed[0], inputs), ("output", needed[1], outputs)):
        if missing := [name for name in wanted if name not in found]:
            raise BundleError(
                f"{model}: no {network}, for it has no {kind} {missing[0]} (its {kind}s: "
                f"{', '.join(found)}); export the bundle anew"
            )
