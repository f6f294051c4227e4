"""``bksdm bench compare``: exit codes, and work that cannot be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bksdm.cli import main


def record(path, factor, **settings):
    samples = (factor * np.random.default_rng(3).normal(1, 0.02, 30)).tolist()
    work = {"steps": 25, "height": None, "width": None, "batch": 1, "guidance_scale": 7.5}
    path.write_text(
        json.dumps(
            {
                "machine": {"processor": "x"},
                "model": {"digest": "d"},
                "settings": {**work, "engine": "onnxruntime", **settings},
                "stages": {"unet": {"samples": samples}, "png": {"samples": [1.0, 1.1, 0.9]}},
            }
        )
    )
    return str(path)


@pytest.mark.parametrize(("factor", "code"), [(0.5, 0), (1.0, 0), (1.03, 0), (1.2, 1)])
def test_only_a_sure_slowdown_fails(tmp_path, capsys, factor, code):
    old = record(tmp_path / "old.json", 1.0)
    new = record(tmp_path / "new.json", factor)
    assert main(["bench", "compare", old, new]) == code
    printed = capsys.readouterr().out
    assert f"unet          {factor:8.3f}" in printed
    assert ("slower by more than 5%: unet" in printed) == (code == 1)


def test_other_work_is_refused_and_another_engine_is_noted(tmp_path, capsys):
    old = record(tmp_path / "old.json", 1.0)
    assert main(["bench", "compare", old, record(tmp_path / "b.json", 1.0, steps=10)]) == 2
    assert "steps differs: 25 and 10" in capsys.readouterr().err
    assert main(["bench", "compare", old, record(tmp_path / "c.json", 1.0, engine="openvino")]) == 0
    assert "note: engine: onnxruntime → openvino" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{}", '{"stages": {"unet": {}}}', "[]"])
def test_what_is_no_record_is_refused(tmp_path, capsys, content):
    (tmp_path / "bad.json").write_text(content)
    old = record(tmp_path / "old.json", 1.0)
    assert main(["bench", "compare", old, str(tmp_path / "bad.json")]) == 2
    assert "not a record" in capsys.readouterr().err
