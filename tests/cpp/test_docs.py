"""The C++ of the documentation compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..docs.examples_of_pages import ROOT, examples
from .conftest import SOURCE, execute

CODE = [e for e in examples(ROOT / "docs" / "cpp.md") if e.language == "cpp"]


@pytest.mark.parametrize("example", CODE, ids=lambda example: example.name)
def test_it_compiles(built, tmp_path, example):
    openvino = pytest.importorskip("openvino")
    source = tmp_path / "x.cpp"
    source.write_text(example.code)
    include = Path(openvino.__file__).parent / "include"
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE / 'include'}")
    execute("c++", *flags, "-isystem", include, "-fsyntax-only", source)
