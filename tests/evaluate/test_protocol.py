"""What a picture goes through before it is scored, and the figures of the card."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from bksdm.evaluate.protocol import SCORED_SIDE, as_scored
from bksdm.evaluate.published import CARD, CARDS_OWN, HEADER, card, differences, rows
from bksdm.evaluate.run_folder import RunFolder


def test_a_picture_is_scored_as_the_cards_scripts_save_it(tmp_path):
    """Save as JPEG, open the file, resize by Pillow's default, save again, open that."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "512.jpg")
    with Image.open(tmp_path / "512.jpg") as drawn:
        drawn.resize((SCORED_SIDE, SCORED_SIDE)).save(tmp_path / "256.jpg")
    with Image.open(tmp_path / "256.jpg") as scored:
        expected = np.asarray(scored)
    found = np.asarray(as_scored(pixels))
    assert found.shape == (256, 256, 3)
    np.testing.assert_array_equal(found, expected)
    # Neither loss may be left out.
    once = np.asarray(Image.fromarray(pixels).resize((SCORED_SIDE, SCORED_SIDE)))
    assert np.abs(found.astype(int) - once).max() > 10


def test_the_card_has_its_seven_rows():
    assert len(card()) == 7
    assert len({row.model for row in card()}) == 7
    for row in card():
        assert 0 < row.clip_score < 1 < row.fid
        assert row.inception_score > 1
        assert row.unet_parameters < row.parameters
    assert json.loads(CARD.read_text())["source"].startswith("https://huggingface.co/nota-ai/")


def test_a_run_stands_beside_the_card_with_what_it_does_otherwise(tmp_path):
    settings = {
        **CARDS_OWN,
        "model": "small",
        "precision": "bfloat16",
        "engine": "openvino",
        "unet_parameters": 486e6,
        "parameters": 660e6,
    }
    run = RunFolder.begin(tmp_path / "run", settings)
    scores = {"pictures": 30_000}
    for name, value, reach in (
        ("fid", 17.1, 0.21),
        ("inception_score", 33.0, 0.4),
        ("clip_score", 0.273, 0.0005),
    ):
        scores[name] = {"value": value, "reach": reach}
    (run.path / "scores.json").write_text(json.dumps({"scores": scores}))
    *theirs, ours = rows([run])
    assert [row[0] for row in theirs] == [row.model for row in card()]
    assert all(len(row) == len(HEADER) for row in (*theirs, ours))
    told = "precision bfloat16 (card: float16); engine openvino; a seed for each prompt"
    assert ours == (
        *("small", "17.10 ± 0.21", "33.00 ± 0.40", "0.2730 ± 0.0005", "0.49B", "0.66B"),
        told,
    )
    assert differences({**settings, "prompts": 64})[0] == "prompts 64 (card: 30000)"
