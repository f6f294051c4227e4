"""Compiled samplers in files, and graphs that other programs open."""

from __future__ import annotations

import json
import shutil
import struct
import zlib

import numpy as np
import pytest

from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.samplers import step_table


def read_table(content):
    """Return the description, and what each table may start from, leaves out, and holds."""
    magic, version, order, size, sum_, count, described, rest = struct.unpack(
        "<8sIIQIIII", content[:40]
    )
    assert (magic, version, order, rest) == (b"bksdmtbl", 1, 0x01020304, 0)
    assert size == len(content)
    assert sum_ == zlib.crc32(content[40:])
    assert described % 8 == 0
    description, at, tables = json.loads(content[40 : 40 + described]), 40 + described, []
    for _ in range(count):
        starts, first, n, draws, sigma = struct.unpack_from("<IIIId", content, at)
        at += 24
        arrays = []
        for shape in (
            *((n,), (n,), (n + 1, n + 1), (n + 1, draws)),
            *((n + 1, 2), (n, 2), (n + 1, max(n - 1, 0))),
        ):
            length = int(np.prod(shape))
            arrays.append(np.frombuffer(content, "<f8", length, at).reshape(shape))
            at += 8 * length
        tables.append((starts, first, sigma, arrays))
    assert at == len(content)
    return description, tables


def equal(found, table):
    sigma, (timesteps, scale, rows, noise, levels, denoised, carried) = found
    assert sigma == table.init_noise_sigma
    for array, wanted in (
        *((timesteps, table.timesteps), (scale, table.input_scale), (rows, table.rows)),
        *((noise, table.noise), (levels, table.levels), (denoised, table.denoised)),
        (carried, table.carried),
    ):
        np.testing.assert_array_equal(array, wanted)


def test_a_table_of_the_models_own_sampler(run, tmp_path):
    path = tmp_path / "x.table"
    assert run("info", EMOJI, "--table", "default:25", "-o", path)[:2] == (0, f"{path}\n")
    description, tables = read_table(path.read_bytes())
    bundle = Bundle.open(EMOJI)
    (starts, first, *found), *others = tables
    assert (starts, first, others) == (1, 0, [])
    equal(found, step_table(bundle.scheduler, 25))
    assert description["sampler"] is None
    assert description["model_digest"] == bundle.digest()
    assert description["a1111"] == {"Sampler": "PLMS", "Schedule type": None}


def test_a_table_for_images_has_every_strength(run, tmp_path):
    path = tmp_path / "x.table"
    assert run("info", EMOJI, "--table", "DPM++ 2M SDE Karras:4:image", "-o", path)[0] == 0
    description, tables = read_table(path.read_bytes())
    assert description["sampler"] == "dpm++2m-sde-karras"
    assert [table[:2] for table in tables] == [(7, 0), (6, 1), (6, 2), (6, 3), (6, 4)]
    scheduler = Bundle.open(EMOJI).scheduler
    for _, first, *found in tables:
        equal(found, step_table(scheduler, 4, "dpm++2m-sde-karras", first))


def test_a_model_that_inpaints_with_another_configuration_has_tables_of_both(
    run, tiny_copy, tmp_path
):
    """Diffusers' inpainting pipeline skips the Runge-Kutta steps, which begin at the first only."""
    file = tiny_copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "skip_prk_steps": False}))
    path = tmp_path / "x.table"
    assert run("info", tiny_copy, "--table", "default:5:image", "-o", path)[0] == 0
    tables = read_table(path.read_bytes())[1]
    assert [table[:2] for table in tables] == [(3, 0), *((4, first) for first in range(6))]
    evaluations = [len(arrays[0]) for _, _, _, arrays in tables]
    assert evaluations[:3] == [14, 6, 5]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--table", "euler"), "asked for as SAMPLER:STEPS"),
        (("--table", "euler:2:3"), "asked for as SAMPLER:STEPS"),
        (("--table", "eulr:2"), "nearest: euler"),
        (("--table", "euler:0"), "steps"),
        (("--table", "euler:1001"), "steps"),
        (("--table", "euler:201:image"), "from 1 to 200"),
        (("--table", f"euler:{'9' * 5000}"), "from 1 to"),
    ],
)
def test_wrong_tables_are_refused(run, tmp_path, arguments, told):
    code, _, said = run("info", EMOJI, *arguments, "-o", tmp_path / "x")
    assert code == 2
    assert told in said
    assert list(tmp_path.iterdir()) == []


def test_a_table_and_its_file_belong_together(run, tmp_path):
    for arguments in (("--table", "euler:2"), ("-o", tmp_path / "x")):
        code, _, said = run("info", EMOJI, *arguments)
        assert (code, said.count("belong together")) == (2, 1)


def test_an_export_writes_tables_into_the_bundle(run, tiny_bundle, tmp_path, monkeypatch):
    exporter = pytest.importorskip("bksdm.export.exporter")
    bundle = tmp_path / "bundle"

    def export(source, output, *others, **named):
        shutil.copytree(tiny_bundle, output)
        return []

    monkeypatch.setattr(exporter, "export", export)
    arguments = ("export", "checkpoint", "-o", bundle, "--tables")
    assert run(*arguments, "eulr:2")[0] == 2
    assert not bundle.exists()
    assert run(*arguments, "euler a:2", "--tables", "default:3:image")[0] == 0
    assert {file.name for file in (bundle / "tables").iterdir()} == {
        *("euler-a-2.table", "default-3.table")
    }
    assert len(read_table((bundle / "tables" / "default-3.table").read_bytes())[1]) == 4


def test_saved_graphs_give_what_the_engine_gives(run, tiny_copy):
    openvino = pytest.importorskip("openvino")
    from bksdm.engines.openvino import OpenVinoEngine

    code, said, _ = run("build", tiny_copy, "--engine", "openvino", "--save")
    assert code == 0
    folder = tiny_copy / "engines" / "openvino"
    assert said.splitlines()[-1] == str(folder)
    assert {file.stem for file in folder.glob("*.xml")} == {
        *("text_encoder", "unet", "vae_decoder", "vae_encoder")
    }
    draw = np.random.default_rng(0)
    feeds = {
        "sample": draw.standard_normal((2, 4, 8, 8), np.float32),
        "timestep": np.array([3, 4], np.float32),
        "encoder_hidden_states": draw.standard_normal((2, 77, 8), np.float32),
    }
    wanted = OpenVinoEngine(tiny_copy / "unet" / "model.onnx", threads=1)(feeds)["out_sample"]
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino.Core().compile_model(folder / "unet.xml", "CPU", options)
    np.testing.assert_allclose(compiled(feeds)["out_sample"], wanted, rtol=1e-6, atol=1e-7)


def test_saved_graphs_are_listed_checked_and_removed(run, emoji_copy):
    pytest.importorskip("openvino")
    assert run("build", emoji_copy, "--engine", "openvino", "--save")[0] == 0
    assert "openvino\n" in run("build", emoji_copy, "--list")[1]
    assert run("verify", "--integrity", emoji_copy)[0] == 0
    file = emoji_copy / "engines" / "openvino" / "unet.bin"
    file.write_bytes(file.read_bytes()[:-1])
    code, said, _ = run("verify", "--integrity", emoji_copy)
    assert code == 1
    assert "engines/openvino/unet.bin: differs" in said
    assert run("build", emoji_copy, "--remove", "openvino")[0] == 0
    assert not file.parent.exists()


def test_only_openvino_saves(run, tiny_copy):
    for arguments in (("--save",), ("--save", "--engine", "onnxruntime"), ("--save", "--tune")):
        assert run("build", tiny_copy, *arguments)[0] == 2
