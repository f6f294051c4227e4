"""Every example of the README and the documentation, and all of examples/, run as written.

Comments right before a block, which readers do not see, tell what is special about it:

- ``<!-- not run: needs a GPU -->``: one or more of :data:`REASONS`; the report lists these blocks;
- ``<!-- slow: exports a model -->``: it runs with ``-m slow`` only, with all others of its page;
- ``<!-- stand-in: … -->``, anywhere in a page: one of :data:`STAND_INS`, a folder that is there.

The blocks of a page run in order, in one folder; those of Python share their names.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle

from ..lora_files import random_lora
from .examples_of_pages import (
    ROOT,
    RUN,
    SHOWN,
    examples,
    run_console,
    run_python,
    run_shell,
    stand_ins,
)

REASONS = {
    "installs packages",
    "downloads a model",
    "needs a GPU",
    "needs a processor with bfloat16",
    "serves until it is stopped",
    "needs a server",
    "needs a cluster",
    "needs a C++ compiler",
    "takes minutes and a quiet machine",
}
STAND_INS = {
    "loras holds two random LoRAs for the built-in model": ("loras", "loras"),
    "small is the bundle of `bksdm dummy nano`": ("small", "nano_bundle"),
    "small-fp16 is the float16 bundle of `bksdm dummy nano`": ("small-fp16", "nano_bundle_fp16"),
}
# By tests/parity/test_porting.py, line by line beside diffusers.
TESTED_ELSEWHERE = {"docs/porting.md"}
SLOW_SCRIPTS = {"image_to_image.py", "ray_data.py", "start.py"}
NEEDED = {"ray_data.py": "ray"}
"""What a script needs that not everybody has who runs the tests."""
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if str(path.relative_to(ROOT)) not in TESTED_ELSEWHERE
]
EXAMPLES = {str(path.relative_to(ROOT)): examples(path) for path in PAGES}
ALL = [example for found in EXAMPLES.values() for example in found]
SCRIPTS = [
    pytest.param(path, marks=pytest.mark.slow if path.name in SLOW_SCRIPTS else ())
    for path in sorted((ROOT / "examples").glob("*.py"))
]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def runnable(page):
    return [e for e in EXAMPLES[page] if e.language in RUN and "not run" not in e.notes]


FAST = [p for p in EXAMPLES if any("slow" not in e.notes for e in runnable(p))]
SLOW = [p for p in EXAMPLES if any("slow" in e.notes for e in runnable(p))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loras(tmp_path_factory):
    folder, bundle = tmp_path_factory.mktemp("loras"), Bundle.open(EMOJI)
    for seed, name in enumerate(("ink", "cat")):
        random_lora(bundle, folder / f"{name}.safetensors", seed, r"attn\d\.to_[qk]$")
    return folder


@pytest.fixture
def stocked(folder, request):
    """Return the folder with what stands in for a page's models."""
    for told in stand_ins(ROOT / request.getfixturevalue("page")):
        name, fixture = STAND_INS[told]
        shutil.copytree(request.getfixturevalue(fixture), folder / name)
    return folder


def run_in(folder, chosen):
    names = {"__name__": "__main__"}
    for example in chosen:
        if example.language == "python":
            run_python(example, names)
        elif example.language == "sh":
            run_shell(example, folder)
        else:
            run_console(example, folder)


@pytest.mark.parametrize("page", FAST)
def test_examples_of_a_page(page, stocked):
    run_in(stocked, [e for e in runnable(page) if "slow" not in e.notes])


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_all_examples_of_a_page(page, stocked):
    run_in(stocked, runnable(page))


@pytest.mark.parametrize(
    "example", [e for e in ALL if "not run" in e.notes], ids=lambda example: example.name
)
def test_an_example_that_is_not_run_says_why(example):
    assert set(example.notes["not run"].split(", ")) <= REASONS
    pytest.skip(example.notes["not run"])


def test_every_block_is_run_or_shown():
    unknown = [e.name for e in ALL if not (e.language in RUN or e.language.startswith(SHOWN))]
    assert not unknown


def test_every_stand_in_is_known():
    assert {told for page in PAGES for told in stand_ins(page)} == set(STAND_INS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script(script, folder):
    if script.name in NEEDED:
        pytest.importorskip(NEEDED[script.name], reason="needs the extra ray")
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.split("wrote ")[1:]
    assert told
    for line in told:
        assert (folder / line.split("\n")[0]).stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook(notebook, folder):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
    assert (folder / "apple.png").stat().st_size > 1000
