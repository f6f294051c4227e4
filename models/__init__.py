"""Models that come with the package."""

from pathlib import Path

EMOJI = Path(__file__).parent / "emoji"
"""A small model that draws a few dozen objects: bundle and diffusers checkpoint in one folder."""
