"""The C++ library, built once for all tests of a session."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from bksdm.models import EMOJI

SOURCE = Path(__file__).parents[2] / "cpp"


def execute(*command, **options):
    """Run a program, and return what it printed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, timeout=600, check=False, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """A folder that CMake has built in."""

    folder: Path

    @property
    def library(self):
        return self.folder / "libbksdm.so"

    def probe(self, *arguments, **options):
        return execute(self.folder / "tests" / "probe", *arguments, **options)


@pytest.fixture(scope="session")
def built(shared):
    """Compile with little optimisation: compiling is what takes the time."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    openvino = pytest.importorskip("openvino.utils")

    def make(folder):
        execute(
            *("cmake", "-S", SOURCE, "-B", folder, "-DCMAKE_CXX_FLAGS_RELEASE=-O1"),
            *(f"-DOpenVINO_DIR={openvino.get_cmake_path()}", "-DBKSDM_EXAMPLES=OFF"),
        )
        execute("cmake", "--build", folder)

    return Built(shared("cpp", make))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """The built-in model with its graphs rewritten for OpenVINO; tables are added by tests."""
    from bksdm.optimize.saving import save_openvino
    from bksdm.runtime.bundle import Bundle

    folder = tmp_path_factory.mktemp("cpp") / "emoji"
    shutil.copytree(EMOJI, folder)
    save_openvino(Bundle.open(folder), folder / "engines")
    return folder
