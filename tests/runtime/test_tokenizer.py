"""The tokenizer against transformers' CLIPTokenizer on any text."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from bksdm.engines.errors import BundleError, RequestError
from bksdm.export.tokenizer import tokenizer_texts
from bksdm.runtime.tokenizer import Tokenizer, TruncationWarning
from bksdm.runtime.tokenizer_files import TokenizerFiles

PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "<|endoftext|>",
            "<|startoftext|>",
            "😀",
            "👩‍👩‍👧",
            "é",
            "e\u0301",
            "漢字",
            "\x00",
            "\u200d",
            "\t\n",
            "'re",
            "don't",
            "x" * 300,
            "123",
            "ǅ",
            "!",
            "\ufeff",
            "ﬁ",
            "İ",
            "</w>",
        ]
    ),
)
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


def flags():
    names = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return st.fixed_dictionaries({}, optional={name: st.booleans() for name in names})


TOKENS = [
    "<|startoftext|>",
    "<|endoftext|>",
    "!",
    "[PAD]",
    "<s>",
    "</s>",
    "<cat>",
    "<x>",
    "a",
    "",
    "A",
]
TOKEN = st.sampled_from(TOKENS)
DESCRIBED = st.builds(lambda content, chosen: {"content": content, **chosen}, TOKEN, flags())
MARKED = DESCRIBED.map(lambda token: {"__type": "AddedToken", **token})
# Some of these transformers refuses.
ANY = st.one_of(TOKEN, MARKED, DESCRIBED, st.sampled_from([None, 5, []]))
EXTRA = st.one_of(
    st.lists(TOKEN | MARKED, max_size=2),
    st.sampled_from([None, {"image_token": "<img>"}, {"picture": "<img>"}]),
)
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token")
SETTINGS = st.fixed_dictionaries(
    {"tokenizer_class": st.just("CLIPTokenizer")},
    optional={
        **{role: TOKEN | ANY for role in ROLES},
        # Without any limit as JSON has it, with one, and what is none.
        "model_max_length": st.sampled_from([77, 50, 3, None, 10**30, 1e30, "77", 77.0]),
        "max_len": st.just(20),
        "padding_side": st.sampled_from(["left", "right", "middle"]),
        "truncation_side": st.sampled_from(["left", "right"]),
        "split_special_tokens": st.booleans(),
        "additional_special_tokens": st.lists(TOKEN | MARKED, max_size=2),
        "extra_special_tokens": EXTRA,
        "image_token": st.just("<img>") | MARKED,
        "added_tokens_decoder": st.dictionaries(
            st.sampled_from(["0", "5", "1022", "1024", "1030"]), DESCRIBED, max_size=3
        ),
        "model_specific_special_tokens": st.just({"image_token": "<s>"}),
        # What no id depends on.
        "do_lower_case": st.just(False),
        "add_prefix_space": st.just(True),
        "errors": st.just("strict"),
        "clean_up_tokenization_spaces": st.just(True),
        "add_bos_token": st.just(False),
    },
)
MAP = st.fixed_dictionaries(
    {},
    optional={
        **{role: TOKEN | DESCRIBED for role in ROLES},
        "additional_special_tokens": st.lists(TOKEN, max_size=2),
        "extra_special_tokens": EXTRA | st.lists(DESCRIBED, max_size=1),
        "image_token": st.just("<img>") | DESCRIBED,
    },
)
ADDED = st.dictionaries(TOKEN, st.sampled_from([0, 1024, 1025, 5000, 2000]), max_size=3)
SIDES = st.sampled_from(["Left", "Right"])
PADDING = SIDES.map(
    lambda side: {
        "strategy": {"Fixed": 12},
        "direction": side,
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
)
TRUNCATION = SIDES.map(
    lambda side: {"direction": side, "max_length": 10, "strategy": "LongestFirst", "stride": 0}
)
LISTED = st.builds(
    lambda index, token, chosen: {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": False,
        **chosen,
    },
    st.sampled_from([0, 320, 1024, 1025]),
    TOKEN,
    flags(),
)
WHOLE = st.fixed_dictionaries(
    {"more": st.lists(LISTED, max_size=3)},
    optional={
        "truncation": TRUNCATION,
        "padding": PADDING,
        "normalizer": st.none(),
        "post_processor": st.none(),
    },
)
NASTY = [
    "",
    "a! b",
    "<cat>! <CAT> <s>x</s>",
    "a <|endoftext|> b <|STARTOFTEXT|>",
    "[PAD] <x>y",
    "日本 e\u0301 😀",
    "x " * 100,
    "!!!",
    "<img><x> <x>y",
    " lead  'RE trail ",
]


def write_folder(folder, plain, saved, config, mapped, added, whole):
    """Write the files that are not None; the vocabulary comes from ``plain`` or ``saved``."""
    folder.mkdir()
    if whole is None:
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(plain / name, folder / name)
    else:
        content = json.loads((saved / "tokenizer.json").read_text())
        changed = {name: value for name, value in whole.items() if name != "more"}
        content = {**content, **changed, "added_tokens": content["added_tokens"] + whole["more"]}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    files = {"tokenizer_config": config, "special_tokens_map": mapped, "added_tokens": added}
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))


def by_transformers(folder):
    """Ids and mask as diffusers' pipelines ask for them; 77 tokens where no limit is stated."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    length = tokenizer.model_max_length
    unlimited = isinstance(length, (int, float)) and length >= 1e20
    found = tokenizer(
        NASTY,
        padding="max_length",
        max_length=77 if unlimited else length,
        truncation=True,
        return_tensors="np",
    )
    return found.input_ids, found.attention_mask


