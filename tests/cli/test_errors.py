"""Bad input: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bksdm.cli import main
from bksdm.cli.arguments import Parser
from bksdm.cli.commands import COMMANDS
from bksdm.engines.errors import BksdmError, BundleError
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.samplers import SAMPLERS, step_table
from bksdm.runtime.samplers.config import SchedulerConfig


@pytest.fixture
def refuse(run):
    """Check that a command is refused in one line, which names what is wrong; return the line."""

    def call(*arguments, named):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert named in err
        assert err.startswith("bksdm: error: ")
        assert err.count("\n") == 1
        assert len(err) < 800
        return err

    return call


REFUSED = [
    (["--device=-1"], "--device: must be a whole number from 0 on, not -1"),
    (["--device", "1"], "--device chooses a GPU for plans of TensorRT; the engine onnxr"),
    (["--size", "60x64"], "--size: width must be a multiple of 8, not 60"),
    (["--size", "0x64"], "--size: width must be a whole number from 8 to 8192, not 0"),
    (["--size", "100000x100000"], "--size: height must be a whole number from 8 to 8192, not 1000"),
    (["--size", "9" * 30 + "x64"], "--size: width must be a whole number from 8 to 8192"),
    (["--size", "64"], "--size must look like 512x512"),
    (["--size", "64×64"], "--size must look like 512x512"),
    (["--size", ""], "--size must look like 512x512, not ''"),
    (["--size=-64x64"], "--size must look like 512x512"),
    (["--steps", "0"], "--steps: num_inference_steps must be a whole number from 1 to"),
    (["--steps", "-3"], "num_inference_steps must be a whole number from 1 to 100000, not -3"),
    (["--steps", "1001"], "num_inference_steps must be from 1 to 1000, not 1001"),
    (["--steps", "1000000"], "num_inference_steps must be a whole number from 1 to 100000"),
    (["--steps", "1e3"], "--steps: must be a whole number, not '1e3'"),
    (["--steps", "2.0"], "--steps: must be a whole number, not '2.0'"),
    (["--steps", ""], "--steps: must be a whole number, not ''"),
    (["--steps", "nan"], "--steps: must be a whole number, not 'nan'"),
    (["--steps", "1_0"], "--steps: must be a whole number, not '1_0'"),
    (["--steps", "９"], "--steps: must be a whole number"),
    (["--steps", "9" * 5000], "--steps: must be a whole number, not '999"),
    (["--guidance", "nan"], "--guidance: guidance_scale must be finite in float32, not nan"),
    (["--guidance", "inf"], "--guidance: guidance_scale must be finite"),
    (["--guidance", "1e39"], "--guidance: guidance_scale must be finite in float32, not 1e+39"),
    (["--guidance", "1e400"], "--guidance: guidance_scale must be finite in float32, not inf"),
    (["--guidance", "much"], "--guidance: must be a number, not 'much'"),
    (["--guidance", ""], "--guidance: must be a number, not ''"),
    (["--guidance-rescale", "2"], "--guidance-rescale must be a number from 0 to 1, not 2.0"),
    (["--guidance-rescale", "nan"], "--guidance-rescale must be a number from 0 to 1, not nan"),
    (["--guidance-interval", "1"], "--guidance-interval must look like 0:0.8, not '1'"),
    (["--guidance-interval", "a:b"], "--guidance-interval must look like 0:0.8"),
    (["--guidance-interval", "0:0.5:1"], "--guidance-interval must look like 0:0.8"),
    (["--guidance-interval", "0.5:0.2"], "--guidance-interval must be two numbers from 0 to 1"),
    (["--guidance-interval", "0:nan"], "--guidance-interval must be two numbers from 0 to 1"),
    (["--seed", str(2**64)], "--seed must be a whole number from -9223372036854775808 to 1844674"),
    (["--seed", str(-(2**63) - 1)], "--seed must be a whole number from -9223372036854775808"),
    (["--seed", "1.5"], "--seed must look like 7 or 7,8,9, not '1.5'"),
    (["--seed", "1,"], "--seed must look like 7 or 7,8,9"),
    (["--seed", ""], "--seed must look like 7 or 7,8,9"),
    (["--seed", "1,2"], "--seed has 2 entries, but the number of images is 1"),
    (["--seed", "-1,2"], "is written --seed=VALUE"),
    (["--sampler", "magic"], "unknown sampler 'magic'"),
    (["--eta", "2"], "--eta must be a number from 0 to 1, not 2.0"),
    (["--eta", "inf"], "--eta must be a number from 0 to 1, not inf"),
    (["--count", "0"], "--count: num_images_per_prompt must be a whole number from 1 to 1024, not"),
    (["--count", "-4"], "--count: num_images_per_prompt must be a whole number from 1 to 1024"),
    (["--count", "1000000"], "num_images_per_prompt must be a whole number from 1 to 1024, not 1"),
    (["--clip-skip", "-1"], "--clip-skip must be a whole number from 0 to"),
    (["--clip-skip", "1"], "--clip-skip must be below the text encoder's 1 layers, not 1"),
    (["--fast", "4"], "--fast must be a whole number from 0 to 3, not 4"),
    (["--engine", "abacus"], "unknown engine 'abacus'; known: onnxruntime"),
    (["--engine", ""], "unknown engine ''"),
    (["--engine", "onnxruntime-cuda"], "pip install 'bksdm-runtime[gpu]'"),
    (["--engine", "onnxruntime:tensorrt"], "use tensorrt or tensorrt-rtx"),
    (["--threads", "0"], "--threads: must be a whole number from 1 to 1024, not 0"),
    (["--threads", "-1"], "--threads: must be a whole number from 1 to 1024, not -1"),
    (["--threads", "9999999"], "--threads: must be a whole number from 1 to 1024"),
    (["--threads", "None"], "--threads: must be a whole number, not 'None'"),
    (["--model", ""], "--model: must not be empty"),
    (["--model", "nowhere"], "nowhere: no such folder; make a bundle"),
    (["--image", ""], "--image: must not be empty"),
    (["--image", "nowhere.png"], "nowhere.png: no such file"),
    (["--image", "in.png/x"], "in.png/x: no such file"),
    (["--image", "x" * 300], "cannot be read (File name too long)"),
    (["--image", "."], ".: a folder, not a file"),
    (["--image", "pipe"], "pipe: a device or a named pipe, not a regular file"),
    (["--image", "/dev/zero"], "/dev/zero: a device or a named pipe, not a regular file"),
    (["--image", "cut.png"], "cut.png: not a readable picture (image file is truncated"),
    (["--image", "text.png"], "text.png: not a readable picture (of no known format)"),
    (["--image", "empty"], "empty: not a readable picture (of no known format)"),
    (["--image", "in.png", "--mask", "nowhere.png"], "nowhere.png: no such file"),
    (["--image", "in.png", "--mask", "text.png"], "text.png: not a readable picture"),
    (["--image", "in.png", "--strength", "2"], "--strength must be a number from 0 to 1, not 2.0"),
    (["--image", "in.png", "--strength", "nan"], "--strength must be a number from 0 to 1"),
    (["--image", "in.png", "--strength", "0.1"], "--strength 0.1 leaves none of 1 steps"),
    (["--image", "low.png"], "--image must have at least 8 pixels along each side"),
    (["--image", "wide.png"], "--image has a width of 9000 pixels; ask for a size up to 8192"),
    (["--mask", "in.png"], "--mask needs an image to start from"),
    (["--strength", "0.5"], "--strength needs an image to start from"),
    (["--preview"], "--preview needs a terminal to draw in"),
    (["--animate", "a.gif"], "--animate writes WebP; name a file that ends in .webp, not a.gif"),
    (["--animate", "none/a.webp"], "no writable folder"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with files of several kinds, which no test writes to."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.effect_noise((64, 64), 50).save(folder / "in.png")
    (folder / "cut.png").write_bytes((folder / "in.png").read_bytes()[:1500])
    (folder / "text.png").write_text("no picture")
    (folder / "empty").touch()
    Image.new("RGB", (9000, 8)).save(folder / "wide.png")
    Image.new("RGB", (64, 7)).save(folder / "low.png")
    if sys.platform != "win32":
        os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="names devices and pipes of Unix")
@pytest.mark.parametrize(("arguments", "named"), REFUSED)
def test_bad_arguments_write_nothing(
    refuse, tiny_bundle, pictures, tmp_path, monkeypatch, arguments, named
):
    monkeypatch.chdir(pictures)
    before = sorted(pictures.iterdir())
    refuse(
        "generate",
        "x",
        "--model",
        tiny_bundle,
        "-o",
        tmp_path / "x.png",
        "--steps",
        "1",
        *arguments,
        named=named,
    )
    assert list(tmp_path.iterdir()) == []
    assert sorted(pictures.iterdir()) == before


def test_a_picture_that_would_fill_memory(refuse, tiny_bundle, pictures, tmp_path, monkeypatch):
    """As a file of a few bytes that claims 180 million pixels would."""
    for limit in (3000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        refuse(
            "generate",
            "x",
            "--model",
            tiny_bundle,
            "-o",
            tmp_path / "out.png",
            "--image",
            pictures / "in.png",
            named="in.png: not a readable picture",
        )
    assert list(tmp_path.iterdir()) == []


OTHERS = [
    (["info", "nowhere.png"], "nowhere.png: no such folder or picture"),
    (["info", ""], "BUNDLE_OR_PICTURE: must not be empty"),
    (["info", "in.png"], "in.png: holds no record of how it was made"),
    (["info", "text.png"], "text.png: not a readable picture"),
    (["info", "pipe"], "pipe: a device or a named pipe, not a regular file"),
    (["info", "/dev/zero"], "/dev/zero: a device or a named pipe, not a regular file"),
    (["info", "."], ".: not a bundle; model_index.json is missing"),
    (["info", "x" * 300], "File name too long"),
    (["bench", "compare", "nowhere.json", "list.json"], "nowhere.json: no such file"),
    (["bench", "compare", ".", "list.json"], ".: a folder, not a file"),
    (["bench", "compare", "pipe", "list.json"], "pipe: a device or a named pipe"),
    (["bench", "compare", "list.json", "list.json"], "list.json: not a record of"),
    (["bench", "compare", "in.png", "list.json"], "in.png: not a record of"),
    (
        ["bench", "compare", "a", "b", "--threshold", "nan"],
        "--threshold must be a number of 0 or more",
    ),
    (["bench", "compare", "a", "b", "--threshold", "x"], "--threshold: must be a number, not 'x'"),
    (["bench", "latency", "--repeat", "0"], "--repeat must be at least 1, not 0"),
    (["bench", "latency", "--warmup", "-1"], "--warmup must be at least 0, not -1"),
    (["bench", "latency", "--batch", "0"], "--batch must be at least 1, not 0"),
    (["bench", "latency", "--batch", "9999"], "--batch: num_images_per_prompt must be a whole"),
    (["bench", "latency", "--steps", "0"], "--steps: num_inference_steps must be a whole number"),
    (["bench", "latency", "--fast", "9"], "--fast must be a whole number from 0 to 3, not 9"),
    (["bench", "latency", "--size", "60x64"], "--size: width must be a multiple of 8, not 60"),
    (["bench", "latency", "--threads", "0"], "--threads: must be a whole number from 1 to 1024"),
    (["bench", "latency", "--sampler", "magic"], "unknown sampler 'magic'"),
    (["bench", "latency", "--json", "none/x"], "cannot write none/x: no writable folder"),
    (["bench", "latency", "--plot", "."], "cannot write .: it is a folder"),
    (["bench", "latency", "--json", "x", "--plot", "x"], "x is named for two files"),
    (["bench", "latency", "nowhere"], "nowhere: no such folder"),
    (["bench", "roofline", "--gpu", "abacus"], "--gpu: unknown 'abacus'; known: a100, h100"),
    (["bench", "roofline", "--size", "1x1"], "--size: width must be a whole number from 8 to"),
    (["bench", "rewrite", "--rounds", "0"], "--rounds must be at least 1, not 0"),
    (["bench", "rewrite", "--size", "0x8"], "--size: width must be a whole number from 8 to 8192"),
    (["bench", "overhead", "--rounds", "0"], "--rounds must be at least 1, not 0"),
    (["bench", "throughput", "--batches", "1.5"], "--batches must be whole numbers, not '1.5'"),
    (["bench", "throughput", "--batches", ""], "--batches must be numbers with commas, not ''"),
    (["bench", "throughput", "--batches", "9999"], "--batches: num_images_per_prompt must be"),
    (["bench", "throughput", "--load", "nan"], "--load must be above 0 and below a million"),
    (["bench", "throughput", "--rate", "-1"], "--rate must be above 0 and below a million"),
    (["bench", "throughput", "--requests", "0"], "--requests must be at least 1, not 0"),
    (["bench", "peers", "x", "--peers", "optimun"], "--peers: unknown 'optimun'; did you mean opt"),
    (["bench", "peers", "x", "--peers", ""], "--peers: unknown ''; known: diffusers"),
    (["bench", "peers", "x", "--size", "60x60"], "--size: width must be a multiple of 8, not 60"),
    (["bench", "peers", "x", "--work", "in.png"], "cannot make in.png: no writable folder"),
    (["bench", "report", "-o", "in.png"], "in.png: a file, not a folder"),
    (["bench", "peers", "in.png", "--peers", "bksdm"], "in.png: a file, not a folder; peers run a"),
    (["bench", "peers", "nowhere", "--peers", "bksdm"], "nowhere: no such folder; peers run a"),
    (["bench", "latency", "in.png"], "in.png: a file, not a folder; make a bundle with"),
    (["bench", "roofline", "in.png"], "in.png: a file, not a folder; make a bundle with"),
    (["bench", "rewrite", "in.png"], "in.png: a file, not a folder; make a bundle with"),
    (["bench", "throughput", "in.png"], "in.png: a file, not a folder; make a bundle with"),
    (["info", "x.safetensors"], "x.safetensors: a file of weights, neither a bundle nor"),
    (["generate", "x", "--model", "x.safetensors"], "x.safetensors: a file, not a folder; make a"),
    (["generate", "x", "--model", "dangling"], "dangling: a link to nothing; make a bundle with"),
    (["build", "x.safetensors"], "x.safetensors: a file, not a folder; make a bundle with"),
    (["build", "x.safetensors", "--tune"], "x.safetensors: a file, not a folder; make a bundle"),
    (["build", "x.safetensors", "--list"], "x.safetensors: a file, not a folder; make a bundle"),
    (["build", str(EMOJI), "--target", "sm89"], "emoji is float32; export it with --dtype"),
    (["verify", "x.safetensors", "--against", "x"], "x.safetensors: a file, not a folder; make"),
    (["verify", "--integrity", "x.safetensors"], "x.safetensors: a file, not a folder"),
    (["verify", "{bundle}", "--against", "{bundle}"], "is a bundle, without weights for torch;"),
    (["verify", "{bundle}", "--against", "x.safetensors"], "x.safetensors: damaged, no safet"),
    (["verify", "{bundle}", "--against", "in.png"], "in.png: neither .safetensors nor a pickle of"),
    (["verify", "{bundle}", "--against", "."], "has no model_index.json; supported: a diffusers"),
    (["calibrate", "x.safetensors"], "x.safetensors: a file, not a folder; make a bundle with"),
    (["calibrate", "{bundle}", "--half", "in.png"], "in.png: a file, not a folder; make a bundle"),
    (["export", "x", "-o", "y", "--lora", ""], "--lora: must not be empty"),
    (["export", "x", "-o", "y", "--lora", ":0.8"], "--lora: must be FILE or FILE:SCALE; ':0.8' "),
    (["export", "x", "-o", "y", "--lora", "a.pt:"], "'a.pt:' has no scale after the colon"),
    (["export", "x", "-o", "y", "--lora", "a.pt:nan"], "a.pt:nan: the scale must be a finite"),
    (["export", "x", "-o", "y", "--lora", "a.pt:b"], "a.pt:b: no such file, and 'b' is no scale"),
    (["verify", "{bundle}", "--against", "x", "--lora", ":"], "':' has no file before the colon"),
    (["bench", "report", "--only", "x"], "--only: unknown 'x'; known: small-peers"),
    (
        ["verify", "--integrity", "{bundle}", "--steps", "3"],
        "--steps does nothing with --integrity",
    ),
    (["verify", "--integrity", "{bundle}", "--lora", "a"], "--lora does nothing with --integrity"),
    (["verify", "--integrity", "{bundle}", "-o", "x"], "--output does nothing with --integrity"),
    (["verify", "--all", "--sampler", "ddim"], "--sampler does nothing with --all"),
    (["build", "{bundle}", "--list", "--tune"], "--tune does nothing with --list"),
    (
        ["build", "{bundle}", "--remove", "x", "--engine", "y"],
        "--engine does nothing with --remove",
    ),
    (["build", "{bundle}", "--list", "--remove", "x"], "--remove does nothing with --list"),
    (["bench", "roofline", "--gpu", "h100", "--threads", "2"], "--threads does nothing with --gpu"),
    (["bench", "report", "--render", "--only", "x"], "--only does nothing with --render"),
    (["calibrate", "nowhere"], "nowhere: no such folder"),
    (["calibrate", "{bundle}", "--steps", "0"], "--steps: num_inference_steps must be a whole"),
    (["calibrate", "{bundle}", "--size", "3x3"], "--size: height must be a whole number from 8 to"),
    (["calibrate", "{bundle}", "--json", "none/x"], "cannot write none/x: no writable folder"),
    (["calibrate", "{bundle}", "--half", "nowhere"], "nowhere: no such folder"),
    (["build", "nowhere", "--tune"], "nowhere: no such folder"),
    (["build", "{bundle}", "--tune", "--threads", "9999"], "--threads: must be a whole"),
    (["build", "{bundle}", "--tune", "--threads", "x"], "--threads: must be a whole number"),
    (["build", "{bundle}", "--remove", "../x"], "'../x' is not built; built: "),
    (["verify", "{bundle}", "--against", "x", "--steps", "0"], "--steps: num_inference_steps must"),
    (["verify", "{bundle}", "--against", "x", "-o", "y"], "-o goes with --all"),
    (["verify", "--all", "-o", "none/x.md"], "cannot write none/x.md: no writable folder"),
    (["dummy", "nano", "-o", "x", "--seed", "1.5"], "--seed: must be a whole number, not '1.5'"),
    (["dummy", "nano", "-o", "x", "--seed", str(2**64)], "--seed must be a whole number from -92"),
    (["dummy", "nano", "-o", ""], "-o/--output: must not be empty"),
    (["dummy", "nano", "-o", "in.png"], "in.png exists already"),
    (["export", "{bundle}", "-o", ""], "-o/--output: must not be empty"),
    (["export", "{bundle}", "-o", "y"], "is a bundle already, without weights for torch"),
    (["export", "in.png", "-o", "y"], "in.png: neither .safetensors nor a pickle of"),
    (["export", "x", "-o", "y", "--embedding", ""], "--embedding: must not be empty"),
    (["cache", "--engine-cache", "nowhere"], "nowhere: no such folder"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="names devices and pipes of Unix")
@pytest.mark.parametrize(("arguments", "named"), OTHERS)
def test_other_commands_name_what_is_wrong(
    refuse, tiny_bundle, pictures, tmp_path, monkeypatch, arguments, named
):
    monkeypatch.chdir(tmp_path)
    for path in pictures.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "x.safetensors").write_bytes(b"weights")
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    refuse(*(word.format(bundle=tiny_bundle) for word in arguments), named=named)
    assert sorted(tmp_path.iterdir()) == before


PATHS = {
    "FILE",
    "FILE[:SCALE]",
    "FILE[:TOKEN]",
    "FILE|FOLDER",
    "FOLDER",
    "FILE.webp",
    "DIR",
    "BUNDLE",
    "BUNDLE16",
    "BUNDLE_OR_PICTURE",
    "SOURCE",
    "CHECKPOINT",
    "OLD.json",
    "NEW.json",
}


def parsers():
    """Every command's parser, and those of the kinds of ``bench``."""
    for name in COMMANDS:
        parser = Parser(prog=name)
        import_module(f"bksdm.cli.{name}").configure(parser)
        kinds = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if kinds:
            yield from ((f"{name} {kind}", one) for kind, one in kinds[0].choices.items())
        else:
            yield name, parser


