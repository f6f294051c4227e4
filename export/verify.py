"""Compare a finished bundle with diffusers: every network, then whole pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bksdm.engines.errors import ExportError
from bksdm.export.lora import read_lora
from bksdm.export.merge import merge
from bksdm.export.networks import (
    NETWORKS,
    Network,
    SafetyChecker,
    TinyVaeDecoder,
    kinds_of,
    load_network,
)
from bksdm.export.parity import CASES, Reference, compare, format_table, references
from bksdm.export.prepared import NOTHING, Parts, prepared
from bksdm.export.quiet import quiet
from bksdm.export.reference import draw, open_pipeline, scheduler_of
from bksdm.export.source import is_bundle
from bksdm.runtime.bundle import Bundle, read_json
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
    kinds: tuple[type[Network], ...] = (*NETWORKS, TinyVaeDecoder, SafetyChecker)
    for kind in kinds:
        if not opened.model(kind.component).is_file():
            continue
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
    difference = np.abs(ours.astype(int) - expected.astype(int))
    near = float((difference <= 1).mean())
    same = precision != FLOAT32 or (near >= 0.999 and int(difference.max()) <= 2)
    picture = (
        f"picture, --steps {steps}: largest difference {difference.max()} of 255, "
        f"{near:.4%} of the values within 1, PSNR {psnr(ours, expected):.1f} dB"
        f"{'' if same else '  missed'}"
    )
    return f"{format_table(rows)}\n{picture}", same and all(row.passed for row in rows)


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
