"""Weighted parts of prompts: marks, tokens and embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bksdm.engines.errors import RequestError
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.prompt_weights import EMPHASIS, apply_weights, parse_weights
from bksdm.runtime.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("a (bc:1.5) d", "a bc d", [1, 1, 1.5, 1.5, 1, 1]),
        ("((a))[b]", "ab", [EMPHASIS**2, 1 / EMPHASIS]),
        ("(a (b:2):.5)", "a b", [0.5, 0.5, 1]),
        (r"\(a\) \\ [:", r"(a) \ :", [1, 1, 1, 1, 1, 1, 1 / 1]),
        ("a:2) (b", "a:2) b", [1] * 6),
        ("(a: b)", "a: b", [EMPHASIS] * 4),
    ],
)
def test_marks_become_weights(prompt, text, weights):
    found = parse_weights(prompt)
    assert found[0] == text
    assert found[1] == pytest.approx(weights)


# Marks far more often than chance has them; no digits, which could be weights out of range.
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Nd", "Cs"]))
        | st.sampled_from(["(", ")", "[", "]", "\\", ":1.5)", ":"])
    ).map("".join)
)
def test_any_text_has_a_weight_for_every_character(prompt):
    text, weights = parse_weights(prompt)
    assert len(text) == len(weights)
    assert all(weight > 0 or ":" in prompt for weight in weights)
    if not set(prompt) & set("()[]\\"):
        assert text == prompt


@pytest.mark.parametrize("number", ["-1", "11", "99.5"])
def test_weights_out_of_range_are_refused(number):
    with pytest.raises(RequestError, match="from 0 to 10"):
        parse_weights(f"(a:{number})")


def test_embeddings_are_scaled_and_keep_their_mean():
    rng = np.random.default_rng(0)
    z = (rng.standard_normal((77, 32)) + 0.1).astype(np.float32)
    weights = rng.uniform(0.5, 1.5, 77)
    expected = z.astype(float) * weights[:, None]
    expected *= z.astype(float).mean() / expected.mean()
    # Rounded once, to float32.
    np.testing.assert_allclose(apply_weights(z, weights), expected, rtol=2**-24)


def test_tokens_have_the_weight_of_their_characters(nano_bundle):
    tokenizer = Tokenizer.load(nano_bundle / "tokenizer")
    text, weights = parse_weights("a (red:1.3)  ápple [" + "x " * 100 + "]")
    found = tokenizer.weights(text, weights, 1)
    ids = tokenizer._backend.encode(text)
    for position in range(1, 76):
        assert found[position] == weights[ids.offsets[position][0]]
    assert found[0] == found[76] == 1
    assert (tokenizer.weights("a", [2.0], 1)[2:] == 1).all()


def test_pictures_with_and_without_weights(nano_bundle):
    model = TextToImage.load(nano_bundle)

    def draw(prompt, **more):
        return model(prompt, num_inference_steps=2, seed=0, **more).pixels

    plain = draw("a red apple")
    np.testing.assert_array_equal(draw("a (red:1) apple", prompt_weights=True), plain)
    assert (draw("a (red:1.6) apple", prompt_weights=True) != plain).any()
    # Without the option marks are text, and a cached embedding is not taken for the other's.
    literal = draw("a (red:1.6) apple")
    assert (literal != plain).any()
    assert (literal != draw("a (red:1.6) apple", prompt_weights=True)).any()
    with pytest.raises(RequestError, match="from 0 to 10"):
        draw("(a:12)", prompt_weights=True)
