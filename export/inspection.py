"""Check a checkpoint's networks before any of them is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bksdm.engines.errors import BundleError, ExportError, SamplerError
from bksdm.engines.protocol import TensorSpec
from bksdm.export.kinds import kinds_of
from bksdm.export.library_errors import library_errors
from bksdm.export.networks import Case, Network, weightless
from bksdm.export.pretrained import build
from bksdm.export.quiet import quiet
from bksdm.export.weights import files_of, fit, read_tensors
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.loaded_configuration import scheduler_fields
from bksdm.runtime.safety_checker import SafetyChecker as CheckerAtRunTime
from bksdm.runtime.samplers import DIFFUSERS_CLASSES, NAMED, step_table
from bksdm.runtime.tokenizer import Tokenizer

# 8 by 8 latents end at 1 by 1 below four blocks; 9 by 12 are what some kinds of blocks cannot do.
_CASES = (Case(1, 8, 8, seed=0), Case(1, 9, 12, seed=0, tokens=154))
_COLOURS = 3


def networks_of(checkpoint: Path, safety_checker: bool) -> dict[str, Network]:
    """Build the networks of a checkpoint without weights, on torch's device ``meta``.

    Parameters
    ----------
    checkpoint
        A folder that `bksdm.export.source.resolve` accepted.
    safety_checker
        Whether to build it too.

    Returns
    -------
    dict
        By component; names, shapes and configurations are as they will be.

    Raises
    ------
    ExportError
        One cannot be built; names the file.
    """
    with quiet():
        return {
            kind.component: weightless(kind, checkpoint)
            for kind in kinds_of(checkpoint, safety_checker)
        }


def inspect(networks: Mapping[str, Network], checkpoint: Path, variant: str | None = None) -> None:
    """Check the weight files of a checkpoint, and run its networks without weights.

    Parameters
    ----------
    networks
        As `networks_of` returns them.
    checkpoint
        Their folder.
    variant
        Of the weight files.

    Raises
    ------
    ExportError
        A network cannot be run, one does not take what the other makes, or the files do not hold
        exactly its weights, all of them finite; names the file.
    """
    with quiet():
        for subfolder in dict.fromkeys(network.subfolder for network in networks.values()):
            _look_through(subfolder, checkpoint, variant)
        for case in _CASES:
            _run(networks, case, checkpoint)


def inspect_configurations(
    bundle: Path,
    checkpoint: Path,
    networks: Mapping[str, Network],
    report: Callable[[str], None],
) -> None:
    """Check that the runtime will accept a bundle, by everything except the graphs.

    Parameters
    ----------
    bundle
        Unfinished; its index and configurations are there.
    checkpoint
        What it is made of, whose files the messages name.
    networks
        As `networks_of` returns them.
    report
        Called with a line where the bundle will need a sampler to be asked for.

    Raises
    ------
    ExportError
        The runtime would refuse it.
    """
    try:
        opened = Bundle.open(bundle, graphs=False)
        Tokenizer.load(bundle / "tokenizer", int(networks["text_encoder"].config["vocab_size"]))
        if checker := networks.get("safety_checker"):
            (example,) = checker.example(_CASES[0])
            spec = TensorSpec(np.dtype(np.float32), tuple(example.shape))
            # Of the engine, only what it takes is asked for.
            engine: Any = SimpleNamespace(inputs={"clip_input": spec})
            CheckerAtRunTime(engine, checkpoint / "feature_extractor")
    except BundleError as error:
        told = str(error).replace(str(bundle / "vae_decoder"), str(checkpoint / "vae"))
        raise ExportError(told.replace(str(bundle), str(checkpoint))) from error
    _inspect_scheduler(checkpoint, opened.scheduler, report)


def _inspect_scheduler(
    checkpoint: Path, fields: Mapping[str, object], report: Callable[[str], None]
) -> None:
    import diffusers

    name = fields.get("_class_name")
    # The class is the index's, the rest the configuration's own.
    file = "scheduler/scheduler_config.json" if name in DIFFUSERS_CLASSES else "model_index.json"
    try:
        step_table(scheduler_fields(fields, "noise", None), 1)
    except SamplerError as error:
        told = str(error).removeprefix("scheduler config: ")
        # What diffusers has and we have not can be replaced by another sampler in every call.
        known = isinstance(name, str) and hasattr(diffusers, name)
        other = next(filter(partial(_serves, fields), ("euler", *NAMED)), None)
        if not known or other is None:
            raise ExportError(f"{checkpoint / file}: {told}") from error
        reason = told if name in DIFFUSERS_CLASSES else f"{name} is not implemented"
        report(f"scheduler: {reason}; pictures will need --sampler, such as {other}")


def _serves(fields: Mapping[str, object], sampler: str) -> bool:
    """Return whether a sampler can replace that of a configuration."""
    try:
        step_table(scheduler_fields(fields, "noise", sampler), 1, sampler)
    except SamplerError:
        return False
    return True


def _look_through(subfolder: str, checkpoint: Path, variant: str | None) -> None:
    """Check that the files of a model contain exactly its weights."""
    files = files_of(checkpoint, subfolder, variant)
    where = checkpoint / files[0]
    with torch.device("meta"):
        model = build(subfolder, checkpoint)
    for name, tensor in fit(model, read_tensors(checkpoint, files), where).items():
        if not tensor.float().isfinite().all():
            raise ExportError(f"{where}: {name} holds values that are not finite numbers")


def _run(networks: Mapping[str, Network], case: Case, checkpoint: Path) -> None:
    """Follow the shapes from the prompt to the picture and back."""
    inputs = {name: network.example(case) for name, network in networks.items()}
    outputs = {}
    for name, network in networks.items():
        config = checkpoint / network.subfolder / "config.json"
        with torch.no_grad(), library_errors(f"{config}: the {name} cannot be run"):
            made = network(*(tensor.to("meta") for tensor in inputs[name]))
        outputs[name] = (made[0] if isinstance(made, tuple) else made).shape
    text = inputs["unet"][2]
    made, taken = outputs["text_encoder"][2], text.shape[2]
    if made != taken:
        raise ExportError(
            f"{checkpoint / 'unet' / 'config.json'}: cross_attention_dim is {taken}, but the text "
            f"encoder makes embeddings of {made}"
        )
    latents, pixels = inputs["vae_decoder"][0].shape, inputs["vae_encoder"][0].shape
    wanted = {
        "unet": inputs["unet"][0].shape,
        "vae_decoder": (*pixels[:1], _COLOURS, *pixels[2:]),
        "vae_encoder": (*latents[:1], networks["vae_encoder"].channels, *latents[2:]),
    }
    if "vae_decoder_tiny" in networks:
        wanted["vae_decoder_tiny"] = wanted["vae_decoder"]
        if inputs["vae_decoder_tiny"][0].shape != latents:
            raise ExportError(
                f"{checkpoint / 'vae_decoder_tiny' / 'config.json'}: latent_channels differs from "
                "that of the checkpoint's own VAE"
            )
    for name, shape in wanted.items():
        if tuple(outputs[name]) != tuple(shape):
            raise ExportError(
                f"{checkpoint / networks[name].subfolder / 'config.json'}: the {name} makes "
                f"{list(outputs[name])} of {list(inputs[name][0].shape)}, but needs {list(shape)}"
            )
    if pixels[1] != _COLOURS:
        raise ExportError(
            f"{checkpoint / 'vae' / 'config.json'}: in_channels is {pixels[1]}, supported is 3"
        )
