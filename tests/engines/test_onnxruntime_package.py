"""Which packages of ONNX Runtime are installed, found in folders that are made here."""

from __future__ import annotations

import re
from importlib import invalidate_caches

import pytest

from bksdm.engines import onnxruntime_package
from bksdm.engines.errors import EngineError
from bksdm.engines.onnxruntime_package import (
    InstalledPackages,
    check_cuda_provider,
    cuda_libraries,
    left_out,
    load_cuda_provider,
)

from .onnxruntime_packages import CPU, GPU, install, uninstall

BOTH = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'bksdm-runtime[gpu]'"


def found(site):
    return InstalledPackages.find([str(site)])


@pytest.mark.parametrize("package", [CPU, GPU])
def test_one_package_is_right(tmp_path, package):
    install(tmp_path, package)
    packages = found(tmp_path)
    assert packages.versions == {package.name: package.version}
    assert packages.whole == (package.name,)
    assert (packages.absent, packages.broken, packages.doubled) == (False, "", "")


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert found(tmp_path).absent
    # What both leave behind when they are uninstalled, as pip does it.
    install(tmp_path, CPU)
    install(tmp_path, GPU)
    uninstall(tmp_path, CPU)
    uninstall(tmp_path, GPU)
    (tmp_path / "onnxruntime").mkdir(exist_ok=True)
    assert found(tmp_path).absent


@pytest.mark.parametrize(("first", "last"), [(CPU, GPU), (GPU, CPU)])
def test_of_two_the_one_that_came_last_is_named(tmp_path, first, last):
    install(tmp_path, first)
    install(tmp_path, last)
    packages = found(tmp_path)
    assert packages.broken == ""
    assert packages.whole == (last.name,)
    assert f"the files of {last.name};" in packages.doubled
    assert packages.doubled.endswith(BOTH)
    assert packages.without_cuda.endswith(BOTH)


@pytest.mark.parametrize(("first", "last"), [(CPU, GPU), (GPU, CPU)])
@pytest.mark.parametrize("gone", [CPU, GPU])
def test_what_is_left_when_one_of_two_is_uninstalled_is_broken(tmp_path, first, last, gone):
    install(tmp_path, first)
    install(tmp_path, last)
    uninstall(tmp_path, gone)
    (left,) = {first, last} - {gone}
    packages = found(tmp_path)
    assert packages.doubled == ""
    assert packages.broken.startswith(f"files of {left.name} {left.version} are missing")
    repair = f"pip install --force-reinstall --no-deps {left.name}=={left.version}"
    assert packages.broken.endswith(repair)


def test_files_of_both_are_broken(tmp_path):
    """As after an installer that unpacks both at a time."""
    install(tmp_path, CPU)
    install(tmp_path, GPU)
    (tmp_path / "onnxruntime" / "__init__.py").write_text(CPU.files["__init__.py"])
    packages = found(tmp_path)
    assert packages.whole == ()
    assert "mixed in one folder" in packages.broken
    assert packages.broken.endswith(BOTH)


def test_a_module_that_no_package_brought_is_taken(tmp_path):
    install(tmp_path, CPU)
    for folder in tmp_path.glob("*.dist-info"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert found(tmp_path).broken == ""
    assert found(tmp_path).without_cuda.endswith("here; run: pip install 'bksdm-runtime[gpu]'")


class CudaModule:
    """ONNX Runtime with the CUDA provider; records what it is asked to load."""

    def __init__(self):
        self.loaded = []

    def get_available_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self, **what):
        self.loaded.append(what)


@pytest.fixture
def module(tmp_path, monkeypatch):
    made = CudaModule()
    install(tmp_path, GPU)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(onnxruntime_package, "load_onnxruntime", lambda: made)
    monkeypatch.setattr(onnxruntime_package, "load_driver", object)
    return made


def test_cuda_libraries_are_loaded_where_pip_installed_them(tmp_path, module):
    assert cuda_libraries("cuda") == {"nvidia-some-runtime": False}
    load_cuda_provider()
    assert module.loaded.pop() == {"cuda": False, "cudnn": False}
    for name in ("nvidia_some_runtime", "nvidia_some_dnn"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    invalidate_caches()
    load_cuda_provider()
    assert module.loaded.pop() == {"cuda": True, "cudnn": True}


def test_without_a_driver_nothing_is_loaded(module, monkeypatch):
    monkeypatch.setattr(onnxruntime_package, "load_driver", lambda: None)
    with pytest.raises(EngineError, match=r"no NVIDIA driver \(.*--engine onnxruntime$"):
        load_cuda_provider()
    assert module.loaded == []


def test_libraries_that_pip_did_not_install_are_named(module):
    names = "nvidia-some-runtime, nvidia-some-dnn; run: pip install 'bksdm-runtime[gpu]'"
    with pytest.warns(UserWarning, match=f"it lacks {re.escape(names)}$"):
        check_cuda_provider()
    assert left_out("CUDAExecutionProvider").endswith(names)
