"""Optimum's exporter and pipeline, for the environment of ``requirements.txt`` beside this file."""

from __future__ import annotations

import argparse
from pathlib import Path


def export(checkpoint: Path, bundle: Path) -> None:
    """Write Optimum's bundle of a diffusers checkpoint."""
    from optimum.exporters.onnx import main_export

    main_export(str(checkpoint), output=bundle, task="text-to-image", do_validation=False)


def generate(bundle: Path, pixels: Path, prompt: str, steps: int, seed: int) -> None:
    """Draw one picture and write it as uint8 [1, height, width, 3]."""
    import numpy as np
    import torch
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    pipeline = ORTStableDiffusionPipeline.from_pretrained(bundle)
    drawn = pipeline(
        prompt,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).images
    np.save(pixels, (drawn * 255).round().astype(np.uint8))


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export")
    exporting.add_argument("checkpoint", type=Path)
    exporting.add_argument("bundle", type=Path)
    drawing = commands.add_parser("generate")
    drawing.add_argument("bundle", type=Path)
    drawing.add_argument("pixels", type=Path)
    drawing.add_argument("--prompt", required=True)
    drawing.add_argument("--steps", type=int, required=True)
    drawing.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    if options.command == "export":
        export(options.checkpoint, options.bundle)
    else:
        generate(options.bundle, options.pixels, options.prompt, options.steps, options.seed)


if __name__ == "__main__":
    main()
