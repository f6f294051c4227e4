"""The bundle: complete, anonymous, dynamic, close to torch, and all or nothing."""

import json
import logging
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import UNet2DConditionModel

from bksdm.engines.errors import ExportError, SamplerError
from bksdm.export import exporter, graph
from bksdm.export.dummy import unet_config
from bksdm.export.networks import NETWORKS, Unet
from bksdm.export.parity import ComponentParity, compare, format_table, references
from bksdm.export.parity import Reference as ParityReference
from bksdm.export.pretrained import config_of
from bksdm.export.quiet import quiet
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.pipeline import ON_HOST
from bksdm.runtime.request import Request
from bksdm.storage.precision import FLOAT32

COMPONENTS = [network.component for network in NETWORKS]


def _shape(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def _session(bundle, component):
    return onnxruntime.InferenceSession(bundle / component / "model.onnx")


def test_bundle_has_the_documented_files(nano_bundle):
    index = json.loads((nano_bundle / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    vae = json.loads((nano_bundle / "vae_decoder" / "config.json").read_text())
    assert (vae["scaling_factor"], vae["latent_channels"]) == (0.18215, 4)
    for component in COMPONENTS:
        config = json.loads((nano_bundle / component / "config.json").read_text())
        assert not any("/" in str(value) for value in config.values())
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        assert (nano_bundle / "tokenizer" / name).is_file()
    assert (nano_bundle / "scheduler" / "scheduler_config.json").is_file()


@pytest.mark.parametrize("component", COMPONENTS)
def test_graph_holds_nothing_about_the_machine(nano_bundle, component):
    path = nano_bundle / component / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)]
    assert (model.producer_name, model.producer_version, model.doc_string) == ("", "", "")
    graph = model.graph
    items = [model, graph, *graph.node, *graph.initializer]
    items += [*graph.input, *graph.output, *graph.value_info]
    assert not any(item.metadata_props or item.doc_string for item in items)
    content = path.read_bytes()
    assert not any(word in content for word in (b"site-packages", b".py", b"/home/", b"/root/"))


@pytest.mark.parametrize(
    ("component", "inputs", "outputs"),
    [
        ("text_encoder", {"input_ids": ["batch", 77]}, {"last_hidden_state": ["batch", 77, 32]}),
        (
            "unet",
            {
                "sample": ["batch", 4, "height", "width"],
                "timestep": ["batch"],
                "encoder_hidden_states": ["batch", "tokens", 32],
            },
            {"out_sample": ["batch", 4, "height", "width"]},
        ),
        (
            "vae_decoder",
            {"latent_sample": ["batch", 4, "height", "width"]},
            {"sample": ["batch", 3, "8*height", "8*width"]},
        ),
        (
            "vae_encoder",
            {"sample": ["batch", 3, "8*height", "8*width"]},
            {"latent_parameters": ["batch", 8, "height", "width"]},
        ),
    ],
)
def test_names_and_dynamic_axes(nano_bundle, component, inputs, outputs):
    graph = onnx.load(nano_bundle / component / "model.onnx", load_external_data=False).graph
    assert {value.name: _shape(value) for value in graph.input} == inputs
    assert {value.name: _shape(value) for value in graph.output} == outputs


def test_one_timestep_serves_a_batch_as_optimum_feeds_it(nano_bundle):
    session = _session(nano_bundle, "unet")
    random = np.random.default_rng(0)
    feeds = {
        "sample": random.standard_normal((2, 4, 8, 8), dtype=np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 32), dtype=np.float32),
    }
    (one,) = session.run(None, {**feeds, "timestep": np.array([321], np.float32)})
    (two,) = session.run(None, {**feeds, "timestep": np.array([321, 321], np.float32)})
    np.testing.assert_array_equal(one, two)


