"""Fill a folder to carry to a machine with a GPU and torch, on which nothing can be installed.

    python -m bksdm.benchmarks.gpu.prepare .kit --target sm90 --python 3.12

It holds wheels of what the measurements need beside torch, in the versions that are installed here,
and ``onnxruntime-gpu`` with code for one kind of GPU only, a quarter of its size. The folder has
two halves of about one size, ``first`` and ``second``, for ``first.sh`` and ``second.sh``.
"""

from __future__ import annotations

import argparse
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from bksdm.benchmarks.gpu.fatbin import keep_only
from bksdm.engines.packages import installed_version

PACKAGES = ("diffusers", "cuda-core", "cuda-bindings", "cuda-pathfinder", "platformdirs")
ONNXRUNTIME = "onnxruntime-gpu==1.31.1"
PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
LEFT_OUT = (
    *("onnxruntime/transformers/", "onnxruntime/quantization/", "onnxruntime/tools/"),
    *("onnxruntime/datasets/", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"),
)
# glibc of any Linux that a driver for CUDA 13 runs on.
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17))
ARCHIVE = "onnxruntime.tar.xz"
HALVES = ("first", "second")


def download(requirements: Sequence[str], python: str, folder: Path) -> list[Path]:
    """Download wheels for another Python on Linux, without what they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in (*PLATFORMS, "manylinux2014_x86_64"):
        command += ["--platform", platform]
    subprocess.run([*command, "--dest", str(folder), *requirements], check=True)
    return sorted(folder.glob("*.whl"))


def pack(wheel: Path, target: str) -> bytes:
    """Return a wheel's content as tar.xz, without :data:`LEFT_OUT` and code for other GPUs."""
    number = int(target.removeprefix("sm"))
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(wheel) as source,
        lzma.open(packed, "wb") as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as archive,
    ):
        for info in source.infolist():
            if info.is_dir() or info.filename.startswith(LEFT_OUT):
                continue
            content = bytearray(source.read(info))
            if info.filename == PROVIDER:
                blanked = keep_only(content, {number})
                print(f"{blanked / 1e6:.0f} of {len(content) / 1e6:.0f} MB blanked")
            elif info.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                listed = (line for line in lines if not line.startswith(LEFT_OUT))
                content = bytearray("".join(listed).encode())
            entry = tarfile.TarInfo(info.filename)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def split(archive: bytes, beside: int) -> tuple[bytes, bytes]:
    """Return two parts of an archive; with so many bytes beside the first, the halves are alike."""
    middle = max(0, (len(archive) - beside) // 2)
    return archive[:middle], archive[middle:]


def prepare(kit: Path, target: str, python: str) -> None:
    """Fill the folder; what was in it is removed."""
    shutil.rmtree(kit, ignore_errors=True)
    first, second = (kit / half for half in HALVES)
    first.mkdir(parents=True)
    second.mkdir()
    pinned = [f"{name}=={installed_version(name)}" for name in PACKAGES]
    beside = sum(wheel.stat().st_size for wheel in download(pinned, python, first))
    with tempfile.TemporaryDirectory() as place:
        (wheel,) = download([ONNXRUNTIME], python, Path(place))
        archive = pack(wheel, target)
    for half, part in zip((first, second), split(archive, beside), strict=True):
        (half / ARCHIVE).write_bytes(part)
    for half in (first, second):
        size = sum(file.stat().st_size for file in half.iterdir())
        print(f"{half}: {size / 2**20:.1f} MiB")


def main() -> None:
    """Prepare a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kit", type=Path, help="folder to fill, anew")
    parser.add_argument("--target", default="sm90", help="compute capability (default: sm90)")
    parser.add_argument("--python", default="3.12", help="of that machine (default: 3.12)")
    options = parser.parse_args()
    prepare(options.kit, options.target, options.python)


if __name__ == "__main__":
    main()
