"""Every CPU engine, and a whole model on it, may be shared by threads."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bksdm.engines.once import once
from bksdm.engines.registry import cpu_engines
from bksdm.models import EMOJI
from bksdm.runtime import prompt_encoder
from bksdm.runtime.pipeline import TextToImage

# Options that load further networks, change shapes, and fill caches.
OPTIONS = [
    {},
    {"width": 64},
    {"guidance_scale": 1.0},
    {"clip_skip": 1},
    {"fast": 2},
    {"sampler": "euler-a"},
    {"num_images_per_prompt": 2},
    {"long_prompt": True},
]
PROMPTS = ["a red apple", "a banana", "a green tree", "a dog", "a blue car"]


@pytest.fixture
def eager_switches():
    """Threads change places thousands of times more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def differences(bundle, engine, threads, pictures, monkeypatch):
    """Draw with one model in several threads; return how many pictures are not those of one."""
    pytest.importorskip(engine)
    # Entries are dropped and made again all the time.
    monkeypatch.setattr(prompt_encoder, "MAX_CACHED_PROMPTS", 3)
    model = TextToImage.load(bundle, engine, threads=1)
    small = {"num_inference_steps": 2, "height": 32, "width": 32}
    calls = [
        (PROMPTS[n % len(PROMPTS)], {**small, "seed": n, **OPTIONS[n % len(OPTIONS)]})
        for n in range(len(PROMPTS) * len(OPTIONS))
    ]
    alone = TextToImage.load(bundle, engine, threads=1)
    expected = [alone(prompt, **options).pixels for prompt, options in calls]

    def draw(thread):
        order = np.random.default_rng(thread).integers(len(calls), size=pictures)
        return sum(
            not np.array_equal(model(calls[n][0], **calls[n][1]).pixels, expected[n]) for n in order
        )

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(draw, range(threads)))


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
def test_threads_may_share_a_model(nano_bundle, engine, monkeypatch, eager_switches):
    assert differences(nano_bundle, engine, 4, 5, monkeypatch) == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", cpu_engines())
def test_many_threads_may_share_a_model_for_long(engine, monkeypatch, eager_switches):
    assert differences(EMOJI, engine, 8, 50, monkeypatch) == 0


def test_once_is_once_for_all_threads():
    made, barrier = [], threading.Barrier(8)

    def make(key):
        made.append(key)
        return object()

    shared = once(make)

    def call(_):
        barrier.wait()
        return shared("a")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(call, range(8)))) == 1
    assert made == ["a"]
    assert shared("b") is not shared("a")
