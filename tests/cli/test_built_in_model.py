"""The built-in model has a name, wherever a bundle is asked for."""

from __future__ import annotations

import json

import pytest

from bksdm.engines.errors import BundleError
from bksdm.models import EMOJI, bundle_folder
from bksdm.models.objects import known_objects, names_an_object
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.images import read_parameters
from bksdm.runtime.pipeline import TextToImage


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_python_knows_the_name():
    assert Bundle.open("emoji").path == EMOJI
    assert TextToImage.load("emoji").bundle.path == EMOJI
    with pytest.raises(BundleError, match=r"emojis: no such folder; .* or take the built-in emoji"):
        Bundle.open("emojis")


def test_commands_know_the_name(run, tmp_path):
    out = tmp_path / "x.png"
    assert run("generate", "an owl", "--model", "emoji", "--steps", 1, "-o", out)[0] == 0
    assert read_parameters(out)["model"] == "emoji"
    assert json.loads(run("info", "emoji", "--json")[1])["bundle"] == str(EMOJI)
    code, out, _ = run("verify", "--integrity", "emoji")
    assert (code, out) == (0, f"{EMOJI}: every file is what was exported\n")
    assert run("build", "emoji", "--list")[0] == 0
    for words in (
        ["build", "emoji", "--target", "sm89"],
        ["calibrate", "emoji", "--steps", 0],
        ["calibrate", "emoji", "--half", "emoji", "--steps", 0],
        ["bench", "latency", "emoji", "--steps", 0],
        ["bench", "rewrite", "emoji", "--size", "1x1"],
        ["bench", "roofline", "emoji", "--size", "1x1"],
        ["verify", "emoji", "--against", "x", "--steps", 0],
    ):
        code, _, err = run(*words)
        assert code == 2
        assert "no such folder" not in err


def test_a_folder_of_that_name_comes_first(run, tiny_bundle, tmp_path):
    (tmp_path / "emoji").symlink_to(tiny_bundle)
    assert Bundle.open("emoji").sample_size == 8
    assert json.loads(run("info", "emoji", "--json")[1])["default_size"] == 64
    (tmp_path / "emoji").unlink()
    (tmp_path / "emoji").symlink_to("nowhere")
    assert "emoji: a link to nothing" in run("generate", "a dog", "--model", "emoji")[2]
    assert bundle_folder(EMOJI) == EMOJI


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("a red apple", True),
        ("An Owl, blue background", True),
        ("palm-tree", True),
        ("donut!", True),
        ("a heart", True),
        ("a carpet", False),
        ("a palm", False),
        ("a lighthouse", False),
        ("", False),
    ],
)
def test_objects_are_known_by_their_names(prompt, known):
    assert names_an_object(prompt) == known
    assert len(known_objects()) == 36


def test_a_prompt_without_an_object_is_told(run, tiny_bundle, tmp_path):
    words = ["--steps", 1, "-o", tmp_path / "x.png"]
    code, _, err = run("generate", "a lighthouse", "a dog", *words)
    assert code == 0
    assert "warning: 'a lighthouse' names nothing that the built-in model can draw; it knows" in err
    assert "red apple" in err
    assert "warning" not in run("generate", "a dog", *words)[2]
    assert "warning" not in run("generate", "a lighthouse", "--model", tiny_bundle, *words)[2]
