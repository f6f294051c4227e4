"""Sessions of ONNX Runtime on graphs whose weights lie in other files."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnxruntime as ort

from bksdm.storage.stored_graph import Prepared

# Of what ONNX Runtime logs: whatever fails is said by the error that it raises.
FATAL = 4


def open_session(
    graph: Prepared,
    options: ort.SessionOptions,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """Return a session on providers, the first before the others and none that is not named.

    ONNX Runtime takes weights from one folder and what is inside of it only, links resolved: the
    graph's root, from which its files are named, so that they may lie in two folders.
    """
    options.log_severity_level = FATAL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.root)
    )
    # Without the fallback, with which a GPU's failure becomes a slow success on the CPU.
    return ort.InferenceSession(
        graph.content, options, providers=list(providers), enable_fallback=0
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
