"""``bksdm samplers``: list what ``--sampler`` takes."""

from __future__ import annotations

import argparse

from bksdm.cli.text import as_json

EXAMPLES = """examples:
  bksdm samplers
  bksdm generate "a red apple" --sampler dpm++2m-karras --steps 20 -o apple.png
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("--json", action="store_true", help="for programs")


def run(options: argparse.Namespace) -> int:
    """Print a line for every sampler: its evaluations for 20 steps, and whether it adds noise."""
    from bksdm.runtime.samplers import SAMPLERS, step_table
    from bksdm.runtime.samplers.stable_diffusion import SCHEDULE

    described = {}
    for name in SAMPLERS:
        table = step_table(SCHEDULE, 20, name)
        described[name] = {"evaluations": len(table), "noise": table.draws > 0}
    if options.json:
        print(as_json(described))
        return 0
    print(f"{'sampler':<24}{'UNet calls for 20 steps':>24}   adds noise")
    for name, entry in described.items():
        print(f"{name:<24}{entry['evaluations']:>24}   {'yes' if entry['noise'] else 'no'}")
    return 0
