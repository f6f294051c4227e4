"""Stand-ins for ONNX Runtime's packages, installed and uninstalled as pip does it.

Seen with pip 23.2, onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1; ``tests/test_installing.py``
does it with these.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

SOURCE = """__version__ = "{version}"


def get_available_providers():
    return {providers}


def preload_dlls(cuda, cudnn):
    pass


class OrtValue:
    {reads}
"""


@dataclass(frozen=True)
class Package:
    """One that writes the folder ``onnxruntime``."""

    name: str
    version: str
    providers: tuple[str, ...]
    requires: tuple[str, ...] = ()
    reads: str = "__dlpack__ = None"

    @property
    def files(self):
        """By their names in the folder: two that both packages have, and one of its own."""
        providers = list(self.providers)
        source = SOURCE.format(version=self.version, providers=providers, reads=self.reads)
        own = f"library-{self.version}.txt"
        return {"__init__.py": source, "binding.txt": self.name, own: self.name}


CPU = Package("onnxruntime", "1.32.0", ("CPUExecutionProvider",))
OLD = Package("onnxruntime", "1.25.0", ("CPUExecutionProvider",), reads="pass")
GPU = Package(
    "onnxruntime-gpu",
    "1.31.1",
    ("CUDAExecutionProvider", "CPUExecutionProvider"),
    (
        "numpy>=1.21.6",
        'nvidia-some-runtime~=13.0; extra == "cuda"',
        "nvidia-some-dnn~=9.0; extra == 'cudnn'",
    ),
)


def install(site: Path, package: Package) -> None:
    """Write its files over those that are there, and its record."""
    folder = site / "onnxruntime"
    folder.mkdir(exist_ok=True)
    for name, content in package.files.items():
        (folder / name).write_text(content)
    record = _record(site, package)
    record.parent.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {package.name}", f"Version: {package.version}"]
    lines += [f"Requires-Dist: {line}" for line in package.requires]
    (record.parent / "METADATA").write_text("\n".join(lines) + "\n")
    with record.open("w", newline="") as stream:
        rows = csv.writer(stream)
        for name, content in package.files.items():
            rows.writerow([f"onnxruntime/{name}", "sha256=0", len(content)])
        rows.writerow([f"{record.parent.name}/RECORD", "", ""])


def uninstall(site: Path, package: Package) -> None:
    """Remove what its record names, whoever wrote it last."""
    for name in package.files:
        (site / "onnxruntime" / name).unlink(missing_ok=True)
    folder = _record(site, package).parent
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _record(site: Path, package: Package) -> Path:
    name = package.name.replace("-", "_")
    return site / f"{name}-{package.version}.dist-info" / "RECORD"
