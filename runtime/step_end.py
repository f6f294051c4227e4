"""``callback_on_step_end`` as diffusers calls it, with what it may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bksdm.engines.errors import RequestError
from bksdm.engines.protocol import Array
from bksdm.runtime.noise_predictor import HostDenoising
from bksdm.runtime.sampling import Step
from bksdm.runtime.validation import floats, number, several, shown

if TYPE_CHECKING:
    from bksdm.runtime.pipeline import TextToImage
    from bksdm.runtime.request import Request

TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
"""What ``callback_on_step_end_tensor_inputs`` may name."""
Callback = Callable[["Run", int, Any, dict[str, Any]], dict[str, Any]]
EMBEDDINGS = "encoder_hidden_states"


def tensor_names(value: Any) -> Sequence[str]:
    """Return what ``callback_on_step_end_tensor_inputs`` names.

    Raises
    ------
    RequestError
        One is not of :data:`TENSORS`.
    """
    names = several(value) or ()
    if unknown := [name for name in names if name not in TENSORS]:
        raise RequestError(
            f"callback_on_step_end_tensor_inputs may hold {', '.join(TENSORS)}, not "
            f"{shown(unknown[0])}"
        )
    return names


class Run:
    """One call of a model, as its callback sees it in place of diffusers' pipeline.

    Of its own, because threads may share the model.

    Attributes
    ----------
    model : TextToImage
        The model.
    num_timesteps : int
        Evaluations of this call.
    guidance : Guidance
        As it was asked for.
    embedded : bool
        Whether the UNet was told the scale before the first step, and has no second half.
    _guidance_scale : float
        May be set for the evaluations to come.
    _interrupt : bool
        Set to True, it makes the latents so far the result.
    """

    def __init__(self, model: TextToImage, request: Request) -> None:
        self.model = model
        self.num_timesteps = len(request.table)
        self.guidance = request.stated_guidance
        self.embedded = request.guidance_width is not None
        self._guidance_scale = self.guidance.scale
        self._interrupt = False

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the next evaluation."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next evaluation has guidance."""
        return self._guidance_scale > 1 and not self.embedded

    @property
    def interrupt(self) -> bool:
        """Whether this call ends here."""
        return self._interrupt


class StepEnd:
    """Calls the function after every step, and takes over what it returns.

    Parameters
    ----------
    run : Run
        What the function is given first.
    function : callable
        ``function(run, index, timestep, tensors)`` returns a dictionary; what it holds of
        :data:`TENSORS` takes the place of these.
    names : sequence of str
        Which of them ``tensors`` holds.

    Raises
    ------
    RequestError
        A name is unknown, or the function is none.
    """

    def __init__(self, run: Run, function: Any, names: Sequence[str]) -> None:
        if not callable(function):
            raise RequestError(f"callback_on_step_end must be a function, not {shown(function)}")
        # diffusers' own callbacks are objects that state them.
        self._names = tensor_names(getattr(function, "tensor_inputs", names))
        self._run, self._function = run, function
        self._negative: Array | None = None

    def __call__(self, step: Step) -> None:
        """Call the function; see the class.

        Raises
        ------
        RequestError
            It returned no dictionary, or something of another shape.
        """
        denoising: HostDenoising = step.denoising  # type: ignore[assignment]
        trajectory, images = denoising.trajectory, denoising.job.images
        embeddings = trajectory.conditioning[EMBEDDINGS]
        if step.index == 0 and denoising.job.guidance is not None:
            self._negative = embeddings[:images].copy()
        # A copy, because changes in place count as well.
        latents = step.latents.copy()
        tensors = dict(zip(TENSORS, (latents, embeddings, self._negative), strict=True))
        time = np.float64(step.timestep)
        returned = self._function(
            self._run,
            step.index,
            np.int64(time) if time.is_integer() else time,
            {name: tensors[name] for name in self._names},
        )
        if not isinstance(returned, dict):
            raise RequestError(
                f"callback_on_step_end must return a dictionary, as in diffusers, not "
                f"{shown(returned)}; on_step takes a function of a Step that returns nothing"
            )
        # Text is joined before the loop, so that the negative half alone changes nothing.
        self._negative = returned.get("negative_prompt_embeds", self._negative)
        changed = floats("latents", returned.get("latents", latents), latents.shape)
        if not np.array_equal(changed, step.latents):
            trajectory.change(step.index, changed)
        scale = number("_guidance_scale", self._run.guidance_scale)
        if not self._run.embedded:
            denoising.guidance = replace(self._run.guidance, scale=scale).where_on()
        rows = images * (1 if denoising.guidance is None else 2)
        given = returned.get("prompt_embeds", embeddings)
        if given is not embeddings or len(embeddings) < rows:
            text = floats("prompt_embeds", given, (None, None, embeddings.shape[2]))
            if len(text) != rows:
                raise RequestError(
                    f"prompt_embeds must have {rows} rows at a guidance scale of "
                    f"{self._run.guidance_scale:g}, not {len(text)}"
                )
            trajectory.condition(
                {**trajectory.conditioning, EMBEDDINGS: text.astype(embeddings.dtype)}
            )
