"""One memory arena for the tensors of all networks."""

from __future__ import annotations

from bksdm.engines.once import once
from bksdm.engines.onnxruntime_package import load_onnxruntime

# Let ONNX Runtime double what it takes from the system with every request that does not fit.
DOUBLING = 0
MEBIBYTE = 2**20


@once
def share_arena() -> None:
    """Give ONNX Runtime's sessions an arena that they share, once per process.

    The networks of a picture run one after the other, so each can use what the one before left.
    Memory fresh from the system costs a page fault per 4 KiB, which took half of the time of a
    full-size VAE decoder's first call. ONNX Runtime's own arena is one per session, and leaves up
    to 128 MiB at the end of every block unused; here it is 1 MiB.
    """
    ort = load_onnxruntime()
    settings = {
        "arena_extend_strategy": DOUBLING,
        "initial_chunk_size_bytes": MEBIBYTE,
        "max_dead_bytes_per_chunk": MEBIBYTE,
    }
    ort.create_and_register_allocator(
        ort.OrtMemoryInfo(
            "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
        ),
        ort.OrtArenaCfg(settings),
    )
