"""What every worker does: look which pictures of a line are missing, draw and publish them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bksdm.batch.places import Place, open_place
from bksdm.engines.errors import RequestError
from bksdm.engines.registry import DEFAULT, capabilities
from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.engine_choice import engine_for
from bksdm.runtime.generation_config import GenerationConfig
from bksdm.runtime.images import to_pil
from bksdm.runtime.lora.loaded import Loras
from bksdm.runtime.picture_formats import PictureFormat, encode_picture
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.precision_choice import precision_for
from bksdm.runtime.recorded import DRAWN, Recorder
from bksdm.runtime.request import Request
from bksdm.runtime.result import Result

ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}


@dataclass(frozen=True)
class Setup:
    """What workers need to know; it can be sent to them.

    Attributes
    ----------
    place : str
        Path or URL of where pictures go.
    bundle : Bundle
        The model; its folder is read by every worker.
    recorder : Recorder
        Says what pictures carry.
    output : PictureFormat
        What they are written as.
    loading : mapping
        Arguments of :meth:`~bksdm.runtime.pipeline.TextToImage.load`.
    inputs : mapping
        By ``image``, ``mask`` and ``control_image``, pictures that are the same for all.
    loras : mapping
        Files of LoRAs, and their scales, by name.

    Raises
    ------
    RequestError, EngineError
        The engine is unknown, or does not compute in the precision.
    """

    place: str
    bundle: Bundle
    recorder: Recorder
    output: PictureFormat = field(default_factory=PictureFormat)
    loading: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    loras: Mapping[str, tuple[Path, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Refused here rather than by every worker.
        _ = self.precision

    @classmethod
    def of(
        cls,
        place: str | Path,
        model: str | Path = EMOJI,
        output: PictureFormat | None = None,
        **loading: Any,
    ) -> Setup:
        """Return the setup of pictures that start from noise.

        Parameters
        ----------
        place : str or Path
            Path or URL of where they go.
        model : str or Path
            The bundle's folder.
        output : PictureFormat, optional
            What they are written as; by default PNG.
        **loading
            Arguments of :meth:`~bksdm.runtime.pipeline.TextToImage.load`.

        Raises
        ------
        BundleError
            There is no bundle, or it is damaged.
        """
        bundle, chosen = Bundle.of(model), PictureFormat() if output is None else output
        return cls(str(place), bundle, Recorder(bundle, {}, {}, chosen), chosen, loading)

    @property
    def engine(self) -> str:
        """What draws; ``auto`` is settled."""
        return engine_for(self.bundle, self.loading.get("engine", DEFAULT))

    @property
    def precision(self) -> str:
        """What the UNet and the VAE compute in."""
        wanted = self.loading.get("precision")
        return precision_for(self.bundle, wanted, capabilities(self.engine))


@dataclass(frozen=True)
class Outcome:
    """What became of a line.

    Attributes
    ----------
    line : int
        Its number.
    files : list of str
        Names of its pictures.
    sha256 : list of str
        Of the files, hexadecimal; empty where the safety checker withheld one.
    drawn : int
        How many were not there before.
    worker : str
        Who did it.
    seconds : float
        That drawing took.
    """

    line: int
    files: list[str]
    sha256: list[str]
    drawn: int
    worker: str
    seconds: float


class Drawer:
    """Draws lines into a place; the model is loaded for the first picture that is missing.

    Parameters
    ----------
    setup : Setup
        What is drawn with, and where to.
    worker : str
        A name, for :class:`Outcome`.
    """

    def __init__(self, setup: Setup, worker: str) -> None:
        self._setup, self._worker = setup, worker
        self._place: Place = open_place(setup.place)
        self._engine, self._precision = capabilities(setup.engine), setup.precision

    @cached_property
    def _model(self) -> TextToImage:
        return TextToImage.load(self._setup.bundle, **self._setup.loading)

    @cached_property
    def _loras(self) -> Loras:
        return Loras.of(self._setup.bundle, self._engine, self._setup.loras)

    def draw(self, line: int, config: GenerationConfig) -> Outcome:
        """Publish those pictures of a line that are not there.

        Raises
        ------
        RequestError
            There is no seed, on which the names depend, or a picture cannot be drawn or written.
        """
        if config.seed is None:
            raise RequestError(f"line {line}: needs a seed; without one, no two runs are alike")
        setup = self._setup
        request = Request.resolve(
            setup.bundle, self._engine, config, loras=self._loras, **setup.inputs
        )
        names = [self._name(request.config, index) for index in range(request.config.images)]
        found = [self._place.read(name) for name in names]
        missing = [index for index, content in enumerate(found) if content is None]
        seconds, drawn = 0.0, 0
        if missing:
            model = self._model
            start = time.perf_counter()
            result = model.generate(request)
            for index in missing:
                found[index] = self._publish(names[index], result, index)
                drawn += found[index] is not None
            seconds = time.perf_counter() - start
        digests = ["" if c is None else hashlib.sha256(c).hexdigest() for c in found]
        return Outcome(line, names, digests, drawn, self._worker, seconds)

    def _name(self, config: GenerationConfig, index: int) -> str:
        """Return the name of a picture, a digest of what decides which picture it is."""
        own = self._setup.recorder.record(config, index).own
        # Of files and the model not the name but the digest, which stands beside it.
        told = {
            name: value
            for name, value in own.items()
            if name not in DRAWN and f"{name}_digest" not in own
        }
        told["precision"] = self._precision
        content = json.dumps(told, sort_keys=True).encode()
        return hashlib.sha256(content).hexdigest() + ENDINGS[self._setup.output.name]

    def _publish(self, name: str, result: Result, index: int) -> bytes | None:
        """Publish a picture, unless the safety checker found it unfit, and return the file."""
        if (result.nsfw_content_detected or [False] * len(result.pixels))[index]:
            return None
        record = self._setup.recorder.record(result.config, index, result)
        image = to_pil(result.pixels[index : index + 1])[0]
        content = encode_picture(image, record, self._setup.output)
        self._place.publish(name, content)
        return content
