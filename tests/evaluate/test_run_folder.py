"""Runs that are interrupted, shared out and put together again."""

from __future__ import annotations

import numpy as np
import pytest

from bksdm.engines.errors import RequestError
from bksdm.evaluate.evaluation import Cost, Done, measure_missing, part_of, require_one_picture
from bksdm.evaluate.run_folder import MEASURES, SETTINGS, RunFolder, merge, require_all
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.storage.files import PARTIAL

from .stand_ins import PROMPTS, measure
from .stand_ins import SETTINGS as OWN

ALL = range(len(PROMPTS))


def run_all(path, part=ALL, own=OWN):
    run = RunFolder.begin(path, own)
    return run, list(measure_missing(run, PROMPTS, part, measure))


def content(run):
    return {file.name: file.read_bytes() for file in sorted((run.path / MEASURES).iterdir())}


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path):
    whole, done = run_all(tmp_path / "whole")
    assert [each.index for each in done] == list(ALL)

    class Killed(Exception):
        pass

    for last in (5, 11):

        def die(config, last=last):
            if config.seed == last:
                raise Killed
            return measure(config)

        run = RunFolder.begin(tmp_path / "again", OWN)
        with pytest.raises(Killed):
            list(measure_missing(run, PROMPTS, ALL, die))
        assert run.there() == list(range(last))
    (run.path / MEASURES / f"{PARTIAL}abc").write_bytes(b"of a process that was killed")
    run, done = run_all(tmp_path / "again")
    assert [each.index for each in done] == list(range(11, len(PROMPTS)))
    assert content(run) == content(whole)


def test_a_run_that_was_killed_as_it_began_goes_on(tmp_path):
    for name, left in {"empty": None, "partial": f"{PARTIAL}abc"}.items():
        (tmp_path / name).mkdir()
        if left:
            (tmp_path / name / left).write_bytes(b"half a fi")
        run, _ = run_all(tmp_path / name)
        assert sorted(file.name for file in run.path.iterdir()) == [MEASURES, SETTINGS]
    run = RunFolder.begin(tmp_path / "settings", OWN)
    (run.path / MEASURES).rmdir()
    assert len(run_all(tmp_path / "settings")[1]) == len(PROMPTS)


def test_shards_are_merged_into_the_same_bytes(tmp_path):
    whole, _ = run_all(tmp_path / "whole")
    parts = [run_all(tmp_path / f"part-{i}", part_of(len(PROMPTS), i, 3))[0] for i in (1, 2, 3)]
    assert [run.there() for run in parts][1] == list(range(1, len(PROMPTS), 3))
    merged = merge(parts, tmp_path / "merged")
    assert content(merged) == content(whole)
    assert merged.settings == whole.settings
    a, b = whole.read(ALL), merged.read(ALL)
    np.testing.assert_array_equal(a.features, b.features)
    assert len(a) == len(PROMPTS)
    with pytest.raises(FileExistsError):
        merge(parts, tmp_path / "merged")


def test_parts_of_other_runs_or_too_few_are_not_merged(tmp_path):
    first, _ = run_all(tmp_path / "1", part_of(len(PROMPTS), 1, 2))
    with pytest.raises(RequestError, match=r"12 of 24 pictures are missing, .* of line 2"):
        merge([first], tmp_path / "merged")
    other, _ = run_all(tmp_path / "2", own={**OWN, "num_inference_steps": 3})
    with pytest.raises(RequestError, match="num_inference_steps 3, not 2"):
        merge([first, other], tmp_path / "merged")
    again, _ = run_all(tmp_path / "3")
    again.write(0, measure(PROMPTS[1]))
    with pytest.raises(RequestError, match="of the same picture; measure all parts on machines"):
        merge([first, again], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_inference_steps": 25}, "num_inference_steps 2, not 25"),
        ({"model": "tiny"}, "model 'nano', not 'tiny'"),
        ({"new": 1}, "new None, not 1"),
    ],
)
def test_another_run_is_not_mixed_in(tmp_path, changed, told):
    run_all(tmp_path / "run", range(2))
    with pytest.raises(RequestError, match=f"is a run with {told}; take another folder"):
        RunFolder.begin(tmp_path / "run", {**OWN, **changed})
    with pytest.raises(RequestError, match="is a run with model 'nano', not None"):
        RunFolder.begin(tmp_path / "run", {k: v for k, v in OWN.items() if k != "model"})
    # Tuples are lists in JSON.
    RunFolder.begin(tmp_path / "run", {**OWN, "interval": (0, 1)})


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(RequestError, match="`bksdm evaluate -o` makes one"):
        RunFolder.open(tmp_path / "missing")
    (tmp_path / "holiday.jpg").write_bytes(b"")
    for open_it in (RunFolder.open, lambda path: RunFolder.begin(path, OWN)):
        with pytest.raises(RequestError, match="no run of `bksdm evaluate`"):
            open_it(tmp_path)
    run, _ = run_all(tmp_path / "run", range(2))
    settings = run.path / SETTINGS
    settings.write_text(settings.read_text().replace("nano", "tiny"))
    with pytest.raises(RequestError, match=r"its run\.json is damaged"):
        RunFolder.open(run.path)


def test_a_damaged_file_is_named(tmp_path):
    run, _ = run_all(tmp_path / "run", range(3))
    content = run.file(1).read_bytes()
    for damaged in (content[:-40], b"", content.replace(b"logits", b"nonsen")):
        run.file(1).write_bytes(damaged)
        with pytest.raises(RequestError, match=r"00001\.npz: damaged; remove it"):
            run.read(range(3))
    run.file(1).unlink()
    assert [each.index for each in run_all(tmp_path / "run", range(3))[1]] == [1]


def test_parts_hold_every_picture_once():
    for parts in (1, 2, 5, 40):
        found = [index for part in range(parts) for index in part_of(24, part + 1, parts)]
        assert sorted(found) == list(range(24))


def test_the_cost_is_that_of_the_median_picture(tmp_path):
    run, _ = run_all(tmp_path / "run", range(1))
    # The first also loads.
    done = [Done(0, 60.0, 13_000), Done(1, 2.0, 13_000), Done(2, 2.5, 13_000)]
    cost = Cost.of(done, 29_997)
    assert cost.shown() == "29997 more pictures will take about 20 h 50 min and 390.0 MB"
    cost.require_disk(run)
    with pytest.raises(RequestError, match=r"29997 more pictures take .* MB, and .* MB are free"):
        Cost(29_997, 1.0, 10**18).require_disk(run)
    assert Cost.of(done, 2).shown().startswith("2 more pictures will take about 1 min")


def test_a_line_asks_for_one_picture():
    require_one_picture(GenerationConfig("a", seed=3))
    with pytest.raises(RequestError, match="asks for 2 pictures"):
        require_one_picture(GenerationConfig(("a", "b")))


def test_all_that_is_missing_is_counted(tmp_path):
    run, _ = run_all(tmp_path / "run")
    require_all(run, run.there())
    with pytest.raises(RequestError, match=r"1 of 24 pictures .* of line 8;"):
        require_all(run, [i for i in ALL if i != 7])
