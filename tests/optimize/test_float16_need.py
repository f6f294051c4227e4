"""Why float16 graphs keep some arithmetic in float32: measured on the built-in, trained model.

``pytest -s tests/optimize/test_float16_need.py`` prints what ``docs/float16.md`` says.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bksdm.models import EMOJI
from bksdm.optimize.attention import decompose_attention
from bksdm.optimize.half import LARGEST
from bksdm.optimize.ranges import RangeEngine, open_graph
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def calls():
    """The last call of each network while a picture is drawn, and what the VAE encoder takes."""
    bundle = Bundle.open(EMOJI)
    engines = {name: RangeEngine(bundle.model(name)) for name in bundle.components}
    tokenizer = Tokenizer.load(bundle.path / "tokenizer")
    encode = PromptEncoder(tokenizer, lambda skipped: engines["text_encoder"])
    executor = HostExecutor(
        encode, NoisePredictor(engines["unet"]), engines["vae_decoder"], bundle.scaling_factor
    )
    TextToImage(bundle, executor)("a red apple", num_inference_steps=25, seed=0)
    return {
        name: (bundle.model(name), engine.last)
        for name, engine in engines.items()
        if engine.last is not None
    }


def outputs_of(model_path, feeds, change):
    """Run a graph with more outputs, those that ``change`` adds and names."""
    proto = onnx.load(str(model_path), load_external_data=False)
    names = change(proto)
    for name in names:
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return open_graph(proto, model_path).run(names, dict(feeds))


def test_sines_of_the_timestep_need_single_precision():
    """Diffusers' Timesteps: angle = t · 10000^(−i / 160), of which sine and cosine are taken."""
    timestep = np.arange(1, 1000, 40.0)[:, None]
    frequency = 10000.0 ** (-np.arange(160) / 160)

    def embed(kind):
        angle = (timestep.astype(kind) * frequency.astype(kind)).astype(kind)
        return np.concatenate([np.sin(angle), np.cos(angle)]).astype(np.float64)

    def error(kind):
        return np.linalg.norm(embed(kind) - embed(np.float64)) / np.linalg.norm(embed(np.float64))

    print(
        f"\ntimestep embedding: relative L2 {error(np.float16):.1e} in float16, "
        f"{error(np.float32):.1e} in float32"
    )
    # An angle near 1000 is rounded to a multiple of 0.5 in float16: those sines are noise.
    assert error(np.float16) > 0.02
    assert error(np.float32) < 1e-4


def test_group_normalisation_needs_single_precision(calls):
    """Its variance is a sum of squares."""
    largest = {}
    for component in ("unet", "vae_decoder"):
        model_path, call = calls[component]

        def squares(proto):
            names = []
            for node in [n for n in proto.graph.node if n.op_type == "GroupNormalization"]:
                settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                # 1 asks for float32 inside of the node, whatever its inputs are.
                assert settings.get("stash_type", 1) == 1
                name = node.output[0]
                shape = np.array([0, settings["num_groups"], -1], np.int64)
                proto.graph.initializer.extend(
                    [
                        numpy_helper.from_array(shape, f"{name}:groups"),
                        numpy_helper.from_array(np.array([2], np.int64), f"{name}:axis"),
                    ]
                )
                proto.graph.node.extend(
                    [
                        helper.make_node(
                            "Reshape", [node.input[0], f"{name}:groups"], [f"{name}:g"]
                        ),
                        helper.make_node(
                            "ReduceSumSquare", [f"{name}:g", f"{name}:axis"], [f"{name}:squares"]
                        ),
                    ]
                )
                names.append(f"{name}:squares")
            return names

        found = [float(sums.max()) for sums in outputs_of(model_path, call.feeds, squares)]
        over = sum(value > LARGEST for value in found)
        print(
            f"\n{component}: the largest sum of squares of a group is {max(found):.3g}; beyond "
            f"float16 in {over} of {len(found)} normalisations"
        )
        largest[component] = max(found)
    assert min(largest.values()) > LARGEST


def test_queries_are_scaled_before_the_product(calls):
    """Where attention is written out, scores are stored in float16."""
    model_path, call = calls["vae_decoder"]
    sizes = {}
    for scaled in (True, False):

        def scores(proto, scaled=scaled):
            decompose_attention(proto, lambda width: False)
            found = [n for n in proto.graph.node if n.output[0].endswith(":scores")]
            for node in [] if scaled else found:
                producers = {o: n for n in proto.graph.node for o in n.output}
                node.input[0] = producers[node.input[0]].input[0]
                transposed = producers[node.input[1]]
                transposed.input[0] = producers[transposed.input[0]].input[0]
            return [node.output[0] for node in found]

        (found,) = outputs_of(model_path, call.feeds, scores)
        sizes[scaled] = float(np.abs(found).max())
    print(
        f"\nattention scores of the VAE decoder: at most {sizes[True]:.3g} scaled before the "
        f"product, {sizes[False]:.3g} after it"
    )
    assert sizes[False] > 5 * sizes[True]