def test_timesteps_differ_per_image(nano_bundle):
    session = _session(nano_bundle, "unet")
    random = np.random.default_rng(0)
    sample = random.standard_normal((1, 4, 8, 8), dtype=np.float32)
    states = random.standard_normal((1, 77, 32), dtype=np.float32)

    def predict(*steps):
        feeds = {
            "sample": np.repeat(sample, len(steps), 0),
            "timestep": np.array(steps, np.float32),
            "encoder_hidden_states": np.repeat(states, len(steps), 0),
        }
        return session.run(None, feeds)[0]

    both = predict(1, 981)
    np.testing.assert_allclose(both[:1], predict(1), atol=1e-5)
    np.testing.assert_allclose(both[1:], predict(981), atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 1e-3


def test_sides_that_are_no_multiple_of_eight_latents(nano_bundle):
    session = _session(nano_bundle, "unet")
    for height, width in ((1, 1), (7, 8), (9, 11), (13, 16)):
        feeds = {
            "sample": np.ones((1, 4, height, width), np.float32),
            "timestep": np.zeros(1, np.float32),
            "encoder_hidden_states": np.ones((1, 77, 32), np.float32),
        }
        assert session.run(None, feeds)[0].shape == (1, 4, height, width)


@pytest.mark.slow
def test_float16_graphs_have_float16_edges_and_a_float32_timestep(nano_bundle_fp16):
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for component in COMPONENTS:
        graph = onnx.load(nano_bundle_fp16 / component / "model.onnx").graph
        for value in (*graph.input, *graph.output):
            wanted = {"timestep": single, "input_ids": onnx.TensorProto.INT64}.get(value.name, half)
            assert value.type.tensor_type.elem_type == wanted
        weights = [tensor for tensor in graph.initializer if tensor.name.endswith(".weight")]
        assert weights
        assert all(tensor.data_type == half for tensor in weights)


def test_existing_bundle_and_unknown_dtype_are_refused_before_any_work(tmp_path):
    with pytest.raises(ExportError, match="exists already"):
        exporter.export("no/checkpoint", tmp_path)
    with pytest.raises(ExportError, match="dtype 'int8' is not supported; choose float32 or"):
        exporter.export("no/checkpoint", tmp_path / "b", "int8")
    (tmp_path / "file").write_text("")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing(nano_checkpoint, tmp_path, monkeypatch, failure):
    def fail(network, folder, precision):
        (folder / "model.onnx").write_bytes(b"half a graph")
        raise failure

    monkeypatch.setattr(exporter, "references", lambda network, precision: [])
    monkeypatch.setattr(exporter, "write_graph", fail)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else ExportError
    with pytest.raises(expected):
        exporter.export(nano_checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_missed_parity_refuses_the_bundle_with_the_table(nano_checkpoint, tmp_path, monkeypatch):
    def far(path, component, dtype, truth):
        return replace(_row(), component=component, relative_l2=0.5)

    monkeypatch.setattr(exporter, "references", lambda network, precision: [])
    monkeypatch.setattr(exporter, "write_graph", lambda network, folder, precision: folder)
    monkeypatch.setattr(exporter, "compare", far)
    with pytest.raises(ExportError, match="misses parity") as caught:
        exporter.export(nano_checkpoint, tmp_path / "bundle")
    assert str(caught.value).count("missed: rel L2 above") == len(COMPONENTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("class_name", "changes", "said"),
    [
        ("DDIMScheduler", {"thresholding": True}, "thresholding = True is not implemented"),
        pytest.param(
            "DEISMultistepScheduler",
            {"solver_type": "x"},
            "solver_type must be one of",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "FlowMatchEulerDiscreteScheduler",
            {},
            "FlowMatchEulerDiscreteScheduler is not implemented",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_sampler_that_is_not_implemented_is_exported_with_a_word(
    checkpoint, nano_bundle, tmp_path, monkeypatch, class_name, changes, said
):
    for path, fields in (
        (checkpoint / "model_index.json", {"scheduler": ["diffusers", class_name]}),
        (checkpoint / "scheduler" / "scheduler_config.json", changes),
    ):
        content = {**json.loads(path.read_text()), **fields}
        path.unlink()
        path.write_text(json.dumps(content))
    nothing = SimpleNamespace(passed=True, explained=1.0, rms_error=0.0)
    for name in ("load_network", "write_graph", "references", "compare", "write_preview"):
        monkeypatch.setattr(exporter, name, lambda *arguments: nothing)
    told = []
    exporter.export(checkpoint, tmp_path / "bundle", progress=told.append)
    (line,) = (line for line in told if line.startswith("scheduler: "))
    assert line.startswith(f"scheduler: {said}")
    assert line.endswith("; pictures will need --sampler, such as euler")
    ignored = shutil.ignore_patterns("engines", "scheduler", "model_index.json")
    shutil.copytree(nano_bundle, tmp_path / "bundle", ignore=ignored, dirs_exist_ok=True)
    # Resolved as for a picture; to load and to draw it is the same for every sampler.
    bundle = Bundle.open(tmp_path / "bundle")
    with pytest.raises(SamplerError, match=said.partition(" ")[0] if changes else class_name):
        Request.resolve(bundle, ON_HOST, GenerationConfig("a house"))
    Request.resolve(bundle, ON_HOST, GenerationConfig("a house", sampler="euler"))


@pytest.mark.parametrize("blocks", [1, 4, 6, 8])
def test_no_side_shrinks_to_one_where_a_unet_is_traced(monkeypatch, blocks):
    """The tracer would take it for a constant, and refuses what is below the least side."""
    with torch.device("meta"), quiet():
        model = UNet2DConditionModel(**_unet_of(blocks))
        network = Unet(model, config_of(model))
    traced = []
    monkeypatch.setattr(graph, "_trace", lambda network, arguments: traced.extend(arguments))
    with pytest.raises(AttributeError):
        graph.write_graph(network, None)
    for side in traced[0].shape[2:]:
        assert side >> (blocks - 1) > 1
        assert side >= network.dynamic_shapes()[0][2].min


@pytest.mark.slow
def test_a_unet_of_six_blocks(tmp_path):
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = UNet2DConditionModel(**_unet_of(6))
    network = Unet(model, config_of(model)).eval().requires_grad_(False)
    truth = references(network)
    row = compare(graph.write_graph(network, tmp_path), "unet", FLOAT32, truth)
    assert row.passed, row


def _unet_of(blocks):
    return {
        **unet_config("nano"),
        "block_out_channels": [16] + [32] * (blocks - 1),
        "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D"] * blocks,
        "up_block_types": ["CrossAttnUpBlock2D"] * blocks,
    }


def _row():
    return ComponentParity("unet", "float32", 4, 1e-6, 1e-6, 120.0, 1e-5)


def test_table_and_verdict():
    good, bad = _row(), replace(_row(), relative_l2=float("nan"))
    assert good.passed
    assert not bad.passed
    assert not replace(good, max_abs=float("inf"), relative_l2=0.0).passed
    table = format_table([good, bad]).splitlines()
    assert len(table) == 3
    assert table[0].split() == [
        "component",
        "dtype",
        "cases",
        "max",
        "abs",
        "rel",
        "L2",
        "PSNR",
        "dB",
    ]
    assert "missed" in table[2]


def test_compare_notices_a_wrong_output(nano_bundle):
    ids = np.zeros((1, 77), np.int64)
    graph = nano_bundle / "text_encoder" / "model.onnx"
    truth = _session(nano_bundle, "text_encoder").run(None, {"input_ids": ids})[0]
    right = ParityReference({"input_ids": ids}, (truth,))
    wrong = ParityReference({"input_ids": ids}, (truth + 1,))
    other = ParityReference({"input_ids": ids}, (truth[:, :5],))
    assert compare(graph, "text_encoder", FLOAT32, [right]).passed
    assert not compare(graph, "text_encoder", FLOAT32, [right, wrong]).passed
    assert not compare(graph, "text_encoder", FLOAT32, [other]).passed


@pytest.mark.slow
def test_two_exports_give_the_same_bytes(nano_checkpoint, nano_bundle, tmp_path, capfd, caplog):
    lines = []
    with caplog.at_level(logging.WARNING):
        rows = exporter.export(nano_checkpoint, tmp_path / "again", progress=lines.append)
    assert all(row.passed for row in rows)
    assert [row.component for row in rows] == COMPONENTS
    for component in COMPONENTS:
        assert sum(line.startswith(f"{component}: ") for line in lines) == 3
    # Nothing but the caller's own progress is said.
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    first = {p.relative_to(nano_bundle): p.read_bytes() for p in nano_bundle.rglob("*.*")}
    again = tmp_path / "again"
    second = {p.relative_to(again): p.read_bytes() for p in again.rglob("*.*")}
    assert first == second
