"""Where what a machine makes from a bundle is written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

ENGINES = "engines"
"""The folder in a bundle."""
_INSTALLED = ("site-packages", "dist-packages")
_HUB = "models--"
# The built-in model is part of the package, installed or not.
_BUILT_IN = Path(__file__).resolve().parents[1] / "models"


def user_cache() -> Path:
    """Return the folder of this program in the user's cache, as the system has it."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("bksdm", appauthor=False))


def engines_folder(bundle: Path) -> Path:
    """Return the folder to write what was made from a bundle.

    It is the bundle's own, which goes where the bundle goes, unless that cannot be written or
    belongs to others: to an installed package or to a model hub's cache, which would remove it or
    wonder at it. Then it is one of the user's cache, named after the bundle and its place.
    """
    place = bundle.resolve()
    own = place / ENGINES
    theirs = (
        place.is_relative_to(_BUILT_IN)
        or any(part in _INSTALLED or part.startswith(_HUB) for part in place.parts)
        or not os.access(own if own.is_dir() else place, os.W_OK)
    )
    cache = user_cache()
    # Without a home, there is only a path in the working directory.
    if not theirs or not cache.is_absolute():
        return bundle / ENGINES
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    return cache / ENGINES / f"{place.name}-{digest}"


def written_in(engines: Path, bundle: Path) -> Path:
    """Return where to write in place of a folder of engines, which may be a bundle's own."""
    return engines_folder(bundle) if engines == bundle / ENGINES else engines
