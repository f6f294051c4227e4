"""Silence the libraries while they load and trace."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# What is worth knowing from these reaches the user as an ExportError or in the parity table.
_TALKERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "diffusers", "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, log records below ERROR and progress bars of the export libraries.

    Everything is restored afterwards, so a caller's own logging does not change.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    libraries = (diffusers_logging, transformers_logging)
    bars = [library.is_progress_bar_enabled() for library in libraries]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        for library in libraries:
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for library, enabled in zip(libraries, bars, strict=True):
            if enabled:
                library.enable_progress_bar()
