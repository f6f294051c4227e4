"""The four networks of a pipeline as plain torch modules with stable tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from bksdm.engines.errors import ExportError
from bksdm.export.library_errors import library_errors
from bksdm.export.pretrained import build, config_of, load
from bksdm.export.source import read_json
from bksdm.export.tokenizer import read_tokenizer
from bksdm.runtime.bundle import TINY_VAE
from bksdm.runtime.loaded_configuration import loaded_sample_size

# Latent sides up to 16,383 (131,064 px): only a bound for the tracer, never checked at run time.
_MAX_LATENT = 2**14 - 1
# The tracer wants to know that no side shrinks to 1 on its way down four blocks. The graph holds no
# trace of it: smaller sizes run all the same, which `bksdm.export.parity` checks.
_MIN_TRACED = 9
# Above every size the tracer may see; see `Unet`.
_NEVER_DIVIDES = 30


@dataclass(frozen=True)
class Case:
    """One set of sizes to run a network with.

    Attributes
    ----------
    batch
        Number of images, 1 or more.
    height, width
        Size of the latents (pixels divided by 8).
    seed
        Seed of torch's CPU generator for the inputs.
    tokens
        Length of the text that the UNet attends to; 77 for each part of a long prompt.
    """

    batch: int
    height: int
    width: int
    seed: int
    tokens: int = 77


class Network(nn.Module):
    """Base of the exported networks: a thin shell that fixes names, order and types.

    Attributes
    ----------
    component
        Name of the bundle's folder for this network.
    subfolder
        Name of the checkpoint's folder with its weights.
    inputs
        Names of the graph's inputs, in the order of ``forward``.
    outputs
        Names of the graph's outputs, in the order in which ``forward`` returns them.
    config
        Content of the component's ``config.json``.
    model
        The module of diffusers or transformers inside.
    """

    component: str
    subfolder: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    config: dict[str, Any]
    model: Any

    @property
    def traced_scale(self) -> int:
        """Factor by which the latents for tracing must be larger than those of other networks."""
        return 1

    def example(self, case: Case) -> tuple[Tensor, ...]:
        """Return fresh random float32 (or int64) inputs of the case's sizes."""
        raise NotImplementedError

    def dynamic_shapes(self) -> tuple[Mapping[int, Any], ...]:
        """Return, per input, which of its axes are dynamic and what they are called."""
        raise NotImplementedError


class TextEncoder(Network):
    """CLIP's text tower: ``input_ids`` int64 [batch, 77] → ``last_hidden_state`` [batch, 77, d].

    Where the configuration sets ``use_attention_mask``, which diffusers' pipelines act on, there is
    ``attention_mask`` int64 [batch, 77] as well: 0 hides a token from the others.

    Attributes
    ----------
    tokens
        In a row; CLIP's 77, or fewer where the tokenizer makes shorter ones.
    """

    component = subfolder = "text_encoder"
    outputs = ("last_hidden_state",)

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.config = model, config
        masked = bool(config.get("use_attention_mask"))
        self.inputs = ("input_ids", "attention_mask") if masked else ("input_ids",)
        self.tokens = int(config["max_position_embeddings"])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the final layer's normalised hidden states."""
        states: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True
        ).last_hidden_state
        return states

    def example(self, case: Case) -> tuple[Tensor, ...]:
        """Return random token ids, and texts of random lengths; only the batch matters."""
        generator, shape = random_stream(case), (case.batch, self.tokens)
        ids = torch.randint(int(self.config["vocab_size"]), shape, generator=generator)
        lengths = torch.randint(1, self.tokens + 1, (case.batch, 1), generator=generator)
        mask = (torch.arange(self.tokens) < lengths).to(torch.int64)
        return (ids, mask)[: len(self.inputs)]

    def dynamic_shapes(self) -> tuple[Mapping[int, Any], ...]:
        """Only the batch: Stable Diffusion always feeds full rows of 77 tokens."""
        batch = _batch()
        return ({0: batch}, {0: batch})[: len(self.inputs)]


