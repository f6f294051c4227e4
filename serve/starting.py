"""Load a model and begin to draw with it."""

from __future__ import annotations

from bksdm.engines.errors import EngineError
from bksdm.engines.registry import capabilities
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.lora.factors import adaptation_of
from bksdm.runtime.lora.loaded import Loras
from bksdm.runtime.pipeline import TextToImage
from bksdm.serve.drawing import ON_HOST
from bksdm.serve.measure import measure
from bksdm.serve.observer import Observer
from bksdm.serve.scheduler import Scheduler
from bksdm.serve.settings import Settings


def host_engine(bundle: Bundle, wanted: str) -> str:
    """Return the engine that draws; ``auto`` is settled.

    Raises
    ------
    EngineError
        It is unknown, or runs the loop on a GPU.
    """
    engine = engine_for(bundle, wanted)
    if capabilities(engine).on_device:
        raise EngineError(f"{ON_HOST}, not {engine}")
    return engine


def start_scheduler(
    bundle: Bundle,
    settings: Settings,
    observer: Observer | None = None,
    loras: Loras | None = None,
) -> Scheduler:
    """Return a scheduler that draws with a model, as it runs fastest here.

    Parameters
    ----------
    bundle : Bundle
        The model.
    settings : Settings
        How it runs.
    observer : Observer, optional
        Is told what happens.
    loras : Loras, optional
        Those that requests may ask for.

    Raises
    ------
    BundleError, EngineError
        It cannot be loaded, or not on this engine.
    """
    engine = host_engine(bundle, settings.engine)

    def load(threads: int) -> TextToImage:
        model = TextToImage.load(
            bundle, engine, threads, settings.engine_cache, settings.safety_checker
        )
        if loras is not None:
            model.loras = loras
        return model

    model, layout, costs = measure(load, capabilities(engine), settings.wanted)
    for lora in model.loras.loaded.values():
        model.executor.load_adapted(adaptation_of([(lora, 1.0)]))
    return Scheduler(
        lambda: load(layout.threads), layout, costs, settings.queue_seconds, observer, model
    )
