"""OpenVINO: networks converted by optimum-intel, pictures by OpenVINO GenAI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from serve import Feeds, Run, serve


def convert(source: str, folder: str) -> None:
    """Write OpenVINO's folder, as ``optimum-cli export openvino`` does."""
    from optimum.commands.optimum_cli import main

    sys.argv = [
        "optimum-cli",
        "export",
        "openvino",
        "--model",
        source,
        "--task",
        "text-to-image",
        "--weight-format",
        "fp32",
        folder,
    ]
    main()


def load(stage: str, source: str, folder: str, threads: int, exact: bool = True) -> Run:
    """Compile one network, or open the pipeline.

    In float32 whatever the processor offers, or in what OpenVINO chooses for it.
    """
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if exact:
        options["INFERENCE_PRECISION_HINT"] = "f32"
    if stage == "picture":
        return _pipeline(folder, options)
    import openvino

    network = openvino.Core().compile_model(
        Path(folder) / stage / "openvino_model.xml", "CPU", options
    )

    def run(feeds: Feeds) -> Any:
        given = dict(feeds)
        if "timestep" in given:
            # Its UNet takes one timestep for the whole batch.
            given["timestep"] = given["timestep"][:1]
        return network(given)[0]

    return run


def _pipeline(folder: str, options: dict[str, Any]) -> Run:
    import openvino
    import openvino_genai

    class Given(openvino_genai.Generator):
        """Noise that was drawn before."""

        def __init__(self, noise: Any) -> None:
            openvino_genai.Generator.__init__(self)
            self._noise = noise

        def randn_tensor(self, shape: Any) -> openvino.Tensor:
            return openvino.Tensor(self._noise.reshape(tuple(shape)))

    pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU", **options)

    def run(feeds: Feeds) -> Any:
        noise = feeds["latents"]
        height, width = int(feeds["height"]), int(feeds["width"])
        drawn = pipeline.generate(
            str(feeds["prompt"]),
            negative_prompt="",
            height=height,
            width=width,
            num_inference_steps=int(feeds["steps"]),
            guidance_scale=7.5,
            generator=Given(noise),
        )
        return drawn.data

    return run


if __name__ == "__main__":
    serve(convert, load)
