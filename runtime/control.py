"""What ControlNets are shown and how much they add: options and pictures of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.init_image import default_sides, pictures_of, resized
from bksdm.runtime.validation import number, part, plain, several, shown

if TYPE_CHECKING:
    from bksdm.runtime.generation_config import GenerationConfig

SCALE, SCALE_WITH_IMAGE, SCALE_WITH_MASK = 1.0, 0.8, 0.5
"""Of ``controlnet_conditioning_scale``, as in diffusers' three pipelines."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Control:
    """What one ControlNet does in a job.

    Attributes
    ----------
    name : str
        Of the ControlNet.
    pixels : ndarray, float32, shape [images, 3, height, width]
        What it is shown, in 0 … 1.
    scale : float
        What it makes is multiplied by it.
    start, end : float
        Parts of the evaluations, 0 to 1, between which it acts.
    """

    name: str
    pixels: NDArray[np.float32]
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def at(self, index: int, total: int) -> bool:
        """Return whether it acts in evaluation ``index`` of ``total``, as in diffusers."""
        outside = index / total < self.start or (index + 1) / total > self.end
        return self.scale != 0 and not outside


def one_or_several_numbers(name: str, value: Any) -> float | tuple[float, ...]:
    """Return a number, or one for each ControlNet.

    Raises
    ------
    RequestError
        It is neither.
    """
    found = several(value)
    return number(name, value) if found is None else tuple(number(name, each) for each in found)


def one_or_several_parts(name: str, value: Any) -> float | tuple[float, ...]:
    """Return a number from 0 to 1, or one for each ControlNet.

    Raises
    ------
    RequestError
        It is neither.
    """
    found = several(value)
    return part(name, value) if found is None else tuple(part(name, each) for each in found)


def one_or_several_names(name: str, value: Any) -> str | tuple[str, ...]:
    """Return the name of a ControlNet, or several.

    Raises
    ------
    RequestError
        It is neither.
    """
    found = several(value)
    names = [plain(each) for each in ([value] if found is None else found)]
    if not names or not all(isinstance(each, str) and each for each in names):
        raise RequestError(f"{name} must be a name or a list of names, not {shown(value)}")
    return str(names[0]) if found is None else tuple(map(str, names))


def require_ascending(start: float | tuple[float, ...], end: float | tuple[float, ...]) -> None:
    """Check that every interval begins before it ends.

    Raises
    ------
    RequestError
        One does not, or they differ in number.
    """
    counts = [len(value) for value in (start, end) if isinstance(value, tuple)]
    if len(set(counts)) > 1:
        raise RequestError(
            f"control_guidance_start has {counts[0]} entries, but control_guidance_end has "
            f"{counts[1]}"
        )
    count = counts[0] if counts else 1
    for first, last in zip(_each(start, count), _each(end, count), strict=True):
        if first >= last:
            raise RequestError(
                f"control_guidance_start must be below control_guidance_end, not {first:g} and "
                f"{last:g}"
            )


def resolved_control(
    config: GenerationConfig, bundle: Bundle, engine: Capabilities, start: str | None
) -> dict[str, Any]:
    """Return the options of ControlNets as a bundle and an engine carry them out.

    Parameters
    ----------
    config : GenerationConfig
        As it is asked for.
    bundle : Bundle
        The model.
    engine : Capabilities
        Of the engine.
    start : str or None
        What there is beside the control image: ``noise``, ``image`` or ``masked image``; None where
        there is no control image.

    Raises
    ------
    RequestError
        The bundle or the engine cannot do it; names the option.
    """
    if start is None:
        given = {
            "controlnet": config.controlnet is not None,
            "controlnet_conditioning_scale": config.controlnet_conditioning_scale is not None,
            "guess_mode": config.guess_mode,
            "control_guidance_start": config.control_guidance_start != 0,
            "control_guidance_end": config.control_guidance_end != 1,
        }
        if idle := next((name for name, is_given in given.items() if is_given), None):
            raise RequestError(
                f"{idle} needs a control_image, which the ControlNet is shown; diffusers' "
                "StableDiffusionControlNetPipeline calls it image"
            )
        return {}
    known = bundle.controlnets
    if not known:
        raise RequestError(
            f"control_image needs a ControlNet, and {bundle.path} has none; export it with `bksdm "
            "export --controlnet NAME=FOLDER`"
        )
    if not engine.control:
        raise RequestError(
            f"control_image is not for the engine {engine.name} yet; use onnxruntime or openvino"
        )
    if config.fast:
        raise RequestError(
            "fast does not go with a control_image: what a ControlNet adds changes in every step"
        )
    if config.controlnet is None and len(known) > 1:
        raise RequestError(
            f"controlnet must be named, for {bundle.path} has several: {', '.join(known)}"
        )
    chosen = known[0] if config.controlnet is None else config.controlnet
    names = (chosen,) if isinstance(chosen, str) else chosen
    if unknown := [name for name in names if name not in known]:
        raise RequestError(
            f"controlnet must be of this bundle, which has {', '.join(known)}; not "
            f"{shown(unknown[0])}"
        )
    for option in (
        "controlnet_conditioning_scale",
        "control_guidance_start",
        "control_guidance_end",
    ):
        value = getattr(config, option)
        if isinstance(value, tuple) and len(value) != len(names):
            raise RequestError(f"{option} has {len(value)} entries, but {_counted(len(names))}")
    usual = {"image": SCALE_WITH_IMAGE, "masked image": SCALE_WITH_MASK}.get(start, SCALE)
    scale = config.controlnet_conditioning_scale
    return {
        "controlnet": chosen,
        "controlnet_conditioning_scale": usual if scale is None else scale,
        # As diffusers has it: the first one decides for all.
        "guess_mode": config.guess_mode or bundle.pools_control(names[0]),
    }


