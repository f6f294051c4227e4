"""Open ONNX Runtime's sessions on graphs whose weights are mapped to memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

from bksdm.engines.protocol import Array
from bksdm.engines.weights import map_files

# Of what ONNX Runtime logs: whatever fails is said by the error that it raises.
FATAL = 4


@dataclass(frozen=True)
class Graph:
    """A graph and the files of its weights.

    Attributes
    ----------
    proto : ModelProto
        The graph.
    files : mapping
        Bytes by the locations that the graph's weights name; see
        :func:`~bksdm.engines.weights.map_files`.
    """

    proto: onnx.ModelProto
    files: Mapping[str, Array]


def graph_of(proto: onnx.ModelProto, model: Path) -> Graph:
    """Return a graph with the files of its weights, which lie beside ``model``.

    Raises
    ------
    EngineError
        A file is missing or lies elsewhere.
    """
    return Graph(proto, map_files(proto, {"": model.parent}, model.parent.name))


def open_session(
    graph: Graph, options: ort.SessionOptions, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> ort.InferenceSession:
    """Return a session on providers, the first before the others."""
    options.log_severity_level = FATAL
    if graph.files:
        options.add_external_initializers_from_files_in_memory(
            list(graph.files), list(graph.files.values()), [len(f) for f in graph.files.values()]
        )
    # Without the fallback, with which a GPU's failure becomes a slow success on the CPU.
    return ort.InferenceSession(
        graph.proto.SerializeToString(), options, providers=list(providers), enable_fallback=0
    )


def reason_of(error: Exception) -> str:
    """Return ONNX Runtime's reason in one line, without its error codes and places in its code."""
    text = " ".join(str(error).split()) or repr(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text:
        return "not enough memory"
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    # A place, and the signature of the function there: "/x/y.cc:12 void f(int) [with T = int] ".
    signature = r"[^()]*\([^()]*\)( const)?( \[[^\]]*\])? "
    text = re.sub(rf"(\S*/)?\w+\.(cc|h|cpp):\d+ ({signature})?", "", text)
    return text if len(text) <= 300 else text[:299] + "…"
