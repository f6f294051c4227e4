"""How Sphinx builds the documentation: ``sphinx-build -W -n docs site``."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

import bksdm

sys.path.append(str(Path(__file__).parent))

project = "bksdm-runtime"
author = "the authors of bksdm-runtime"
version = release = bksdm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
    "command_reference",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"bksdm-runtime {version}"
html_static_path: list[str] = []

myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
suppress_warnings = [
    # Pages begin where GitHub shows them, and a table needs no title.
    "myst.header",
]

# What the export needs is not needed to read its docstrings.
autodoc_mock_imports = [
    "diffusers",
    "huggingface_hub",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "torch",
    "transformers",
]
autodoc_member_order = "bysource"
# As in the code: a default may be a path of this machine.
autodoc_preserve_defaults = True
# Types are in the docstrings, with shapes and units.
autodoc_typehints = "none"
# Programs' flags begin with two dashes.
smartquotes = False
nitpick_ignore = [
    # Named in public docstrings, but not part of what programs need.
    ("py:class", "Capabilities"),
    ("py:class", "Denoising"),
    ("py:class", "Loras"),
    ("py:class", "Moved"),
    ("py:class", "Option"),
    ("py:data", "OPTIONS"),
]
# Types in docstrings are prose, as in "ndarray, uint8"; our classes begin with a capital letter.
nitpick_ignore_regex = [("py:class", r"[^A-Z].*")]
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True

# Pages of this site that GitHub shows elsewhere in the repository.
ELSEWHERE = {
    "../benchmarks/RESULTS.md": "results.md",
    "../models/emoji/README.md": "emoji.md",
    "../README.md": "index.md",
}


def link_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Let links to pages elsewhere in the repository lead to their copies here."""
    for path, page in ELSEWHERE.items():
        source[0] = source[0].replace(f"]({path}", f"]({page}")


def setup(app: Sphinx) -> None:
    """Connect what this file adds."""
    app.connect("source-read", link_pages)
