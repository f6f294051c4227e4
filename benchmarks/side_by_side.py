"""Run peers on the same work in turns, each in an environment and a process of its own.

A peer is a folder of ``peers/`` with ``requirements.txt`` and ``runner.py``, which answers JSON
lines (see ``peers/serve.py``). They take turns, A B C A B C, stage by stage, and only one of them
is in memory at a time. What each computes is compared with diffusers in float32, which comes first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bksdm.benchmarks.environments import PeerError, Runner, environment
from bksdm.benchmarks.machine import describe_machine
from bksdm.engines.errors import BksdmError
from bksdm.runtime.bundle import read_json
from bksdm.runtime.images import psnr
from bksdm.runtime.noise import initial_noise
from bksdm.runtime.user_files import write_text

STAGES = ("unet", "vae_decoder", "picture")
PROMPT = "a red apple on a table"
SEED = 0
# Every peer has Euler's method on the same noise levels; only some have PNDM.
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "interpolation_type": "linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Peer:
    """How to run one peer.

    Attributes
    ----------
    folder
        Its folder in ``peers/``.
    stages
        Stages that it can run.
    source
        The peer whose converted model it starts from; None is the checkpoint.
    model
        The peer whose converted model it runs; None is its own.
    options
        Further arguments of its ``load``.
    conversion
        Further arguments of its ``convert``.
    rounded
        Whether it computes in less than float32, or may.
    """

    folder: str
    stages: tuple[str, ...] = STAGES
    source: str | None = None
    model: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    conversion: Mapping[str, object] = field(default_factory=dict)
    rounded: bool = False


REFERENCE = "diffusers"
PEERS: dict[str, Peer] = {
    REFERENCE: Peer("diffusers"),
    "diffusers-compiled": Peer("diffusers", options={"compiled": True}),
    "bksdm": Peer("bksdm"),
    **{
        f"bksdm-fast-{level}": Peer("bksdm", ("picture",), model="bksdm", options={"fast": level})
        for level in (1, 2, 3)
    },
    "optimum": Peer("optimum"),
    "openvino": Peer("openvino"),
    "openvino-as-it-comes": Peer(
        "openvino", model="openvino", options={"exact": False}, rounded=True
    ),
    "bksdm-bfloat16": Peer(
        "bksdm",
        model="bksdm",
        options={"engine": "openvino", "precision": "bfloat16"},
        rounded=True,
    ),
    "bksdm-int8": Peer(
        "bksdm",
        source="bksdm",
        options={"engine": "openvino", "precision": "int8"},
        conversion={"precision": "int8"},
        rounded=True,
    ),
    "mnn": Peer("mnn", ("unet", "vae_decoder"), source="optimum"),
    "stable-diffusion-cpp": Peer("stable-diffusion-cpp", ("picture",)),
}
EXACT = tuple(
    name for name, peer in PEERS.items() if "fast" not in peer.options and not peer.rounded
)
"""Peers that all do exactly the same work."""
_HALF = {"device": "cuda", "dtype": "float16"}
PEERS_ON_CUDA: dict[str, Peer] = {
    REFERENCE: Peer("diffusers", ("picture",), options={"device": "cuda"}),
    "diffusers-float16": Peer("diffusers", ("picture",), options=_HALF),
    "diffusers-float16-compiled": Peer(
        "diffusers", ("picture",), options={**_HALF, "compiled": True}
    ),
    "bksdm": Peer(
        "bksdm",
        ("picture",),
        options={"engine": "onnxruntime-cuda"},
        conversion={"dtype": "float16"},
    ),
    "optimum": Peer(
        "optimum",
        ("picture",),
        options={"device": "cuda"},
        conversion={"device": "cuda", "dtype": "fp16"},
    ),
}
"""Peers on a GPU: float16 all of them but the reference. None was run on one yet."""


def peers_on(device: str) -> dict[str, Peer]:
    """Return the peers on ``cpu`` or ``cuda``, by name."""
    return PEERS_ON_CUDA if device == "cuda" else PEERS


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of every peer.

    Attributes
    ----------
    checkpoint
        A diffusers folder.
    height, width
        In pixels.
    steps
        Of a whole picture, Euler's method, guidance 7.5.
    rounds
        Turns of every peer, each in a new process.
    repeat
        Runs that count in each turn, after one that does not; of pictures on a CPU one does.
    threads
        CPU threads.
    stages
        What is measured, of :data:`STAGES`.
    device
        ``cpu`` or ``cuda``.
    """

    checkpoint: str
    height: int
    width: int
    steps: int
    rounds: int
    repeat: int
    threads: int
    stages: tuple[str, ...] = STAGES
    device: str = "cpu"


