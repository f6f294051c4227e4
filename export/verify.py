"""Compare a finished bundle with diffusers: every network, then whole pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bksdm.engines.errors import ExportError
from bksdm.export.controlnet import controlnet_kind
from bksdm.export.kinds import kinds_of
from bksdm.export.lora import read_lora
from bksdm.export.merge import merge
from bksdm.export.networks import (
    NETWORKS,
    Network,
    SafetyChecker,
    TinyVaeDecoder,
    load_network,
)
from bksdm.export.parity import CASES, Reference, compare, format_table, references
from bksdm.export.prepared import NOTHING, Parts, prepared
from bksdm.export.quiet import quiet
from bksdm.export.reference import draw, open_controlled, open_pipeline, scheduler_of
from bksdm.export.source import is_bundle
from bksdm.runtime.bundle import CONTROLNET, Bundle, read_json
from bksdm.runtime.images import psnr
from bksdm.runtime.lora.file import Lora
from bksdm.runtime.pipeline import TextToImage
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.precision import FLOAT32, PRECISIONS

_CLIP_TOKENS = 49408
"""Default of transformers, for configurations that do not state it."""
PROMPT = "a photo of a red apple on a table"
SEED = 0
_TAKE_ITS_OWN = "give --against the diffusers folder or hub id that the bundle was exported from"


def verify(
    bundle: Path,
    source: str | Path,
    revision: str | None = None,
    steps: int = 2,
    sampler: str | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    variant: str | None = None,
    token: str | None = None,
    parts: Parts = NOTHING,
    engine_cache: Path | None = None,
) -> tuple[str, bool]:
    """Compare a bundle with the checkpoint it was made from.

    Parameters
    ----------
    bundle : Path
        The bundle.
    source : str or Path
        A diffusers folder, a hub id or a checkpoint in one file.
    revision : str, optional
        Of a hub id.
    steps : int
        Inference steps of the picture.
    sampler : str, optional
        A name of :data:`bksdm.runtime.samplers.NAMED`; by default the checkpoint's own.
    loras : sequence of (Path, float)
        Files and scales that the bundle was exported with.
    variant, token : str, optional
        As of :func:`bksdm.export.source.resolve`.
    parts : Parts
        What the bundle was exported with beside the source.
    engine_cache : Path, optional
        As of ``TextToImage.load``.

    Returns
    -------
    (str, bool)
        A report, and whether every network is within its tolerance and, for float32, the picture
        within 1 level on 99.9 % and 2 anywhere.

    Raises
    ------
    ExportError, BundleError
        The source or the bundle cannot be read, the source is a bundle itself, or of another
        architecture.
    """
    opened = Bundle.open(bundle)
    read = [read_lora(path, scale) for path, scale in loras]
    if is_bundle(Path(source), variant):
        raise ExportError(f"{source} is a bundle, without weights for torch; {_TAKE_ITS_OWN}")
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared(
            source, parts, revision, variant=variant, token=token, beside=Path(folder)
        ) as checkpoint,
    ):
        return _compare(opened, checkpoint, steps, sampler, read, variant, engine_cache)


def _compare(
    opened: Bundle,
    checkpoint: Path,
    steps: int,
    sampler: str | None,
    loras: Sequence[Lora],
    variant: str | None,
    engine_cache: Path | None,
) -> tuple[str, bool]:
    _require_same_tokens(opened, checkpoint)
    inputs = GraphFile.read(opened.model("unet")).inputs
    tokens = inputs["encoder_hidden_states"].shape[1]
    # A graph of one length, as old versions of ours wrote it, is compared at that length.
    fixed = {"tokens": tokens} if isinstance(tokens, int) else {}
    cases = [replace(case, **fixed) for case in CASES]
    # Of what it computes in; its weights may be float16 all the same.
    dtype = str(inputs["sample"].dtype)
    if dtype not in PRECISIONS:
        raise ExportError(f"{opened.path}: the UNet computes in {dtype}, which cannot be compared")
    precision = PRECISIONS[dtype]
    rows = []
    controls = tuple(controlnet_kind(f"{CONTROLNET}{name}") for name in opened.controlnets)
    kinds: tuple[type[Network], ...] = (*NETWORKS, TinyVaeDecoder, *controls, SafetyChecker)
    for kind in kinds:
        if not opened.model(kind.component).is_file():
            continue
        if kind in controls and kind not in kinds_of(checkpoint, safety_checker=False):
            name = kind.component.removeprefix(CONTROLNET)
            raise ExportError(
                f"{opened.path} has a ControlNet {name}; give --controlnet {name}=FOLDER, the one "
                "that it was exported from"
            )
        if kind is TinyVaeDecoder and kind not in kinds_of(checkpoint, safety_checker=False):
            raise ExportError(
                f"{opened.path} has a tiny VAE decoder; give --tiny-vae the folder that it was "
                "exported from"
            )
        with quiet():
            network = load_network(kind, checkpoint, variant)
            for lora in loras:
                if lora.of(kind.component):
                    merge(lora, kind.component, network.model)
            truth = references(network, precision, cases)
        del network
        _require_fit(opened.model(kind.component), truth[0], checkpoint)
        rows.append(compare(opened.model(kind.component), kind.component, precision, truth))
    model = TextToImage.load(opened, engine_cache=engine_cache, safety_checker=False)
    ours = model(PROMPT, num_inference_steps=steps, seed=SEED, sampler=sampler).pixels
    pipeline = open_pipeline(checkpoint, variant)
    for lora in loras:
        merge(lora, "unet", pipeline.unet)
        merge(lora, "text_encoder", pipeline.text_encoder)
    if sampler is not None:
        pipeline.scheduler = scheduler_of(dict(pipeline.scheduler.config), sampler)
    expected = draw(pipeline, PROMPT, SEED, steps)
    lines = [_told_apart(f"picture, --steps {steps}", ours, expected)]
    if opened.controlnets:
        lines += _controlled(model, checkpoint, pipeline, steps, sampler)
    same = precision != FLOAT32 or all(line.near for line in lines)
    pictures = "\n".join(f"{line.text}{'' if same or line.near else '  missed'}" for line in lines)
    return f"{format_table(rows)}\n{pictures}", same and all(row.passed for row in rows)


class _Line(NamedTuple):
    """What is told of a picture, and whether it is near enough to diffusers'."""

    text: str
    near: bool


