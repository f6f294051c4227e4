"""MNN on the graphs that Optimum exported, network by network; it has Winograd of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from serve import Feeds, Run, serve


def convert(source: str, folder: str) -> None:
    """Convert the two networks with MNN's own converter."""
    target = Path(folder)
    target.mkdir(parents=True)
    # Its own command does the same, but also installs a logger by the first pip on the path and
    # reports what it converted.
    command = [sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)"]
    for stage in ("unet", "vae_decoder"):
        subprocess.run(
            [
                *command,
                "-f",
                "ONNX",
                "--modelFile",
                Path(source) / stage / "model.onnx",
                "--MNNModel",
                target / f"{stage}.mnn",
                "--bizCode",
                "MNN",
                "--saveExternalData",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def load(stage: str, source: str, folder: str, threads: int) -> Run:
    """Load one network in its high precision, which is float32."""
    import MNN

    outputs = {"unet": "out_sample", "vae_decoder": "sample"}
    inputs = {
        "unet": ["sample", "timestep", "encoder_hidden_states"],
        "vae_decoder": ["latent_sample"],
    }
    manager = MNN.nn.create_runtime_manager(
        ({"backend": "CPU", "numThread": threads, "precision": "high"},)
    )
    network = MNN.nn.load_module_from_file(
        str(Path(folder) / f"{stage}.mnn"),
        inputs[stage],
        [outputs[stage]],
        runtime_manager=manager,
        shape_mutable=False,
    )

    def run(feeds: Feeds) -> Any:
        given = []
        for name in inputs[stage]:
            # Its UNet takes one timestep for the whole batch, without an axis.
            array = feeds[name]
            shape = [] if name == "timestep" else list(array.shape)
            variable = MNN.expr.placeholder(shape, MNN.expr.NCHW, MNN.expr.float)
            variable.write(array[:1] if name == "timestep" else array)
            given.append(variable)
        (output,) = network.onForward(given)
        return np.array(MNN.expr.convert(output, MNN.expr.NCHW).read(), copy=True)

    return run


if __name__ == "__main__":
    serve(convert, load)
