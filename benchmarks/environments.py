"""Make environments for other programs and run them; see ``peers/README.md``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bksdm.engines.errors import BksdmError

FOLDER = Path(__file__).parent / "peers"


class PeerError(BksdmError):
    """A peer cannot be installed, or failed; the message is its reason."""


class Runner:
    """A peer's process."""

    def __init__(self, python: Path, folder: str) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, FOLDER / folder / "runner.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # It has nothing to save, and gives back its memory before the next one starts.
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        """Return the answer to one request.

        Raises
        ------
        PeerError
            The peer refused, or its process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            said = [text for text in self._log.read().splitlines() if text.strip()]
            last = said[-1].strip()[:200] if said else "it said nothing"
            raise PeerError(f"its process ended with code {code} during {do} ({last})")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"{do}: {answer['error']}")
        return dict(answer)


def environment(folder: str, work: Path, device: str = "cpu") -> Path:
    """Return the Python of a peer's environment, made on first use.

    One that takes other packages on a device has ``requirements-DEVICE.txt``, and an environment
    of its own for it.

    Raises
    ------
    PeerError
        Its requirements cannot be installed.
    """
    if folder == "bksdm":
        return Path(sys.executable)
    own = FOLDER / folder / f"requirements-{device}.txt"
    place = work / "environments" / (f"{folder}-{device}" if own.exists() else folder)
    python = place / "bin" / "python"
    complete = place / "complete"
    if not complete.exists():
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        usual, alone = (FOLDER / folder / f"requirements{kind}.txt" for kind in ("", "-alone"))
        for wanted, options in ((own if own.exists() else usual, ()), (alone, ("--no-deps",))):
            if wanted.exists():
                _install(python, [*options, "-r", str(wanted)])
        complete.touch()
    return python


def _install(python: Path, arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise PeerError(f"cannot be installed: {(lines or ['pip failed'])[0][:300]}")
