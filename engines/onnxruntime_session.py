"""Sessions of ONNX Runtime on graphs whose weights lie in other files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from bksdm.engines.errors import BksdmError, EngineError
from bksdm.engines.onnxruntime_package import left_out, load_onnxruntime
from bksdm.engines.preparing import Preparation, open_prepared
from bksdm.storage.stored_graph import Prepared

if TYPE_CHECKING:
    import onnxruntime as ort

CPU_PROVIDER = "CPUExecutionProvider"
# Of what ONNX Runtime logs: whatever fails is said by the error that it raises.
FATAL = 4


def open_session(
    graph: Prepared,
    options: ort.SessionOptions,
    provider: str = CPU_PROVIDER,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> ort.InferenceSession:
    """Return a session on a provider; what that has no kernels for runs on the CPU.

    ONNX Runtime takes weights from one folder and what is inside of it only, links resolved: the
    graph's root, from which its files are named, so that they may lie in two folders.

    Parameters
    ----------
    graph : Prepared
        What to run.
    options : SessionOptions
        Of the session; changed here.
    provider : str
        By ONNX Runtime's name.
    settings : mapping
        Of the provider.

    Raises
    ------
    EngineError
        ONNX Runtime left the provider out, which it does without an error of its own.
    """
    options.log_severity_level = FATAL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.root)
    )
    # Without the fallback, with which a GPU's failure becomes a slow success on the CPU.
    session = load_onnxruntime().InferenceSession(
        graph.content, options, providers=[(provider, dict(settings))], enable_fallback=0
    )
    if provider not in session.get_providers():
        raise EngineError(left_out(provider))
    return session


def open_network(
    preparation: Preparation,
    cache: Path | None,
    open_graph: Callable[[Prepared], ort.InferenceSession],
) -> ort.InferenceSession:
    """Return the session of a network's prepared graph; see :func:`open_prepared`.

    Raises
    ------
    EngineError, BundleError
        It cannot be loaded.
    """
    try:
        return open_prepared(preparation, cache, open_graph)
    except BksdmError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types here
        where = f"{preparation.model.parent.name}/{preparation.model.name}"
        raise EngineError(f"{where}: cannot be loaded ({reason_of(error)})") from error


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
