"""Full-size BK-SDM-Small's UNet for ONNX Runtime's CUDA provider, on the CPU at a small size."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel

from bksdm.export.dummy import unet_config
from bksdm.export.graph import write_graph
from bksdm.export.networks import Unet
from bksdm.export.pretrained import config_of
from bksdm.export.quiet import quiet
from bksdm.optimize.compose import compose
from bksdm.optimize.cuda_kernels import take_census
from bksdm.optimize.rules import ONNXRUNTIME_CUDA, USUAL
from tests.optimize.documented import documented
from tests.optimize.test_cuda_rules import example, opened, relative


@pytest.mark.slow
def test_the_unet_of_small(tmp_path):
    """Its widths are those that `nano` has no kernels for."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = UNet2DConditionModel(**unet_config("small"))
        network = Unet(model, config_of(model)).eval().requires_grad_(False)
    path = write_graph(network, tmp_path)
    del model, network
    plain = onnx.load(path, load_external_data=False)
    feeds = example(plain, (8, 8))
    expected = opened(plain, tmp_path)(feeds)
    fast = compose(path, ONNXRUNTIME_CUDA, USUAL)
    census = take_census(fast)
    assert not census.leaves_gpu, str(census)
    counts = Counter(node.op_type for node in fast.graph.node)
    fused = ("BiasSplitGelu", "BiasAdd", "SkipLayerNormalization", "MultiHeadAttention")
    assert [counts[kind] for kind in fused] == [9, 9, 18, 18]
    assert counts["GroupNorm"] + counts["SkipGroupNorm"] == 34
    # The first of each block, which follows no sum.
    assert counts["LayerNormalization"] == 9
    # The same float32 operations; means and sums are taken in another order.
    assert relative(opened(documented(fast), tmp_path)(feeds), expected) < 3e-6
