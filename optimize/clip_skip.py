"""Skip the last layers of a text encoder."""

from __future__ import annotations

import onnx

from bksdm.engines.errors import EngineError
from bksdm.optimize.needed import keep_needed


def skip_layers(model: onnx.ModelProto, count: int) -> None:
    """Let the final normalisation of CLIP's text tower read an earlier hidden state, in place.

    As ``clip_skip`` of diffusers' ``StableDiffusionPipeline``: the result is
    ``final_layer_norm(hidden_states[-(count + 1)])``.

    Parameters
    ----------
    model : ModelProto
        Its layers normalise twice, at their beginning and before their feed-forward network.
    count : int
        Layers to leave out, below their number.

    Raises
    ------
    EngineError
        The graph is no such tower, or has too few layers.
    """
    norms = _norms(model)
    if not norms:
        raise EngineError(
            "text_encoder: clip_skip needs a graph with LayerNormalization at its end; export it "
            "with `bksdm export`"
        )
    layers = len(norms) // 2
    if not 0 <= count < layers:
        raise EngineError(f"text_encoder: has {layers} layers, of which clip_skip leaves none")
    if count:
        norms[-1].input[0] = norms[2 * (layers - count)].input[0]
        keep_needed(model.graph)


def skips_layers(model: onnx.ModelProto) -> bool:
    """Return whether a graph is such a tower with more than one layer."""
    return len(_norms(model)) > 3


def _norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return all normalisations of the tower, the final one last; empty if it is none."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    final = [node for node in norms if node.output[0] == model.graph.output[0].name]
    return norms if final == norms[-1:] and len(norms) % 2 == 1 else []
