"""Write a model repository of Triton's from a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from bksdm.runtime.bundle import Bundle
from bksdm.storage.publishing import publishing

BUNDLE = "bundle"
"""Folder of the bundle in a version of the model."""
MODEL = '''"""Drawn by bksdm-runtime, which has to be installed for the Python that Triton runs."""

from bksdm.serve.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
CONFIG = """backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]

# Options of a picture are parameters of the request. What these cannot hold, as lists, is a JSON
# object in UTF-8. Pictures to start from are PNG, JPEG or WebP, as files.
input [
  {{ name: "options" data_type: TYPE_UINT8 dims: [ -1 ] optional: true }},
  {{ name: "image" data_type: TYPE_UINT8 dims: [ -1 ] optional: true }},
  {{ name: "mask" data_type: TYPE_UINT8 dims: [ -1 ] optional: true }}
]
# Pixels are [images, height, width, 3]; about is a JSON object with step, steps, and in the end the
# options as they were carried out.
output [
  {{ name: "pixels" data_type: TYPE_UINT8 dims: [ -1, -1, -1, 3 ] }},
  {{ name: "about" data_type: TYPE_UINT8 dims: [ -1 ] }}
]
{parameters}"""
PARAMETER = 'parameters {{ key: "{0}" value {{ string_value: "{1}" }} }}\n'


def write_repository(
    bundle: Bundle, target: Path, name: str, parameters: Mapping[str, str | float]
) -> None:
    """Write a repository with one model.

    Parameters
    ----------
    bundle : Bundle
        Copied into it.
    target : Path
        A folder that does not exist.
    name : str
        Of the model.
    parameters : mapping
        What :class:`~bksdm.serve.triton.TritonPythonModel` is told: ``engine``, ``replicas``,
        ``threads`` and ``max_batch``, of which 0 is measured, and ``queue``.

    Raises
    ------
    ExportError
        It cannot be written, or is there already.
    """
    with publishing(target) as folder:
        version = folder / name / "1"
        for file in (bundle.path / "model_index.json", *bundle.files()):
            copy = version / BUNDLE / file.relative_to(bundle.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        (version / "model.py").write_text(MODEL)
        stated = "".join(PARAMETER.format(key, value) for key, value in parameters.items())
        (folder / name / "config.pbtxt").write_text(CONFIG.format(parameters=stated))
