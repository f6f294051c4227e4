"""Rewrite a graph to operators that ONNX Runtime's CUDA provider has kernels for."""

from __future__ import annotations

import onnx

from bksdm.optimize.bias_split_gelu import fuse_bias_split_gelu
from bksdm.optimize.channels_last import put_channels_last
from bksdm.optimize.cuda_group_norm import fuse_group_norm
from bksdm.optimize.quick_gelu import fuse_quick_gelu
from bksdm.optimize.residuals import fuse_residuals


def write_for_cuda(model: onnx.ModelProto) -> None:
    """Apply the rules of the CUDA provider, in place, to a graph whose attention is fused.

    Where a kernel does not take a tensor's width the standard operators stay.
    """
    put_channels_last(model)
    fuse_group_norm(model)
    fuse_bias_split_gelu(model)
    fuse_residuals(model)
    fuse_quick_gelu(model)