PATH_ARGUMENTS = [
    (
        words.split(),
        (action.option_strings or [None])[-1],
        action.metavar,
        [other.metavar for other in parser._positionals._group_actions if not other.choices],
    )
    for words, parser in parsers()
    for action in parser._actions
    if action.metavar in PATHS
]


def test_every_command_that_takes_paths_is_known():
    pathless = {"doctor", "samplers"}
    assert {words[0] for words, *_ in PATH_ARGUMENTS} == set(COMMANDS) - pathless


@pytest.mark.parametrize(("words", "option", "metavar", "positional"), PATH_ARGUMENTS)
def test_no_path_may_be_empty(refuse, words, option, metavar, positional):
    if option is None:
        given = ["" if other == metavar else "x" for other in positional]
        refuse(*words, *given, named=f"{metavar}: must not be empty")
    else:
        # What stands before it may be one of a few words, of which none is "x".
        refuse(*words, f"{option}=", *("x" for _ in positional), named="must not be empty")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of Unix")
def test_a_pipe_that_is_given_as_a_file_is_read(tiny_bundle, pictures, tmp_path):
    program = f"{sys.executable} -m bksdm.cli"
    draw = f"{program} generate x --model {tiny_bundle} --steps 2 --seed 0"
    lines = [
        f"cat in.png | {draw} --image - -o {tmp_path}/a.png",
        f"{draw} --image <(cat in.png) -o - | {program} info - --json > {tmp_path}/said",
    ]
    subprocess.run(["bash", "-ec", "; ".join(lines)], check=True, cwd=pictures)
    assert json.loads((tmp_path / "said").read_text())["image"] == "63"
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (64, 64)


