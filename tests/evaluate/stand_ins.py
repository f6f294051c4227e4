"""Small networks in place of Inception and CLIP, and a run of them."""

from __future__ import annotations

import numpy as np

from bksdm.evaluate.gaussians import Gaussian
from bksdm.evaluate.measures import Measures
from bksdm.runtime.generation_config import GenerationConfig

FEATURES, CLASSES = 6, 5
PROMPTS = [GenerationConfig(f"picture {i}", seed=i) for i in range(24)]
SETTINGS = {"model": "nano", "num_inference_steps": 2, "prompts": len(PROMPTS), "interval": [0, 1]}


def measure(config):
    """Return measures that depend on the prompt's seed alone."""
    drawn = np.random.default_rng(config.seed)
    return Measures(
        drawn.normal(size=FEATURES).astype(np.float32),
        drawn.normal(size=CLASSES).astype(np.float32),
        float(drawn.uniform(0.2, 0.3)),
    )


def reference():
    drawn = np.random.default_rng(99).normal(size=(50, FEATURES))
    return Gaussian.of(drawn)