def prepare_checkpoint(checkpoint: Path, work: Path) -> Path:
    """Return a folder with the checkpoint's networks, linked, and a scheduler every peer has.

    Raises
    ------
    BksdmError
        The folder is no diffusers checkpoint.
    """
    index = read_json(checkpoint / "model_index.json")
    if not (checkpoint / "vae").is_dir():
        raise BksdmError(f"{checkpoint}: no vae/; peers start from a diffusers checkpoint")
    place = work / "checkpoint"
    shutil.rmtree(place, ignore_errors=True)
    (place / "scheduler").mkdir(parents=True)
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        (place / part).symlink_to((checkpoint / part).resolve())
    index["scheduler"] = ["diffusers", SCHEDULER["_class_name"]]
    (place / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    written = json.dumps(SCHEDULER)
    (place / "scheduler" / "scheduler_config.json").write_text(written, encoding="utf-8")
    return place


def convert(name: str, peer: Peer, python: Path, source: Path, work: Path) -> dict[str, float]:
    """Convert the checkpoint once; return its seconds, bytes on disk and peak memory.

    Raises
    ------
    PeerError
        The peer cannot convert it.
    """
    name = peer.model or name
    folder = work / name / "model"
    record = work / name / "converted.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Runner(python, peer.folder) as runner:
            answer = runner.ask(
                "convert", source=str(source), folder=str(folder), **peer.conversion
            )
        write_text(record, json.dumps(answer))
    return dict(json.loads(record.read_text(encoding="utf-8")))


def measure_peers(
    task: Task, work: Path, names: Sequence[str], report: Callable[[str], None]
) -> dict[str, Any]:
    """Run every peer in turns and compare what it computes with the reference.

    Parameters
    ----------
    task : Task
        The work.
    work : Path
        Folder for environments, converted models and outputs; kept for the next run, whose
        checkpoint must be the same.
    names : sequence of str
        Keys of :func:`peers_on`; the reference comes first, whether named or not.
    report : callable
        Called with one line before everything that takes long.

    Returns
    -------
    dict
        For every peer what its conversion took, and by stage the seconds, load times, peak memory
        and distance from the reference; or the reason why it has none.

    Raises
    ------
    PeerError
        The reference failed, without which nothing can be compared.
    """
    names = (REFERENCE, *(name for name in names if name != REFERENCE))
    known = peers_on(task.device)
    suffix = "" if task.device == "cpu" else f"-{task.device}"
    models = work / f"{Path(task.checkpoint).resolve().name}{suffix}"
    checkpoint = prepare_checkpoint(Path(task.checkpoint), models)
    feeds = write_feeds(task, models)
    peers: dict[str, dict[str, Any]] = {}
    pythons: dict[str, Path] = {}
    for name in names:
        peer = known[name]
        try:
            report(f"{name}: environment")
            pythons[name] = environment(peer.folder, work, task.device)
            report(f"{name}: conversion")
            source = checkpoint if peer.source is None else models / peer.source / "model"
            peers[name] = {
                "converted": convert(name, peer, pythons[name], source, models),
                "stages": {stage: {} for stage in peer.stages if stage in task.stages},
            }
        except PeerError as error:
            if name == REFERENCE:
                raise
            peers[name] = {"reason": str(error), "stages": {}}
    for number in range(task.rounds):
        for stage in task.stages:
            for name in names:
                entry = peers[name]["stages"].get(stage)
                if entry is None or "reason" in entry:
                    continue
                report(f"round {number + 1} of {task.rounds}, {stage}: {name}")
                try:
                    _turn(
                        name,
                        known[name],
                        pythons[name],
                        stage,
                        task=task,
                        models=models,
                        checkpoint=checkpoint,
                        feeds=feeds,
                        entry=entry,
                    )
                except PeerError as error:
                    if name == REFERENCE:
                        raise
                    peers[name]["stages"][stage] = {"reason": str(error)}
    return {
        "kind": "peers",
        "machine": describe_machine(),
        "task": {**asdict(task), "checkpoint": Path(task.checkpoint).resolve().name},
        "peers": peers,
    }


def write_feeds(task: Task, folder: Path) -> dict[str, Path]:
    """Write the inputs of every peer; return the files by stage."""
    config = read_json(Path(task.checkpoint) / "unet" / "config.json")
    blocks = read_json(Path(task.checkpoint) / "vae" / "config.json")["block_out_channels"]
    scale = 2 ** (len(blocks) - 1)
    shape = (config["in_channels"], task.height // scale, task.width // scale)
    generator = np.random.default_rng(SEED)
    pair = generator.standard_normal((2, *shape), np.float32)
    texts = generator.standard_normal((2, 77, config["cross_attention_dim"]), np.float32)
    feeds: dict[str, dict[str, Any]] = {
        "unet": {
            # With guidance the two rows differ in their text alone.
            "sample": np.repeat(pair[:1], 2, axis=0),
            "timestep": np.full(2, 500, np.float32),
            "encoder_hidden_states": texts,
        },
        "vae_decoder": {"latent_sample": pair[:1]},
        "picture": {
            "latents": initial_noise(shape, SEED, 1),
            "prompt": np.array(PROMPT),
            "steps": np.array(task.steps),
            "seed": np.array(SEED),
            "height": np.array(task.height),
            "width": np.array(task.width),
        },
    }
    files = {}
    for stage, arrays in feeds.items():
        files[stage] = folder / f"{stage}.npz"
        np.savez(files[stage], **arrays)
    return files


def _turn(
    name: str,
    peer: Peer,
    python: Path,
    stage: str,
    task: Task,
    models: Path,
    checkpoint: Path,
    feeds: Mapping[str, Path],
    entry: dict[str, Any],
) -> None:
    """Load one stage of one peer in a new process, run it, and add its measurements."""
    output = models / name / f"{stage}.npy"
    output.parent.mkdir(exist_ok=True)
    model = models / (peer.model or name) / "model"
    once = stage == "picture" and task.device == "cpu"
    with Runner(python, peer.folder) as runner:
        loaded = runner.ask(
            "load",
            stage=stage,
            source=str(checkpoint),
            folder=str(model),
            threads=task.threads,
            **peer.options,
        )
        first, *counted = (
            runner.ask("run", feeds=str(feeds[stage]), output=str(output))
            for _ in range(1 + (1 if once else task.repeat))
        )
    entry.setdefault("load_seconds", []).append(loaded["seconds"])
    entry.setdefault("first_seconds", []).append(first["seconds"])
    entry.setdefault("samples", []).extend(answer["seconds"] for answer in counted)
    for part, seconds in counted[-1]["parts"].items():
        entry.setdefault("parts", {}).setdefault(part, []).append(seconds)
    entry["peak_bytes"] = max(entry.get("peak_bytes", 0), counted[-1]["peak_bytes"])
    found, reference = np.load(output), np.load(models / REFERENCE / f"{stage}.npy")
    if found.shape != reference.shape:
        raise PeerError(f"its output has the shape {found.shape}, not {reference.shape}")
    entry["distance"] = distance(found, reference, stage)


def distance(
    found: NDArray[np.float32], reference: NDArray[np.float32], stage: str
) -> dict[str, float]:
    """Return the distance of an output from the reference's.

    Networks: relative L2 ‖y − r‖ / ‖r‖ and largest difference. Pictures: largest difference in
    levels of 0 … 255 and peak signal-to-noise ratio 20 log₁₀(255 / RMS) in dB, at most 99.
    """
    difference = found.astype(np.float64) - reference
    largest = float(np.abs(difference).max())
    if stage == "picture":
        return {"largest": largest, "psnr": min(99.0, psnr(found, reference))}
    norm = float(np.linalg.norm(reference.astype(np.float64)))
    return {"largest": largest, "relative_l2": float(np.linalg.norm(difference)) / norm}


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record as JSON."""
    write_text(path, json.dumps(record, indent=1) + "\n")