class _Upsample(nn.Module):
    """Nearest-neighbour upsampling, by two or to a given size, and a convolution.

    diffusers' module does the same after asking whether the batch has 64 images or the tensor
    2**31 values (a workaround for old torch). For symbolic sizes those questions cost the tracer
    a minute, and bound the batch.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv = original.conv

    def forward(self, hidden_states: Tensor, output_size: Any = None) -> Tensor:
        """Upsample to ``output_size`` (height, width), by two if it is None."""
        target = {"scale_factor": 2.0} if output_size is None else {"size": output_size}
        larger = nn.functional.interpolate(hidden_states, mode="nearest", **target)
        convolved: Tensor = self.conv(larger)
        return convolved


def _replace_upsamplers(blocks: Any) -> None:
    from diffusers.models.upsampling import Upsample2D

    for block in blocks:
        for index, upsampler in enumerate(block.upsamplers or ()):
            # Some kinds of blocks have others, which ask no such questions.
            if isinstance(upsampler, Upsample2D):
                block.upsamplers[index] = _Upsample(upsampler)


class Unet(Network):
    """The noise prediction, with a timestep per image.

    ``sample`` [batch, 4, h, w], ``timestep`` float32 [batch], ``encoder_hidden_states``
    [batch, tokens, d] → ``out_sample`` [batch, 4, h, w].

    Where the configuration sets ``time_cond_proj_dim``, as UNets do into which guidance was
    distilled, there is ``timestep_cond`` [batch, time_cond_proj_dim] as well.
    """

    component = subfolder = "unet"
    outputs = ("out_sample",)

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.inputs = ("sample", "timestep", "encoder_hidden_states")
        if config["time_cond_proj_dim"] is not None:
            self.inputs += ("timestep_cond",)
        # diffusers upsamples to the skip connection's size only if a side is no multiple of
        # 2**num_upsamplers, and by two otherwise. Tracing fixes that choice, and only the first one
        # holds for every size (72 px is 9 → 5 → 3 → 2 latents). No side is a multiple of 2**30.
        model.num_upsamplers = _NEVER_DIVIDES
        _replace_upsamplers(model.up_blocks)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        """Return the predicted noise (or velocity)."""
        predicted: Tensor = self.model(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            timestep_cond=timestep_cond,
            return_dict=False,
        )[0]
        return predicted

    def example(self, case: Case) -> tuple[Tensor, ...]:
        """Return standard normal latents and embeddings, and timesteps of the whole schedule."""
        generator = random_stream(case)
        channels, width = int(self.config["in_channels"]), self.config["cross_attention_dim"]
        # diffusers takes a width for every block as well; `source.validate` sees that all are one.
        width = int(width[0] if isinstance(width, list) else width)
        sample = torch.randn(case.batch, channels, case.height, case.width, generator=generator)
        timestep = torch.randint(1000, (case.batch,), generator=generator).float()
        states = torch.randn(case.batch, case.tokens, width, generator=generator)
        if "timestep_cond" not in self.inputs:
            return sample, timestep, states
        size = int(self.config["time_cond_proj_dim"])
        # Sines and cosines at run time.
        embedding = torch.rand(case.batch, size, generator=generator) * 2 - 1
        return sample, timestep, states, embedding

    @property
    def traced_scale(self) -> int:
        """Twice as large for every block beyond four."""
        return 1 << max(0, len(self.config["block_out_channels"]) - 4)

    def dynamic_shapes(self) -> tuple[Mapping[int, Any], ...]:
        """Batch everywhere, height and width of the latents, and the text's length."""
        batch = _batch()
        tokens = Dim("tokens", min=2, max=2**14 - 1)
        latent = sides((_MIN_TRACED - 1) * self.traced_scale + 1)
        shapes = ({0: batch, **latent}, {0: batch}, {0: batch, 1: tokens}, {0: batch})
        return shapes[: len(self.inputs)]


