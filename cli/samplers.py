"""``bksdm samplers``: list the names that ``--sampler`` accepts."""

from __future__ import annotations

import argparse

from bksdm.cli.text import as_json

EXAMPLES = """examples:
  bksdm samplers
  bksdm generate "a red apple" --sampler dpm++2m-karras --steps 20 -o apple.png
  bksdm generate "a red apple" --sampler "DPM++ 2M Karras" --steps 20 -o apple.png
"""
SPELLING = """
Case, spaces, _ and - make no difference, and pp stands for ++. --sampler also takes the name of a
diffusers class, with or without Scheduler; it then keeps the model's own scheduler_config.json:
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print a line for every sampler: its evaluations for 20 steps, noise, and other names."""
    from bksdm.runtime.samplers import DIFFUSERS_CLASSES, NAMED, step_table
    from bksdm.runtime.samplers.names import aliases
    from bksdm.runtime.samplers.stable_diffusion import SCHEDULE

    described = {}
    for name in NAMED:
        table = step_table(SCHEDULE, 20, name)
        described[name] = {
            "evaluations": len(table),
            "noise": table.draws > 0,
            "aliases": list(aliases(name)),
        }
    if options.json:
        print(as_json(described))
        return 0
    print(f"{'sampler':<24}{'UNet calls for 20 steps':>24}   adds noise   also called")
    for name, entry in described.items():
        noise, others = "yes" if entry["noise"] else "no", ", ".join(aliases(name))
        print(f"{name:<24}{entry['evaluations']:>24}   {noise:<10}   {others}".rstrip())
    print(SPELLING + ", ".join(DIFFUSERS_CLASSES))
    return 0
