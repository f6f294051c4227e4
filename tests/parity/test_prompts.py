"""Long prompts and skipped layers against diffusers' pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bksdm.engines.errors import EngineError, RequestError
from bksdm.optimize.clip_skip import skip_layers
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.initial_latents import begin
from bksdm.runtime.pipeline import TextToImage

from .pictures import assert_same_pictures, pictures

LONG = "a red apple on a table beside a green bottle, " * 12


@pytest.fixture(scope="module", params=["nano", pytest.param("emoji", marks=pytest.mark.slow)])
def pair(request):
    if request.param == "emoji":
        checkpoint = bundle = Path(__file__).parents[2] / "models" / "emoji"
    else:
        checkpoint = request.getfixturevalue("nano_checkpoint")
        bundle = request.getfixturevalue("nano_bundle")
    reference = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    encoder = reference.text_encoder
    if not hasattr(encoder, "text_model"):
        # ``encode_prompt`` does not find the layers of transformers 5 by itself. Past torch, for
        # which a module that holds itself has no end.
        encoder.__dict__["text_model"] = encoder
    return reference, TextToImage.load(bundle)


def parts_of(reference, prompt, count, clip_skip=0):
    """Embeddings of 75 tokens at a time, each with start, end and padding, one after the other."""
    tokenizer = reference.tokenizer
    ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    rows = []
    for first in range(0, count * 75, 75):
        row = [tokenizer.bos_token_id, *ids[first : first + 75], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (77 - len(row)))
    encoder = reference.text_encoder
    with torch.no_grad():
        layers = encoder(torch.tensor(rows), output_hidden_states=True).hidden_states
        # As the lines of ``encode_prompt`` have it.
        states = encoder.text_model.final_layer_norm(layers[-(clip_skip + 1)])
    return states.reshape(1, 77 * count, -1)


def parts_needed(reference, prompt):
    ids = reference.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    return -(-len(ids) // 75)


def test_a_long_prompt_equals_diffusers_with_embeddings_in_parts(pair):
    reference, ours = pair
    count = parts_needed(reference, LONG)
    assert count > 1
    expected = pictures(
        reference,
        None,
        seed=3,
        num_inference_steps=4,
        prompt_embeds=parts_of(reference, LONG, count),
        negative_prompt_embeds=parts_of(reference, "blurry", count),
    )
    found = ours(
        LONG, negative_prompt="blurry", seed=3, num_inference_steps=4, long_prompt=True
    ).pixels
    assert_same_pictures(found, expected)


def test_a_long_and_a_short_prompt_in_one_batch(pair):
    reference, ours = pair
    count = parts_needed(reference, LONG)
    prompts = [LONG, "a cat"]
    embeddings = torch.cat([parts_of(reference, text, count) for text in prompts])
    none = parts_of(reference, "", count).repeat(2, 1, 1)
    expected = pictures(
        reference,
        None,
        seed=[3, 4],
        num_inference_steps=3,
        prompt_embeds=embeddings,
        negative_prompt_embeds=none,
    )
    found = ours(prompts, seed=[3, 4], num_inference_steps=3, long_prompt=True).pixels
    assert_same_pictures(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_the_option_changes_long_prompts_only(pair):
    ours = pair[1]
    for prompt, same in (("a red apple", True), (LONG, False)):
        found, plain = (
            ours(prompt, seed=0, num_inference_steps=2, long_prompt=long).pixels
            for long in (True, False)
        )
        assert (found == plain).all() == same


def test_weights_reach_into_the_second_part(pair):
    ours = pair[1]
    arguments = {"seed": 0, "num_inference_steps": 2, "long_prompt": True, "prompt_weights": True}
    plain = ours(LONG, **arguments).pixels
    # The last words alone are marked; at weight 1 nothing changes.
    head, tail = LONG.rsplit("green", 1)
    same = ours(f"{head}(green{tail}:1)", **arguments).pixels
    np.testing.assert_array_equal(same, plain)
    assert (ours(f"{head}(green{tail}:1.8)", **arguments).pixels != plain).any()


SKIPPING = {
    "a negative prompt": {"negative_prompt": "blurry"},
    "none": {},
    "a batch": {
        "prompt": ["a house", "a red apple"],
        "negative_prompt": ["blurry", "a house"],
        "num_images_per_prompt": 2,
        "seed": [5, 6, 7, 8],
    },
    "no guidance": {"negative_prompt": "blurry", "guidance_scale": 1.0},
}


@pytest.mark.parametrize("case", SKIPPING)
def test_layers_are_skipped_for_the_prompt_alone_as_in_diffusers(pair, case):
    reference, ours = pair
    arguments = {"prompt": "a house", "seed": 5, "num_inference_steps": 3, **SKIPPING[case]}
    drawn = []
    for skipped in range(ours.bundle.text_layers):
        expected = pictures(reference, clip_skip=skipped, **arguments)
        # What is remembered of the one reading must not serve for the other.
        for _ in range(2):
            drawn.append(ours(clip_skip=skipped, **arguments).pixels)
            assert_same_pictures(drawn[-1], expected)
    assert (drawn[0] != drawn[-1]).any()


def test_embeddings_of_both_halves_are_those_of_diffusers(pair):
    """In one batch and one after the other, so that each text is remembered in both readings."""
    reference, ours = pair
    texts = ["a house", "blurry"]
    for prompt, negative in (texts, texts[::-1], (texts[0], texts[0])):
        with torch.no_grad():
            positive, unconditional = reference.encode_prompt(
                prompt, "cpu", 1, True, negative, clip_skip=1
            )
        expected = torch.cat([unconditional, positive]).numpy()
        request = ours.request(GenerationConfig(prompt, negative_prompt=negative, clip_skip=1))
        found = ours.executor._encode(begin(request, None), {})
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_layers_of_a_long_prompt_are_skipped_for_the_prompt_alone(pair):
    reference, ours = pair
    count = parts_needed(reference, LONG)
    for prompt, negative in ((LONG, "blurry"), ("a house", LONG)):
        expected = pictures(
            reference,
            None,
            seed=3,
            num_inference_steps=3,
            prompt_embeds=parts_of(reference, prompt, count, clip_skip=1),
            negative_prompt_embeds=parts_of(reference, negative, count),
        )
        found = ours(
            prompt,
            negative_prompt=negative,
            seed=3,
            num_inference_steps=3,
            long_prompt=True,
            clip_skip=1,
        ).pixels
        assert_same_pictures(found, expected)


def test_every_layer_cannot_be_skipped(pair):
    ours = pair[1]
    layers = ours.bundle.text_layers
    with pytest.raises(RequestError, match=f"below the text encoder's {layers} layers"):
        ours("a house", clip_skip=layers)


def test_a_bundle_of_fixed_length_refuses_long_prompts(nano_bundle, tmp_path):
    """As versions of ours exported it before prompts could be long."""
    import shutil

    folder = tmp_path / "fixed"
    shutil.copytree(nano_bundle, folder)
    path = folder / "unet" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    (states,) = (i for i in graph.graph.input if i.name == "encoder_hidden_states")
    states.type.tensor_type.shape.dim[1].dim_value = 77
    path.write_bytes(graph.SerializeToString())
    model = TextToImage.load(folder)
    with pytest.raises(RequestError, match="takes 77 tokens"):
        model(LONG, num_inference_steps=2, long_prompt=True)
    assert model("a cat", num_inference_steps=2, long_prompt=True, seed=0).pixels.std() > 1


def test_a_graph_without_normalisation_at_its_end_is_refused(nano_bundle):
    graph = onnx.load(nano_bundle / "unet" / "model.onnx", load_external_data=False)
    with pytest.raises(EngineError, match="clip_skip needs a graph"):
        skip_layers(graph, 1)
