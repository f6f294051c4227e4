"""What is carried to a GPU: ONNX Runtime cut to one architecture, in halves, and its commands."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bksdm.benchmarks.gpu.fatbin import MAGIC, codes, keep_only
from bksdm.benchmarks.gpu.prepare import PROVIDER, pack, split

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


def entry(architecture, code, head=64):
    header = struct.pack("<HHIQ", 2, 0x101, head, len(code)).ljust(28, b"\0")
    return (header + struct.pack("<I", architecture)).ljust(head, b"h") + code


def container(*entries):
    body = b"".join(entries)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


LIBRARY = (
    b"host code"
    + container(entry(80, b"old!" * 9), entry(90, b"new!" * 5, head=80))
    # The magic number by chance, once as another version, once where the library ends.
    + MAGIC
    + struct.pack("<HHQ", 7, 16, 4)
    + container(entry(90, b"more"))
    + b"data"
    + MAGIC
)
CUT = LIBRARY.replace(b"old!" * 9, bytes(36))


def test_code_is_found_by_architecture():
    found = [(code.architecture, LIBRARY[code.start :][: code.size]) for code in codes(LIBRARY)]
    assert found == [(80, b"old!" * 9), (90, b"new!" * 5), (90, b"more")]


def test_only_other_architectures_are_blanked():
    library = bytearray(LIBRARY)
    assert keep_only(library, {90}) == 36
    assert bytes(library) == CUT


def test_a_library_without_the_architecture_is_refused():
    with pytest.raises(ValueError, match=r"no code for \[120\]"):
        keep_only(bytearray(LIBRARY), {90, 120})


def test_a_wheel_is_cut_to_what_one_gpu_needs(tmp_path, capsys):
    record = "onnxruntime_gpu-1.dist-info/RECORD"
    listed = [f"{PROVIDER},sha256=x,{len(LIBRARY)}\n", "onnxruntime/tools/a.py,sha256=y,1\n"]
    files = {
        PROVIDER: LIBRARY,
        "onnxruntime/tools/a.py": b"1",
        "onnxruntime/__init__.py": b"",
        record: "".join(listed).encode(),
    }
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.mkdir("onnxruntime")
        for name, content in files.items():
            wheel.writestr(name, content)
    halves = split(pack(tmp_path / "x.whl", "sm90"), beside=100)
    assert len(halves[1]) - len(halves[0]) in (100, 101)
    with tarfile.open(fileobj=io.BytesIO(b"".join(halves)), mode="r:xz") as archive:
        kept = {name: archive.extractfile(name).read() for name in archive.getnames()}
    # Where a library was cut it is as long as before, which is what the list of files states.
    assert kept == {PROVIDER: CUT, "onnxruntime/__init__.py": b"", record: listed[0].encode()}
    assert capsys.readouterr().out == "0 of 0 MB blanked\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no bash")
def test_a_step_has_a_limit_and_a_file(tmp_path):
    """Whatever becomes of a step, the next one runs."""
    shutil.copytree(SCRIPTS, tmp_path / "benchmarks" / "gpu")
    (tmp_path / "tmp/bksdm-gpu/site").mkdir(parents=True)
    (tmp_path / "tmp/bksdm-gpu/site/complete").touch()
    steps = "step 0.2 slow sleep 5; step 5 wrong false; step 5 right echo done"
    script = f"source benchmarks/gpu/site.sh out; {steps}"
    said = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    codes_said = [line.rpartition(",")[0] for line in said.splitlines() if line.startswith("==")]
    assert codes_said == ["== slow: code 124", "== wrong: code 1", "== right: code 0"]
    assert (tmp_path / "out/right.txt").read_text() == "done\n"
