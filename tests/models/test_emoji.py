"""What the built-in model draws; ``pytest -s tests/models`` prints the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bksdm.evaluate.judge import Judge, background_names, concepts, evaluation
from bksdm.runtime.pipeline import TextToImage

PROMPTS = [entry.prompt for entry in evaluation()]
WANTED = [entry.concept for entry in evaluation()]
BACKGROUNDS = [entry.background for entry in evaluation()]
SEEDS = (0, 1)
# What the fast tests take of the prompts.
SOME = 8
GUIDANCE = 4.0
STEPS = 25
CHECKPOINT = Path(__file__).parents[2] / "models" / "emoji"


@pytest.fixture(scope="module")
def model():
    return TextToImage.load()


@pytest.fixture(scope="module")
def judge():
    return Judge()


def draw(model, prompts, seed, guidance=GUIDANCE, steps=STEPS, **options):
    return model(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        seed=[1000 * seed + i for i in range(len(prompts))],
        **options,
    ).pixels


@pytest.fixture(scope="module")
def some(model):
    """The first of the prompts."""
    return draw(model, PROMPTS[:SOME], SEEDS[0])


@pytest.fixture(scope="module")
def drawn(model):
    """Fifty prompts."""
    return draw(model, PROMPTS, SEEDS[0])


PICTURES = pytest.mark.parametrize(
    "pictures", ["some", pytest.param("drawn", marks=pytest.mark.slow)]
)


def test_prompts_are_recognised(some, judge):
    require_recognised(some, judge)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_fifty_prompts_are_recognised(model, judge, seed):
    assert len(PROMPTS) == 50
    require_recognised(draw(model, PROMPTS, seed), judge)


def require_recognised(pixels, judge):
    wanted = WANTED[: len(pixels)]
    recognised = judge.recognised(pixels, wanted)
    missed = [c for c, good in zip(wanted, recognised, strict=True) if not good]
    print(
        f"\nrecognised: {recognised.sum()} of {len(wanted)}; missed: {', '.join(missed) or 'none'}"
    )
    assert recognised.mean() >= 0.8


@PICTURES
def test_shuffled_prompts_score_near_chance(judge, request, pictures):
    pixels = request.getfixturevalue(pictures)
    others = np.roll(WANTED, -7)[: len(pixels)].tolist()
    differ = np.array([a != b for a, b in zip(WANTED, others, strict=False)])
    assert differ.mean() > 0.9
    recognised = judge.recognised(pixels, others)
    print(f"\nshuffled prompts recognised: {recognised.sum()} of {len(recognised)}")
    # Chance is one in 36 labels.
    assert recognised.mean() < 0.1


@PICTURES
def test_backgrounds_have_the_colour_of_the_prompt(request, pictures):
    found = background_names(request.getfixturevalue(pictures))
    same = np.array([a == b for a, b in zip(found, BACKGROUNDS, strict=False)])
    print(f"\nbackgrounds as asked: {same.sum()} of {len(same)}")
    assert same.mean() >= 0.9


@pytest.mark.slow
def test_guidance_makes_pictures_clearer(model, drawn, judge):
    weak = draw(model, PROMPTS, SEEDS[0], guidance=1.0)
    without = judge.margins(weak, WANTED).mean()
    with_guidance = judge.margins(drawn, WANTED).mean()
    print(f"\nmean margin: {without:.3f} at guidance 1, {with_guidance:.3f} at {GUIDANCE:g}")
    assert with_guidance > without


@PICTURES
@pytest.mark.parametrize(
    "fast", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_less_work_is_recognised_as_well(model, judge, request, fast, pictures):
    """Reused features, and with the last level less guidance, leave the objects what they are."""
    expected = request.getfixturevalue(pictures)
    count = len(expected)
    pixels = draw(model, PROMPTS[:count], SEEDS[0], fast=fast)
    exact, found = (judge.recognised(p, WANTED[:count]).sum() for p in (expected, pixels))
    psnr = np.median(psnrs(pixels, expected))
    print(f"\n--fast {fast}: {found} of {count} recognised, median PSNR {psnr:.1f} dB")
    assert found >= exact
    assert 25 < psnr < 70


def psnrs(pixels, expected):
    errors = np.mean((pixels.astype(float) - expected) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(255**2 / errors)


@PICTURES
def test_the_tiny_decoder_makes_nearly_the_same_pictures(model, judge, request, pictures):
    expected = request.getfixturevalue(pictures)
    count = len(expected)
    pixels = draw(model, PROMPTS[:count], SEEDS[0], vae="tiny")
    before, after = (judge.margins(p, WANTED[:count]) for p in (expected, pixels))
    found = psnrs(pixels, expected)
    print(
        f"\n--vae tiny: {(after > 0).sum()} of {count} recognised, mean margin {before.mean():.2f} "
        f"→ {after.mean():.2f}, PSNR median {np.median(found):.1f}, least {found.min():.1f} dB"
    )
    assert (after > 0).sum() >= (before > 0).sum()
    # A decoder of other latents would be far below, and the same one infinitely far above.
    assert found.min() > 27
    assert 32 < np.median(found) < 45


@pytest.mark.parametrize("count", [SOME, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("steps", [2, 4])
def test_few_steps_of_lcm_without_guidance_are_recognised(model, judge, count, steps):
    """It obeys its prompts without guidance, and one step shows nearly all of a picture."""
    options = {"guidance": 1.0, "steps": steps, "sampler": "lcm", "vae": "tiny"}
    scores = [
        judge.recognised(draw(model, PROMPTS[:count], seed, **options), WANTED[:count]).mean()
        for seed in SEEDS
    ]
    print(f"\n{steps} steps of LCM: {scores} recognised")
    assert np.mean(scores) >= 0.95


@pytest.mark.parametrize(
    "concepts",
    [
        ["red apple", "penguin"],
        pytest.param(["red apple", "penguin", "rocket", "house", "frog"], marks=pytest.mark.slow),
    ],
    ids=len,
)
def test_every_step_count_draws_the_object(model, judge, concepts):
    prompts = [f"a {concept}" for concept in concepts]
    # Few steps of a multistep method do not carry strong guidance.
    for steps, guidance in ((10, 2.0), (25, GUIDANCE)):
        pixels = draw(model, prompts, 3, guidance=guidance, steps=steps)
        recognised = judge.recognised(pixels, concepts)
        print(f"\n{steps} steps: {recognised.sum()} of {len(prompts)} recognised")
        assert recognised.all()


@pytest.mark.slow
def test_held_out_pairs_are_reported(model, judge):
    """Pairs that training never showed: any score is fine, a change of it is worth a look."""
    pairs = concepts()["held_out"]
    prompts = [f"{'an' if c[0] in 'aeiou' else 'a'} {c} on a {b} background" for c, b in pairs]
    pixels = np.concatenate([draw(model, prompts, seed) for seed in SEEDS])
    recognised = judge.recognised(pixels, [concept for concept, _ in pairs] * len(SEEDS))
    wanted = [colour for _, colour in pairs] * len(SEEDS)
    coloured = np.array([a == b for a, b in zip(background_names(pixels), wanted, strict=True)])
    print(
        f"\nheld out: {recognised.sum()} of {len(pixels)} objects, {coloured.sum()} backgrounds, "
        f"{(recognised & coloured).sum()} both"
    )
    assert pixels.shape == (len(prompts) * len(SEEDS), 128, 128, 3)


def test_negative_prompt_and_seed_change_the_picture(model):
    plain = model("a dog", num_inference_steps=5, seed=0).pixels
    assert (plain != model("a dog", num_inference_steps=5, seed=1).pixels).any()
    other = model("a dog", num_inference_steps=5, seed=0, negative_prompt="a cat").pixels
    assert (plain != other).any()


def test_the_checkpoint_is_small_and_holds_nothing_about_the_machine():
    parts = [p for p in CHECKPOINT.rglob("*") if not {"train", "engines"} & set(p.parts)]
    files = [p for p in parts if p.is_file()]
    assert sum(path.stat().st_size for path in files) < 50e6
    for path in files:
        if path.suffix in (".json", ".txt", ".onnx"):
            content = path.read_bytes()
            assert b': "/' not in content, f"{path} holds an absolute path"
            assert not any(word in content for word in (b"/home/", b"/root/", b"site-packages"))
