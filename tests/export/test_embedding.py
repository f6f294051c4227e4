"""Textual inversions: tokens and vectors as diffusers' load_textual_inversion adds them."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from bksdm.cli import main
from bksdm.export.embedding import split_token
from bksdm.export.prepared import Parts, prepared
from bksdm.export.pretrained import load
from bksdm.runtime.tokenizer import Tokenizer

VECTORS = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


def a1111(name, vectors):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(vectors)},
        "name": name,
        "step": 100,
        "sd_checkpoint": None,
    }


# How the file is written, and the token that it needs.
FILES = {
    "cat.bin": (lambda path: torch.save({"<cat>": VECTORS[0]}, path), None),
    "cats.safetensors": (lambda path: save_file({"<cats>": VECTORS[:3]}, path), None),
    "row.bin": (lambda path: torch.save({"<row>": VECTORS[:1]}, path), None),
    "renamed.bin": (lambda path: torch.save({"<cat>": VECTORS}, path), "<other-cat>"),
    "charturner.pt": (lambda path: torch.save(a1111("charturner", VECTORS[1:]), path), None),
    "webui.pt": (lambda path: torch.save(a1111("charturner", VECTORS[1:]), path), "My-Style"),
    "webui.safetensors": (lambda path: save_file({"emb_params": VECTORS[:2]}, path), "webui"),
    "bare.pt": (lambda path: torch.save(VECTORS[2:], path), "<bare>"),
    "half.safetensors": (lambda path: save_file({"<half>": VECTORS.half()}, path), None),
}


def diffusers_with(checkpoint, files):
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint)
    for path, token in files:
        name = {"weight_name": path.name}
        if path.name == "bare.pt":  # diffusers takes no such file, but the tensor
            pipeline.load_textual_inversion(torch.load(path), token=token)
        else:
            pipeline.load_textual_inversion(str(path.parent), token=token, **name)
    return pipeline


def check(checkpoint, pipeline, prompts):
    found, expected = load("text_encoder", checkpoint), pipeline.text_encoder
    assert found.config.vocab_size == expected.config.vocab_size
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    tokenizer = Tokenizer.load(checkpoint / "tokenizer", found.config.vocab_size)
    converted = pipeline.maybe_convert_prompt(prompts, pipeline.tokenizer)
    ids = pipeline.tokenizer(converted, padding="max_length", max_length=77, truncation=True)
    assert tokenizer.rows(prompts).ids.tolist() == ids.input_ids


@pytest.mark.parametrize("name", FILES)
def test_a_file_adds_what_it_adds_in_diffusers(nano_checkpoint, tmp_path, name):
    write, token = FILES[name]
    write(tmp_path / name)
    pipeline = diffusers_with(nano_checkpoint, [(tmp_path / name, token)])
    added = [t for t in pipeline.tokenizer.get_added_vocab() if "|" not in t]
    prompts = [f"a {added[0]} on a table", f"{added[0]},{added[-1]} x{added[0].upper()}", "a cat"]
    parts = Parts(embeddings=[(tmp_path / name, token)])
    with prepared(nano_checkpoint, parts, beside=tmp_path) as checkpoint:
        check(checkpoint, pipeline, prompts)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_several_files_add_up(nano_checkpoint, tmp_path):
    files = []
    for name, (write, token) in FILES.items():
        write(tmp_path / name)
        files.append((tmp_path / name, token))
    pipeline = diffusers_with(nano_checkpoint, files)
    with prepared(nano_checkpoint, Parts(embeddings=files), beside=tmp_path) as checkpoint:
        check(checkpoint, pipeline, ["<cat> and <cats>, my-style webui charturner <bare><half>"])


def write_bin(content):
    return lambda path: torch.save(content, path)


REFUSED = {
    "no such file": (lambda path: None, "", "no such file; --embedding takes"),
    "another width": (
        write_bin({"<x>": torch.ones(48)}),
        "",
        "another model: its vectors have 48 numbers, the text encoder's 32",
    ),
    "a word that is known": (write_bin({"a": torch.ones(32)}), "", "knows 'a' already; choose"),
    "a special token": (
        write_bin({"<x>": torch.ones(32)}),
        ":<|endoftext|>",
        "knows '<|endoftext|>' already",
    ),
    "no token": (write_bin(torch.ones(32)), "", "names no token; write --embedding .*:TOKEN"),
    "an empty token": (write_bin({"<x>": torch.ones(32)}), ":", "names no token"),
    "two tokens": (
        write_bin({"<x>": torch.ones(32), "<y>": torch.ones(32)}),
        "",
        "the vectors of one token",
    ),
    "for XL": (
        write_bin({"clip_l": torch.ones(32), "clip_g": torch.ones(48)}),
        "",
        "Stable Diffusion XL",
    ),
    "no vector": (write_bin({"<x>": torch.ones(())}), "", "not a textual inversion of vectors"),
    "no numbers": (write_bin({"<x>": torch.ones(0, 32)}), "", "not a textual inversion of vec"),
    "no tensor": (write_bin({"<x>": 3}), "", "not a textual inversion of vectors"),
    "not finite": (write_bin({"<x>": torch.full((32,), torch.inf)}), "", "not finite numbers"),
    "code": (write_bin({"<x>": print}), "", "damaged, or a pickle of more than tensors"),
    "empty": (lambda path: path.touch(), "", "is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(nano_checkpoint, tmp_path, capsys, monkeypatch, case):
    write, token, said = REFUSED[case]
    write(tmp_path / "x.bin")
    before = list(tmp_path.iterdir())
    given = ["--embedding", f"{tmp_path / 'x.bin'}{token}"]
    assert main(["export", str(nano_checkpoint), *given, "-o", str(tmp_path / "bundle")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bksdm: error: {tmp_path / 'x.bin'}")
    assert re.search(said, line), line
    assert list(tmp_path.iterdir()) == before


def test_the_same_token_twice(nano_checkpoint, tmp_path, capsys):
    FILES["cats.safetensors"][0](tmp_path / "x.safetensors")
    given = ["--embedding", str(tmp_path / "x.safetensors")] * 2
    assert main(["export", str(nano_checkpoint), *given, "-o", str(tmp_path / "bundle")]) == 2
    assert "knows '<cats>' already" in capsys.readouterr().err


def test_a_colon_may_be_part_of_the_name(tmp_path):
    path = tmp_path / "a:b"
    assert split_token(f"{path}") == (tmp_path / "a", "b")
    path.touch()
    assert split_token(f"{path}") == (path, None)
    assert split_token(f"{path}:c") == (path, "c")
