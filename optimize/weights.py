"""The weights of a graph, which lie in files beside it.

One rule holds for all backends: a file lies in the graph's own folder, where it may be a link, as
in the cache of a model hub.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import onnx
from onnx import AttributeProto, TensorProto, helper

from bksdm.engines.errors import EngineError
from bksdm.engines.protocol import Array
from bksdm.storage.mapped_weights import map_file, tensor_at


def weight_files(proto: onnx.ModelProto) -> list[str]:
    """Return the locations of a graph's weights, relative to its folder, each once."""
    return sorted({external_place(tensor).get("location", "") for tensor in _external(proto.graph)})


def find_files(proto: onnx.ModelProto, folder: Path, network: str) -> dict[str, Path]:
    """Return the files that a graph's weights lie in, by location; links are followed.

    Constants and weights of subgraphs that lie outside become weights of the graph, in place:
    backends look for no others.

    Parameters
    ----------
    proto : ModelProto
        The graph.
    folder : Path
        Its folder.
    network : str
        What errors call the graph.

    Raises
    ------
    EngineError
        A file is missing, outside its folder or too short.
    """
    _hoist(proto.graph, proto.graph)
    files = {}
    for location in weight_files(proto):
        path = PurePosixPath(location)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise EngineError(f"{network}: weights at {location!r} are outside its folder")
        file = folder / path
        try:
            files[location] = file.resolve(strict=True)
            regular = file.is_file()
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise EngineError(f"{network}: {file} is missing") from error
        if not regular:
            raise EngineError(f"{network}: {file} is no regular file")
    _require_whole(proto, files, network)
    return files


def _require_whole(proto: onnx.ModelProto, files: Mapping[str, Path], network: str) -> None:
    """Refuse a file that ends before its weights do, of which backends tell in a page or never."""
    sizes = {location: file.stat().st_size for location, file in files.items()}
    for tensor in _external(proto.graph):
        place = external_place(tensor)
        location = place.get("location", "")
        # Not every exporter states the length.
        end = _offset(tensor, network) + int(place.get("length", 0))
        if end > sizes[location]:
            raise EngineError(
                f"{network}: the file of weights is too short for {tensor.name}: "
                f"{files[location]} has {sizes[location]} bytes of {end}; copy or export it anew"
            )


def _offset(tensor: TensorProto, network: str) -> int:
    try:
        return int(external_place(tensor).get("offset", 0))
    except ValueError as error:
        raise EngineError(f"{network}: {tensor.name} has a damaged offset") from error


def read_weights(
    proto: onnx.ModelProto, files: Mapping[str, Path], network: str
) -> dict[str, Array]:
    """Return the weights that lie in files, by name, mapped to memory.

    The memory may be written, without an effect on the files.

    Raises
    ------
    EngineError
        A file is too short or cannot be read, or a place in it is no number.
    """
    mapped = {location: _map(file, network) for location, file in files.items()}
    weights: dict[str, Array] = {}
    for tensor in _external(proto.graph):
        file = mapped[external_place(tensor).get("location", "")]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        size = math.prod(tensor.dims)
        offset = _offset(tensor, network)
        if not 0 <= offset <= offset + size * dtype.itemsize <= len(file):
            raise EngineError(f"{network}: the file of weights is too short for {tensor.name}")
        weights[tensor.name] = tensor_at(file, dtype, tensor.dims, offset)
    return weights


def move_locations(proto: onnx.ModelProto, locations: Mapping[str, str]) -> None:
    """Let weights name other locations, in place."""
    for tensor in _external(proto.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = locations[entry.value]


def external_place(tensor: TensorProto) -> dict[str, str]:
    """Return location, offset and length of a weight outside its graph."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _external(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Yield the tensors that lie outside a graph: weights, constants, and those of subgraphs."""
    yield from (tensor for tensor in graph.initializer if _is_outside(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and _is_outside(attribute.t):
                yield attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from _external(attribute.g)


def _is_outside(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _hoist(graph: onnx.GraphProto, main: onnx.GraphProto) -> None:
    """Turn constants and subgraph weights that lie outside into weights of ``main``, in place."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _hoist(attribute.g, main)
        if node.op_type == "Constant" and any(_is_outside(a.t) for a in node.attribute):
            node.CopyFrom(_read(main, node.attribute[0].t, node.output[0]))
    if graph is main:
        return
    outside = [tensor for tensor in graph.initializer if _is_outside(tensor)]
    for tensor in outside:
        graph.node.insert(0, _read(main, tensor, tensor.name))
        graph.initializer.remove(tensor)


def _read(main: onnx.GraphProto, tensor: TensorProto, name: str) -> onnx.NodeProto:
    """Add a weight under a unique name, and return the node that restores the old one."""
    weight = main.initializer.add()
    weight.CopyFrom(tensor)
    # Two branches of a condition may call different values the same.
    weight.name = f"{name}:{len(main.initializer)}"
    return helper.make_node("Identity", [weight.name], [name])


def _map(file: Path, network: str) -> mmap.mmap:
    try:
        return map_file(file)
    except (OSError, ValueError) as error:
        raise EngineError(f"{network}: {file} cannot be read ({error})") from error
