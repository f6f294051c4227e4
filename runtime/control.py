"""What ControlNets are shown, and how much each adds in a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bksdm.engines.errors import RequestError
from bksdm.runtime.control_options import counted, each_of
from bksdm.runtime.init_image import default_sides, pictures_of, resized
from bksdm.runtime.validation import shown

if TYPE_CHECKING:
    from bksdm.runtime.generation_config import GenerationConfig


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
                each_of(scale, count),
                each_of(config.control_guidance_start, count),
                each_of(config.control_guidance_end, count),
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
            raise RequestError(f"control_image has {len(self.given)} entries, but {counted(nets)}")
        return [list(each) if isinstance(each, Sequence) else [each] for each in self.given]
