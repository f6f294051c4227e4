"""Added tokens, shorter rows and masked padding against diffusers' pipeline, in one checkpoint."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bksdm.engines.errors import BundleError, ExportError, RequestError
from bksdm.export.graph import write_graph
from bksdm.export.networks import TextEncoder, load_network
from bksdm.export.parity import compare, references
from bksdm.export.tokenizer import read_tokenizer, tokenizer_texts
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.prompt_weights import apply_weights
from bksdm.runtime.tokenizer import Tokenizer
from bksdm.storage.precision import FLOAT32

from .pictures import assert_same_pictures, pictures

LENGTH = 60
ROOM = LENGTH - 2
pytestmark = pytest.mark.filterwarnings("ignore::bksdm.runtime.tokenizer.TruncationWarning")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def checkpoint(nano_checkpoint, tmp_path_factory):
    """Nano with tokens of three vectors and of one, which pads with ``!`` and masks that."""
    folder = tmp_path_factory.mktemp("checkpoints") / "inverted"
    pipeline = StableDiffusionPipeline.from_pretrained(nano_checkpoint)
    vectors = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    pipeline.load_textual_inversion({"<cat>": vectors[:3]})
    pipeline.load_textual_inversion(vectors[3:], token="<dog>")
    pipeline.save_pretrained(folder)
    edit(folder / "text_encoder" / "config.json", use_attention_mask=True)
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=LENGTH)
    (folder / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint, nano_bundle, tmp_path_factory):
    """What an export writes; of the networks only the text encoder differs from nano's."""
    folder = tmp_path_factory.mktemp("bundles") / "inverted"
    left_out = shutil.ignore_patterns("engines", "tokenizer", "text_encoder")
    shutil.copytree(nano_bundle, folder, ignore=left_out)
    for name in ("tokenizer", "text_encoder"):
        (folder / name).mkdir()
    network = load_network(TextEncoder, checkpoint)
    truth = references(network)
    (folder / "text_encoder" / "config.json").write_text(json.dumps(network.config))
    graph = write_graph(network, folder / "text_encoder")
    assert compare(graph, "text_encoder", FLOAT32, truth).passed
    for name, text in tokenizer_texts(read_tokenizer(checkpoint)).items():
        (folder / "tokenizer" / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def reference(checkpoint):
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def ours(bundle, nano_bundle):
    return TextToImage.load(bundle, engine_cache=nano_bundle / "engines")


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return Tokenizer.load(bundle / "tokenizer")


PIECES = ["<cat>", "<cat>_1", "<cat>_2", "<CAT>", "<dog>", "<dog>_1", "a", " ", "!", "x " * 30]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
def test_prompts_are_converted_as_by_diffusers(reference, tokenizer, prompt):
    converted = reference.maybe_convert_prompt(prompt, reference.tokenizer)
    expected = reference.tokenizer(
        [converted], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np"
    )
    found = tokenizer.rows([prompt])
    np.testing.assert_array_equal(found.ids, expected.input_ids)
    np.testing.assert_array_equal(found.mask, expected.attention_mask)


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a <cat> on a table", "dark!"),
        ("<dog> and <cat>, <CAT> <cat>", "a <cat> of <dog>"),
        ("a house " + "x " * 90, "<cat> " * 30),
    ],
)
def test_pictures_equal_diffusers(reference, ours, prompt, negative):
    arguments = {"seed": 3, "num_inference_steps": 2, "negative_prompt": negative}
    found = ours(prompt, **arguments).pixels
    assert_same_pictures(found, pictures(reference, prompt, **arguments))


def embeddings(reference, pieces):
    """What diffusers' text encoder makes of rows of ids, one after the other."""
    tokenizer = reference.tokenizer
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in pieces]
    mask = torch.tensor([[1] * len(row) + [0] * (LENGTH - len(row)) for row in rows])
    full = [row + [tokenizer.pad_token_id] * (LENGTH - len(row)) for row in rows]
    with torch.no_grad():
        states = reference.text_encoder(torch.tensor(full), attention_mask=mask).last_hidden_state
    return states.reshape(1, LENGTH * len(rows), -1)


def ids_of(reference, prompt):
    converted = reference.maybe_convert_prompt(prompt, reference.tokenizer)
    return reference.tokenizer(converted, add_special_tokens=False, verbose=False).input_ids


