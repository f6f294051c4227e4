"""Load the networks of a bundle on an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bksdm.engines.errors import BundleError, EngineError
from bksdm.engines.lazy import LazyEngine
from bksdm.engines.lora_inputs import with_factors
from bksdm.engines.protocol import Engine
from bksdm.engines.registry import DEFAULT, backend, capabilities, chosen_engine, open_engine
from bksdm.engines.variants import CONTROLLED, DEEP, HINT, HINTED, SHALLOW, skipping
from bksdm.runtime.bundle import COMPONENTS, CONTROLNET, DECODERS, TINY, Bundle
from bksdm.runtime.controlnets import ControlNets, ControlNetwork
from bksdm.runtime.executor import Executor
from bksdm.runtime.host import Decoder, HostExecutor
from bksdm.runtime.lora.networks import AdaptedNetworks
from bksdm.runtime.network_tensors import require_names, require_tensors
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.precision_choice import precision_of
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.safety_checker import SafetyChecker
from bksdm.runtime.tokenizer import Tokenizer
from bksdm.runtime.vae_encoder import VaeEncoder
from bksdm.storage.graph_file import GraphFile


class Networks(NamedTuple):
    """The networks of a bundle.

    Attributes
    ----------
    executor : Executor
        Runs those that every picture takes.
    encoder : VaeEncoder
        For pictures to start from; its network is loaded for the first.
    checker : SafetyChecker or None
        For finished pictures.
    engines : mapping or None
        The engine of each network; None where all have the same.
    """

    executor: Executor
    encoder: VaeEncoder
    checker: SafetyChecker | None
    engines: Mapping[str, str] | None = None


def load_networks(
    bundle: Bundle,
    engine: str,
    threads: int | None,
    cache: Path,
    checked: bool,
    gpu: int,
    precision: str,
) -> Networks:
    """Load networks; see :meth:`~bksdm.runtime.pipeline.TextToImage.load`.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    engine : str
        Its name.
    threads : int or None
        CPU threads; None takes one per physical core.
    cache : Path
        A folder of engines.
    checked : bool
        Whether the safety checker is loaded, if there is one.
    gpu : int
        Which one, for an engine on a GPU.
    precision : str
        The type that networks compute in where they can, see :func:`precision_of`.

    Raises
    ------
    BundleError, EngineError
        The bundle is damaged, or the engine is not available.
    """
    able = capabilities(engine)
    tokenizer = Tokenizer.load(bundle.path / "tokenizer", bundle.text_embeddings)
    latents, pixels = bundle.sample_size, bundle.sample_size * bundle.vae_scale

    def open_part(model: Path, variant: str = "", side: int = latents) -> Engine:
        # The loop on a GPU leaves the rest to the CPU.
        name = DEFAULT if able.on_device else engine
        computed = precision_of(model.parent.name, precision)
        return open_engine(name, model, threads, cache, side, variant, computed)

    encoder = VaeEncoder(
        partial(_open_network, partial(open_part, side=pixels), bundle.model("vae_encoder")),
        bundle.scaling_factor,
        bundle.latent_channels,
        bundle.encodes_exactly,
    )
    checker = None
    if checked and bundle.has_safety_checker:
        graph = bundle.model("safety_checker")
        checker = SafetyChecker(_open_network(open_part, graph), graph.parent)
    encode = PromptEncoder(
        tokenizer,
        partial(open_text_encoder, open_part, bundle),
        bundle.masks_padding,
        AdaptedNetworks(partial(_open_adapted, open_part, bundle.model("text_encoder"))),
    )
    if bundle.masks_padding and not able.attention_mask:
        raise EngineError(
            f"{bundle.path}: use_attention_mask is not on the GPU's loop yet; use the "
            "engine onnxruntime"
        )
    if able.on_device:
        from bksdm.runtime.cuda.built_plans import BuiltPlans
        from bksdm.runtime.cuda.executor import CudaExecutor
        from bksdm.runtime.cuda.gpu import Gpu
        from bksdm.runtime.cuda.networks import Networks as CudaNetworks
        from bksdm.runtime.cuda.opened_networks import OpenedNetworks

        found = backend(engine)
        if found.check is not None:
            found.check()
        device, opener = Gpu(gpu), found.open_on_device
        networks: CudaNetworks
        if opener is None:
            networks = BuiltPlans(bundle, engine, device)
        else:
            networks = OpenedNetworks(bundle, opener, device, gpu, cache)
        cuda = CudaExecutor(bundle, encode, networks, device)
        encoder = VaeEncoder(
            cuda.vae_encoder,
            bundle.scaling_factor,
            bundle.latent_channels,
            bundle.encodes_exactly,
        )
        return Networks(cuda, encoder, checker)
    _validate_text_inputs(bundle, tokenizer, encode.load(0))
    # A second output would be copied from a GPU in every step.
    deep, graph = DEEP if able.feature_reuse else "", bundle.model("unet")
    load_unet = partial(_open_network, open_part, graph, deep)
    controlnets = open_controlnets(open_part, bundle)
    predict = NoisePredictor(
        load_unet() if controlnets is None else LazyEngine(load_unet),
        partial(open_part, graph, variant=SHALLOW),
        controlnets,
        AdaptedNetworks(partial(_open_adapted, open_part, graph)),
    )
    decoder = _open_network(open_part, bundle.model("vae_decoder"))
    tiny = None
    if TINY in bundle.decoders:
        load = partial(_open_network, open_part, bundle.model(DECODERS[TINY]))
        tiny = Decoder(load, bundle.decoder_scaling(TINY))
    executor = HostExecutor(encode, predict, decoder, bundle.scaling_factor, tiny)
    engines = {
        name: chosen_engine(engine, bundle.model(name), cache, precision_of(name, precision))
        for name in COMPONENTS
    }
    return Networks(executor, encoder, checker, engines)


def _validate_text_inputs(bundle: Bundle, tokenizer: Tokenizer, encoder: Engine) -> None:
    """Refuse a text encoder that was made for other tokens than the bundle's."""
    tokens = encoder.inputs["input_ids"].shape[1]
    if isinstance(tokens, int) and tokens != tokenizer.length:
        raise BundleError(
            f"{bundle.path / 'tokenizer'}: model_max_length is {tokenizer.length}, but "
            f"{bundle.model('text_encoder')} takes {tokens} tokens"
        )
    if bundle.masks_padding and "attention_mask" not in encoder.inputs:
        raise BundleError(
            f"{bundle.path / 'text_encoder' / 'config.json'}: use_attention_mask is set, but the "
            "graph has no input attention_mask; export the model with `bksdm export`"
        )


