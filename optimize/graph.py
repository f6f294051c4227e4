"""Read an ONNX graph without its weights."""

from __future__ import annotations

from pathlib import Path

import onnx

from bksdm.engines.errors import BundleError


def load_graph(model: Path) -> onnx.ModelProto:
    """Read a graph without its weights.

    Raises
    ------
    BundleError
        The file is missing, or no ONNX graph.
    """
    if not model.is_file():
        raise BundleError(f"{model}: missing, or no regular file")
    try:
        return onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no stable home
        raise BundleError(f"{model}: not an ONNX file") from error
