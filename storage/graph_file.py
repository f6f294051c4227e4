"""What an ONNX file says of its graph and weights, read without the ``onnx`` package.

An ONNX file is a protobuf message (https://protobuf.dev/programming-guides/encoding). Only the few
fields that the runtime asks for are read, by their numbers in onnx.proto; all others are skipped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from bksdm.engines.errors import BundleError
from bksdm.engines.protocol import TensorSpec
from bksdm.storage.files import read_regular
from bksdm.storage.precision import FP8, INT8, QUANTIZED

WEIGHTS = {1: "float32", 10: "float16", 16: "bfloat16", 3: INT8, 17: FP8}
"""onnx.TensorProto's data types of weights; 17 is FLOAT8E4M3FN."""
DTYPES = {
    **{1: "float32", 10: "float16", 11: "float64"},
    **{2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool"},
}
"""Those of inputs and outputs."""
_GRAPH, _OPSET, _FUNCTION = 7, 8, 25
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15
_INPUT, _OUTPUT = 11, 12
_ATTRIBUTE = 5
_TENSORS, _GRAPHS = (5, 10), (6, 11)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class StoredTensor:
    """A weight or constant of a graph.

    Attributes
    ----------
    name : str
        Of the weight; constants may have none.
    dims : tuple of int
        Its shape.
    data_type : int
        Of onnx.TensorProto.
    location : str or None
        The file it lies in, relative to the graph's folder; None where the graph's own holds it.
    """

    name: str
    dims: tuple[int, ...]
    data_type: int
    location: str | None

    @property
    def is_weight(self) -> bool:
        """Tell a parameter from a folded constant: it carries its module's path.

        torch's older exporter, which Optimum uses, calls a parameter it reshaped ``onnx::…``.
        """
        return "." in self.name or self.name.startswith("onnx::")


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """What a graph's file says.

    Attributes
    ----------
    weights : tuple of StoredTensor
        Initializers of the graph.
    locations : tuple of str
        Files that weights and constants lie in, those of subgraphs included, sorted.
    nodes : int
        Of the graph.
    opset : int
        Version of ONNX's own operators; 0 if there are none.
    inputs, outputs : mapping
        Type and shape of each, by name.
    """

    weights: tuple[StoredTensor, ...]
    locations: tuple[str, ...]
    nodes: int
    opset: int
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def read(cls, model: Path) -> GraphFile:
        """Read a graph's file, not its weights.

        Raises
        ------
        BundleError
            The file is missing, or no ONNX graph.
        """
        if not model.is_file():
            raise BundleError(f"{model}: missing, or no regular file")
        try:
            return cls.parse(read_regular(model))
        except (ValueError, IndexError, RecursionError) as error:
            raise BundleError(f"{model}: not an ONNX file") from error

    @classmethod
    def parse(cls, content: bytes) -> GraphFile:
        """Read a graph's content.

        Raises
        ------
        ValueError, IndexError, RecursionError
            It is no ONNX graph.
        """
        return _parse(memoryview(content))

    @property
    def parameters(self) -> int:
        """Number of values in weights."""
        return sum(self._by_dtype().values())

    @property
    def dtype(self) -> str:
        """The type of most of them."""
        counts = self._by_dtype()
        return max(counts, key=counts.__getitem__) if counts else "none"

    @property
    def quantized(self) -> str | None:
        """What some of its products are rounded to: ``int8``, ``fp8`` or None."""
        return next((name for name in QUANTIZED if self._by_dtype()[name]), None)

    def describe(self) -> dict[str, Any]:
        """Return parameters, dtype, opset and node count."""
        return {
            "parameters": self.parameters,
            "dtype": self.dtype,
            "opset": self.opset,
            "nodes": self.nodes,
        }

    def _by_dtype(self) -> Counter[str]:
        counts: Counter[str] = Counter()
        for weight in self.weights:
            if weight.data_type in WEIGHTS and weight.is_weight:
                counts[WEIGHTS[weight.data_type]] += math.prod(weight.dims)
        return counts


def _parse(content: memoryview) -> GraphFile:
    graphs: list[memoryview] = []
    opset = 0
    outside: set[str] = set()
    for number, value in _fields(content):
        if number == _GRAPH:
            graphs.append(_message(value))
        elif number == _OPSET:
            entry = dict(_fields(_message(value)))
            if bytes(_message(entry.get(1, b""))) in (b"", b"ai.onnx"):
                opset = int(entry.get(2, 0))
        elif number == _FUNCTION:
            # The nodes of a function are its field 7; a graph's are field 1.
            for inner, node in _fields(_message(value)):
                if inner == 7:
                    outside |= _outside_of_node(_message(node))
    if not graphs:
        raise ValueError("no graph")
    # Of a field that stands twice, protobuf joins the parts.
    graph = graphs[0] if len(graphs) == 1 else memoryview(b"".join(graphs))
    weights, nodes = [], 0
    specs: dict[int, dict[str, TensorSpec]] = {_INPUT: {}, _OUTPUT: {}}
    for number, value in _fields(graph):
        if number == _NODE:
            nodes += 1
        elif number == _INITIALIZER:
            weights.append(_tensor(_message(value)))
        elif number in specs:
            specs[number] |= _spec(_message(value))
    outside |= _outside(graph)
    inputs, outputs = (MappingProxyType(specs[number]) for number in (_INPUT, _OUTPUT))
    return GraphFile(
        weights=tuple(weights),
        locations=tuple(sorted(outside)),
        nodes=nodes,
        opset=opset,
        inputs=inputs,
        outputs=outputs,
    )


def _spec(message: memoryview) -> dict[str, TensorSpec]:
    """Return type and shape of one ``ValueInfoProto`` by its name."""
    name = str(_message(_field(message, 1)), "utf-8")
    tensor = _message(_field(_message(_field(message, 2)), 1))
    shape: list[int | str] = []
    for number, dim in _fields(_message(_field(tensor, 2))):
        if number == 1:
            stated = dict(_fields(_message(dim)))
            size = stated.get(1)
            shape.append(
                size if isinstance(size, int) else str(_message(stated.get(2, b"")), "utf-8")
            )
    code = _field(tensor, 1)
    if code not in DTYPES:
        raise ValueError(f"{name} has the unsupported type {code}")
    return {name: TensorSpec(np.dtype(DTYPES[int(code)]), tuple(shape))}


def _field(message: memoryview, number: int) -> Any:
    """Return a field's value, the last if it stands several times; empty if it is missing."""
    return dict(_fields(message)).get(number, b"")


def _outside(graph: memoryview) -> set[str]:
    """Return the files of a graph's weights and constants."""
    found: set[str] = set()
    for number, value in _fields(graph):
        if number == _INITIALIZER:
            found |= _location(_message(value))
        elif number == _SPARSE_INITIALIZER:
            for _, tensor in _fields(_message(value)):
                found |= set() if isinstance(tensor, int) else _location(tensor)
        elif number == _NODE:
            found |= _outside_of_node(_message(value))
    return found


def _outside_of_node(node: memoryview) -> set[str]:
    found: set[str] = set()
    if b"location" not in bytes(node):  # almost all nodes, and this is the slow part
        return found
    for number, attribute in _fields(node):
        if number == _ATTRIBUTE:
            for inner, value in _fields(_message(attribute)):
                if inner in _TENSORS:
                    found |= _location(_message(value))
                elif inner in _GRAPHS:
                    found |= _outside(_message(value))
    return found


def _location(tensor: memoryview) -> set[str]:
    location = _tensor(tensor).location
    return set() if location is None else {location}


def _tensor(message: memoryview) -> StoredTensor:
    dims: list[int] = []
    data_type, name, external, place = 0, "", False, {}
    for number, value in _fields(message):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 2:
            data_type = int(value)
        elif number == 8:
            name = str(_message(value), "utf-8")
        elif number == 13:
            entry = dict(_fields(_message(value)))
            key, text = (str(_message(entry.get(part, b"")), "utf-8") for part in (1, 2))
            place[key] = text
        elif number == 14:
            external = value == 1
    return StoredTensor(
        name, tuple(dims), data_type, place.get("location", "") if external else None
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: a whole number, or bytes.

    Raises
    ------
    ValueError, IndexError
        It is no protobuf message.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("field 0")
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(message, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if position + size > end:
            raise ValueError("cut off")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _packed(content: memoryview) -> list[int]:
    position, numbers = 0, []
    while position < len(content):
        number, position = _varint(content, position)
        numbers.append(number)
    return numbers


def _message(value: int | memoryview | bytes) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number in place of a message")
    return memoryview(value)
