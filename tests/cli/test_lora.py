"""``bksdm generate --lora``: LoRAs of a command, its record and its refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bksdm import TextToImage
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.images import read_parameters
from bksdm.storage.digest import sha256_of

from ..lora_files import random_lora

QUICK = ("--steps", 2, "--seed", 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, bundle = tmp_path_factory.mktemp("loras"), Bundle.open(EMOJI)
    (folder / "more").mkdir()
    kind = r"attn\d\.to_[qk]$"
    return [
        random_lora(bundle, folder / "ink.safetensors", 1, kind),
        random_lora(bundle, folder / "more" / "ink.safetensors", 2, kind),
    ]


def test_pictures_say_which_loras_drew_them(run, tmp_path, files):
    path, words = tmp_path / "x.png", ("--lora", f"{files[0]}:0.5", "--lora", files[1])
    assert run("generate", "a dog", *QUICK, *words, "-o", path)[0] == 0
    digests = [sha256_of(file) for file in files]
    own = read_parameters(path)
    assert own["loras"] == f"ink:0.5:{digests[0]},ink-2:1.0:{digests[1]}"
    with TextToImage.load(threads=1) as model:
        for file in files:
            model.load_lora(file)
        uses = {"ink": 0.5, "ink-2": 1.0}
        expected = model("a dog", num_inference_steps=2, seed=3, loras=uses).pixels[0]
    # By as many threads as there are, in another order.
    apart = np.abs(np.asarray(Image.open(path)).astype(int) - expected)
    assert apart.max() <= 1
    out = run("info", path)[1]
    assert f"note: --lora: name the file of the LoRA ink, of SHA-256 {digests[0]}\n" in out
    assert "--lora ink:0.5 --lora ink-2:1.0" in out


def test_lines_of_prompts_choose_among_them(run, tmp_path, files):
    lines = tmp_path / "lines.jsonl"
    rows = [
        {"prompt": "a dog"},
        {"prompt": "a dog", "loras": {}},
        {"prompt": "a dog", "lora": ["ink"]},
    ]
    lines.write_text("\n".join(json.dumps({**row, "seed": 3}) for row in rows))
    words = ("--lora", f"{files[0]}:2", "--steps", 2, "-o", tmp_path / "out")
    assert run("generate", "--prompts", lines, *words)[0] == 0
    first, none, named = sorted((tmp_path / "out").glob("*.png"))
    said = [read_parameters(path).get("loras") for path in (first, none, named)]
    assert said == [f"ink:2.0:{sha256_of(files[0])}", None, said[0]]
    assert first.read_bytes() != none.read_bytes()
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(named)))
    assert "0 drawn, 3 already there" in run("generate", "--prompts", lines, *words)[2]


def test_refused_before_anything_is_loaded(run, tmp_path, files, monkeypatch):
    monkeypatch.setattr(TextToImage, "load", None)
    other = tmp_path / "x.safetensors"
    other.write_bytes(b"no tensors")
    for words, told in (
        (("--lora", tmp_path / "y.safetensors"), "y.safetensors: no such file; a LoRA is FILE or"),
        (("--lora", other), "x.safetensors: damaged, or not a safetensors file"),
        (("--lora", tmp_path / "y.pt"), "y.pt: a pickle, which can hold code"),
        (("--lora", f"{files[0]}:much"), "'much' is no scale"),
        (("--lora", files[0], "--engine", "tensorrt"), "not tensorrt"),
    ):
        code, _, said = run("generate", "a dog", *QUICK, *words, "-o", tmp_path / "x.png")
        assert (code, told in said, said.count("\n")) == (2, True, 1), said
    assert not (tmp_path / "x.png").exists()
