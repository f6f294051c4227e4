"""``bksdm serve``: draw pictures for others over HTTP."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from bksdm.cli.arguments import (
    add_engine_cache_option,
    bundle_path,
    integer,
    named_path,
    real,
)
from bksdm.cli.extras import require
from bksdm.cli.layout_options import add_layout_options
from bksdm.engines.errors import RequestError
from bksdm.models import EMOJI

EXAMPLES = """examples:
  bksdm serve
  bksdm serve small/ photo/ --host 0.0.0.0 --api-key-file keys
  bksdm serve small/ --replicas 4 --threads 1 --max-batch 2 --queue 60
  bksdm serve small/ --lora ink=ink.safetensors:0.8 --lora cat=cat.safetensors
  curl localhost:8000/v1/images/generations -d '{"prompt": "a red apple"}'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "bundles",
        nargs="*",
        type=bundle_path,
        metavar="BUNDLE",
        help="folder of a bundle, which clients ask for by its last name; the first is the "
        "default, the others are loaded when they are asked for (default: emoji, built in)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 takes requests of other machines (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port",
        type=integer,
        default=8000,
        metavar="N",
        help="port to listen on; 0 takes a free one (default: 8000)",
    )
    add_layout_options(parser)
    parser.add_argument(
        "--memory",
        type=real,
        metavar="GB",
        help="most that all loaded models may take (default: four fifths of the machine's)",
    )
    parser.add_argument(
        "--api-key-file",
        type=named_path,
        metavar="FILE",
        help="keys that requests need, a line NAME KEY [priority=N] [rate=N] for each; rate is of "
        "requests a minute, and KEY may be sha256: and its digest (default: none)",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web site whose pages may call the server, as https://example.org; may be repeated",
    )
    parser.add_argument(
        "--max-pixels",
        type=integer,
        default=1024 * 1024,
        metavar="N",
        help="most of a picture (default: 1048576)",
    )
    parser.add_argument(
        "--max-steps",
        type=integer,
        default=200,
        metavar="N",
        help="most of a picture (default: 200)",
    )
    parser.add_argument(
        "--max-images",
        type=integer,
        default=8,
        metavar="N",
        help="most of a request (default: 8)",
    )
    parser.add_argument(
        "--grace",
        type=real,
        default=30.0,
        metavar="SECONDS",
        help="for what is being drawn when the server is told to stop (default: 30)",
    )
    parser.add_argument(
        "--log-prompts", action="store_true", help="log prompts, which are left out otherwise"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=FILE[:SCALE]",
        help="LoRA that requests may ask for by that name, and its scale where they state none "
        "(default: 1); may be repeated. Models that it fits have it",
    )
    parser.add_argument(
        "--no-safety-checker", action="store_true", help="do not load the models' safety checkers"
    )
    add_engine_cache_option(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    for module in ("starlette", "uvicorn", "prometheus_client", "python_multipart"):
        require(module, "serve")
    from bksdm.serve.callers import Keys
    from bksdm.serve.logs import json_logs
    from bksdm.serve.measure import Wanted
    from bksdm.serve.models import named
    from bksdm.serve.server import Server, listen, run_server
    from bksdm.serve.service import Service
    from bksdm.serve.settings import Limits, Settings

    for name in ("queue", "grace", "max_pixels", "max_steps", "max_images"):
        if getattr(options, name) < 0:
            raise RequestError(f"--{name.replace('_', '-')} must not be negative")
    if not 0 <= options.port < 2**16:
        raise RequestError(f"--port must be from 0 to 65535, not {options.port}")
    limits = Limits(pixels=options.max_pixels, steps=options.max_steps, images=options.max_images)
    settings = Settings(
        engine=options.engine,
        engine_cache=options.engine_cache,
        safety_checker=not options.no_safety_checker,
        wanted=Wanted(options.replicas, options.threads, options.max_batch),
        queue_seconds=options.queue,
        memory_bytes=None if options.memory is None else int(options.memory * 1e9),
        limits=limits,
        grace_seconds=options.grace,
        log_prompts=options.log_prompts,
        cors=tuple(options.cors),
        loras=lora_files(options.lora),
    )
    keys = None if options.api_key_file is None else Keys.read(options.api_key_file)
    service = Service(named(options.bundles or [EMOJI]), settings, keys)
    listening = listen(options.host, options.port)
    print("bksdm: loading and measuring the model", file=sys.stderr)
    with listening, json_logs():
        asyncio.run(
            run_server(
                Server(service, listening),
                lambda address: print(f"serving on {address}", flush=True),
            )
        )
    return 0


def lora_files(texts: list[str]) -> dict[str, tuple[Path, float]]:
    """Return files and scales by name, of ``NAME=FILE[:SCALE]``.

    Raises
    ------
    RequestError, LoraError
        One has another form, or two have one name.
    """
    from bksdm.runtime.lora.file import split_scale
    from bksdm.runtime.lora.use import lora_name

    found: dict[str, tuple[Path, float]] = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise RequestError(
                f"--lora must look like NAME=FILE or NAME=FILE:0.8, not {text!r:.60}"
            )
        if lora_name("--lora", name) in found:
            raise RequestError(f"--lora: two are called {name}")
        found[name] = split_scale(file)
    return found
