"""How much memory a picture takes, told before it is begun."""

from __future__ import annotations

from pathlib import Path

from bksdm.engines.digest import graph_files
from bksdm.engines.errors import RequestError
from bksdm.engines.graph import describe_graph
from bksdm.runtime.bundle import Bundle

# What Python and the libraries take.
PROCESS_BYTES = 200 * 10**6
# Maps of features, as wide as the first block's, that one call of a UNet has in memory at its peak,
# and those of its widest layers at full size that a VAE decoder has. Measured on full-size Small:
# the peak of a whole picture is then at most a tenth off from 256×256 to 768×768.
UNET_MAPS = 29
DECODER_MAPS = 2
FLOAT_BYTES = 4


def needed_bytes(bundle: Bundle, height: int, width: int, images: int, guided: bool) -> int:
    """Return about how much memory a process needs at its peak for pictures on the CPU.

    Weights, and the larger of what the UNet computes for all pictures and the VAE decoder for one.

    Parameters
    ----------
    bundle : Bundle
        The model.
    height, width : int
        In pixels.
    images : int
        Drawn in one batch.
    guided : bool
        Whether the UNet runs for two halves.
    """
    unet, decoder = (bundle.widths(name) for name in ("unet", "vae_decoder"))
    latents = height * width // bundle.vae_scale**2
    rows = images * (2 if guided else 1)
    denoising = rows * latents * unet[0] * UNET_MAPS
    decoding = height * width * max(decoder[:2]) * DECODER_MAPS
    weights = sum(_weight_bytes(bundle.model(name)) for name in bundle.components[:3])
    return PROCESS_BYTES + weights + max(denoising, decoding) * FLOAT_BYTES


def free_bytes() -> int | None:
    """Return the memory that a process can take without others being moved out; None if unknown."""
    free: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    # A container's own limit; files that were read count as used, but can be dropped.
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if limit != "max":
            free.append(int(limit) - used + int(fields["inactive_file"]))
    except (OSError, ValueError, KeyError):
        pass
    return min(free, default=None)


def require_memory(bundle: Bundle, height: int, width: int, images: int, guided: bool) -> None:
    """Refuse pictures that need more memory than is free.

    Raises
    ------
    RequestError
        States both.
    """
    needed, free = needed_bytes(bundle, height, width, images, guided), free_bytes()
    if free is not None and needed > free:
        raise RequestError(
            f"{images} images of {width}x{height} need about {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; take a smaller --size or --count, or --force"
        )


def _weight_bytes(model: Path) -> int:
    """Return the bytes of a network's weights in memory: float32, whatever the file's type."""
    size = sum(file.stat().st_size for file in graph_files(model))
    return size * (1 if describe_graph(model)["dtype"] == "float32" else 2)