@dataclass(frozen=True)
class ControlPictures:
    """Pictures for ControlNets, as they were given.

    Attributes
    ----------
    given : list
        A picture, or several; or a list of such for each prompt.
    first : Image
        The first of them, whose size a picture has by default.
    """

    given: list[Any]
    first: Any

    @classmethod
    def of(cls, value: Any) -> ControlPictures:
        """Take one picture, or several: one for each ControlNet, or for each prompt.

        Raises
        ------
        RequestError
            It is something else.
        """
        found = list(value) if isinstance(value, Sequence) else [value]
        nested = [list(each) if isinstance(each, Sequence) else [each] for each in found]
        pictures = [picture for each in nested for picture in pictures_of("control_image", each)]
        if not pictures:
            raise RequestError(f"control_image must be a picture, not {shown(value)}")
        return cls(found, pictures[0])

    def size(self, multiple: int) -> tuple[int, int]:
        """Return height and width of the first, rounded down to what can be drawn.

        Raises
        ------
        RequestError
            It is too small.
        """
        width, height = default_sides("control_image", self.first, multiple)
        return height, width

    def controls(self, config: GenerationConfig) -> tuple[Control, ...]:
        """Return what each ControlNet does; all options are resolved.

        Raises
        ------
        RequestError
            There are not as many pictures as ControlNets, or as prompts.
        """
        assert config.controlnet is not None
        assert config.height is not None
        assert config.width is not None
        names = (config.controlnet,) if isinstance(config.controlnet, str) else config.controlnet
        by_net = self._by_net(len(names))
        size, prompts = (config.width, config.height), len(config.prompts)
        shown_to = []
        for pictures in by_net:
            if len(pictures) not in (1, prompts):
                raise RequestError(
                    f"control_image has {len(pictures)} entries for a ControlNet; give one, or as "
                    f"many as there are prompts ({prompts})"
                )
            pixels = np.stack([resized("control_image", p, size, "RGB") for p in pictures])
            sample = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
            shown_to.append(np.repeat(sample, config.images // len(pictures), axis=0))
        count = len(names)
        scale = config.controlnet_conditioning_scale
        assert scale is not None
        return tuple(
            Control(*each)
            for each in zip(
                names,
                shown_to,
                _each(scale, count),
                _each(config.control_guidance_start, count),
                _each(config.control_guidance_end, count),
                strict=True,
            )
        )

    def _by_net(self, nets: int) -> list[list[Any]]:
        """Return the pictures of each ControlNet."""
        nested = [isinstance(each, Sequence) for each in self.given]
        if nets == 1 and not any(nested):
            return [self.given]
        if all(nested):
            # As in diffusers: a list for each prompt, of a picture for each ControlNet.
            if {len(each) for each in self.given} != {nets}:
                raise RequestError(
                    f"control_image must have {nets} pictures for each prompt, one per ControlNet"
                )
            return [list(pictures) for pictures in zip(*self.given, strict=True)]
        if len(self.given) != nets:
            raise RequestError(f"control_image has {len(self.given)} entries, but {_counted(nets)}")
        return [list(each) if isinstance(each, Sequence) else [each] for each in self.given]


def _counted(nets: int) -> str:
    return f"there are {nets} ControlNets" if nets > 1 else "there is 1 ControlNet"


def _each(value: Value | tuple[Value, ...], count: int) -> tuple[Value, ...]:
    return value if isinstance(value, tuple) else (value,) * count