AMBIGUOUS = "added_tokens: .* (as special and as not|are the same in lower case, .*)$"


# The same folders each time: a second each, and no run is to fail by chance.
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.none() | SETTINGS, st.none() | MAP, st.none() | ADDED, st.none() | WHOLE)
# Every Stable Diffusion 2.x: the map says otherwise than the settings.
@example({"pad_token": "<|endoftext|>", "model_max_length": 77}, {"pad_token": "!"}, None, None)
@example({"pad_token": "!", "model_max_length": 77}, {"pad_token": "<|endoftext|>"}, None, None)
@example(
    {"pad_token": "!", "model_max_length": 77, "added_tokens_decoder": {}},
    {"pad_token": "<|endoftext|>"},
    None,
    None,
)
# One file says that the end is special, the other that it is not.
@example(
    {"split_special_tokens": True, "eos_token": "<|startoftext|>", "unk_token": "!"},
    None,
    {"<|endoftext|>": 1024},
    {"more": []},
)
@example({"model_specific_special_tokens": {"picture": "<x>"}}, None, None, None)
@pytest.mark.filterwarnings("ignore::bksdm.runtime.tokenizer.TruncationWarning")
def test_any_folder_is_read_as_transformers_reads_it(
    folders, tmp_path_factory, config, mapped, added, whole
):
    place = tmp_path_factory.mktemp("folder")
    write_folder(place / "source", *folders, config, mapped, added, whole)
    try:
        expected = by_transformers(place / "source")
    # Whatever it says to what it cannot read; among it Rust's bare Exception.
    except Exception:
        with pytest.raises(BundleError, match=str(place)):
            Tokenizer.load(place / "source")
        return
    try:
        files = TokenizerFiles.read(place / "source")
    except BundleError as error:
        if re.search(AMBIGUOUS, str(error)):
            return
        raise
    for found in (Tokenizer(files).rows(NASTY), rewritten(files, place / "written")):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    again = by_transformers(place / "written")
    np.testing.assert_array_equal(again[0], expected[0])


SPECIAL = {
    "id": 1024,
    "content": "<x>",
    "special": True,
    "normalized": False,
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
}


@pytest.mark.parametrize(
    ("added", "more", "said"),
    [
        ({"<x>": 1025}, [SPECIAL], "'<x>' stands there twice, as special and as not"),
        ({"<Cat>": 1024, "<cat>": 1025}, [], "'<Cat>' and '<cat>' are the same in lower case"),
        ({"<x>": 1024}, [SPECIAL], None),
        ({"<Cat>": 1024}, [{**SPECIAL, "content": "<cat>", "id": 1025}], None),
    ],
)
def test_what_not_even_transformers_can_tell_apart_is_refused(folders, tmp_path, added, more, said):
    place = tmp_path / "tokenizer"
    write_folder(place, *folders, None, None, added, {"more": more})
    if said is None:
        TokenizerFiles.read(place)
        return
    with pytest.raises(BundleError, match=f"^{place}: added_tokens: {said}"):
        TokenizerFiles.read(place)


def no_file(path, kind):
    """Put something that cannot be read to its end in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    "name",
    [
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ],
)
def test_only_regular_files_are_read(folders, tmp_path, name, kind):
    folder = tmp_path / "tokenizer"
    shutil.copytree(folders[0], folder)
    no_file(folder / name, kind)
    with pytest.raises(BundleError, match=f"{name}: cannot be read .not a regular file"):
        Tokenizer.load(folder)


def rewritten(files, folder):
    """What the runtime makes of the files that an export writes."""
    folder.mkdir()
    for name, text in tokenizer_texts(files).items():
        (folder / name).write_text(text)
    return Tokenizer.load(folder).rows(NASTY)


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
