"""ControlNets beside a checkpoint: exported, listed, and refused where they do not fit."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from bksdm.cli import main
from bksdm.export import controlnet_source, dummy, exporter
from bksdm.export.controlnet import residual_channels
from bksdm.export.dummy import create_dummy
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.integrity import find_damage


@pytest.fixture
def refused(controlled, tmp_path, capsys, monkeypatch):
    """Return the error of an export, which must not have traced anything."""

    def trace(*given):
        raise AssertionError("traced")

    monkeypatch.setattr(exporter, "write_graph", trace)

    def told(*words, checkpoint=controlled[0]):
        assert main(["export", str(checkpoint), "-o", str(tmp_path / "bundle"), *words]) == 2
        assert not (tmp_path / "bundle").exists()
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()[-1]

    return told


def changed(folder, target, **fields):
    """Return a copy of a ControlNet with other fields in its configuration."""
    shutil.copytree(folder, target)
    config = target / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))
    return target


def test_every_file_of_it_belongs_to_the_bundle(controlled, tmp_path):
    bundle = shutil.copytree(
        controlled[2], tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")
    )
    opened = Bundle.open(bundle)
    assert opened.controlnets == ("canny", "depth", "shuffle")
    assert [opened.pools_control(name) for name in opened.controlnets] == [False, False, True]
    assert find_damage(bundle) == []
    digest, file = opened.digest(), bundle / "controlnet_depth" / "config.json"
    file.write_text(file.read_text() + " ")
    assert find_damage(bundle) == ["controlnet_depth/config.json: differs from what was written"]
    assert Bundle.open(bundle).digest() != digest
    shutil.rmtree(bundle / "controlnet_canny")
    assert "controlnet_canny/model.onnx: missing" in find_damage(bundle)


def test_weights_are_stored_once(controlled):
    """The UNet's are one file, whether ControlNets act on it or not."""
    names = sorted(path.name for path in (controlled[2] / "unet").iterdir())
    assert names in (
        ["config.json", "model.onnx"],
        ["config.json", "model.onnx", "model.onnx.data"],
    )


