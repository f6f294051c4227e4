"""Score runs of ``bksdm evaluate`` that are complete, and put their parts together."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bksdm.cli.extras import require
from bksdm.cli.outputs import check_folder
from bksdm.cli.text import as_json, printable
from bksdm.engines.errors import RequestError
from bksdm.evaluate.gaussians import Gaussian
from bksdm.evaluate.protocol import FEATURES
from bksdm.evaluate.published import HEADER, SCORES, card_source, rows
from bksdm.evaluate.run_folder import RunFolder, merge, require_all
from bksdm.storage.digest import sha256_of
from bksdm.storage.files import write_file


def require_extra() -> None:
    """Check that the libraries that score are there."""
    for module in ("torch_fidelity", "open_clip"):
        require(module, "evaluate")


def merge_parts(options: argparse.Namespace) -> int:
    """Put parts together, and print the scores."""
    require_extra()
    if options.output is None or options.reference is None:
        raise RequestError("--merge needs --reference FILE.npz and -o DIR")
    reference = Gaussian.read(options.reference, FEATURES)
    check_folder(options.output)
    return score_run(
        merge([RunFolder.open(part) for part in options.merge], options.output),
        reference,
        options,
    )


def print_table(folders: Sequence[Path]) -> int:
    """Print runs beside the card, as Markdown."""
    for row in (
        HEADER,
        ("---",) * len(HEADER),
        *rows([RunFolder.open(each) for each in folders]),
    ):
        print(printable("| " + " | ".join(row) + " |"))
    print(f"\n{printable(card_source())}")
    return 0


def score_run(run: RunFolder, reference: Gaussian, options: argparse.Namespace) -> int:
    """Score a complete run, write the scores beside its measures, and print them."""
    from bksdm.evaluate.scores import scores, warn_of_few

    require_all(run, run.there())
    warn_of_few(run.count, FEATURES)
    found = scores(run.read(range(run.count)), reference)
    described = {
        "scores": found.fields(),
        "reference_digest": sha256_of(options.reference),
    }
    write_file(run.path / SCORES, (json.dumps(described, indent=2) + "\n").encode())
    if options.json:
        print(as_json(described))
        return 0
    for name, value in zip(("FID", "IS", "CLIP score"), found.shown(), strict=True):
        print(f"{name:<12}{value}")
    return 0