def test_empty_and_missing_folders(refuse, tmp_path):
    refuse("generate", "x", "--model", tmp_path, named="model_index.json is missing")
    refuse("info", tmp_path / "nowhere", named="no such folder")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "vae_decoder/config.json",
        "text_encoder/config.json",
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_a_configuration_is_a_regular_file(refuse, tiny_copy, name, kind):
    """A pipe without a writer would be waited for, and a device may have no end."""
    path = tiny_copy / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path.name)
    refuse("generate", "x", "--model", tiny_copy, "--clip-skip", 1, named=name)
    if "text_encoder" not in name:
        refuse("info", tiny_copy, named=name)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_missing_and_truncated_graphs(refuse, tiny_copy, component):
    model = tiny_copy / component / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    refuse("generate", "x", "--model", tiny_copy, named=f"{component}/model.onnx")
    model.unlink()
    refuse("generate", "x", "--model", tiny_copy, named="missing")


def test_missing_and_truncated_weights(refuse, emoji_copy):
    data = emoji_copy / "vae_decoder" / "weights.safetensors"
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    refuse("generate", "x", "--model", emoji_copy, named="vae_decoder")
    data.unlink()
    refuse("generate", "x", "--model", emoji_copy, named="vae_decoder")


def test_a_bundle_of_another_pipeline(refuse, tiny_copy):
    index = tiny_copy / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    refuse("generate", "x", "--model", tiny_copy, named="StableDiffusionXLPipeline")


