"""What ``bksdm info`` says of the graphs that run on the CPU."""

from __future__ import annotations

import json
import re

import onnx

from bksdm.cli import main
from bksdm.models import EMOJI
from bksdm.optimize import row_tiles
from bksdm.optimize.rules import CostModel
from tests.optimize.test_rewrite import transformed_is_faster


def printed(bundle, capsys):
    """Return the line of every network."""
    assert main(["info", str(bundle), "--json"]) == 0
    components = json.loads(capsys.readouterr().out)["components"]
    return {name: described["on the CPU"] for name, described in components.items()}


def test_every_convolution_has_a_form(nano_bundle, capsys, monkeypatch):
    plain = printed(nano_bundle, capsys)
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)
    monkeypatch.setattr(row_tiles, "LEAST_BYTES", 0)
    fast = printed(nano_bundle, capsys)
    assert plain["text_encoder"] == fast["text_encoder"] == "no 3x3 convolutions"
    for name in ("unet", "vae_decoder"):
        graph = onnx.load(nano_bundle / name / "model.onnx", load_external_data=False).graph
        shapes = {w.name: w.dims for w in graph.initializer}
        filters = [shapes[n.input[1]] for n in graph.node if n.op_type == "Conv"]
        halving = sum(
            list(a.ints) == [2, 2]
            for n in graph.node
            if n.op_type == "Conv"
            for a in n.attribute
            if a.name == "strides"
        )
        total = sum(list(dims[2:]) == [3, 3] for dims in filters) - halving
        # Nothing gains at the model's own size of 8×8 latents.
        assert plain[name] == f"{total} of {total} 3x3 convolutions direct"
        forms = [int(count) for count in re.findall(r"(\d+) by ", fast[name])]
        (direct,) = re.findall(r"(\d+) of ", fast[name])
        assert sum(forms) > 0
        assert sum(forms) + int(direct) == total
    assert fast["vae_decoder"].endswith(", the end in 4 row tiles")
    assert "tiles" not in fast["unet"]


def test_convolutions_that_no_rule_changes_are_counted(nano_bundle_fp16, capsys):
    for bundle in (nano_bundle_fp16, EMOJI):
        said = printed(bundle, capsys)
        assert said["text_encoder"] == "no 3x3 convolutions"
        for name in ("unet", "vae_decoder"):
            graph = onnx.load(bundle / name / "model.onnx", load_external_data=False).graph
            kernels = (
                onnx.helper.get_node_attr_value(node, "kernel_shape")
                for node in graph.node
                if node.op_type == "Conv"
            )
            count = sum(list(kernel) == [3, 3] for kernel in kernels)
            assert said[name] == f"{count} 3x3 convolutions as exported"
