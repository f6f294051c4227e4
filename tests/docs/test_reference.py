"""The reference of Python lists every public name; Sphinx fails for names that are not there."""

from __future__ import annotations

import re

import pytest

import bksdm

from .examples_of_pages import ROOT

LISTED = re.findall(
    r"^\.\. auto\w+:: bksdm\.(\w+)$",
    (ROOT / "docs" / "python.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


@pytest.mark.parametrize("name", [name for name in bksdm.__all__ if name != "__version__"])
def test_a_public_name_is_listed(name):
    assert name in LISTED