def open_text_encoder(open_part: Callable[..., Engine], bundle: Bundle, skipped: int) -> Engine:
    """Open the text encoder without its last ``skipped`` layers."""
    return _open_network(open_part, bundle.model("text_encoder"), skipping(skipped))


def open_controlnets(open_part: Callable[..., Engine], bundle: Bundle) -> ControlNets | None:
    """Return the ControlNets of a bundle, to be loaded when they are asked for; None without any.

    Parameters
    ----------
    open_part : callable
        ``open_part(model, variant, side)`` loads a network.
    bundle : Bundle
        The bundle.

    Raises
    ------
    BundleError
        One of them is damaged.
    """
    pixels, unet = bundle.sample_size * bundle.vae_scale, bundle.model("unet")
    models = {name: bundle.model(f"{CONTROLNET}{name}") for name in bundle.controlnets}
    if not models:
        return None
    # That a graph is damaged is told now, not with the first picture.
    for model in (unet, *models.values()):
        graph = GraphFile.read(model)
        require_names(model, graph.inputs, graph.outputs)
    nets = {
        name: ControlNetwork(
            partial(open_part, model, variant=HINT, side=pixels),
            partial(open_part, model, variant=HINTED),
            bundle.pools_control(name),
        )
        for name, model in models.items()
    }
    return ControlNets(partial(_open_network, open_part, unet, CONTROLLED), nets)


def _open_adapted(
    open_part: Callable[..., Engine], model: Path, variant: str, scope: str
) -> Engine:
    """Open a variant of a network that takes the factors of LoRAs as well."""
    return open_part(model, variant=with_factors(variant, scope))


def _open_network(open_part: Callable[..., Engine], model: Path, variant: str = "") -> Engine:
    return require_tensors(open_part(model, variant=variant), model)
