"""Pictures of the steps: shown in the terminal, saved, and as an animation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from PIL import Image, features

from bksdm.cli.terminal import TerminalPicture
from bksdm.engines.errors import RequestError
from bksdm.runtime.images import save_png, to_pil
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.sampling import Step

FRAME_MS, LAST_FRAME_MS = 120, 2000


class StepPictures:
    """What to do with x̂_0 of every step.

    Parameters
    ----------
    exact : bool
        Whether the VAE decodes it, rather than the bundle's linear preview.
    show : bool
        Whether the terminal shows the first image.
    folder : Path, optional
        Where each step's images are written.
    animation : Path, optional
        WebP to write in the end, one for each image.

    Raises
    ------
    RequestError
        There is no terminal, a folder cannot be made, or the animation has another form.
    """

    def __init__(
        self, exact: bool, show: bool, folder: Path | None, animation: Path | None
    ) -> None:
        if animation is not None and animation.suffix.lower() != ".webp":
            raise RequestError(f"--animate writes WebP; name a file that ends in .webp, "
                               f"not {animation}")  # fmt: skip
        if animation is not None and not features.check("webp"):
            raise RequestError("--animate needs a Pillow that was built with WebP")
        if animation is not None and not os.access(animation.resolve().parent, os.W_OK):
            raise RequestError(f"cannot write {animation}: no writable folder")
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RequestError(f"cannot make {folder}: {error.strerror}") from error
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
            pictures = to_pil(model.decode(step.denoised))
        else:
            height, width = (side * model.bundle.vae_scale for side in step.latents.shape[2:])
            small = to_pil(model.preview(step.denoised))
            pictures = [p.resize((width, height), Image.Resampling.BICUBIC) for p in small]
        if self._terminal is not None:
            self._terminal.show(pictures[0])
        if self._folder is not None:
            digits = len(str(step.total))
            self._saved = self._saved or [[] for _ in pictures]
            for index, picture in enumerate(pictures):
                name = numbered(Path(f"step-{step.index + 1:0{digits}}.png"), index)
                told = {"step": f"{step.index + 1} of {step.total}", "exact": str(self._exact)}
                save_png(picture, self._folder / name, told)
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


def numbered(path: Path, index: int) -> Path:
    """Return the path of an image beside the first: ``a.png``, ``a-2.png`` …."""
    return path.with_name(f"{path.stem}-{index + 1}{path.suffix}") if index else path


def _save_animation(frames: list[Image.Image], path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    try:
        frames[0].save(
            partial, format="WEBP", save_all=True, append_images=frames[1:], duration=durations,
            loop=0, quality=90,
        )  # fmt: skip
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RequestError(f"cannot write {path}: {error.strerror or error}") from error