def test_info_lists_them(controlled, capsys):
    assert main(["info", str(controlled[2]), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert list(described["controlnets"]) == ["canny", "depth", "shuffle"]
    assert described["controlnets"]["canny"]["parameters"] > 10_000


def test_verify_compares_networks_and_pictures(controlled, capsys):
    checkpoint, nets, bundle = controlled
    words = ["verify", str(bundle), "--against", str(checkpoint)]
    given = [f"--controlnet={name}={folder}" for name, folder in nets.items()]
    assert main([*words, *given]) == 0
    report = capsys.readouterr().out
    for name in nets:
        assert re.search(rf"^controlnet_{name} +float32 +4 .*e-0[67]", report, re.MULTILINE)
        assert f"picture with {name}, --steps 2: largest difference" in report
    assert main([*words, *given[:2]]) == 2
    assert "has a ControlNet shuffle; give --controlnet shuffle=FOLDER" in capsys.readouterr().err
    # Weights of another, by the same name.
    mixed = [f"--controlnet=canny={nets['depth']}", *given[1:]]
    assert main([*words, *mixed]) == 1
    report = capsys.readouterr().out
    assert re.search("controlnet_canny .* missed", report)
    assert re.search("picture with canny.* missed", report)
    assert not re.search("controlnet_depth .* missed", report)


def test_a_unet_without_a_mid_block_has_none(refused, nano_checkpoint, controlled):
    error = refused(f"--controlnet=canny={controlled[1]['canny']}", checkpoint=nano_checkpoint)
    assert "the UNet has no mid block, as in BK-SDM-Small and -Tiny" in error
    assert f"{nano_checkpoint}/unet/config.json" in error


def test_one_for_another_unet_is_refused_by_what_differs(refused, controlled, tmp_path):
    canny = controlled[1]["canny"]
    for fields, told in (
        ({"layers_per_block": 1}, r"makes 5 residuals, but the UNet takes 7: .*layers_per_block"),
        ({"block_out_channels": [16, 64]}, r"residual 5 .* has 64 channels, but the UNet takes 32"),
        ({"cross_attention_dim": 768}, r"cross_attention_dim is 768, but 32 is needed"),
        ({"in_channels": 9}, r"in_channels is 9, but 4 is needed"),
        ({"conditioning_channels": 1}, r"conditioning_channels is 1, but 3 is needed"),
        (
            {"conditioning_embedding_out_channels": [8, 16]},
            r"has 2 entries, which divides sides by 2; the VAE divides them by 8",
        ),
        ({"addition_embed_type": "text_time"}, r"addition_embed_type is 'text_time' \(SDXL"),
        ({"_class_name": "T2IAdapter"}, r"'T2IAdapter'; --controlnet takes a ControlNetModel"),
    ):
        other = changed(canny, tmp_path / next(iter(fields)), **fields)
        error = refused(f"--controlnet=canny={other}")
        assert re.search(told, error), error
        assert str(other) in error


def test_weights_that_are_missing_or_of_another_are_refused(refused, controlled, tmp_path):
    empty = shutil.copytree(controlled[1]["canny"], tmp_path / "empty")
    (empty / "diffusion_pytorch_model.safetensors").unlink()
    assert f"{empty}: no weights found" in refused(f"--controlnet=canny={empty}")
    other = shutil.copytree(controlled[1]["canny"], tmp_path / "other")
    weights = controlled[0] / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copyfile(weights, other / weights.name)
    assert re.search(r"not the \d+ tensors of this network", refused(f"--controlnet=canny={other}"))


def test_mistakes_on_the_command_line(refused, controlled):
    canny = controlled[1]["canny"]
    assert "must look like canny=FOLDER" in refused("--controlnet", str(canny))
    assert "must look like canny=FOLDER" in refused("--controlnet", f"Ca/nny={canny}")
    assert "no such folder" in refused("--controlnet", "canny=./nowhere")
    assert "no config.json" in refused("--controlnet", f"canny={canny.parent}/scheduler")
    twice = [f"--controlnet=canny={canny}"] * 2
    assert "--controlnet canny is given twice" in refused(*twice)


def test_a_hub_id_is_fetched_by_its_small_files_first(controlled, monkeypatch):
    asked = []

    def fetch(hub_id, revision, token, choose, check, report, small):
        files = (
            "config.json",
            "diffusion_pytorch_model.bin",
            "diffusion_pytorch_model.safetensors",
        )
        asked.append((hub_id, revision, token, small, choose(files)))
        check(controlled[1]["canny"])
        return controlled[1]["canny"]

    monkeypatch.setattr(controlnet_source, "fetch", fetch)
    found = controlnet_source.resolve_controlnet(
        "canny", "lllyasviel/sd-controlnet-canny", "t", print
    )
    assert found == controlled[1]["canny"]
    hub_id, *_, token, small, weights = asked[0]
    assert (hub_id, token, small) == ("lllyasviel/sd-controlnet-canny", "t", ("config.json",))
    assert weights == ["diffusion_pytorch_model.safetensors"]


def test_dummy_writes_one_that_has_an_effect(tmp_path, capsys):
    from safetensors.torch import load_file

    assert main(["dummy", "nano-base", "-o", str(tmp_path / "with"), "--controlnet"]) == 0
    create_dummy("nano-base", tmp_path / "without")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    made = load_file(tmp_path / "with" / "controlnet" / "diffusion_pytorch_model.safetensors")
    assert all(tensor.std() > 0 for tensor in made.values() if tensor.numel() > 1)
    capsys.readouterr()
    assert main(["dummy", "nano", "-o", str(tmp_path / "x"), "--controlnet"]) == 2
    assert "nano has no mid block, which a ControlNet needs" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", dummy.DUMMY_NAMES)
def test_residuals_are_counted_as_diffusers_makes_them(name):
    """Of every architecture, by the blocks of its UNet on torch's device ``meta``."""
    import torch
    from diffusers import UNet2DConditionModel

    config = dummy.unet_config(name)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        channels += [resnet.out_channels for resnet in block.resnets]
        channels += [sampler.out_channels for sampler in block.downsamplers or ()]
    assert residual_channels(config) == [*channels, config["block_out_channels"][-1]]
