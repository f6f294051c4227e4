"""The C++ tests under sanitizers, and the fuzzers for a few seconds each."""

from __future__ import annotations

import json
import shutil

import pytest

from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.bundle_tables import WantedTable, tables_of

from .conftest import SOURCE, execute

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_its_tests_are_clean(tmp_path, sanitizers):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    execute(
        *("cmake", "-S", SOURCE, "-B", tmp_path, f"-DBKSDM_SANITIZE={sanitizers}"),
        *("-DBKSDM_EXAMPLES=OFF", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"),
        "-DCMAKE_DISABLE_FIND_PACKAGE_OpenVINO=ON",
    )
    execute("cmake", "--build", tmp_path)
    execute("ctest", "--test-dir", tmp_path, "--output-on-failure", "--timeout", "300")


def test_fuzzers_find_nothing(tmp_path):
    for tool in ("cmake", "clang++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    build = tmp_path / "build"
    execute(
        *("cmake", "-S", SOURCE, "-B", build, "-DCMAKE_CXX_COMPILER=clang++"),
        *("-DBKSDM_FUZZERS=ON", "-DBKSDM_TESTS=OFF", "-DBKSDM_EXAMPLES=OFF", "-DBKSDM_C=OFF"),
    )
    execute("cmake", "--build", build)
    vocabulary = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3, "aa</w>": 4}
    added = {"id": 7, "content": "<cat>", "special": False, "lstrip": True, "normalized": True}
    tokenizer = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a a</w>"]},
        "added_tokens": [added],
    }
    seeds = {
        "table": tables_of(Bundle.open(EMOJI), WantedTable.read("euler-a:2:image")),
        "json": (EMOJI / "unet" / "config.json").read_bytes(),
        "tokenizer": "a red apple 日本 <|endoftext|> é".encode(),
        "merges": json.dumps(tokenizer).encode(),
    }
    for name, seed in seeds.items():
        corpus = tmp_path / name
        corpus.mkdir()
        (corpus / "seed").write_bytes(seed)
        execute(build / "fuzz" / f"fuzz_{name}", "-max_total_time=20", corpus, cwd=tmp_path)
