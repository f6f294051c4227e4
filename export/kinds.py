"""Which networks a checkpoint has."""

from __future__ import annotations

from pathlib import Path

from bksdm.export.controlnet import controlnet_kind
from bksdm.export.networks import NETWORKS, Network, SafetyChecker, TinyVaeDecoder
from bksdm.export.weights import choose, controlnets_in, listing


def kinds_of(checkpoint: Path, safety_checker: bool) -> tuple[type[Network], ...]:
    """Return the kinds of networks that are made of a checkpoint, the safety checker if asked.

    A tiny VAE decoder and ControlNets are where their weights are: beside the graph, as in the
    built-in model, or put there by :mod:`bksdm.export.prepared`.
    """
    kinds = NETWORKS
    if choose(listing(checkpoint), TinyVaeDecoder.subfolder):
        kinds += (TinyVaeDecoder,)
    kinds += tuple(controlnet_kind(component) for component in controlnets_in(checkpoint))
    return (*kinds, SafetyChecker) if safety_checker else kinds
