"""Trace a torch network to a checked, reproducible ONNX file that holds no private paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import torch

from bksdm.engines.errors import ExportError
from bksdm.export.library_errors import library_errors
from bksdm.export.networks import Case, Network
from bksdm.export.quiet import quiet
from bksdm.storage.precision import FLOAT32, Precision

OPSET = 23
GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
# Below, the weights stay inside the graph: one file to copy. Far below protobuf's limit of 2 GiB.
_INLINE_BYTES = 2**20
# Sizes to trace with: all different, and large enough that no axis shrinks to 1 on its way down
# four blocks, which the tracer would take for a constant.
_TRACED = Case(batch=2, height=24, width=40, seed=0)


def write_graph(network: Network, folder: Path, precision: Precision = FLOAT32) -> Path:
    """Trace a network and write ``model.onnx``, with ``model.onnx.data`` when it is large.

    Parameters
    ----------
    network
        In float32; converted in place to the precision.
    folder
        An existing folder.
    precision
        Of weights, activations, inputs and outputs. Token ids stay int64 and the timestep float32:
        its sine and cosine need more than float16's 11 bits for values up to 999.

    Returns
    -------
    Path
        The graph's file: opset 23, batch, height and width dynamic, nothing in it about the machine
        that wrote it.

    Raises
    ------
    ExportError
        The network cannot be traced, or the result is not valid ONNX.
    """
    network.to(getattr(torch, precision.name))
    scale = network.traced_scale
    case = replace(_TRACED, height=scale * _TRACED.height, width=scale * _TRACED.width)
    arguments = cast_inputs(network.example(case), network.inputs, precision)
    with quiet():
        model = _trace(network, arguments)
    _anonymise(model)
    _rename(model, network)
    model.graph.name = network.component
    path = folder / GRAPH_FILE
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    onnx_ir.save(model, path, external_data=DATA_FILE if size > _INLINE_BYTES else None)
    try:
        # By path: the checker then also opens the external data, and 2 GiB is no limit.
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        line = str(error).strip().splitlines()[0]
        raise ExportError(f"{network.component}: not a valid graph: {line}") from error
    return path


def cast_inputs(
    tensors: tuple[torch.Tensor, ...], names: tuple[str, ...], precision: Precision
) -> tuple[torch.Tensor, ...]:
    """Return inputs in the types of the graph: of its precision, except for the timestep."""
    dtype = getattr(torch, precision.name)
    return tuple(
        tensor.to(dtype) if tensor.is_floating_point() and name != "timestep" else tensor
        for tensor, name in zip(tensors, names, strict=True)
    )


def _trace(network: Network, arguments: tuple[torch.Tensor, ...]) -> onnx_ir.Model:
    shapes = network.dynamic_shapes()
    with library_errors(f"{network.component} cannot be traced"), torch.no_grad():
        # Here rather than inside torch.onnx, which tries several ways one after another.
        traced = torch.export.export(network, arguments, dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(
            traced,
            (),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{network.component} cannot be traced: torch.onnx returned no graph")
    return program.model


def _anonymise(model: onnx_ir.Model) -> None:
    """Remove source paths, stack traces and versions: they are private, large, and vary."""
    model.producer_name = model.producer_version = None
    model.domain = model.doc_string = None
    _clear(model)
    graphs: list[Any] = [model.graph, *model.functions.values()]
    for graph in graphs:
        _clear(graph)
        graph.doc_string = None
        for value in (*graph.inputs, *graph.outputs):
            _clear(value)
        for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
            _clear(node)
            node.doc_string = None
            for value in node.outputs:
                _clear(value)
    for value in model.graph.initializers.values():
        _clear(value)
        if value.const_value is not None:
            value.const_value.metadata_props.clear()
            value.const_value.doc_string = None


def _rename(model: onnx_ir.Model, network: Network) -> None:
    """Give weights the checkpoint's names, and the output's sizes the inputs' symbols."""
    _name_folded(model, network)
    for value in list(model.graph.initializers.values()):
        if value.name is not None:
            value.name = value.name.removeprefix("model.")
    if network.component == "vae_encoder":
        # The tracer numbers the symbol behind a size that is given as a multiple of eight.
        output = model.graph.outputs[0]
        if output.shape is not None:
            batch, channels, *_ = output.shape
            output.shape = onnx_ir.Shape([batch, channels, "height", "width"])


def _name_folded(model: onnx_ir.Model, network: Network) -> None:
    """Name the weights that the tracer transposed (``<name>.T``) or reshaped, and numbered."""
    named = {value.name for value in model.graph.initializers.values()}
    forms: dict[str, Any] = {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 2 and name not in named:
            forms |= {name: tensor.numpy(), f"{name}.T": tensor.numpy().T}
    for value in list(model.graph.initializers.values()):
        if value.name is None or "." in value.name or value.const_value is None:
            continue
        stored = np.squeeze(value.const_value.numpy())
        if stored.ndim != 2:
            continue
        for name, form in forms.items():
            # The first row tells almost all apart without reading them whole.
            same = form.shape == stored.shape and np.array_equal(form[0], stored[0])
            if same and np.array_equal(form, stored):
                value.name = name
                forms = {
                    key: f
                    for key, f in forms.items()
                    if key.removesuffix(".T") != name.removesuffix(".T")
                }
                break


def _clear(item: Any) -> None:
    item.metadata_props.clear()
    if isinstance(item, onnx_ir.Value):
        item.doc_string = None