def test_a_checkpoint_in_place_of_a_bundle(refuse, tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").touch()
    refuse("generate", "x", "--model", tmp_path, named="bksdm export")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3),
    max_leaves=4,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        sorted(
            {
                *vars(SchedulerConfig()),
                "_class_name",
                "clip_sample",
                "thresholding",
                "use_karras_sigmas",
            }
        )
    ),
    VALUES | st.sampled_from(["linear", "scaled_linear", "leading", "PNDMScheduler", 10, 0.01]),
)


@settings(max_examples=300, deadline=None)
@given(FIELDS, st.integers(-1, 20), st.sampled_from([None, *SAMPLERS]))
def test_scheduler_configs_give_a_finite_table_or_a_documented_error(fields, steps, sampler):
    try:
        table = step_table(fields, steps, sampler)
    except BksdmError:
        return
    assert np.isfinite(table.rows).all()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["model_index.json", "unet/config.json", "vae_decoder/config.json"]),
    st.dictionaries(
        st.sampled_from(
            [
                "_class_name",
                "in_channels",
                "sample_size",
                "latent_channels",
                "block_out_channels",
                "scaling_factor",
                "cross_attention_dim",
            ]
        ),
        VALUES | st.integers(min_value=10**20),
    )
    | VALUES,
)
def test_bundle_json_is_accepted_or_refused_by_name(tiny_bundle, tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("fuzz")
    for path in tiny_bundle.rglob("*"):
        if path.is_file() and "engines" not in path.parts:
            target = folder / path.relative_to(tiny_bundle)
            target.parent.mkdir(exist_ok=True, parents=True)
            target.symlink_to(path)
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(content))
    named = ""
    try:
        Bundle.open(folder)
    except BundleError as error:
        named = str(error)
    # The widths of two files can contradict each other; either may then be the one named.
    assert not named or str(folder) in named


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from(
            [
                "--steps",
                "--guidance",
                "--seed",
                "--size",
                "--count",
                "--sampler",
                "--threads",
                "--engine",
                "--eta",
                "--clip-skip",
                "--fast",
            ]
        ).flatmap(
            lambda flag: st.sampled_from(
                ["0", "-1", "nan", "x", "1e9", "64x64", "", "９", "9" * 30, "\x1b[31m"]
            ).map(lambda value: [flag, value])
        ),
        min_size=1,
        max_size=3,
    )
)
def test_command_lines_end_with_0_or_2(tiny_bundle, tmp_path_factory, capsys, pairs):
    output = tmp_path_factory.mktemp("out") / "x.png"
    flat = [part for pair in pairs for part in pair]
    code = main(
        ["generate", "x", "--model", str(tiny_bundle), "-o", str(output), "--steps", "1", *flat]
    )
    assert code in (0, 2)
    assert (code == 0) == output.exists()
    assert "\x1b[31m" not in capsys.readouterr().err