def test_every_vector_has_the_weight_of_its_token(reference, ours):
    plain = embeddings(reference, [ids_of(reference, "a <cat> house")])
    weights = np.ones(LENGTH)
    # Start, "a", and then three vectors.
    weights[2:5] = 1.6
    weighted = torch.from_numpy(apply_weights(plain[0].numpy(), weights)[None])
    arguments = {"seed": 4, "num_inference_steps": 2}
    expected = pictures(
        reference,
        None,
        prompt_embeds=weighted,
        negative_prompt_embeds=embeddings(reference, [[]]),
        **arguments,
    )
    found = ours("a (<cat>:1.6) house", prompt_weights=True, **arguments).pixels
    assert_same_pictures(found, expected)
    assert (found != ours("a <cat> house", **arguments).pixels).any()


def test_long_prompts_are_converted_before_they_are_divided(reference, ours):
    ids = ids_of(reference, "<cat> " * 25)
    assert len(ids) == 75
    arguments = {"seed": 5, "num_inference_steps": 2}
    expected = pictures(
        reference,
        None,
        prompt_embeds=embeddings(reference, [ids[:ROOM], ids[ROOM:]]),
        negative_prompt_embeds=embeddings(reference, [[], []]),
        **arguments,
    )
    found = ours("<cat> " * 25, long_prompt=True, **arguments).pixels
    assert_same_pictures(found, expected)


def test_a_configuration_without_the_mask_hides_nothing(
    reference, ours, bundle, nano_bundle, tmp_path, monkeypatch
):
    """The graph's input alone does not decide: diffusers goes by the configuration."""
    plain = shutil.copytree(bundle, tmp_path / "plain")
    edit(plain / "text_encoder" / "config.json", use_attention_mask=False)
    monkeypatch.setattr(reference.text_encoder.config, "use_attention_mask", False)
    arguments = {"seed": 3, "num_inference_steps": 2}
    found = TextToImage.load(plain, engine_cache=nano_bundle / "engines")("a house", **arguments)
    assert_same_pictures(found.pixels, pictures(reference, "a house", **arguments))
    assert (found.pixels != ours("a house", **arguments).pixels).any()


def copy_of(nano_bundle, folder):
    return shutil.copytree(nano_bundle, folder, ignore=shutil.ignore_patterns("engines"))


def test_a_graph_that_takes_no_mask_is_refused_where_there_should_be_one(nano_bundle, tmp_path):
    folder = copy_of(nano_bundle, tmp_path / "bundle")
    edit(folder / "text_encoder" / "config.json", use_attention_mask=True)
    with pytest.raises(BundleError, match=r"text_encoder/config.json: use_attention_mask is set"):
        TextToImage.load(folder, engine_cache=nano_bundle / "engines")


def test_rows_of_another_length_than_the_text_encoder_takes(nano_checkpoint, nano_bundle, tmp_path):
    folder = copy_of(nano_bundle, tmp_path / "bundle")
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=LENGTH)
    with pytest.raises(BundleError, match=r"model_max_length is 60, but .* takes 77 tokens"):
        TextToImage.load(folder, engine_cache=nano_bundle / "engines")
    checkpoint = shutil.copytree(nano_checkpoint, tmp_path / "checkpoint")
    edit(checkpoint / "tokenizer" / "tokenizer_config.json", model_max_length=78)
    with pytest.raises(ExportError, match=r"model_max_length is 78, .* only 77 positions"):
        load_network(TextEncoder, checkpoint)


def test_tokens_that_the_text_encoder_does_not_know(nano_bundle, tmp_path):
    """Torch raises an IndexError, OpenVINO draws something."""
    folder = shutil.copytree(nano_bundle / "tokenizer", tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    added = json.loads(path.read_text())["added_tokens_decoder"]
    edit(path, added_tokens_decoder={**added, "1024": {"content": "<new>"}})
    tokenizer = Tokenizer.load(folder, 1024)
    assert tokenizer(["a cat"]).max() < 1024
    with pytest.raises(RequestError, match=r"'<new>', number 1024, .* knows only 1024"):
        tokenizer(["a <new> cat"])
    edit(path, pad_token="<new>")
    with pytest.raises(BundleError, match="'<new>' is token number 1024"):
        Tokenizer.load(folder, 1024)
