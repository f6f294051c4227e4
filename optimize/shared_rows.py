"""Compute once what several rows of a UNet's batch share.

With guidance every latent is in the batch twice, beside a text and beside none. Up to the first
layer that looks at the text both rows are equal, the first and largest self-attention included: a
fourteenth of BK-SDM's time in bfloat16. So latents and timesteps are given once, texts row by row,
and one more input says which latents a row has. What a row gives stays the same but for rounding.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from bksdm.engines.variants import HINT_FEATURES, SAMPLE_OF_ROW

PER_SAMPLE = ("sample", "timestep", HINT_FEATURES)
ROWS = "rows"
_OF_ROWS, _ONCE = ":rows", ":once"


def share_rows(model: onnx.ModelProto) -> bool:
    """Give a UNet the input :data:`SAMPLE_OF_ROW`, int64 [rows], in place.

    ``sample`` and ``timestep``, and a ControlNet's ``hint_features``, then have as many entries as
    there are different latents; all other inputs and the outputs have as many as there are rows.

    Returns
    -------
    bool
        Whether it was done: not where timesteps have no axis of the batch, where a node holds
        graphs, or where no output depends on what rows differ in.
    """
    graph = model.graph
    stored = {weight.name for weight in graph.initializer}
    inputs = {value.name: value for value in graph.input if value.name not in stored}
    batches = {_batch_of(inputs[name]) for name in PER_SAMPLE if name in inputs}
    differing = set(inputs) - set(PER_SAMPLE)
    for node in graph.node:
        if differing.intersection(node.input):
            differing.update(node.output)
    outputs = {value.name for value in graph.output}
    nested = any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)
    if len(batches) != 1 or "" in batches or nested or not outputs & differing:
        return False
    _Sharing(graph, differing).rewrite()
    alike = outputs - differing
    _repeat(graph, alike)
    differing |= alike
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.name in differing else ():
            if dim.dim_param in batches:
                dim.dim_param = ROWS
    graph.input.append(helper.make_tensor_value_info(SAMPLE_OF_ROW, TensorProto.INT64, [ROWS]))
    return True


def _repeat(graph: onnx.GraphProto, outputs: set[str]) -> None:
    """Give every row outputs that are alike in several, as a ControlNet's first are."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{name}{_ONCE}" if name in outputs else name for name in names]
    for name in sorted(outputs):
        graph.node.append(
            helper.make_node("Gather", [f"{name}{_ONCE}", SAMPLE_OF_ROW], [name], axis=0)
        )


class _Sharing:
    """Nodes of a graph in their order, and what rows take from what they share.

    Shapes are arithmetic of their own: where rows differ, they have to be those of all rows.
    """

    def __init__(self, graph: onnx.GraphProto, differing: set[str]) -> None:
        self._graph = graph
        self._differing = differing
        self._shared = set(PER_SAMPLE)
        self._shapes: dict[str, onnx.NodeProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._made: set[str] = set()

    def rewrite(self) -> None:
        for node in self._graph.node:
            known = {name for name in node.input if name in self._shared | set(self._shapes)}
            if node.output[0] in self._differing:
                for position, name in enumerate(node.input):
                    if name in known:
                        node.input[position] = self._of_rows(name)
            elif node.op_type in ("Shape", "Size") or (known and known <= set(self._shapes)):
                self._shapes.update(dict.fromkeys(node.output, node))
            elif known:
                self._shared.update(node.output)
            self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _of_rows(self, name: str) -> str:
        """Return the name of a tensor or shape that is as if all rows had been computed."""
        if name not in self._shared and name not in self._shapes:
            return name
        made = name + _OF_ROWS
        if made in self._made:
            return made
        if name in self._shared:
            self._nodes.append(helper.make_node("Gather", [name, SAMPLE_OF_ROW], [made], axis=0))
            self._made.add(made)
            return made
        copy = onnx.NodeProto()
        copy.CopyFrom(self._shapes[name])
        copy.name += _OF_ROWS
        inputs = [self._of_rows(each) for each in copy.input]
        outputs = [each + _OF_ROWS for each in copy.output]
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        self._nodes.append(copy)
        self._made.update(outputs)
        return made


def _batch_of(value: onnx.ValueInfoProto) -> str:
    """Return the name of a tensor's first axis, or nothing where it has none."""
    dims = value.type.tensor_type.shape.dim
    return dims[0].dim_param if dims else ""
