"""Rewritten graphs in an engine's own format, for programs that open them without this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bksdm.engines.openvino import OpenVinoEngine
from bksdm.engines.registry import version_of
from bksdm.optimize.rules import MadeFor
from bksdm.optimize.tuned import read_tuned
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.precision_choice import precision_of
from bksdm.storage.digest import model_digest, sha256_of, write_sealed
from bksdm.storage.files import staged
from bksdm.storage.plans import RECORD, SAVED


def save_openvino(
    bundle: Bundle, place: Path, saved: Callable[[str, int], object] = lambda name, size: None
) -> Path:
    """Write every network, rewritten for OpenVINO, as ``NAME.xml`` and ``NAME.bin``.

    Weights are in the files, in the precision of the bundle; nothing of it is needed beside them.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    place : Path
        A folder of engines, in which the folder is made anew.
    saved : callable
        Told of each network, and of its size in bytes.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    BundleError, EngineError
        The bundle is damaged, or OpenVINO is not installed.
    """
    folder = place / SAVED
    place.mkdir(parents=True, exist_ok=True)
    with staged(folder, replace=True) as staging:
        for network in bundle.components:
            model = bundle.model(network)
            side = bundle.sample_size * (bundle.vae_scale if network == "vae_encoder" else 1)
            tuned = read_tuned(place, model, version_of).get(SAVED)
            made_for = MadeFor(side) if tuned is None else tuned.made_for
            precision = precision_of(network, bundle.precision)
            engine = OpenVinoEngine(model, made_for=made_for, cache=place, precision=precision)
            engine.save(staging / f"{network}.xml")
            size = sum(file.stat().st_size for file in staging.glob(f"{network}.*"))
            saved(network, size)
        record = {
            "backend": SAVED,
            "version": version_of(SAVED),
            "models": {name: model_digest(bundle.model(name), place) for name in bundle.components},
            "files": {file.name: sha256_of(file) for file in sorted(staging.iterdir())},
        }
        (staging / RECORD).write_bytes(write_sealed(record))
    return folder
