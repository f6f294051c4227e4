"""The OpenVINO engine against ONNX Runtime's, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from bksdm.engines.errors import BundleError, EngineError
from bksdm.engines.onnxruntime import OnnxRuntimeEngine
from bksdm.engines.registry import backends
from bksdm.optimize.rules import CostModel
from bksdm.runtime.pipeline import TextToImage
from tests.optimize.test_rewrite import transformed_is_faster

pytest.importorskip("openvino")
from bksdm.engines import openvino
from bksdm.engines.openvino import OpenVinoEngine

COMPONENTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def feeds_for(inputs, batch, size):
    rng = np.random.default_rng(batch)
    feeds = {}
    for name, spec in inputs.items():
        shape = [batch, *(n if isinstance(n, int) else 77 for n in spec.shape[1:])]
        if len(shape) == 4:
            shape[2:] = size
        if spec.dtype == np.int64:
            feeds[name] = rng.integers(0, 100, shape)
        else:
            feeds[name] = rng.standard_normal(shape).astype(spec.dtype)
    return feeds


def assert_same_results(path, made, sizes, tolerance):
    expected = OnnxRuntimeEngine(path)
    assert made.inputs == expected.inputs
    assert {n: (s.dtype, len(s.shape)) for n, s in made.outputs.items()} == {
        n: (s.dtype, len(s.shape)) for n, s in expected.outputs.items()
    }
    results = []
    for batch, size in sizes:
        feeds = feeds_for(made.inputs, batch, size)
        wanted, found = expected(feeds), made(feeds)
        assert set(found) == set(wanted)
        for name in wanted:
            assert found[name].shape == wanted[name].shape
            error = np.linalg.norm(found[name] - wanted[name])
            assert error < tolerance * np.linalg.norm(wanted[name])
        results.append((feeds, found))
    # A later run leaves earlier results alone.
    feeds, found = results[0]
    for name, again in made(feeds).items():
        np.testing.assert_array_equal(again, found[name])


@pytest.fixture(params=[False, True], ids=["shape by shape", "all shapes at once"])
def large(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(openvino, "LARGE", 0)


# OpenVINO compiles for a second for every shape.
@pytest.mark.usefixtures("large")
@pytest.mark.parametrize(
    "sizes",
    [
        [(1, (1, 1)), (3, (3, 5))],
        pytest.param([(2, (1, 1)), (1, (2, 3)), (1, (1, 4))], marks=pytest.mark.slow),
    ],
    ids=len,
)
@pytest.mark.parametrize("component", COMPONENTS)
def test_networks_equal_those_of_onnx_runtime(nano_bundle, component, sizes):
    path = nano_bundle / component / "model.onnx"
    # Sums in float32 in another order; bfloat16, which some processors offer, would be 1e-3.
    # The encoder leaves an eighth of each side; groups of two values are normalised to rounding.
    side = 32 if component == "vae_encoder" else 8
    scaled = [(batch, (side * height, side * width)) for batch, (height, width) in sizes]
    assert_same_results(path, OpenVinoEngine(path), scaled, 1e-5)


@pytest.mark.parametrize("size", [pytest.param((2, (8, 8)), marks=pytest.mark.slow), (1, (5, 7))])
@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_rewritten_networks_equal_those_of_onnx_runtime(nano_bundle, component, size, monkeypatch):
    path = nano_bundle / component / "model.onnx"
    monkeypatch.setattr(CostModel, "__call__", transformed_is_faster)
    made = OpenVinoEngine(path)
    # As in test_rewrite; both engines have the transforms' rounding, each in another order.
    assert_same_results(path, made, [size], 5e-5)


def test_float16_weights_are_computed_with_in_float32(nano_bundle_fp16):
    path = nano_bundle_fp16 / "unet" / "model.onnx"
    made = OpenVinoEngine(path)
    feeds = feeds_for(made.inputs, 2, (8, 8))
    (wanted,), (found,) = (e(feeds).values() for e in (OnnxRuntimeEngine(path), made))
    assert found.dtype == np.float16
    # ONNX Runtime rounds some of what is between to float16, 2^-11 each; OpenVINO the result only.
    assert np.linalg.norm(found - wanted) < 3e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one_are_refused(nano_bundle, threads):
    with pytest.raises(EngineError, match="threads must be at least 1"):
        OpenVinoEngine(nano_bundle / "unet" / "model.onnx", threads)


@pytest.mark.usefixtures("large")
def test_threads_are_passed_on(nano_bundle):
    made = OpenVinoEngine(nano_bundle / "vae_decoder" / "model.onnx", 1)
    made(feeds_for(made.inputs, 1, (8, 8)))
    (request,) = made._requests.values() or [made._whole]
    compiled = request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert "float" in str(compiled.get_property("INFERENCE_PRECISION_HINT"))


def test_the_last_few_shapes_stay_compiled(nano_bundle):
    made = OpenVinoEngine(nano_bundle / "vae_decoder" / "model.onnx", 1)
    for side in (1, 2, 3, 1, 4, 5, 1):
        made(feeds_for(made.inputs, 1, (side, 1)))
    assert [dict(key)["latent_sample"][2] for key in made._requests] == [3, 4, 5, 1]


def test_feeds_that_do_not_fit_are_refused(nano_bundle):
    made = OpenVinoEngine(nano_bundle / "vae_decoder" / "model.onnx")
    with pytest.raises(EngineError, match="float32"):
        made({"latent_sample": np.zeros((1, 4, 8, 8))})


@pytest.fixture
def unet(nano_bundle, tmp_path):
    """A network to damage, whose weights are in a file of their own."""
    shutil.copytree(nano_bundle / "unet", tmp_path / "unet")
    return tmp_path / "unet" / "model.onnx"


def test_damaged_models_are_named(unet):
    data = unet.with_name("model.onnx.data")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match=r"unet: the file of weights is too short"):
        OpenVinoEngine(unet)
    data.unlink()
    with pytest.raises(EngineError, match=r"unet: .*model\.onnx\.data is missing"):
        OpenVinoEngine(unet)
    unet.write_bytes(b"\xffnot a graph")
    with pytest.raises(BundleError, match=r"unet/model\.onnx: not an ONNX file"):
        OpenVinoEngine(unet)


@pytest.mark.parametrize("location", ["../model.onnx.data", "/etc/passwd"])
def test_weights_outside_the_folder_are_refused(unet, location):
    proto = onnx.load(unet, load_external_data=False)
    for weight in proto.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = location
    unet.write_bytes(proto.SerializeToString())
    with pytest.raises(EngineError, match="outside its folder"):
        OpenVinoEngine(unet)


def test_an_operator_that_openvino_lacks_is_one_line(unet):
    proto = onnx.load(unet, load_external_data=False)
    proto.graph.node[0].op_type = "Abacus"
    unet.write_bytes(proto.SerializeToString())
    with pytest.raises(EngineError, match=r"unet/model\.onnx: cannot be loaded") as caught:
        OpenVinoEngine(unet)
    assert "Abacus" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_pictures_of_both_engines_are_alike(nano_bundle):
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    made = []
    for engine in ("onnxruntime", "openvino"):
        model = TextToImage.load(nano_bundle, engine, threads=1)
        made.append(
            [
                model("a red apple", num_inference_steps=2, seed=0, image=start).pixels.astype(int)
                for start in (None, picture)
            ]
        )
    # Rounding to 8 bits may fall to either side.
    for one, other in zip(*made, strict=True):
        assert np.abs(one - other).max() <= 1
    assert "openvino" in backends()


PROGRAM = """
import sys