class VaeDecoder(Network):
    """``latent_sample`` [batch, 4, h, w] → ``sample`` [batch, 3, 8h, 8w], pixels around -1…1."""

    component, subfolder = "vae_decoder", "vae"
    inputs = ("latent_sample",)
    outputs = ("sample",)

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        model.encoder = model.quant_conv = None
        if config["_class_name"] != TINY_VAE:
            _replace_upsamplers(model.decoder.up_blocks)
        self.model, self.config = model, config

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Return the decoded pixels; the caller has divided by the scaling factor."""
        pixels: Tensor = self.model.decode(latent_sample, return_dict=False)[0]
        return pixels

    def example(self, case: Case) -> tuple[Tensor, ...]:
        """Return standard normal latents."""
        shape = (case.batch, int(self.config["latent_channels"]), case.height, case.width)
        return (torch.randn(shape, generator=random_stream(case)),)

    def dynamic_shapes(self) -> tuple[Mapping[int, Any], ...]:
        """Batch, height and width of the latents."""
        return ({0: _batch(), **sides()},)


class TinyVaeDecoder(VaeDecoder):
    """The same, of an ``AutoencoderTiny`` that is exported beside the checkpoint's own VAE."""

    component = subfolder = "vae_decoder_tiny"


class VaeEncoder(Network):
    """``sample`` [batch, 3, 8h, 8w] → ``latent_parameters`` [batch, 8, h, w].

    The output is the mean and the logarithm of the variance, concatenated, as Optimum has it. An
    ``AutoencoderTiny`` has no variance, and makes ``latents`` [batch, 4, h, w].

    Attributes
    ----------
    channels
        Of the output.
    """

    component, subfolder = "vae_encoder", "vae"
    inputs = ("sample",)

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        model.decoder = model.post_quant_conv = None
        self.model, self.config = model, config
        self._tiny = config["_class_name"] == TINY_VAE
        self.outputs = ("latents" if self._tiny else "latent_parameters",)
        self.channels = int(config["latent_channels"]) * (1 if self._tiny else 2)

    def forward(self, sample: Tensor) -> Tensor:
        """Return mean and log-variance of the latents, or the latents, before scaling."""
        encoded = self.model.encode(sample)
        parameters: Tensor = encoded.latents if self._tiny else encoded.latent_dist.parameters
        return parameters

    def example(self, case: Case) -> tuple[Tensor, ...]:
        """Return uniform pixels in [-1, 1)."""
        shape = (case.batch, int(self.config["in_channels"]), *self._pixels(case))
        return (torch.rand(shape, generator=random_stream(case)) * 2 - 1,)

    def _pixels(self, case: Case) -> tuple[int, int]:
        factor = 2 ** (len(self.config["block_out_channels"]) - 1)
        return case.height * factor, case.width * factor

    def dynamic_shapes(self) -> tuple[Mapping[int, Any], ...]:
        """Batch, and height and width in whole latents."""
        latent = sides()
        factor = 2 ** (len(self.config["block_out_channels"]) - 1)
        return ({0: _batch(), 2: factor * latent[2], 3: factor * latent[3]},)


