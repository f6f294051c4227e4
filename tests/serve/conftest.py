"""The built-in model behind a scheduler."""

from __future__ import annotations

import pytest

from bksdm import TextToImage
from bksdm.serve.costs import Costs
from bksdm.serve.scheduler import Layout, Scheduler

from .app import Running


@pytest.fixture(scope="session")
def model():
    return TextToImage.load(threads=1)


@pytest.fixture
def schedule(model):
    """Return schedulers by their layout; they end with the test."""
    opened = []

    def make(replicas=1, batch=4, queue_seconds=60.0, load=lambda: model, observer=None):
        layout = Layout(replicas, 1, batch)
        found = Scheduler(load, layout, Costs(64, 0.005, 0.01), queue_seconds, observer)
        opened.append(found)
        return found

    yield make
    for scheduler in opened:
        scheduler.close()


@pytest.fixture(scope="session")
def running():
    """Return a server of the built-in model."""
    found = Running()
    yield found
    found.stop()