class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ImportError(f"{name} is blocked")


sys.meta_path.insert(0, Block())
from bksdm.cli import main

code = main(["generate", "a red apple", "--model", sys.argv[2], "-o", sys.argv[3],
             "--steps", "1", "--seed", "0", "--engine", "openvino"])
assert not [m for m in sys.modules if m.split(".")[0] in sys.argv[1].split(",")]
sys.exit(code)
"""


def without(modules, bundle, output):
    command = [sys.executable, "-c", PROGRAM, modules, str(bundle), str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_openvino_needs_no_torch(nano_bundle, tmp_path):
    done = without("torch,diffusers,transformers,optimum", nano_bundle, tmp_path / "x.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_a_missing_openvino_says_what_to_install(nano_bundle, tmp_path):
    done = without("openvino", nano_bundle, tmp_path / "x.png")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "bksdm: error: openvino is not installed; run: pip install 'bksdm-runtime[openvino]'"
    )
    assert not (tmp_path / "x.png").exists()


RESIDENT = """
import re, sys
import numpy as np
from bksdm.runtime.pipeline import TextToImage

def resident(name):
    \"\"\"Bytes of mapped files of that folder that are in memory.\"\"\"
    here = total = 0
    for line in open("/proc/self/smaps"):
        if re.match("[0-9a-f]+-", line):
            here = name in line
        elif here and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total

model = TextToImage.load(engine="openvino")
first = model("a cat", num_inference_steps=2, seed=0).pixels
print(resident("/unet/"))
assert (model("a cat", num_inference_steps=2, seed=0).pixels == first).all()
# Another shape, compiled anew from weights that are read again.
print(model("a cat", num_inference_steps=1, width=64, height=64, seed=0).pixels.std())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_that_openvino_has_copied_are_let_go():
    ran = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    resident, spread = map(float, ran.stdout.split())
    # Some weights are used where they are; all of the built-in UNet's are 26 MB.
    assert resident < 13e6
    assert spread > 1
