"""Which distributions are installed, without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """Return the version of a distribution; None where it is not installed.

    ``unknown`` is one whose record cannot be read.
    """
    try:
        return version(package) or "unknown"
    except PackageNotFoundError:
        return None
    except (UnicodeDecodeError, KeyError):
        return "unknown"
