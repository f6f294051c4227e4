"""Compare a finished bundle with diffusers: every network, then whole pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bksdm.engines.graph import describe_graph
from bksdm.export.networks import NETWORKS, load_network
from bksdm.export.parity import compare, format_table, references
from bksdm.export.quiet import quiet
from bksdm.export.reference import draw, open_pipeline
from bksdm.export.source import resolve
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.pipeline import TextToImage

PROMPT = "a photo of a red apple on a table"
SEED = 0


def verify(
    bundle: Path, source: str | Path, revision: str | None = None, steps: int = 2
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
        Inference steps of the picture, with the checkpoint's own scheduler.

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
    checkpoint = resolve(source, revision)
    dtype = str(describe_graph(opened.model("unet"))["dtype"])
    rows = []
    for kind in NETWORKS:
        if kind.component not in opened.components:
            continue
        with quiet():
            network = load_network(kind, checkpoint)
            truth = references(network, dtype == "float16")
        del network
        rows.append(compare(opened.model(kind.component), kind.component, dtype, truth))
    ours = TextToImage.load(bundle)(PROMPT, num_inference_steps=steps, seed=SEED).pixels
    expected = draw(open_pipeline(checkpoint), PROMPT, SEED, steps)
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
