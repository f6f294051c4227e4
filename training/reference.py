"""Write the statistics that ``bksdm evaluate`` compares the classifier's features with.

python reference.py -o models/emoji/classifier/reference.npz

They are those of the pictures that the model draws in float32 of its fifty prompts, with two seeds
each, in 50 steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bksdm.evaluate.emoji import GUIDANCE, REFERENCE, REFERENCE_STEPS, draw, requests
from bksdm.evaluate.gaussians import Gaussian
from bksdm.evaluate.judge import Judge
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import TextToImage


def write_reference(path: Path) -> None:
    """Draw the pictures, and write the statistics."""
    config = GenerationConfig(
        "", num_inference_steps=REFERENCE_STEPS, guidance_scale=GUIDANCE, seed=0
    )
    with TextToImage.load() as model:
        features = Judge().features(draw(model, requests(config)))
    path.write_bytes(Gaussian.of(features).save())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=REFERENCE)
    write_reference(parser.parse_args().output)
