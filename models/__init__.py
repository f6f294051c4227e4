"""Models that come with the package, and the names by which they are asked for."""

import os
from pathlib import Path

EMOJI = Path(__file__).parent / "emoji"
"""A small model that draws a few dozen objects: bundle and diffusers checkpoint in one folder."""

BUILT_IN = {"emoji": EMOJI}
"""Their folders by name."""


def bundle_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that a path or the name of a built-in model stands for.

    Whatever exists under the path wins: a folder ``emoji`` hides the built-in model of that name.
    """
    found = Path(path)
    return found if os.path.lexists(found) else BUILT_IN.get(str(path), found)
