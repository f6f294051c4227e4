"""The record of an engine, which stands in the engine's own file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bksdm.engines.device import DeviceNetwork
from bksdm.engines.packages import installed_version
from bksdm.engines.protocol import Engine
from bksdm.optimize.rules import MadeFor, Rules
from bksdm.storage.precision import PRECISIONS

if TYPE_CHECKING:
    from bksdm.engines.preparing import Preparation

OpenOnDevice = Callable[["Path", int, int, "Path | None"], DeviceNetwork]
Open = Callable[["Path", "int | None", "Path | None", "MadeFor", str, str], Engine]


@dataclass(frozen=True)
class Capabilities:
    """The abilities of an engine; requests that need more are refused before loading.

    Attributes
    ----------
    name : str
        Of the engine.
    feature_reuse : bool
        Whether the UNet's deep features can serve several evaluations (``fast``).
    attention_mask : bool
        Whether a text encoder can be told which tokens are padding.
    control : bool
        Whether ControlNets can act on the UNet.
    on_device : bool
        Whether the whole loop runs on a GPU.
    precisions : tuple of str
        The types that it computes in, where the processor does.
    concurrent : bool
        Whether threads run a network at the same time, rather than one after the other.
    loras : bool
        Whether networks take the factors of LoRAs as inputs.
    """

    name: str
    feature_reuse: bool = False
    attention_mask: bool = True
    control: bool = False
    on_device: bool = False
    precisions: tuple[str, ...] = tuple(PRECISIONS)
    concurrent: bool = False
    loras: bool = False


@dataclass(frozen=True)
class Backend:
    """An engine. A module of :mod:`bksdm.engines` lists its own as ``BACKENDS``.

    Attributes
    ----------
    capabilities : Capabilities
        What it can do.
    packages : tuple of str
        Distributions that bring it; the first that is installed counts.
    extra : str
        Of this package, which installs it.
    rules : Rules
        Which rewritings of a graph it gains from.
    open : callable, optional
        Loads one network: ``open(model, threads, cache, made_for, variant, precision)``. None where
        the loop is on a GPU.
    open_on_device : callable, optional
        Loads one network for that loop: ``open_on_device(model, stream, gpu, cache)``. None where
        it runs plans, which ``bksdm build`` makes.
    graph : callable, optional
        From ``model.onnx`` to the :class:`~bksdm.engines.preparing.Preparation` of an engine that
        opens networks on a GPU, which may be made without one.
    on_cpu : bool
        Whether it runs networks on the CPU, where ``bksdm build --tune`` measures them.
    check : callable, optional
        Raises an :class:`EngineError` where it cannot be used here, for another reason, too, than
        that it is not installed; warns of what may become one.
    """

    capabilities: Capabilities
    packages: tuple[str, ...]
    extra: str
    rules: Rules
    open: Open | None = None
    open_on_device: OpenOnDevice | None = None
    graph: Callable[[Path], Preparation] | None = None
    on_cpu: bool = False
    check: Callable[[], object] | None = None

    @property
    def name(self) -> str:
        """The name that users ask for."""
        return self.capabilities.name

    @property
    def runs_plans(self) -> bool:
        """Whether it runs what ``bksdm build`` made for one GPU, not graphs."""
        return self.open is None and self.open_on_device is None

    @property
    def missing(self) -> str:
        """What to tell a user who has not installed it."""
        return missing(self.name, self.extra)

    @property
    def version(self) -> str | None:
        """Of its package; None where it is not installed."""
        return next(filter(None, map(installed_version, self.packages)), None)


def missing(name: str, extra: str) -> str:
    """Return what to tell a user who has not installed something that an extra brings."""
    return f"{name} is not installed; run: pip install 'bksdm-runtime[{extra}]'"
