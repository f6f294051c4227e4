"""How much memory a picture takes, told before it is begun."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from bksdm.engines.errors import RequestError
from bksdm.engines.registry import AUTO, backend
from bksdm.optimize.rules import MadeFor
from bksdm.runtime.bundle import CONTROLNET, Bundle
from bksdm.runtime.control import Control
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.precision import INT8

# What Python and the libraries take.
PROCESS_BYTES = 120 * 10**6
# Of a UNet's call, for each latent pixel of each row: fitted to the peaks of full-size Small at
# 256×256 to 768×768 and of the built-in model at 1024×1024.
UNET_BYTES, UNET_BYTES_PER_CHANNEL = 8200, 90
# Of float32 maps that the VAE decoder has in memory, of its widest layers at full size: as
# exported, and where its end runs in row tiles.
DECODER_MAPS, DECODER_MAPS_IN_TILES = 5.4, 2
FLOAT_BYTES = 4
# Values that a ControlNet of Stable Diffusion's shape adds, for each latent pixel and each channel
# of the first block: 3 at full size, 1 + 2 + 2 at half, 2 + 4 + 4 at a quarter, 16 at an eighth.
RESIDUALS_PER_CHANNEL = 3 + 5 / 4 + 10 / 16 + 16 / 64
CONTROL_GROUP = Path("/sys/fs/cgroup")


def needed_bytes(
    bundle: Bundle,
    shape: tuple[int, int, int, int],
    guided: bool,
    row_tiles: bool = False,
    controlnets: Collection[str] = (),
    alone: bool = True,
) -> int:
    """Return about how much memory a process needs at its peak for pictures on the CPU.

    Weights, and the larger of what the UNet computes for all pictures and the VAE decoder for one.

    Parameters
    ----------
    bundle : Bundle
        The model.
    shape : tuple of int
        Of the latents: images, channels, height, width.
    guided : bool
        Whether the UNet runs for two halves.
    row_tiles : bool
        Whether the decoder's end runs in row tiles.
    controlnets : collection of str
        Those that are run.
    alone : bool
        Whether pictures are drawn without them too: the UNet as it is is another network to an
        engine than one to which something is added.
    """
    unet, decoder = (bundle.widths(name) for name in ("unet", "vae_decoder"))
    images, _, height, width = shape
    rows = images * (2 if guided else 1)
    denoising = rows * height * width * (UNET_BYTES + UNET_BYTES_PER_CHANNEL * unet[0])
    maps = DECODER_MAPS_IN_TILES if row_tiles else DECODER_MAPS
    decoding = height * width * bundle.vae_scale**2 * max(decoder[:2]) * FLOAT_BYTES * maps
    networks = [*bundle.components[:3], *{f"{CONTROLNET}{name}" for name in controlnets}]
    if controlnets:
        # What one makes, and the sum of all.
        values = rows * height * width * int(RESIDUALS_PER_CHANNEL * unet[0])
        denoising += 2 * values * FLOAT_BYTES
        networks += ["unet"] if alone else []
    graphs = [GraphFile.read(bundle.model(name)) for name in networks]
    weights = sum(
        graph.parameters * (1 if graph.dtype == INT8 else FLOAT_BYTES) for graph in graphs
    )
    return int(PROCESS_BYTES + weights + max(denoising, decoding))


def free_bytes() -> int | None:
    """Return the memory that a process can take without others being moved out; None if unknown."""
    try:
        free = [_meminfo()["MemAvailable"]]
    except (OSError, KeyError):
        return None
    # A container's own limit; files that were read count as used, but can be dropped.
    try:
        limit = (CONTROL_GROUP / "memory.max").read_text().strip()
        used = int((CONTROL_GROUP / "memory.current").read_text())
        lines = (CONTROL_GROUP / "memory.stat").read_text().splitlines()
        fields = dict(line.split() for line in lines)
        if limit != "max":
            free.append(int(limit) - used + int(fields["inactive_file"]))
    except (OSError, ValueError, KeyError):
        pass
    return min(free)


def total_bytes() -> int | None:
    """Return the memory of the machine, or of the container if that may use less of it.

    None where it is unknown.
    """
    try:
        total = _meminfo()["MemTotal"]
    except (OSError, KeyError):
        return None
    try:
        limit = (CONTROL_GROUP / "memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def _meminfo() -> dict[str, int]:
    """Return Linux's figures about memory, in bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in lines}


def require_memory(
    bundle: Bundle,
    shape: tuple[int, int, int, int],
    guided: bool,
    engine: str,
    controls: Sequence[Control] = (),
) -> None:
    """Refuse pictures that need more memory than is free.

    Raises
    ------
    RequestError
        States both.
    """
    free = free_bytes()
    names = {each.name for each in controls}
    if free is None or needed_bytes(bundle, shape, guided, False, names, alone=False) <= free:
        return
    needed = needed_bytes(bundle, shape, guided, _tiles_rows(bundle, engine), names, alone=False)
    if needed > free:
        height, width = (side * bundle.vae_scale for side in shape[2:])
        raise RequestError(
            f"{shape[0]} of {width}x{height} would take about {needed / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free; take a smaller --size or --count, or --force"
        )


def _tiles_rows(bundle: Bundle, engine: str) -> bool:
    """Return whether the decoder's end will; without ``onnx``, nothing is rewritten so."""
    if engine == AUTO or find_spec("onnx") is None:
        return False
    from bksdm.optimize.compose import tiles_rows

    decoder = bundle.model("vae_decoder")
    return tiles_rows(decoder, backend(engine).rules, MadeFor(bundle.sample_size))
