"""Write the GPU's table of README and docs from the records that are committed, and nothing else.

    python -m bksdm.benchmarks.gpu.table

Records lie in ``benchmarks/results/gpu``, one folder per GPU or none, as :mod:`.loop`,
:mod:`.provider` and ``bksdm bench peers --device cuda --json`` write them. Where there is none, the
pages say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm.benchmarks.statistics import ratio_of_medians
from bksdm.benchmarks.tables import Table, conditions, tables
from bksdm.engines.errors import BksdmError
from bksdm.runtime.bundle import read_json
from bksdm.runtime.user_files import write_text

RECORDS = Path("benchmarks/results/gpu")
PAGES = (Path("README.md"), Path("docs/gpu.md"))
BEGIN, END = "<!-- written from benchmarks/results/gpu -->", "<!-- end -->"
NOT_RUN = "**Not yet run on a GPU**: there are no figures."
Record = Mapping[str, Any]


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records in a folder and those in it, by their names."""
    return [read_json(path) for path in sorted(folder.rglob("*.json"))]


def gpu_section(records: Sequence[Record]) -> str:
    """Return the tables of records as Markdown, by GPU; or that there are none."""
    if not records:
        return f"{NOT_RUN}\n"
    return "\n".join(_markdown(record) for record in records)


def write_pages(root: Path) -> list[Path]:
    """Write the section anew in every page of a checkout; return the pages.

    Raises
    ------
    BksdmError
        A page has no place for it.
    """
    section = gpu_section(read_records(root / RECORDS))
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        write_text(root / page, with_section(text, section, page))
    return [root / page for page in PAGES]


def with_section(text: str, section: str, page: Path) -> str:
    """Return a page with what stands between its marks replaced."""
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}\n", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise BksdmError(f"{page}: must have one place between {BEGIN} and {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{section}{END}\n", text)


def _markdown(record: Record) -> str:
    if record["kind"] == "peers":
        return "\n".join((f"{conditions(record)}.\n", *(t.markdown() for t in tables(record))))
    machine = record["machine"]
    settings = record["settings"]
    versions = ("torch", "diffusers", "onnxruntime-gpu", "cuda-core")
    parts = [
        f"{record['model']['name']}, {settings['steps']} steps",
        *machine["gpus"],
        f"driver {machine.get('driver', 'unknown')}",
        *(
            f"{name} {machine['versions'][name]}"
            for name in versions
            if name in machine["versions"]
        ),
    ]
    return KINDS[record["kind"]](record, ", ".join(parts)).markdown()


def _loop(record: Record, title: str) -> Table:
    parity = record["parity"]
    rows = []
    for unet, programs in record["turns"].items():
        best = programs["diffusers"]["samples"]
        for name, entry in programs.items():
            ratio = ratio_of_medians(best, entry["samples"])
            rows.append(
                (
                    f"{name}, {unet} UNet",
                    *_times(entry),
                    f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
                )
            )
    title = (
        f"torch's networks in float16, {title}. Latents differ from diffusers' scheduler by "
        f"{parity['worst_step']:.1e} (relative L2), pixels by {parity['largest_level']:.1f} levels "
        "at most"
    )
    header = ("picture", "median ms", "p95 ms", "n", "ratio to diffusers, same UNet")
    return Table(title, header, tuple(rows))


def _provider(record: Record, title: str) -> Table:
    rows = []
    for name, part in record["parts"].items():
        if "reason" in part:
            rows.append((name, "–", "–", "–", part["reason"]))
        elif "counts" in part:
            rows.append((f"picture, {name}", *_times(part["stages"]["picture"]), _drawn(part)))
            networks = part["networks"].items()
            rows += [(f"{network}, {name}", *_times(entry), "") for network, entry in networks]
        else:
            nodes = {provider: sum(kinds.values()) for provider, kinds in part["nodes"].items()}
            said = ", ".join(f"{count} nodes on {provider}" for provider, count in nodes.items())
            first = f"first run {part['first_seconds']:.1f} s; {said}"
            rows.append((name, *_times(part["seconds"]), first))
    bound = record["roofline"]
    if bound:
        peak = f"least time by {bound['peak']['source']}"
        rows.append(("unet", f"{1e3 * bound['unet_bound_seconds']:.2f}", "–", "–", peak))
    title = f"ONNX Runtime's CUDA provider, {title}"
    return Table(title, ("", "median ms", "p95 ms", "n", ""), tuple(rows))


def _times(entry: Record) -> tuple[str, str, str]:
    return f"{1e3 * entry['median']:.2f}", f"{1e3 * entry['p95']:.2f}", str(entry["n"])


def _drawn(part: Record) -> str:
    counts = part["counts"]
    asked = ("synchronisations", "graph launches", "kernels", "copies", "allocations")
    return ", ".join(
        (
            f"{part['distance']['psnr']:.1f} dB from the CPU's",
            f"{part['evaluations_per_second']:.1f} evaluations/s",
            f"{part['device_memory_bytes'] / 1e9:.2f} GB",
            *(f"{counts.get(kind, 0)} {kind}" for kind in asked),
        )
    )


KINDS: Mapping[str, Callable[[Record, str], Table]] = {
    "gpu-loop": _loop,
    "gpu-provider": _provider,
}


if __name__ == "__main__":
    for written in write_pages(Path(__file__).resolve().parents[2]):
        print(written)
