"""The scores of a run, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """A score, and how far its 95 % interval reaches to both sides.

    :func:`~bksdm.evaluate.scores.scores` says how intervals are made.

    Attributes
    ----------
    value : float
        The score.
    reach : float, optional
        Half of the interval; None where there are too few pictures for one.
    """

    value: float
    reach: float | None

    def shown(self, digits: int) -> str:
        """Return it as ``12.34 ± 0.56``."""
        reach = "" if self.reach is None else f" ± {self.reach:.{digits}f}"
        return f"{self.value:.{digits}f}{reach}"


@dataclass(frozen=True)
class Scores:
    """The scores of a run.

    Attributes
    ----------
    pictures : int
        How many were scored.
    fid : Estimate
        Fréchet distance of Inception's features from the reference's.
    inception_score : Estimate
        Mean over :data:`~bksdm.evaluate.protocol.SPLITS` parts.
    clip_score : Estimate
        Mean cosine of pictures and prompts, not multiplied by 100.
    """

    pictures: int
    fid: Estimate
    inception_score: Estimate
    clip_score: Estimate

    def fields(self) -> dict[str, Any]:
        """Return the scores by name, as JSON has them."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Scores:
        """Return what :meth:`fields` described."""
        names = ("fid", "inception_score", "clip_score")
        return cls(fields["pictures"], *(Estimate(**fields[name]) for name in names))

    def shown(self) -> tuple[str, str, str]:
        """Return FID, inception score and CLIP score with their intervals."""
        return self.fid.shown(2), self.inception_score.shown(2), self.clip_score.shown(4)
