"""Export a diffusers checkpoint to a bundle: four graphs, a tokenizer, a scheduler config."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm.engines.errors import BundleError, ExportError
from bksdm.engines.onnxruntime_package import load_onnxruntime
from bksdm.export.controlnet_source import require_fit
from bksdm.export.graph import write_graph
from bksdm.export.inspection import inspect, inspect_configurations, networks_of
from bksdm.export.kinds import kinds_of
from bksdm.export.library_errors import library_errors
from bksdm.export.lora import read_lora
from bksdm.export.merge import check, merge
from bksdm.export.networks import Network, SafetyChecker, load_network
from bksdm.export.parity import ComponentParity, compare, format_table, references
from bksdm.export.prepared import NOTHING, Parts, prepared
from bksdm.export.pretrained import vae_class
from bksdm.export.preview import write_preview
from bksdm.export.quiet import quiet
from bksdm.export.source import has_safety_checker, read_json
from bksdm.export.tokenizer import read_tokenizer, tokenizer_texts
from bksdm.export.weights import controlnets_in
from bksdm.runtime.bundle import read_scheduler
from bksdm.runtime.integrity import write_sums
from bksdm.runtime.loaded_configuration import written_scheduler
from bksdm.runtime.lora.file import Lora
from bksdm.runtime.safety_checker import PREPROCESSOR_FILE
from bksdm.storage.precision import PRECISIONS, Precision
from bksdm.storage.publishing import publishing, refuse_existing


def export(
    source: str | Path,
    bundle: Path,
    dtype: str = "float32",
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    safety_checker: bool = True,
    variant: str | None = None,
    token: str | None = None,
    parts: Parts = NOTHING,
) -> list[ComponentParity]:
    """Write the bundle of a checkpoint, each network checked against torch.

    Parameters
    ----------
    source
        A local diffusers folder, a hub id, or a checkpoint in one file.
    bundle
        Where the bundle goes; must not exist. It appears under this name only when it is complete
        and has passed; an error or an interrupt leaves nothing.
    dtype
        ``float32`` or ``float16``: type of the weights and of the graphs' floating-point inputs and
        outputs. The timestep is float32 in both.
    revision
        Branch, tag or commit; only with a hub id.
    progress
        Called with one line before each stage.
    loras
        Files and scales; all are merged into the weights of UNet and text encoder, so that parity
        is that with the merged network. `model_index.json` records them as ``_lora``.
    safety_checker
        Whether the checkpoint's safety checker, if it has one, goes into the bundle.
    variant, token
        As of `bksdm.export.source.resolve`.
    parts
        What else goes into the bundle, or replaces something of the source.

    Returns
    -------
    list of ComponentParity
        One per network, in the order of ``bksdm.export.kinds.kinds_of``.

    Raises
    ------
    ExportError
        The type is unknown, the source is not supported, the bundle exists or cannot be written, a
        LoRA is not one or does not fit the source, all before the first network is traced; or a
        network misses parity, and that message ends with the table.
    EngineError
        ONNX Runtime, which networks are checked with, is not installed.
    """
    bundle = Path(bundle)
    report = progress or (lambda line: None)
    if dtype not in PRECISIONS:
        raise ExportError(f"dtype {dtype!r} is not supported; choose {' or '.join(PRECISIONS)}")
    refuse_existing(bundle)
    read = [read_lora(path, scale) for path, scale in loras]
    # Whatever is exported is compared in it; that it is missing is better known before.
    load_onnxruntime()
    with prepared(
        source, parts, revision, safety_checker, variant, token, report, bundle.parent
    ) as checkpoint:
        return _export(
            checkpoint,
            bundle,
            PRECISIONS[dtype],
            loras=read,
            safety_checker=safety_checker,
            variant=variant,
            report=report,
        )


def _export(
    checkpoint: Path,
    bundle: Path,
    precision: Precision,
    loras: Sequence[Lora],
    safety_checker: bool,
    variant: str | None,
    report: Callable[[str], None],
) -> list[ComponentParity]:
    checker = safety_checker and has_safety_checker(checkpoint, variant)
    require_fit(checkpoint, controlnets_in(checkpoint))
    kinds = kinds_of(checkpoint, checker)
    networks = networks_of(checkpoint, checker)
    for lora in loras:
        check(lora, {name: network.model for name, network in networks.items()})
    inspect(networks, checkpoint, variant)
    with publishing(bundle) as staging:
        _write_small_files(checkpoint, networks, staging, loras)
        inspect_configurations(staging, checkpoint, networks, report)
        if safety_checker and not checker:
            report("safety_checker: the checkpoint has none")
        rows = [
            _export_network(
                kind,
                checkpoint,
                variant,
                loras=loras,
                staging=staging,
                precision=precision,
                report=report,
            )
            for kind in kinds
        ]
        if not all(row.passed for row in rows):
            raise ExportError("the export misses parity with torch\n" + format_table(rows))
        report("preview: fitting colours to latents")
        fit = write_preview(staging)
        report(
            f"preview: explains {fit.explained:.0%} of the colours' variance; "
            f"root mean square error {fit.rms_error} of 255"
        )
        write_sums(staging)
    return rows


def _export_network(
    kind: type[Network],
    checkpoint: Path,
    variant: str | None,
    loras: Sequence[Lora],
    staging: Path,
    precision: Precision,
    report: Callable[[str], None],
) -> ComponentParity:
    """Export and check one network; torch's copy of it is gone before onnxruntime loads its own."""
    report(f"{kind.component}: loading")
    with quiet():
        network = load_network(kind, checkpoint, variant)
    for lora in loras:
        if layers := lora.of(kind.component):
            report(f"{kind.component}: merging {len(layers)} layers of {lora.path}")
            merge(lora, kind.component, network.model)
    with quiet(), library_errors(f"{kind.component} cannot be run"):
        truth = references(network, precision)
    report(f"{kind.component}: tracing in {precision.name}")
    path = write_graph(network, staging / kind.component, precision)
    del network
    gc.collect()
    report(f"{kind.component}: comparing with torch")
    with library_errors(f"{kind.component} cannot be compared with torch"):
        row = compare(path, kind.component, precision, truth)
    gc.collect()
    return row


