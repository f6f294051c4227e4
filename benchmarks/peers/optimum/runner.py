"""Optimum's exporter and ``ORTStableDiffusionPipeline``, float32."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_call import draw
from serve import Feeds, Run, serve


def convert(source: str, folder: str) -> None:
    """Write Optimum's bundle."""
    from optimum.exporters.onnx import main_export

    main_export(source, output=folder, task="text-to-image", do_validation=False)


def load(stage: str, source: str, folder: str, threads: int) -> Run:
    """Load one network as the pipeline loads it, or the pipeline."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if stage == "picture":
        from optimum.onnxruntime import ORTStableDiffusionPipeline

        pipeline = ORTStableDiffusionPipeline.from_pretrained(folder, session_options=options)
        pipeline.set_progress_bar_config(disable=True)
        return lambda feeds: draw(pipeline, feeds)
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
