"""Show pictures of the steps in the terminal, save them, or animate them."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from PIL import Image, features

from bksdm.cli.outputs import check_folder, is_replaced, numbered
from bksdm.cli.terminal import TerminalPicture
from bksdm.engines.errors import RequestError
from bksdm.runtime.images import read_parameters, to_pil
from bksdm.runtime.picture_formats import save_picture
from bksdm.runtime.picture_record import PictureRecord
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.sampling import Step
from bksdm.runtime.user_files import write_output
from bksdm.storage.files import clear_abandoned

FRAME_MS, LAST_FRAME_MS = 120, 2000


class StepPictures:
    """Show or save x̂_0 of every step.

    Parameters
    ----------
    exact : bool
        Whether the VAE decodes it, rather than the bundle's linear preview.
    show : bool
        Whether the terminal shows the first image.
    folder : Path, optional
        Where each step's images are written, instead of those of an earlier run.
    animation : Path, optional
        WebP to write in the end, one for each image.

    Raises
    ------
    RequestError
        There is no terminal, the folder cannot be made, or the animation has another form.
    """

    def __init__(
        self, exact: bool, show: bool, folder: Path | None, animation: Path | None
    ) -> None:
        named = animation is None or animation.suffix.lower() == ".webp"
        if animation is not None and not named and is_replaced(animation):
            raise RequestError(
                f"--animate writes WebP; name a file that ends in .webp, not {animation}"
            )
        if animation is not None and not features.check("webp"):
            raise RequestError("--animate needs a Pillow that was built with WebP")
        if folder is not None:
            check_folder(folder)
        self._exact = exact
        self._folder = folder
        self._animation = animation
        self._terminal = TerminalPicture(sys.stderr) if show else None
        self._frames: list[list[Image.Image]] = []
        self._saved: list[list[Path]] = []

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._terminal or self._folder or self._animation)

    def add(self, model: TextToImage, step: Step) -> None:
        """Take the pictures of one step."""
        if self._exact:
            pictures = to_pil(model.decode(step.denoised, step.denoising.job.vae))
        else:
            height, width = (side * model.bundle.vae_scale for side in step.latents.shape[2:])
            small = to_pil(model.preview(step.denoised))
            pictures = [p.resize((width, height), Image.Resampling.BICUBIC) for p in small]
        if self._terminal is not None:
            self._terminal.show(pictures[0])
        if self._folder is not None:
            digits = len(str(step.total))
            if not self._saved:
                _prepare(self._folder)
                self._saved = [[] for _ in pictures]
            for index, picture in enumerate(pictures):
                name = numbered(Path(f"step-{step.index + 1:0{digits}}.png"), index)
                told = {"step": f"{step.index + 1} of {step.total}", "exact": str(self._exact)}
                save_picture(picture, self._folder / name, PictureRecord(told))
                self._saved[index].append(self._folder / name)
        if self._animation is not None:
            self._frames.append(pictures)

    def finish(self, images: list[Image.Image], unfit: list[bool]) -> None:
        """Show the first of the finished images.

        What was saved of those that the safety checker found unfit is removed: the last step is
        the picture itself.
        """
        if self._terminal is not None and not unfit[0]:
            self._terminal.show(images[0])
        for index, paths in enumerate(self._saved):
            for path in paths if unfit[index] else ():
                path.unlink(missing_ok=True)

    def animate(self, images: list[Image.Image], unfit: list[bool]) -> list[Path]:
        """Write the animations, the finished images at their ends, and return their paths."""
        if self._animation is None:
            return []
        paths = []
        for index, (*frames, last) in enumerate(zip(*self._frames, images, strict=True)):
            if unfit[index]:
                continue
            path = numbered(self._animation, index)
            _save_animation([*frames, last], path)
            paths.append(path)
        return paths

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None


def _prepare(folder: Path) -> None:
    """Make a folder for steps, or take those of an earlier run out of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_abandoned(folder)
        for path in folder.glob("step-*.png"):
            if re.fullmatch(r"step-\d+(-\d+)?\.png", path.name) and _is_step(path):
                path.unlink()
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror or error}") from error


def _is_step(path: Path) -> bool:
    """Return whether this program wrote a picture, by its record, not only by its name."""
    try:
        return "step" in read_parameters(path)
    except RequestError:
        return False


def _save_animation(frames: list[Image.Image], path: Path) -> None:
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    written = io.BytesIO()
    frames[0].save(
        written,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        quality=90,
    )
    write_output(path, written.getvalue())
