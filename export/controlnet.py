"""ControlNets as plain torch modules, as :mod:`bksdm.export.networks` has the others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bksdm.engines.variants import CONTROL_IMAGE, DOWN_RESIDUAL, MID_RESIDUAL
from bksdm.export.networks import Case, Network, random_stream, sides
from bksdm.runtime.bundle import CONTROLNET

COLOURS = 3


class ControlNet(Network):
    """What a picture adds to the features of a UNet (Zhang et al. 2023, arXiv 2302.05543).

    ``sample`` [batch, 4, h, w], ``timestep`` float32 [batch], ``encoder_hidden_states``
    [batch, tokens, d] and ``controlnet_cond`` [batch, 3, 8h, 8w], pixels in 0 … 1 →
    ``down_block_res_sample_0`` … and ``mid_block_res_sample``, [batch, channels, …].

    Each scale is 1; :mod:`bksdm.runtime.controlnets` multiplies, and takes means where the
    configuration says ``global_pool_conditions``.
    """

    inputs = ("sample", "timestep", "encoder_hidden_states", CONTROL_IMAGE)

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.config = model, config
        model.register_to_config(global_pool_conditions=False)
        count = len(residual_channels(config)) - 1
        self.outputs = (*(f"{DOWN_RESIDUAL}{index}" for index in range(count)), MID_RESIDUAL)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return what is added, in the order of the UNet's features."""
        down, mid = self.model(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            return_dict=False,
        )
        return (*down, mid)

    def example(self, case: Case) -> tuple[Tensor, ...]:
        """Return standard normal latents and embeddings, timesteps, and uniform pixels."""
        generator, factor = random_stream(case), picture_scale(self.config)
        channels, width = self.config["in_channels"], self.config["cross_attention_dim"]
        sample = torch.randn(case.batch, channels, case.height, case.width, generator=generator)
        timestep = torch.randint(1000, (case.batch,), generator=generator).float()
        states = torch.randn(case.batch, case.tokens, width, generator=generator)
        pixels = (case.batch, COLOURS, factor * case.height, factor * case.width)
        return sample, timestep, states, torch.rand(pixels, generator=generator)

    @property
    def traced_scale(self) -> int:
        """Twice as large for every block beyond four."""
        return 1 << max(0, len(self.config["block_out_channels"]) - 4)

    def dynamic_shapes(self) -> tuple[Mapping[int, Any], ...]:
        """Batch everywhere, height and width in whole latents, and the text's length."""
        batch, tokens = torch.export.Dim("batch", min=1, max=2**14 - 1), torch.export.Dim("tokens")
        latent, factor = sides(8 * self.traced_scale + 1), picture_scale(self.config)
        pixels = {axis: factor * side for axis, side in latent.items()}
        return (
            {0: batch, **latent},
            {0: batch},
            {0: batch, 1: tokens},
            {0: batch, **pixels},
        )


@cache
def controlnet_kind(component: str) -> type[ControlNet]:
    """Return the kind of network in a ControlNet's folder."""
    fields = {"component": component, "subfolder": component}
    return type(f"ControlNet_{component.removeprefix(CONTROLNET)}", (ControlNet,), fields)


def residual_channels(config: Mapping[str, Any]) -> list[int]:
    """Return how many channels each residual has, the mid block's last: of a UNet's, too."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    channels = [widths[0]]
    for index, width in enumerate(widths):
        count = layers if isinstance(layers, int) else layers[index]
        # Every block but the last ends with a smaller picture.
        channels += [width] * (count + (index < len(widths) - 1))
    return [*channels, widths[-1]]


def picture_scale(config: Mapping[str, Any]) -> int:
    """Return how much smaller than the control image its features are, along each side."""
    return int(2 ** (len(config["conditioning_embedding_out_channels"]) - 1))
