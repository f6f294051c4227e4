"""The tokenizer against transformers' CLIPTokenizer on any text."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from bksdm.engines.errors import BundleError, RequestError
from bksdm.runtime.tokenizer import Tokenizer, TruncationWarning

PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["<|endoftext|>", "<|startoftext|>", "😀", "👩‍👩‍👧", "é", "e\u0301", "漢字",
         "\x00", "\u200d", "\t\n", "'re", "don't", "x" * 300, "123", "ǅ", "!", "\ufeff", "ﬁ",
         "İ", "</w>"]
    ),
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map(" ".join) | st.lists(PIECES, max_size=8).map("".join)


@pytest.fixture(scope="module")
def folders(nano_checkpoint, tmp_path_factory):
    """A folder with vocab.json and merges.txt, and one with only tokenizer.json."""
    plain = nano_checkpoint / "tokenizer"
    assert not (plain / "tokenizer.json").exists()
    saved = tmp_path_factory.mktemp("tokenizer")
    CLIPTokenizer.from_pretrained(plain).save_pretrained(saved)
    assert (saved / "tokenizer.json").exists()
    return plain, saved


@pytest.fixture(scope="module")
def pairs(folders):
    return [(Tokenizer.load(f), CLIPTokenizer.from_pretrained(f)) for f in folders]


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS)
@example("")
@example("x" * 5000)
@pytest.mark.filterwarnings("ignore::bksdm.runtime.tokenizer.TruncationWarning")
def test_any_text_equals_transformers(pairs, text):
    for ours, theirs in pairs:
        expected = theirs(
            [text], padding="max_length", max_length=77, truncation=True, return_tensors="np"
        ).input_ids
        np.testing.assert_array_equal(ours([text]), expected)


def test_a_cut_prompt_is_reported(folders):
    with pytest.warns(TruncationWarning, match="the end of it"):
        Tokenizer.load(folders[0])(["0 " * 100 + "the end of it"])


def test_padding_is_the_one_in_the_config(folders, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(folders[0], folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "!"}))
    ours = Tokenizer.load(folder)([""])
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert (ours[0, 2:] == vocabulary["!"]).all()


def test_lone_surrogates_are_refused(folders):
    with pytest.raises(RequestError, match="Unicode"):
        Tokenizer.load(folders[0])(["\ud800"])


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_damaged_and_missing_files_are_named(folders, tmp_path, name):
    folder = tmp_path / "tokenizer"
    shutil.copytree(folders[0], folder)
    (folder / name).write_bytes(b"\xff\xfe{")
    with pytest.raises(BundleError, match=name):
        Tokenizer.load(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        Tokenizer.load(folder)
