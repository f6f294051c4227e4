"""Draw the 24 prompts of ``concepts.json`` with two seeds each, as one picture.

python training/grid.py -o docs/emoji.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from bksdm.models import EMOJI
from bksdm.runtime.pipeline import TextToImage

COLUMNS = 12
SEEDS = (0, 1)


def draw(path: Path) -> None:
    """Write two rows of pictures for every dozen prompts, one row per seed."""
    prompts = json.loads((EMOJI / "concepts.json").read_text(encoding="utf-8"))["grid"]
    model = TextToImage.load()
    rows = []
    for start in range(0, len(prompts), COLUMNS):
        part = prompts[start : start + COLUMNS]
        for seed in SEEDS:
            seeds = [1000 * seed + start + index for index in range(len(part))]
            result = model(part, num_inference_steps=25, guidance_scale=4.0, seed=seeds)
            rows.append(np.concatenate(list(result.pixels), axis=1))
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    draw(parser.parse_args().output)
