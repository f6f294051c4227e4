"""Sessions of ONNX Runtime on graphs whose weights lie in other files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

from bksdm.storage.weights import find_files, move_locations

ROOT = Path(os.path.abspath(os.sep))
# Of what ONNX Runtime logs: whatever fails is said by the error that it raises.
FATAL = 4


@dataclass(frozen=True)
class Graph:
    """A graph that can be opened wherever the files of its weights lie.

    Attributes
    ----------
    name : str
        Of the network.
    proto : ModelProto
        Its weights name their files from the root of the file system.
    origins : mapping
        What these locations stood for.
    """

    name: str
    proto: onnx.ModelProto
    origins: Mapping[str, str]

    @property
    def files(self) -> dict[str, Path]:
        """The files by the graph's own locations."""
        return {location: Path(ROOT, location) for location in self.origins}


def find_graph(proto: onnx.ModelProto, folders: Mapping[str, Path], name: str) -> Graph:
    """Return a graph with its weights found; see :func:`~bksdm.storage.weights.find_files`.

    ONNX Runtime takes weights from one folder and what is inside of it only, links resolved. That
    folder is the root, so that links into a hub's cache can be read, and files of two folders.

    Raises
    ------
    EngineError
        A file is missing or lies elsewhere.
    """
    files = find_files(proto, folders, name)
    named = {location: file.relative_to(ROOT).as_posix() for location, file in files.items()}
    move_locations(proto, named)
    return Graph(name, proto, {place: location for location, place in named.items()})


def graph_of(proto: onnx.ModelProto, model: Path) -> Graph:
    """Return a graph whose weights lie beside ``model``.

    Raises
    ------
    EngineError
        A file is missing or lies elsewhere.
    """
    return find_graph(proto, {"": model.parent}, model.parent.name)


def open_session(
    graph: Graph, options: ort.SessionOptions, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> ort.InferenceSession:
    """Return a session on providers, the first before the others and none that is not named."""
    options.log_severity_level = FATAL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(ROOT)
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
    # A place, and the signature of the function there: "/x/y.cc:12 void f(int) [with T = int] ".
    signature = r"[^()]*\([^()]*\)( const)?( \[[^\]]*\])? "
    text = re.sub(rf"(\S*/)?\w+\.(cc|h|cpp):\d+ ({signature})?", "", text)
    text = re.sub(r"(\[ONNXRuntimeError\] )?: \d+ : [A-Z_]+ : ", "", text).strip()
    return text if len(text) <= 300 else text[:299] + "…"
