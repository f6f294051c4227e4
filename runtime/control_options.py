"""The options of ControlNets: checked when they are stated, and against a bundle and an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from bksdm.engines.backend import Capabilities
from bksdm.engines.errors import RequestError
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.validation import number, part, plain, several, shown

if TYPE_CHECKING:
    from bksdm.runtime.generation_config import GenerationConfig

SCALE, SCALE_WITH_IMAGE, SCALE_WITH_MASK = 1.0, 0.8, 0.5
"""Of ``controlnet_conditioning_scale``, as in diffusers' three pipelines."""
CONTROL_OPTIONS = (
    *("controlnet", "controlnet_conditioning_scale", "guess_mode"),
    *("control_guidance_start", "control_guidance_end"),
)
"""Their names."""
Value = TypeVar("Value")


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
    for first, last in zip(each_of(start, count), each_of(end, count), strict=True):
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
            raise RequestError(f"{option} has {len(value)} entries, but {counted(len(names))}")
    usual = {"image": SCALE_WITH_IMAGE, "masked image": SCALE_WITH_MASK}.get(start, SCALE)
    scale = config.controlnet_conditioning_scale
    return {
        "controlnet": chosen,
        "controlnet_conditioning_scale": usual if scale is None else scale,
        # As diffusers has it: the first one decides for all.
        "guess_mode": config.guess_mode or bundle.pools_control(names[0]),
    }


def counted(nets: int) -> str:
    """Return how many ControlNets there are, in words."""
    return f"there are {nets} ControlNets" if nets > 1 else "there is 1 ControlNet"


def each_of(value: Value | tuple[Value, ...], count: int) -> tuple[Value, ...]:
    """Return one for each ControlNet of what may be one for all."""
    return value if isinstance(value, tuple) else (value,) * count
