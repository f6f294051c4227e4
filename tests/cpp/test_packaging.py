"""The C++ library installed, found by CMake and pkg-config, and taken in as a subfolder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.bundle_tables import WantedTable, write_tables
from bksdm.runtime.images import read_parameters

from ..test_installing import LEFT_OUT, ROOT
from .conftest import SOURCE, execute

PROGRAM = """
#include <bksdm.h>
#include <cstdio>
#include <bksdm/tokenizer.hpp>
int main(int, char** arguments) {
    std::printf("%s %zu", bksdm_version(), bksdm::Tokenizer::load(arguments[1]).length());
}
"""
FOUND = """
cmake_minimum_required(VERSION 3.20)
project(program LANGUAGES CXX)
find_package(bksdm 0.2 REQUIRED)
add_executable(program program.cpp)
target_link_libraries(program bksdm::bksdm bksdm::c)
"""
FETCHED = """
cmake_minimum_required(VERSION 3.20)
project(program LANGUAGES CXX)
include(FetchContent)
FetchContent_Declare(bksdm SOURCE_DIR {source})
FetchContent_MakeAvailable(bksdm)
add_executable(program program.cpp)
target_link_libraries(program bksdm::bksdm)
"""


@pytest.fixture(scope="module")
def prefix(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    execute("cmake", "--install", built.folder, "--prefix", folder)
    return folder


def test_cmake_finds_what_was_installed(prefix, tmp_path):
    (tmp_path / "program.cpp").write_text(PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(FOUND)
    build = tmp_path / "build"
    execute("cmake", "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    execute("cmake", "--build", build)
    assert execute(build / "program", EMOJI / "tokenizer") == b"0.2.0 77"


def test_pkg_config_says_where_it_is(prefix):
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    (file,) = prefix.rglob("bksdm.pc")
    said = execute("pkg-config", "--libs", "--cflags", file)
    include, _ = (Path(word[2:]).resolve() for word in said.decode().split()[:2])
    assert include == prefix / "include"
    assert said.split()[-1] == b"-lbksdm"


def test_it_configures_as_a_part_of_another_project(tmp_path):
    """None of its tests, examples, warnings and install rules are there then."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    (tmp_path / "program.cpp").write_text("int main() {}\n")
    (tmp_path / "CMakeLists.txt").write_text(FETCHED.format(source=SOURCE))
    build = tmp_path / "build"
    execute("cmake", "-S", tmp_path, "-B", build)
    targets = subprocess.run(
        ["cmake", "--build", build, "--target", "help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "program" in targets
    assert "bksdm_c" not in targets
    assert "parts_test" not in targets


@pytest.mark.slow
def test_a_wheel_brings_the_sources(tmp_path):
    # A build writes into its source.
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    execute(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", tmp_path, source),
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    told = execute(sys.executable, "-m", "bksdm.cmake", cwd=tmp_path / "installed")
    folder = Path(told.decode().strip())
    assert folder == tmp_path / "installed" / "bksdm" / "cmake"
    headers = {path.name for path in (SOURCE / "include").rglob("*.h*")}
    assert {path.name for path in (folder / "include").rglob("*.h*")} == headers
    execute("cmake", "-S", folder, "-B", tmp_path / "build")


def test_the_c_header_is_c(built, tmp_path):
    source = tmp_path / "x.c"
    source.write_text("#include <bksdm.h>\nint main(void) { return bksdm_version() == 0; }\n")
    flags = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE / 'include'}")
    execute("cc", *flags, "-fsyntax-only", source)


@pytest.mark.slow
def test_a_program_its_engine_and_a_bundle_in_a_folder_that_is_moved(built, bundle, tmp_path):
    utils = pytest.importorskip("openvino.utils")
    write_tables(Bundle.open(bundle), WantedTable.read("default:25"))
    build, folder = tmp_path / "build", tmp_path / "portable"
    execute(
        *("cmake", "-S", SOURCE, "-B", build, f"-DOpenVINO_DIR={utils.get_cmake_path()}"),
        *(f"-DBKSDM_BUNDLE={bundle}", "-DBKSDM_TESTS=OFF", "-DBKSDM_C=OFF"),
    )
    execute("cmake", "--build", build, "--target", "generate")
    execute("cmake", "--install", build, "--component", "portable", "--prefix", folder)
    moved = folder.rename(tmp_path / "moved")
    picture = tmp_path / "x.png"
    execute(moved / "generate", moved / "bundle", "a red apple", picture, env={})
    assert read_parameters(picture)["prompt"] == "a red apple"