def _told_apart(what: str, ours: NDArray[np.uint8], expected: NDArray[np.uint8]) -> _Line:
    difference = np.abs(ours.astype(int) - expected.astype(int))
    near = float((difference <= 1).mean())
    text = (
        f"{what}: largest difference {difference.max()} of 255, {near:.4%} of the values within 1, "
        f"PSNR {psnr(ours, expected):.1f} dB"
    )
    return _Line(text, near >= 0.999 and int(difference.max()) <= 2)


def _controlled(
    model: TextToImage, checkpoint: Path, pipeline: Any, steps: int, sampler: str | None
) -> list[_Line]:
    """Draw a picture with each ControlNet of a bundle, and compare it with diffusers'."""
    height, width = model.bundle.default_size
    colours = np.random.default_rng(SEED).integers(0, 256, (5, 4, 3), np.uint8)
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    lines = []
    for name in model.bundle.controlnets:
        with_control = open_controlled(pipeline, checkpoint, f"{CONTROLNET}{name}")
        expected = draw(with_control, PROMPT, SEED, steps, image=image)
        ours = model(
            PROMPT,
            num_inference_steps=steps,
            seed=SEED,
            sampler=sampler,
            control_image=image,
            controlnet=name,
        ).pixels
        lines.append(_told_apart(f"picture with {name}, --steps {steps}", ours, expected))
    return lines


def _require_same_tokens(bundle: Bundle, checkpoint: Path) -> None:
    config = read_json(checkpoint / "text_encoder" / "config.json")
    known, others = bundle.text_embeddings, config.get("vocab_size", _CLIP_TOKENS)
    if known != others:
        raise ExportError(
            f"{bundle.path} knows {known} tokens, {checkpoint} {others}; {_TAKE_ITS_OWN}"
        )


def _require_fit(graph: Path, reference: Reference, checkpoint: Path) -> None:
    """Refuse a graph that takes other inputs than the checkpoint's network."""
    takes = {name: (spec.dtype, spec.shape) for name, spec in GraphFile.read(graph).inputs.items()}
    gets = {name: (array.dtype, array.shape) for name, array in reference.feeds.items()}
    for name in dict.fromkeys((*takes, *gets)):
        if name in takes and name in gets and _fits(*takes[name], *gets[name]):
            continue
        raise ExportError(
            f"{graph} takes {_told(name, takes)}, and the network of {checkpoint} "
            f"{_told(name, gets)}; {_TAKE_ITS_OWN}"
        )


def _fits(
    dtype: np.dtype[Any],
    axes: Sequence[int | str],
    found: np.dtype[Any],
    shape: Sequence[int],
) -> bool:
    sizes = zip(axes, shape, strict=False)
    same = all(isinstance(axis, str) or axis == size for axis, size in sizes)
    return dtype == found and len(axes) == len(shape) and same


def _told(name: str, specs: Mapping[str, tuple[np.dtype[Any], Sequence[int | str]]]) -> str:
    if name not in specs:
        return f"no {name}"
    dtype, shape = specs[name]
    return f"{name} {dtype} [{', '.join(map(str, shape))}]"
