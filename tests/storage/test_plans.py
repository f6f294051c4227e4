"""Plans on disk: stale ones are refused by field, damaged ones before TensorRT sees them."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bksdm.engines.errors import EngineError
from bksdm.engines.profile import Profile
from bksdm.storage.digest import model_digest
from bksdm.storage.files import PARTIAL
from bksdm.storage.plans import (
    RECORD,
    Recipe,
    list_plans,
    read_plan,
    remove_built,
    staged,
    validate_plans,
    write_plan,
    write_record,
)

RECIPE = Recipe(
    "tensorrt-rtx", "1.7.1", ("sm89",), "float16", Profile.parse("1:1:4", "64x64"), ("X",)
)


@pytest.fixture
def models(tmp_path):
    found = {}
    for name in ("unet", "vae_decoder"):
        (tmp_path / name).mkdir()
        found[name] = tmp_path / name / "model.onnx"
        weight = numpy_helper.from_array(np.arange(3.0), name)
        graph = helper.make_graph([], name, [], [], [weight])
        onnx.save(
            helper.make_model(graph),
            found[name],
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=0,
        )
    return found


@pytest.fixture
def folder(models, tmp_path):
    target = tmp_path / "engines" / RECIPE.name
    with staged(target) as beside:
        plans = {
            name: {
                "model": model_digest(model, target.parent),
                **write_plan(beside, name, name.encode() * 100),
            }
            for name, model in models.items()
        }
        write_record(beside, RECIPE, plans)
    return target


def test_whole_plans_of_the_right_recipe_are_read(folder, models):
    plans = validate_plans(folder, RECIPE, models)
    assert read_plan(folder, "unet", plans) == b"unet" * 100
    assert list_plans(folder.parent) == [RECIPE.name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "tensorrt"),
        ("version", "1.8.0"),
        ("targets", ("sm120",)),
        ("precision", "float32"),
        ("profile", Profile.parse("1:1:4", "128x64")),
        ("flags", ()),
    ],
)
def test_another_recipe_is_refused_by_field(folder, models, field, value):
    other = replace(RECIPE, **{field: value})
    # Flags follow from the others; a new build takes the place of an old one.
    assert (other.name != RECIPE.name) == (field != "flags")
    with pytest.raises(EngineError, match=f"{field} is .*, wanted"):
        validate_plans(folder, other, models)


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data"])
def test_a_changed_graph_or_weight_is_refused_by_component(folder, models, file):
    path = models["vae_decoder"].with_name(file)
    content = bytearray(path.read_bytes())
    # Within the graph's own name, and within the first weight.
    content[content.find(b"vae_decoder")] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match="vae_decoder has changed"):
        validate_plans(folder, RECIPE, models)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_plan_is_refused(folder, models, damage):
    path = folder / "unet.plan"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[37] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.unlink()
    plans = validate_plans(folder, RECIPE, models)
    with pytest.raises(EngineError, match=r"unet\.plan: .*run `bksdm build` again"):
        read_plan(folder, "unet", plans)
    assert read_plan(folder, "vae_decoder", plans)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"plans": 3}', '{"plans": {"unet": {}}}'])
def test_a_damaged_record_is_refused(folder, models, content):
    (folder / RECORD).write_text(content)
    with pytest.raises(EngineError, match=r"engine\.json: damaged"):
        validate_plans(folder, RECIPE, models)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_pipes_are_no_plans_and_no_records(folder, models):
    plans = validate_plans(folder, RECIPE, models)
    for name in ("unet.plan", RECORD):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with pytest.raises(EngineError, match=r"unet\.plan: not a regular file"):
        read_plan(folder, "unet", plans)
    with pytest.raises(EngineError, match=r"engine\.json: damaged"):
        validate_plans(folder, RECIPE, models)


def test_nothing_built_says_so(models, tmp_path):
    with pytest.raises(EngineError, match="not built; run `bksdm build`"):
        validate_plans(tmp_path / "engines" / RECIPE.name, RECIPE, models)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failed_build_leaves_the_old_plans(folder, models, failure):
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else EngineError

    def build():
        with staged(folder) as beside:
            write_plan(beside, "unet", b"half a pl")
            raise failure

    with pytest.raises(expected):
        build()
    assert read_plan(folder, "unet", validate_plans(folder, RECIPE, models)) == b"unet" * 100
    assert not list(folder.parent.glob(f"{PARTIAL}*"))


def test_what_a_killed_build_left_is_no_hindrance(folder, models):
    beside = folder.with_name(f"{PARTIAL}x")
    beside.mkdir()
    (beside / "unet.plan").write_bytes(b"half a pl")
    assert list_plans(folder.parent) == [RECIPE.name]
    with staged(folder) as again:
        assert list(again.iterdir()) == []
        write_record(again, RECIPE, {})
    assert [path.name for path in folder.iterdir()] == [RECORD]
    assert not beside.exists()


def test_two_builds_of_one_recipe_take_turns(tmp_path):
    target, inside, overlaps = tmp_path / "engines" / "x", [], []

    def build(number):
        with staged(target) as beside:
            inside.append(number)
            overlaps.append(len(inside))
            time.sleep(0.1)
            (beside / RECORD).write_text(json.dumps(number))
            inside.remove(number)

    threads = [threading.Thread(target=build, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [1, 1, 1]
    assert json.loads((target / RECORD).read_text()) in (0, 1, 2)


def test_removing(folder):
    with pytest.raises(EngineError, match=r"'nothing' is not built; built: tensorrt-rtx-1\.7\.1"):
        remove_built(folder.parent, ["nothing"])
    with pytest.raises(EngineError):
        remove_built(folder.parent, [f"..{os.sep}unet"])
    remove_built(folder.parent, [RECIPE.name])
    assert not folder.exists()
