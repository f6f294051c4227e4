"""Rewrite a graph to operators that ONNX Runtime's CUDA provider has kernels for."""

from __future__ import annotations

import onnx

from bksdm.optimize.bias_split_gelu import fuse_bias_split_gelu
from bksdm.optimize.channels_last import put_channels_last
from bksdm.optimize.cuda_group_norm import fuse_group_norm
from bksdm.optimize.packed_attention import pack_attention
from bksdm.optimize.quick_gelu import fuse_quick_gelu
from bksdm.optimize.residuals import fuse_residuals

# Flash attention takes no wider heads. The next kernel takes them without asking how much shared
# memory there is, and fails to start where that is too little (onnxruntime issue 28388).
WIDEST_HEAD = 256


def write_for_cuda(model: onnx.ModelProto, packed: bool = False) -> None:
    """Apply the rules of the CUDA provider, in place, to a graph whose attention is fused.

    Where a kernel does not take a tensor's width the standard operators stay.

    Parameters
    ----------
    model : ModelProto
        The graph.
    packed : bool
        Whether attention takes its tensors packed.
    """
    if packed:
        pack_attention(model)
    put_channels_last(model)
    fuse_group_norm(model)
    fuse_bias_split_gelu(model)
    fuse_residuals(model)
    fuse_quick_gelu(model)
