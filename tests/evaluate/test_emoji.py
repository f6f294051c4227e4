"""``bksdm evaluate emoji``: bounds for every precision and level of ``--fast``."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bksdm.engines.errors import RequestError
from bksdm.evaluate import emoji
from bksdm.evaluate.emoji import (
    GUIDANCE,
    REFERENCE_STEPS,
    STEPS,
    EmojiScores,
    evaluate_emoji,
    requests,
    score,
)
from bksdm.evaluate.gaussians import Gaussian
from bksdm.evaluate.judge import Judge, evaluation
from bksdm.models import EMOJI
from bksdm.optimize.quantizing import quantize_bundle
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.processor import computes_bfloat16

# What the fast tests take of the prompts, each with two seeds.
SOME = 6


@pytest.fixture
def some(monkeypatch):
    """Judge by the first of the prompts only."""
    few = evaluation()[:SOME]
    monkeypatch.setattr(emoji, "evaluation", lambda: few)
    return few


def config(**options):
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **options}
    return GenerationConfig("", **given)


def require(scores: EmojiScores, fid: float):
    """Require that every object and background is right, and pictures near the reference's."""
    print(f"\n{scores}")
    assert scores.recognised >= 0.98 * scores.pictures
    assert scores.backgrounds >= 0.98 * scores.pictures
    assert scores.margin > 4.5
    assert 0.02 < scores.diversity < 0.15
    assert scores.fid < fid


@pytest.fixture(scope="module")
def exact():
    with TextToImage.load() as model:
        yield model


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.fixture
def near(some, exact, judge):
    """What float32 draws of some prompts, to compare the features of others with."""
    pixels = emoji.draw(exact, requests(config()))
    assert len(pixels) == 2 * SOME
    return pixels, Gaussian.of(judge.features(pixels))


def test_some_prompts_are_drawn_as_well_in_float32(near, some, judge):
    pixels, reference = near
    require(score(pixels, some, judge, reference), fid=1e-6)


@pytest.mark.skipif(not computes_bfloat16(), reason="this processor does not compute bfloat16")
def test_some_prompts_are_drawn_as_well_in_bfloat16_with_less_work(near, some, judge):
    with TextToImage.load(engine="openvino", precision="bfloat16") as model:
        pixels = emoji.draw(model, requests(config(fast=2)))
    require(score(pixels, some, judge, near[1]), fid=0.3)


@pytest.mark.slow
def test_pictures_that_are_worse_are_told(near, some, judge):
    """What the bounds above are for: each score falls with what it is to see."""
    pixels, reference = near
    before = score(pixels, some, judge, reference)
    noise = np.random.default_rng(0).normal(0, 60, pixels.shape)
    noisy = score((pixels + noise).clip(0, 255).astype(np.uint8), some, judge, reference)
    assert noisy.fid > 1
    assert noisy.margin < before.margin
    same = np.concatenate([pixels[:SOME]] * 2)
    assert score(same, some, judge, reference).diversity == 0
    others = score(np.roll(pixels, 1, axis=0), some, judge, reference)
    assert others.recognised == 0
    assert others.fid == pytest.approx(before.fid, abs=1e-6)
    inverted = score(255 - pixels, some, judge, reference)
    assert inverted.backgrounds == 0


def test_seeds_follow_from_the_first_and_differ_between_pictures():
    batches = requests(config(seed=7), seeds=3)
    seeds = [seed for batch in batches for seed in batch.seed]
    assert seeds[:2] == [7, 8]
    assert seeds[len(evaluation())] == 1007
    assert len(set(seeds)) == len(seeds) == 150
    assert [p for batch in batches[:5] for p in batch.prompts] == [e.prompt for e in evaluation()]


def test_one_picture_of_each_prompt_says_nothing_of_diversity(judge):
    pixels = np.zeros((len(evaluation()), 128, 128, 3), np.uint8)
    with pytest.raises(RequestError, match="two pictures of each prompt"):
        score(pixels, evaluation(), judge)


def test_torch_is_not_imported(tmp_path):
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('torch', 'torch_fidelity', 'scipy', 'open_clip'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from bksdm.evaluate import emoji\n"
        "emoji.SEEDS\n"
        "from bksdm.cli import main\n"
        "few = emoji.evaluation()[:2]\n"
        "emoji.evaluation = lambda: few\n"
        "sys.exit(main(['evaluate', 'emoji', '--steps', '1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "objects recognised" in done.stdout


# The distance of each from the reference is at most a third of its bound in the record of
# benchmarks/results: processors round differently.
FULL = [
    ("float32", "onnxruntime", {}, 0.01),
    ("float32", "onnxruntime", {"num_inference_steps": REFERENCE_STEPS}, 1e-4),
    ("float32", "onnxruntime", {"fast": 1}, 0.1),
    ("float32", "onnxruntime", {"fast": 2}, 0.15),
    ("float32", "onnxruntime", {"fast": 3}, 0.8),
    ("bfloat16", "openvino", {}, 0.02),
    ("bfloat16", "openvino", {"fast": 2}, 0.15),
    ("int8", "openvino", {}, 0.15),
    ("int8", "openvino", {"fast": 2}, 0.3),
    ("float16", "openvino", {}, 0.02),
]


@pytest.fixture(scope="module")
def bundles(shared):
    from bksdm.export.exporter import export

    return {
        "float32": lambda: EMOJI,
        "bfloat16": lambda: EMOJI,
        "int8": lambda: shared("emoji-int8", lambda folder: quantize_bundle(EMOJI, folder)),
        "float16": lambda: shared("emoji-fp16", lambda folder: export(EMOJI, folder, "float16")),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "engine", "options", "fid"), FULL)
def test_every_precision_and_level_draws_what_is_asked(bundles, precision, engine, options, fid):
    if precision == "bfloat16" and not computes_bfloat16():
        pytest.skip("this processor does not compute bfloat16")
    with TextToImage.load(bundles[precision](), engine, precision=precision) as model:
        require(evaluate_emoji(model, config(**options)), fid)
