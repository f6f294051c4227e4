"""Timings of kernels that TensorRT measured, kept from one build to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bksdm.storage.files import read_regular, write_file


def attach(config: Any, path: Path) -> None:
    """Let a build start from the timings in a file; one that does not fit is as good as none.

    Parameters
    ----------
    config
        TensorRT's ``IBuilderConfig``.
    path : Path
        Need not exist.
    """
    known = read_regular(path) if path.is_file() else b""
    cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)


def keep(config: Any, path: Path) -> None:
    """Write the timings of a build."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, bytes(config.get_timing_cache().serialize()))
