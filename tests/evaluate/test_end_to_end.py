"""``bksdm evaluate`` in processes of its own: killed and resumed, shared out and merged."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bksdm.evaluate.gaussians import Gaussian
from bksdm.evaluate.judge import evaluation
from bksdm.evaluate.run_folder import MEASURES
from bksdm.models import EMOJI

pytest.importorskip("torch_fidelity")
pytest.importorskip("open_clip")

from .weights import write_weights

PICTURES = 64
KILLED_AFTER = (9, 31)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Prompts, a reference and weights: flags of every command."""
    folder = tmp_path_factory.mktemp("given")
    prompts = [entry.prompt for entry in evaluation()] * 2
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts[:PICTURES]]
    (folder / "coco.jsonl").write_text("\n".join(lines))
    drawn = np.random.default_rng(0)
    mixed = drawn.normal(size=(2048, 2048)) / 45
    reference = Gaussian(drawn.normal(size=2048), mixed @ mixed.T)
    (folder / "reference.npz").write_bytes(reference.save())
    return folder, ("--reference", folder / "reference.npz"), write_weights(folder)


def command(*words):
    return [sys.executable, "-m", "bksdm.cli", "evaluate", *map(str, words)]


def finish(*words):
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def kill_after(pictures, output, *words):
    """Start a run, and kill it without any notice once it has measured some pictures."""
    with subprocess.Popen(command(*words, "-o", output), stderr=subprocess.DEVNULL) as process:
        while len(list((output / MEASURES).glob("0*.npz"))) < pictures:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    there = len(list((output / MEASURES).glob("0*.npz")))
    assert pictures <= there < PICTURES
    return there


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji", "nano"])
def test_killed_or_shared_out_a_run_ends_in_the_same_numbers(name, given, tmp_path, request):
    folder, reference, weights = given
    bundle = EMOJI if name == "emoji" else request.getfixturevalue("nano_bundle")
    drawing = (
        *(bundle, "--prompts", folder / "coco.jsonl", *reference, *weights),
        *("--steps", 2, "--threads", 1),
    )

    done = finish(*drawing, "-o", tmp_path / "whole")
    whole = content(tmp_path / "whole")
    assert len(whole) == PICTURES + 2
    assert "61 more pictures will take about" in done.stderr
    assert re.search(r"32 of 64 pictures: CLIP score -?0\.\d{4} ± 0\.\d{4}", done.stderr)
    assert "the covariance of 2048 features needs at least 2049" in done.stderr

    there = [kill_after(least, tmp_path / "killed", *drawing) for least in KILLED_AFTER]
    assert there[0] < there[1]
    done = finish(*drawing, "-o", tmp_path / "killed", "--json")
    assert content(tmp_path / "killed") == whole
    scores = json.loads(done.stdout)["scores"]
    assert scores["pictures"] == PICTURES
    assert scores["fid"]["value"] > 0
    assert scores["inception_score"]["value"] >= 1

    parts = [tmp_path / f"part-{part}" for part in (1, 2, 3)]
    for part, output in enumerate(parts, 1):
        told = finish(*drawing, "-o", output, "--shard", f"{part}/3").stderr
        assert "are missing, of other shards; --merge puts them together" in told
        assert not (output / "scores.json").exists()
    merged = finish("--merge", *parts, *reference, "-o", tmp_path / "merged")
    assert content(tmp_path / "merged") == whole

    table = finish("--table", tmp_path / "merged").stdout
    assert table.count("\n| BK-SDM-") == 6
    shown = merged.stdout.split("FID")[1].split()[0]
    assert f"| {shown} |" in table
    assert "prompts 64 (card: 30000)" in table

    refused = subprocess.run(
        command(*drawing, "-o", tmp_path / "whole", "--fast", 1), capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "is a run with fast 0, not 1; take another folder" in refused.stderr
    assert content(tmp_path / "whole") == whole
