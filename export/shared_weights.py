"""Let a float32 graph read its weights from the checkpoint's own float16 file.

ONNX external data is a place in a file, and safetensors is a header before plain arrays. So one
file serves diffusers and the engine: half the size of float32 weights, and stored once. The graph
casts them to float32, which ONNX Runtime does once at load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bksdm.engines.errors import ExportError
from bksdm.storage.files import open_regular

_PREFIXES = ("", "text_model.")


def share_weights(graph: Path, weights: Path, target: Path) -> None:
    """Write a copy of ``graph`` that reads its weights from ``weights``.

    Parameters
    ----------
    graph : Path
        A float32 graph of :func:`bksdm.export.graph.write_graph`.
    weights : Path
        Safetensors file with the float16 tensors that it was exported from.
    target : Path
        The new graph, in the folder of ``weights``.

    Raises
    ------
    ExportError
        A weight is not in the file, or differs from it.
    """
    if target.parent.resolve() != weights.parent.resolve():
        raise ExportError(f"{target} must lie beside {weights.name}: ONNX looks nowhere else")
    model = onnx.load(str(graph))
    table, start = _read_header(weights)
    data = np.memmap(weights, np.uint8, "r")
    nodes: list[onnx.NodeProto] = []
    kept: list[TensorProto] = []
    for value in model.graph.initializer:
        if "." not in value.name or value.data_type != TensorProto.FLOAT:
            kept.append(value)
            continue
        name = value.name.removesuffix(".T")
        key = next((p + name for p in _PREFIXES if p + name in table), None)
        if key is None or table[key]["dtype"] != "F16":
            raise ExportError(f"{weights.name} has no float16 tensor {name}")
        first, last = (start + offset for offset in table[key]["data_offsets"])
        stored = data[first:last].view(np.float16).reshape(table[key]["shape"])
        wanted = numpy_helper.to_array(value)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=stored.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": weights.name, "offset": first, "length": last - first}
        for field, content in place.items():
            tensor.external_data.add(key=field, value=str(content))
        kept.append(tensor)
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("Cast", [], {"to": TensorProto.FLOAT})
        ]
        array = stored
        if value.name.endswith(".T"):
            steps.append(("Transpose", [], {"perm": [1, 0]}))
            array = stored.T
        if array.shape != wanted.shape:
            shape = numpy_helper.from_array(np.array(wanted.shape, np.int64), f"{name}:shape")
            kept.append(shape)
            steps.append(("Reshape", [shape.name], {}))
        if not np.array_equal(array.astype(np.float32).reshape(wanted.shape), wanted):
            raise ExportError(f"{name} differs from {weights.name}")
        nodes += _chain(name, value.name, steps)
    _rename_inputs(model.graph, {node.output[0] for node in nodes})
    ordered = [*nodes, *model.graph.node]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(ordered)
    model.graph.initializer.extend(kept)
    onnx.save(model, str(target))
    onnx.checker.check_model(str(target))


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the table of a safetensors file and where its data begins."""
    with open_regular(path) as stream:
        length = int.from_bytes(stream.read(8), "little")
        table: dict[str, Any] = json.loads(stream.read(length))
    return table, 8 + length


def _chain(
    source: str, old: str, steps: list[tuple[str, list[str], dict[str, Any]]]
) -> list[onnx.NodeProto]:
    """Return nodes from ``source`` to the value that consumers of ``old`` read."""
    nodes = []
    for index, (kind, extra, attributes) in enumerate(steps):
        last = index == len(steps) - 1
        output = f"{old}:float32" if last else f"{old}:{kind}"
        nodes.append(helper.make_node(kind, [source, *extra], [output], **attributes))
        source = output
    return nodes


def _rename_inputs(graph: onnx.GraphProto, available: set[str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if f"{name}:float32" in available:
                node.input[index] = f"{name}:float32"
