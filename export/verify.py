"""Compare a finished bundle with diffusers: every network, then whole pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bksdm.engines.graph import describe_graph, graph_inputs
from bksdm.export.lora import read_lora
from bksdm.export.merge import merge
from bksdm.export.networks import NETWORKS, Network, SafetyChecker, load_network
from bksdm.export.parity import CASES, compare, format_table, references
from bksdm.export.quiet import quiet
from bksdm.export.reference import draw, open_pipeline, scheduler_of
from bksdm.export.source import resolve
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.pipeline import TextToImage

PROMPT = "a photo of a red apple on a table"
SEED = 0


def verify(
    bundle: Path,
    source: str | Path,
    revision: str | None = None,
    steps: int = 2,
    sampler: str | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    variant: str | None = None,
    token: str | None = None,
) -> tuple[str, bool]:
    """Compare a bundle with the checkpoint it was made from.

    Parameters
    ----------
    bundle : Path
        The bundle.
    source : str or Path
        A diffusers folder or hub id.
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

    Returns
    -------
    (str, bool)
        A report, and whether every network is within its tolerance and, for float32, the picture
        within 1 level on 99.9 % and 2 anywhere.

    Raises
    ------
    ExportError, BundleError
        The source or the bundle cannot be read.
    """
    opened = Bundle.open(bundle)
    read = [read_lora(path, scale) for path, scale in loras]
    checkpoint = resolve(source, revision, variant=variant, token=token)
    tokens = graph_inputs(opened.model("unet"))["encoder_hidden_states"].shape[1]
    # A graph of one length, as old versions of ours wrote it, is compared at that length.
    fixed = {"tokens": tokens} if isinstance(tokens, int) else {}
    cases = [replace(case, **fixed) for case in CASES]
    dtype = str(describe_graph(opened.model("unet"))["dtype"])
    rows = []
    kinds: tuple[type[Network], ...] = (*NETWORKS, SafetyChecker)
    for kind in kinds:
        if not opened.model(kind.component).is_file():
            continue
        with quiet():
            network = load_network(kind, checkpoint, variant)
            for lora in read:
                if lora.of(kind.component):
                    merge(lora, kind.component, network.model)
            truth = references(network, dtype == "float16", cases)
        del network
        rows.append(compare(opened.model(kind.component), kind.component, dtype, truth))
    model = TextToImage.load(bundle, safety_checker=False)
    ours = model(PROMPT, num_inference_steps=steps, seed=SEED, sampler=sampler).pixels
    pipeline = open_pipeline(checkpoint, variant)
    for lora in read:
        merge(lora, "unet", pipeline.unet)
        merge(lora, "text_encoder", pipeline.text_encoder)
    if sampler is not None:
        pipeline.scheduler = scheduler_of(dict(pipeline.scheduler.config), sampler)
    expected = draw(pipeline, PROMPT, SEED, steps)
    difference = np.abs(ours.astype(int) - expected.astype(int))
    near = float((difference <= 1).mean())
    mean_square = float(np.mean(difference.astype(float) ** 2))
    psnr = float("inf") if mean_square == 0 else 10 * np.log10(255**2 / mean_square)
    same = dtype != "float32" or (near >= 0.999 and int(difference.max()) <= 2)
    picture = (
        f"picture, {steps} steps: at most {difference.max()} levels apart, "
        f"{near:.4%} within 1, PSNR {psnr:.1f} dB{'' if same else '  missed'}"
    )
    return f"{format_table(rows)}\n{picture}", same and all(row.passed for row in rows)
