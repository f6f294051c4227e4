"""``bksdm info``: describe a bundle, or how a picture was made and how to make it again."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bksdm.cli.arguments import input_file, output_file
from bksdm.cli.text import as_json, printable
from bksdm.engines.errors import BundleError, RequestError
from bksdm.models import bundle_folder

if TYPE_CHECKING:
    from bksdm.runtime.bundle import Bundle

EXAMPLES = """examples:
  bksdm info bundle/
  bksdm info emoji
  bksdm info apple.png --json
  bksdm info bundle/ --table dpm++2m-karras:25 -o bundle/tables/dpm++2m-karras-25.table
"""
WEIGHTS = (".safetensors", ".ckpt")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "path",
        type=input_file,
        metavar="BUNDLE_OR_PICTURE",
        help="folder of a bundle, or emoji; or a picture that `bksdm generate` or "
        "A1111's WebUI made, of which the command to draw it again is printed "
        "too; - for standard input",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--table",
        metavar="SAMPLER:STEPS[:image]",
        help="write a compiled sampler of a bundle to -o, for C++ and other programs; default is "
        "the model's own sampler; with :image also what image to image and inpainting need, at "
        "any strength",
    )
    parser.add_argument(
        "-o", "--output", type=output_file, metavar="FILE", help="with --table: file to write"
    )


def run(options: argparse.Namespace) -> int:
    """Print the description, or write a table."""
    path = bundle_folder(options.path)
    if options.table is not None or options.output is not None:
        return _write_table(path, options)
    if path.suffix.lower() in WEIGHTS and path.is_file():
        raise RequestError(
            f"{path}: a file of weights, neither a bundle nor a picture; a bundle is a folder, "
            "which `bksdm export` makes"
        )
    if not path.exists():
        raise BundleError(f"{path}: no such folder or picture")
    described = describe_bundle(path) if path.is_dir() else describe_picture(path)
    if options.json:
        print(as_json(described))
    else:
        _print(described, "")
    return 0


def _write_table(path: Path, options: argparse.Namespace) -> int:
    from bksdm.cli.outputs import print_path, results
    from bksdm.runtime.bundle import Bundle
    from bksdm.runtime.bundle_tables import WantedTable, tables_of
    from bksdm.runtime.user_files import write_output

    if options.table is None or options.output is None:
        raise RequestError("--table SAMPLER:STEPS and -o FILE belong together")
    wanted = WantedTable.read(options.table)
    write_output(options.output, tables_of(Bundle.open(path), wanted))
    print_path(options.output, results([options.output]))
    return 0


def describe_picture(path: Path) -> dict[str, Any]:
    """Return how a picture was made, the command that draws it again, and notes on that.

    Raises
    ------
    RequestError
        It does not say.
    """
    from bksdm.cli.reproduce import command_for, nearest_command
    from bksdm.runtime.a1111 import A1111Text
    from bksdm.runtime.images import read_record

    record = read_record(path)
    if record.own:
        said, command = record.own, command_for(record.own, path)
    elif record.a1111:
        text = A1111Text.read(record.a1111)
        said = {"prompt": text.prompt, "negative_prompt": text.negative_prompt, **text.settings}
        command = nearest_command(text)
    else:
        raise RequestError(
            f"{path}: holds no record of how it was made; `bksdm generate` and A1111's WebUI write "
            "one"
        )
    # What we say here is ours, never the picture's.
    described: dict[str, Any] = {
        key: value for key, value in said.items() if key not in ("command", "notes")
    }
    if command is not None:
        described["command"] = str(command)
        if command.notes:
            described["notes"] = list(command.notes)
    return described


def describe_bundle(path: Path) -> dict[str, Any]:
    """Return components, parameter counts, dtypes, scheduler, engines and digest of a bundle."""
    from bksdm.runtime.bundle import Bundle, read_json

    bundle = Bundle.open(path)
    merged = read_json(path / "model_index.json").get("_lora")
    records = (path / "engines").rglob("engine.json")
    engines = sorted({record.relative_to(path / "engines").parts[0] for record in records})
    scheduler = bundle.scheduler
    height, width = bundle.default_size
    return {
        "bundle": str(path),
        "components": {name: _component(bundle, name) for name in bundle.components},
        **({"controlnets": _controlnets(bundle)} if bundle.controlnets else {}),
        "safety_checker": bundle.has_safety_checker,
        "scheduler": str(scheduler.get("_class_name")),
        "prediction_type": str(scheduler.get("prediction_type", "epsilon")),
        "default_size": width if width == height else f"{width}x{height}",
        "engines": engines,
        **({"merged LoRAs": merged} if merged else {}),
        "digest": bundle.digest(),
    }


def _controlnets(bundle: Bundle) -> dict[str, Any]:
    from bksdm.runtime.bundle import CONTROLNET

    return {name: _component(bundle, f"{CONTROLNET}{name}") for name in bundle.controlnets}


def _component(bundle: Bundle, name: str) -> dict[str, Any]:
    from bksdm.engines.registry import DEFAULT, backend, version_of
    from bksdm.optimize.rules import MadeFor
    from bksdm.optimize.tuned import read_tuned
    from bksdm.storage.graph_file import GraphFile

    model = bundle.model(name)
    side = bundle.sample_size * (bundle.vae_scale if name == "vae_encoder" else 1)
    tuned = read_tuned(bundle.path / "engines", model, version_of)
    made_for = tuned[DEFAULT].made_for if DEFAULT in tuned else MadeFor(side)
    described = GraphFile.read(model).describe()
    if find_spec("onnx") is not None:
        from bksdm.optimize.compose import describe_rewrite

        forms = describe_rewrite(model, made_for, backend(DEFAULT).rules)
        described["on the CPU"] = forms
    if tuned:
        times = sorted((entry.seconds, engine) for engine, entry in tuned.items())
        described["tuned"] = ", ".join(f"{engine} {seconds:.3g} s" for seconds, engine in times)
    return described


def _print(value: dict[str, Any], indent: str) -> None:
    for key, entry in value.items():
        name = printable(key)
        if isinstance(entry, dict):
            print(f"{indent}{name}:")
            _print(entry, indent + "  ")
        elif key == "notes":
            for note in entry:
                print(f"{indent}note: {_line(note)}")
        elif isinstance(entry, list):
            print(f"{indent}{name}: {', '.join(map(_line, entry)) or 'none'}")
        else:
            print(f"{indent}{name}: {_line(entry)}")


def _line(entry: Any) -> str:
    if isinstance(entry, dict):
        return printable(" ".join(f"{key} {value}" for key, value in entry.items()))
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    return f"{entry:,}" if isinstance(entry, int) else printable(str(entry))
