"""One training run: its time budget, log, saves and sample pictures."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SAVE_SECONDS = 120
LOG_STEPS = 50
SMOOTHING = 0.98


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments that every training takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", type=Path, required=True, help="folder of saves and results")
    parser.add_argument(
        "--minutes", type=float, required=True, help="processor time that the stage may take"
    )
    return parser


class Run:
    """Counts steps and spent processor time over restarts, and saves what ``resume`` was given.

    Parameters
    ----------
    folder : Path
        Where saves, logs and results go.
    name : str
        The stage; its files are ``name.pt`` and ``name.log``.
    minutes : float
        Budget of all starts together.
    """

    def __init__(self, folder: Path, name: str, minutes: float) -> None:
        torch.set_num_threads(1)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.step = 0
        self._save_path = folder / f"{name}.pt"
        self._log_path = folder / f"{name}.log"
        self._budget = 60 * minutes
        self._spent = 0.0
        self._tick = self._saved = time.process_time()
        self._kept: dict[str, Any] = {}
        self._means: dict[str, float] = {}

    @property
    def fraction(self) -> float:
        """The part of the budget that is spent, 0 … 1."""
        return min(1.0, self._spent / self._budget)

    @property
    def minutes(self) -> float:
        """The time spent so far."""
        return self._spent / 60

    def mean(self, name: str) -> float:
        """Return the smoothed value that was last logged under ``name``."""
        return self._means[name]

    def resume(self, **kept: Any) -> int:
        """Load the last save into ``kept`` (anything with a state_dict); return the step."""
        self._kept = kept
        if self._save_path.is_file():
            state = torch.load(self._save_path, weights_only=True)
            self.step, self._spent = state["step"], state["spent"]
            for name, value in kept.items():
                value.load_state_dict(state[name])
            self.log(f"resumed at step {self.step}")
        torch.manual_seed(self.step)
        self._tick = self._saved = time.process_time()
        return self.step

    def goes_on(self) -> bool:
        """Tell whether budget is left; the last save is written when it is not."""
        if self._spent < self._budget:
            return True
        self.save()
        return False

    def advance(self, **values: float) -> None:
        """Count one step, log smoothed ``values`` now and then, and save now and then."""
        now = time.process_time()
        self._spent += now - self._tick
        self._tick = now
        self.step += 1
        for name, value in values.items():
            mean = self._means.get(name, value)
            self._means[name] = SMOOTHING * mean + (1 - SMOOTHING) * value
        if self.step % LOG_STEPS == 0:
            shown = "  ".join(f"{name} {mean:.4f}" for name, mean in self._means.items())
            self.log(f"step {self.step}  {self._spent / 60:.1f} min  {shown}")
        if now - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the state beside the last save and rename it."""
        state: dict[str, Any] = {name: value.state_dict() for name, value in self._kept.items()}
        partial = self._save_path.with_suffix(".partial")
        torch.save({**state, "step": self.step, "spent": self._spent}, partial)
        partial.replace(self._save_path)
        self._saved = time.process_time()

    def pause(self) -> None:
        """Leave the time since the last step out of the budget."""
        self._tick = time.process_time()

    def log(self, line: str) -> None:
        """Print a line and append it to the stage's log."""
        print(line, flush=True)
        with self._log_path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")


def save_grid(pictures: Tensor, path: Path, columns: int) -> None:
    """Write pictures [count, 3, height, width] in −1 … 1 as one PNG, row by row."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = torch.ones(rows * columns, 3, height, width)
    sheet[:count] = pictures.detach().clamp(-1, 1)
    sheet = sheet.reshape(rows, columns, 3, height, width).permute(0, 3, 1, 4, 2)
    tiled = sheet.reshape(rows * height, columns * width, 3)
    Image.fromarray(((tiled + 1) * 127.5).round().byte().numpy()).save(path)
