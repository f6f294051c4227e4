"""Read LoRA files as the export does: also those that torch has pickled."""

from __future__ import annotations

from pathlib import Path

from bksdm.engines.errors import LoraError
from bksdm.export.weights import read_pickle
from bksdm.runtime.lora import file
from bksdm.runtime.lora.file import PICKLES, Lora, file_of, lora_of
from bksdm.storage.digest import sha256_of


def read_lora(path: Path, scale: float = 1.0) -> Lora:
    """Read a file as :func:`bksdm.runtime.lora.file.read_lora` does, or a pickle of tensors alone.

    Raises
    ------
    LoraError
        As of that one.
    ExportError
        A pickle is damaged, or holds something else.
    """
    path = file_of(path)
    if path.suffix not in PICKLES:
        return file.read_lora(path, scale)
    try:
        tensors = {name: tensor.float().numpy() for name, tensor in read_pickle(path).items()}
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if missing else error.strerror or "cannot be read"
        raise LoraError(f"{path}: {reason}; --lora takes FILE or FILE:scale") from error
    return lora_of(path, scale, sha256_of(path), tensors, {})