class SafetyChecker(Network):
    """``clip_input`` [batch, 3, s, s] → ``scores`` [batch, 3 + 17].

    By how much the similarity to each concept exceeds its threshold: first the concepts of
    special care, then the others. :mod:`bksdm.runtime.safety_checker` decides as diffusers'
    ``StableDiffusionSafetyChecker`` does.
    """

    component = subfolder = "safety_checker"
    inputs = ("clip_input",)
    outputs = ("scores",)

    def __init__(self, model: Any, config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, clip_input: Tensor) -> Tensor:
        """Return cosine similarities minus their thresholds."""
        model = self.model
        seen = model.vision_model(clip_input, return_dict=True)
        embedding = model.visual_projection(seen.pooler_output)
        embedding = nn.functional.normalize(embedding)

        def above(concepts: Tensor, thresholds: Tensor) -> Tensor:
            similar: Tensor = embedding @ nn.functional.normalize(concepts).T
            return similar - thresholds

        special = above(model.special_care_embeds, model.special_care_embeds_weights)
        return torch.cat([special, above(model.concept_embeds, model.concept_embeds_weights)], 1)

    def example(self, case: Case) -> tuple[Tensor, ...]:
        """Return standard normal pixels; sizes other than the batch do not matter."""
        side = int(self.config["vision_config"]["image_size"])
        return (torch.randn(case.batch, 3, side, side, generator=random_stream(case)),)

    def dynamic_shapes(self) -> tuple[Mapping[int, Any], ...]:
        """Only the batch: pictures are resized to what the network was trained on."""
        return ({0: _batch()},)


NETWORKS: tuple[type[Network], ...] = (TextEncoder, Unet, VaeDecoder, VaeEncoder)
"""Networks of every bundle."""


def load_network(kind: type[Network], checkpoint: Path, variant: str | None = None) -> Network:
    """Load one network of a diffusers checkpoint in float32, ready to run and to trace.

    Parameters
    ----------
    kind
        One of those that `bksdm.export.kinds.kinds_of` returns.
    checkpoint
        A folder that `bksdm.export.source.resolve` accepted.
    variant
        Of the weight files.

    Returns
    -------
    Network
        In evaluation mode, without gradients.

    Raises
    ------
    ExportError
        It cannot be built, the files do not hold exactly its weights, or the tokenizer makes longer
        rows than the text encoder takes, or is damaged.
    """
    return _shell(kind, load(kind.subfolder, checkpoint, variant), checkpoint)


def weightless(kind: type[Network], checkpoint: Path) -> Network:
    """Build a network from its configuration, on torch's device ``meta``.

    Parameters
    ----------
    kind, checkpoint
        As of `load_network`.

    Returns
    -------
    Network
        All names and shapes are there, and no memory is taken.

    Raises
    ------
    ExportError
        It cannot be built.
    """
    with torch.device("meta"):
        return _shell(kind, build(kind.subfolder, checkpoint), checkpoint)


def _shell(kind: type[Network], model: Any, checkpoint: Path) -> Network:
    network: Any = kind
    config = checkpoint / kind.subfolder / "config.json"
    with library_errors(f"{config}: does not serve as {kind.component}"):
        shell: Network = network(model, config_of(model))
    if isinstance(shell, TextEncoder):
        shell.tokens = _row_length(checkpoint, shell.tokens)
    if isinstance(shell, Unet):
        # The version that wrote the file decides; the model's own configuration says today's.
        written = read_json(checkpoint / "unet" / "config.json")
        shell.config["sample_size"] = loaded_sample_size(written)
    return shell.eval().requires_grad_(False)


def _row_length(checkpoint: Path, positions: int) -> int:
    """Return how many tokens the checkpoint's tokenizer makes of a prompt."""
    length = read_tokenizer(checkpoint).length
    if length > positions:
        raise ExportError(
            f"{checkpoint / 'tokenizer'}: model_max_length is {length}, but the text encoder has "
            f"only {positions} positions"
        )
    return length


def random_stream(case: Case) -> torch.Generator:
    """Return torch's stream of a case's seed."""
    return torch.Generator().manual_seed(case.seed)


def _batch() -> Any:
    return Dim("batch", min=1, max=2**14 - 1)


def sides(smallest: int = _MIN_TRACED) -> dict[int, Any]:
    """Return the axes of latents that are dynamic, height and width, from a smallest size on."""
    return {
        2: Dim("height", min=smallest, max=_MAX_LATENT),
        3: Dim("width", min=smallest, max=_MAX_LATENT),
    }
