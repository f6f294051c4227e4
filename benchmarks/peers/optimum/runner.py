"""Optimum's exporter and ``ORTStableDiffusionPipeline``: float32 on a CPU, float16 on a GPU.

On a GPU it was not run yet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_call import draw

from serve import Feeds, Run, serve


def convert(source: str, folder: str, device: str = "cpu", dtype: str = "fp32") -> None:
    """Write Optimum's bundle."""
    from optimum.exporters.onnx import main_export

    main_export(
        source,
        output=folder,
        task="text-to-image",
        device=device,
        dtype=dtype,
        do_validation=False,
    )


def load(stage: str, source: str, folder: str, threads: int, device: str = "cpu") -> Run:
    """Load one network as the pipeline loads it, or the pipeline; on a GPU the pipeline alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if stage == "picture":
        from optimum.onnxruntime import ORTStableDiffusionPipeline

        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        if device == "cuda":
            onnxruntime.preload_dlls()
        pipeline = ORTStableDiffusionPipeline.from_pretrained(
            folder, session_options=options, provider=provider
        )
        # ONNX Runtime goes on with the CPU where a library is missing.
        if provider not in pipeline.unet.session.get_providers():
            raise RuntimeError(f"ONNX Runtime left {provider} out")
        pipeline.set_progress_bar_config(disable=True)
        dtype = {"cpu": "float32", "cuda": "float16"}[device]
        return lambda feeds: draw(pipeline, feeds, dtype)
    session = onnxruntime.InferenceSession(
        Path(folder) / stage / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
    inputs = {spec.name: (types[spec.type], len(spec.shape)) for spec in session.get_inputs()}

    def run(feeds: Feeds) -> Any:
        given = {}
        for name, array in feeds.items():
            dtype, rank = inputs[name]
            # Its UNet takes one timestep for the whole batch.
            given[name] = np.asarray(array if array.ndim == rank else array[0], dtype)
        return session.run(None, given)[0]

    return run


if __name__ == "__main__":
    serve(convert, load)
