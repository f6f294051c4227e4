"""Plans of TensorRT, which ``bksdm build`` made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bksdm.engines.errors import EngineError, RequestError
from bksdm.engines.profile import Profile
from bksdm.engines.tensorrt import BUILD_FLAGS, load_module
from bksdm.engines.tensorrt_context import LoadedPlan
from bksdm.runtime.bundle import COMPONENTS, DECODERS, TINY, Bundle
from bksdm.runtime.cuda.compile import loader, source_digest
from bksdm.runtime.cuda.device import Device, Memory
from bksdm.runtime.cuda.networks import Loaded
from bksdm.runtime.cuda.picture_encoder import NAME as ENCODER
from bksdm.storage.files import in_use
from bksdm.storage.plans import Recipe, list_plans, read_plan, read_record, validate_plans


@dataclass(frozen=True)
class _Built:
    """One folder of plans that fits the GPU and the bundle."""

    folder: Path
    profile: Profile


class BuiltPlans:
    """A bundle's plans for one GPU; implements :class:`~bksdm.runtime.cuda.networks.Networks`.

    Parameters
    ----------
    bundle : Bundle
        With plans.
    flavour : str
        ``tensorrt`` or ``tensorrt-rtx``.
    device : Device
        The GPU.

    Raises
    ------
    EngineError
        Nothing was built for this GPU, or what was built is stale or damaged.
    """

    def __init__(self, bundle: Bundle, flavour: str, device: Device) -> None:
        self._flavour, self._device = flavour, device
        self._built = _find(bundle, flavour, device.target)
        self._load = cache(self._load_folder)
        self._load_encoder = cache(self._load_encoder_of)

    def validate_size(self, images: int, height: int, width: int) -> None:
        """Refuse what no profile covers."""
        if not any(built.profile.covers(images, height, width) for built in self._built):
            names = ", ".join(str(built.profile) for built in self._built)
            raise RequestError(
                f"{images} images of {width}x{height} are outside of what was built ({names}); "
                "run `bksdm build` with --batch and --size"
            )

    def load(self, images: int, height: int, width: int) -> Loaded:
        """Return the first plans that cover a size."""
        fitting = (b.folder for b in self._built if b.profile.covers(images, height, width))
        return self._load(next(fitting))

    def load_encoder(self, height: int, width: int) -> tuple[LoadedPlan, Memory]:
        """Return the first VAE encoder that covers a size, and scratch for it."""
        return self._load_encoder(next(self._of_size(height, width)))

    def _of_size(self, height: int, width: int) -> Iterator[Path]:
        for built in self._built:
            if built.profile.covers(built.profile.batch.low, height, width):
                yield built.folder

    def _load_folder(self, folder: Path) -> Loaded:
        """Return the plans of a folder, its kernels, and scratch for the hungriest plan."""
        with in_use(folder):
            files = read_record(folder)["plans"]
            kernels = f"kernels-{self._device.target}"
            if files.get(kernels, {}).get("model") != source_digest():
                raise EngineError(f"{folder.name}: {kernels} is stale; run `bksdm build` again")
            code = read_plan(folder, kernels, files)
            names = (*COMPONENTS, *(name for name in (DECODERS[TINY],) if name in files))
            plans = {name: self._load_plan(folder, name) for name in names}
            scratch = self._device.allocate(max(1, *(plan.scratch for plan in plans.values())))
            return Loaded(plans, loader(self._device, code), scratch)

    def _load_encoder_of(self, folder: Path) -> tuple[LoadedPlan, Memory]:
        """Return the VAE encoder of a folder, with the scratch of the others if that does."""
        scratch = self._load(folder).scratch
        with in_use(folder):
            plan = self._load_plan(folder, ENCODER)
        return plan, scratch if plan.scratch <= scratch.size else self._device.allocate(
            plan.scratch
        )

    def _load_plan(self, folder: Path, name: str) -> LoadedPlan:
        content = read_plan(folder, name, read_record(folder)["plans"])
        kernels = folder / f"{name}-{self._device.target}.cache"
        return LoadedPlan(self._flavour, name, content, kernels)


def _find(bundle: Bundle, flavour: str, target: str) -> list[_Built]:
    """Return every folder of plans for a GPU; the first stale one of them is refused."""
    engines = bundle.path / "engines"
    models = {name: bundle.model(name) for name in bundle.components}
    version = str(load_module(flavour).__version__)
    found, others = [], []
    for name in list_plans(engines):
        record = read_record(engines / name)
        if record.get("backend") != flavour or target not in record.get("targets", ()):
            others.append(name)
            continue
        profile = Profile.read(record["profile"])
        targets = tuple(record["targets"])
        recipe = Recipe(flavour, version, targets, bundle.precision, profile, BUILD_FLAGS[flavour])
        validate_plans(engines / name, recipe, models)
        found.append(_Built(engines / name, profile))
    if not found:
        raise EngineError(
            f"nothing was built for {flavour} on {target} (built: {', '.join(others) or 'nothing'})"
            f"; run `bksdm build {bundle.path} --engine {flavour}`"
        )
    return found
