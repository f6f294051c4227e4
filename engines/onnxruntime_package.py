"""ONNX Runtime's Python module, and which of its two packages brought it.

``onnxruntime`` and ``onnxruntime-gpu`` write the same folder, and pip installs both beside each
other without a word. The files are then those of the one that came last (of two in one command
``onnxruntime``'s), and uninstalling either removes what the two share. The module is loaded here
and nowhere else, so that this is noticed before it fails in some other way.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bksdm.engines.backend import missing
from bksdm.engines.errors import EngineError
from bksdm.engines.nvidia_driver import NO_DRIVER, load_driver
from bksdm.engines.once import once
from bksdm.engines.packages import installed_version

MODULE = "onnxruntime"
GPU_PACKAGE = "onnxruntime-gpu"
PACKAGES = ("onnxruntime", GPU_PACKAGE)
CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL_GPU = "pip install 'bksdm-runtime[gpu]'"


@dataclass(frozen=True)
class InstalledPackages:
    """Which packages of ONNX Runtime are installed.

    Attributes
    ----------
    versions : mapping
        By name.
    whole : tuple of str
        Names of those whose files are all there, and not another's.
    importable : bool
        Whether there is a module, and not only a folder with what was left of one.
    """

    versions: Mapping[str, str]
    whole: tuple[str, ...]
    importable: bool

    @classmethod
    def find(cls, path: Sequence[str] | None = None) -> InstalledPackages:
        """Look in the folders of a search path, by default Python's; nothing is imported."""
        folders = list(sys.path if path is None else path)
        found = {
            name: dist
            for name in PACKAGES
            for dist in list(distributions(name=name, path=folders))[:1]
        }
        spec = find_spec(MODULE) if path is None else PathFinder.find_spec(MODULE, folders)
        importable = spec is not None and spec.origin is not None
        # One by itself that can be imported is not looked at file by file.
        alone = importable and len(found) == 1
        return cls(
            MappingProxyType({name: dist.version for name, dist in found.items()}),
            tuple(name for name, dist in found.items() if alone or _is_whole(dist)),
            importable,
        )

    @property
    def absent(self) -> bool:
        """Whether there is nothing of ONNX Runtime."""
        return not (self.versions or self.importable)

    @property
    def broken(self) -> str:
        """Why what is installed cannot be imported, in one line with what to do; else empty."""
        if not self.versions:
            return ""
        if len(self.versions) > 1:
            mixed = f"the files of {self._named} are mixed in one folder; {self._choose_one}"
            return "" if self.whole else mixed
        if self.importable:
            return ""
        ((name, version),) = self.versions.items()
        return (
            f"files of {self._named} are missing, as after another package of ONNX Runtime beside "
            f"it is uninstalled; run: pip install --force-reinstall --no-deps {name}=={version}"
        )

    @property
    def doubled(self) -> str:
        """What two packages in one folder mean, in one line with what to do; empty for others."""
        if len(self.versions) < 2 or not self.whole:
            return ""
        kept = " and ".join(self.whole)
        return (
            f"{self._named} are both installed, but write the same folder, which holds the files "
            f"of {kept}; {self._choose_one}"
        )

    @property
    def without_cuda(self) -> str:
        """What to say where the module has no CUDA provider."""
        installed = f" (installed: {self._named})" if self.versions else ""
        return f"ONNX Runtime has no CUDA provider here{installed}; {self._choose_one}"

    @property
    def _named(self) -> str:
        return " and ".join(f"{name} {version}" for name, version in self.versions.items())

    @property
    def _choose_one(self) -> str:
        remove = f"pip uninstall -y {' '.join(self.versions)} && " if self.versions else ""
        return f"run: {remove}{INSTALL_GPU}"


def _is_whole(dist: Distribution) -> bool:
    """Return whether every file of a package has the size that its list of files states."""
    for file in dist.files or ():
        if file.size is None:
            continue
        place = Path(file.locate())
        if not place.is_file() or place.stat().st_size != file.size:
            return False
    return True


@once
def load_onnxruntime() -> Any:
    """Return the module ``onnxruntime``.

    Raises
    ------
    EngineError
        It is not installed, broken or too old; says what to run.
    """
    packages = InstalledPackages.find()
    if packages.absent:
        raise EngineError(missing(MODULE, "cpu"))
    if packages.broken:
        raise EngineError(packages.broken)
    if packages.doubled:
        warnings.warn(packages.doubled, stacklevel=2)
    try:
        import onnxruntime
    except Exception as error:  # it raises whatever its libraries do
        reason = " ".join(str(error).split())
        raise EngineError(f"onnxruntime cannot be imported ({reason[:200]})") from error
    if not hasattr(onnxruntime.OrtValue, "__dlpack__"):  # before 1.26
        extra = "gpu" if GPU_PACKAGE in packages.versions else "cpu"
        raise EngineError(
            f"onnxruntime {onnxruntime.__version__} is too old; run: "
            f"pip install --upgrade 'bksdm-runtime[{extra}]'"
        )
    return onnxruntime


def load_cuda_provider() -> Any:
    """Return the module with the CUDA libraries loaded that were installed by pip for it.

    Raises
    ------
    EngineError
        There is no CUDA provider in it, or no NVIDIA driver; says what to install.
    """
    packages = InstalledPackages.find()
    if packages.absent:
        raise EngineError(missing("onnxruntime-cuda", "gpu"))
    ort = load_onnxruntime()
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise EngineError(packages.without_cuda)
    if load_driver() is None:
        raise EngineError(f"{NO_DRIVER}; draw with --engine onnxruntime")
    # Only what pip installed: it prints to standard output what it does not find, and what the
    # system has is found without it.
    cuda, cudnn = (all(cuda_libraries(extra).values() or [False]) for extra in ("cuda", "cudnn"))
    ort.preload_dlls(cuda=cuda, cudnn=cudnn)
    return ort


def check_cuda_provider() -> None:
    """Find out whether networks can run on it, as far as that is known before one does.

    Warns
    -----
    UserWarning
        Libraries are not installed that the system may have.

    Raises
    ------
    EngineError
        There is no CUDA provider, or no NVIDIA driver; says what to install.
    """
    load_cuda_provider()
    lacking = _lacking_libraries()
    if lacking:
        warnings.warn(
            f"unless the system has them, it lacks {', '.join(lacking)}; run: {INSTALL_GPU}",
            stacklevel=2,
        )


def cuda_libraries(*extras: str) -> dict[str, bool]:
    """Return packages that ``onnxruntime-gpu`` names in extras, and whether they are installed.

    Their versions are not compared.
    """
    pattern = re.compile(rf"""([\w.-]+).*\bextra == ['"]({"|".join(extras)})['"]""")
    lines = [line for dist in distributions(name=GPU_PACKAGE) for line in dist.requires or ()]
    names = [match[1] for match in map(pattern.match, lines) if match]
    return {name: installed_version(name) is not None for name in names}


def left_out(provider: str) -> str:
    """Return what to say where ONNX Runtime opens a network without a provider that it has."""
    told = f"ONNX Runtime left out its {provider}, and would run on the CPU"
    lacking = _lacking_libraries()
    if lacking:
        return f"{told}; not installed: {', '.join(lacking)}; run: {INSTALL_GPU}"
    return f"{told}, though its libraries are installed; the driver may be too old for their CUDA"


def _lacking_libraries() -> list[str]:
    return [name for name, there in cuda_libraries("cuda", "cudnn").items() if not there]
