"""What Prometheus may ask: queues, batches, stages, refusals, memory; never prompts."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bksdm.serve.errors import ServeError
from bksdm.serve.models import Models
from bksdm.serve.observer import Observer
from bksdm.serve.ticket import Ticket

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
PICTURES = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """The metrics of a server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        kept = self.registry
        self.requests = Counter(
            "bksdm_http_requests", "HTTP requests", ["route", "status"], registry=kept
        )
        self.latency = Histogram(
            "bksdm_http_seconds",
            "Seconds of HTTP requests",
            ["route"],
            buckets=SECONDS,
            registry=kept,
        )
        self.batch = Histogram(
            "bksdm_batch_pictures",
            "Pictures that made a step in one turn",
            ["model"],
            buckets=PICTURES,
            registry=kept,
        )
        self.stage = Histogram(
            "bksdm_stage_seconds",
            "Seconds of a stage: queue, step, decode, or whole, from arrival to end",
            ["model", "stage"],
            buckets=SECONDS,
            registry=kept,
        )
        self.pictures = Counter(
            "bksdm_pictures", "Pictures that were made", ["model"], registry=kept
        )
        self.ended = Counter(
            "bksdm_ended",
            "Requests that ended, by how: done, or an error",
            ["model", "how"],
            registry=kept,
        )
        self.refused = Counter(
            "bksdm_refused", "Requests not taken", ["model", "code"], registry=kept
        )
        self.restarts = Counter(
            "bksdm_engine_restarts", "Engines loaded anew", ["model"], registry=kept
        )

    def observer(self, model: str) -> Observer:
        """Return what counts the events of a model's scheduler."""
        return _ModelMetrics(self, model)

    def watch(self, models: Models) -> None:
        """Have the state of schedulers read when somebody asks."""
        self.registry.register(_States(models))

    def text(self) -> bytes:
        """Return all of them, as Prometheus reads it."""
        return generate_latest(self.registry)


class _ModelMetrics(Observer):
    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model

    def called(self, pictures: int, seconds: float) -> None:
        self._metrics.batch.labels(self._model).observe(pictures)
        self._metrics.stage.labels(self._model, "step").observe(seconds)

    def decoded(self, seconds: float) -> None:
        self._metrics.stage.labels(self._model, "decode").observe(seconds)
        self._metrics.pictures.labels(self._model).inc()

    def refused(self, code: str) -> None:
        self._metrics.refused.labels(self._model, code).inc()

    def ended(self, ticket: Ticket) -> None:
        error = ticket.error
        code = error.code if isinstance(error, ServeError) else type(error).__name__
        how = "done" if error is None else code
        self._metrics.ended.labels(self._model, how).inc()
        self._metrics.stage.labels(self._model, "queue").observe(ticket.queued)
        self._metrics.stage.labels(self._model, "whole").observe(ticket.seconds)

    def restarted(self) -> None:
        self._metrics.restarts.labels(self._model).inc()


class _States(Collector):
    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        told = (
            ("waiting_requests", "Requests that wait", "waiting"),
            ("waiting_seconds", "Seconds of work that waits", "waiting_seconds"),
            ("running_pictures", "Pictures under way", "running"),
            ("alive", "Whether all engine threads are alive", "alive"),
        )
        for name, words, state in told:
            family = GaugeMetricFamily(f"bksdm_{name}", words, labels=["model"])
            for model, served in dict(self._models.loaded).items():
                family.add_metric([model], float(getattr(served.scheduler, state)))
            yield family