def _write_small_files(
    checkpoint: Path, networks: Mapping[str, Network], target: Path, loras: Sequence[Lora]
) -> None:
    """Write everything of a bundle except the graphs, and make the folders for them."""
    with library_errors(f"{checkpoint / 'tokenizer'}: cannot be converted"):
        _copy_small_files(checkpoint, target, loras)
    for name, network in networks.items():
        (target / name).mkdir()
        _write_json(target / name / "config.json", network.config)
    if SafetyChecker.component in networks:
        # Beside the graph that is fed by it; a folder of its own would be no network.
        settings = checkpoint / "feature_extractor" / PREPROCESSOR_FILE
        shutil.copyfile(settings, target / SafetyChecker.component / PREPROCESSOR_FILE)


def _copy_small_files(checkpoint: Path, staging: Path, loras: Sequence[Lora]) -> None:
    """Write the index, the scheduler's configuration and the tokenizer."""
    source = read_json(checkpoint / "model_index.json")
    (staging / "scheduler").mkdir()
    configuration = _scheduler(checkpoint, source)
    _write_json(staging / "scheduler" / "scheduler_config.json", configuration)
    index = {**_index(source), "vae": ["diffusers", vae_class(checkpoint)]}
    if loras:
        # diffusers and Optimum take no key that starts with an underscore for a component.
        index["_lora"] = [
            {"file": lora.path.name, "sha256": lora.sha256, "scale": lora.scale} for lora in loras
        ]
    _write_json(staging / "model_index.json", index)
    (staging / "tokenizer").mkdir()
    for name, text in tokenizer_texts(read_tokenizer(checkpoint)).items():
        (staging / "tokenizer" / name).write_text(text, encoding="utf-8", newline="\n")


def _scheduler(checkpoint: Path, index: dict[str, Any]) -> dict[str, Any]:
    try:
        return written_scheduler(read_scheduler(checkpoint, index))
    except BundleError as error:
        raise ExportError(str(error)) from error


def _index(source: dict[str, Any]) -> dict[str, Any]:
    """Return the index as Optimum writes it: the source's classes, without parts not exported."""
    kept = ("scheduler", "text_encoder", "tokenizer", "unet")
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": source.get("_diffusers_version"),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        **{name: source[name] for name in kept},
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
