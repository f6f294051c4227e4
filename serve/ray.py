"""The server as an application of Ray Serve: ``serve run bksdm.serve.ray:app bundles=small/``.

Each of Ray's replicas is a whole server with a scheduler of its own, so that requests join between
steps; Ray decides how many there are, and which one a request goes to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from bksdm.engines.errors import EngineError, RequestError
from bksdm.models import bundle_folder
from bksdm.serve.app import make_app
from bksdm.serve.callers import Keys
from bksdm.serve.measure import Wanted
from bksdm.serve.models import Served, named
from bksdm.serve.service import Service
from bksdm.serve.settings import Settings

PER_REPLICA = 64
"""Requests that Ray hands to a replica at most: those beyond a batch wait in its scheduler, which
knows who is next."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What :func:`app` is told, in a configuration or as ``name=value``.

    Attributes
    ----------
    bundles : str
        Folders, with commas between them; clients ask for them by their last names. The first is
        the default. Each machine of the cluster needs them.
    engine : str
        ``onnxruntime`` or ``openvino``.
    threads : int
        CPU threads of a replica, which Ray reserves.
    max_batch : int
        Most pictures that a replica draws together; 0 is measured.
    min_replicas, max_replicas : int
        Between which Ray chooses. With more than one, there is only OpenAI's API: jobs, links and
        A1111's choices are in the memory of one replica.
    target_requests : float
        Requests under way for each replica that Ray aims at.
    api_key_file : str
        As of ``bksdm serve``; each machine needs it.
    """

    bundles: str = "emoji"
    engine: str = "onnxruntime"
    threads: int = 1
    max_batch: int = 0
    min_replicas: int = 1
    max_replicas: int = 1
    target_requests: float = 4.0
    api_key_file: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Arguments:
        """Return what a mapping says, whose values may be texts.

        Raises
        ------
        RequestError
            A name is unknown, or a value is none of its kind.
        """
        kinds = {name: type(value) for name, value in dataclasses.asdict(cls()).items()}
        if unknown := [name for name in given if name not in kinds]:
            raise RequestError(f"unknown argument {unknown[0]!r}; known: {', '.join(kinds)}")
        try:
            return cls(**{name: kinds[name](value) for name, value in given.items()})
        except ValueError as error:
            raise RequestError(f"an argument has a wrong value: {error}") from error


class Replica:
    """The ASGI application of one replica: loads the first model before it takes requests.

    Parameters
    ----------
    service : Service
        What it serves.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._app: ASGIApp = make_app(service)

        async def load(name: str) -> Served:
            return await service.models.get(name)

        # By it, Ray learns which models a replica has, and sends requests that name one there.
        count = len(service.models.bundles)
        self._load = serve.multiplexed(max_num_models_per_replica=count)(load)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or load and let go of models as ASGI's lifespan says."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        wanted = serve.get_multiplexed_model_id()
        if wanted in self.service.models.bundles:
            await self._load(wanted)
        await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        models = self.service.models
        await receive()
        await models.get()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.service.stop()
        await models.close()
        await send({"type": "lifespan.shutdown.complete"})


def app(given: Mapping[str, Any]) -> serve.Application:
    """Return the application.

    Parameters
    ----------
    given : mapping
        Fields of :class:`Arguments`.

    Raises
    ------
    RequestError, BundleError
        An argument is wrong, or there is no such bundle.
    """
    arguments = Arguments.of(given)
    bundles = named(bundle_folder(path).absolute() for path in arguments.bundles.split(","))
    settings = Settings(
        engine=arguments.engine,
        wanted=Wanted(1, arguments.threads, arguments.max_batch or None),
        one_of_several=arguments.max_replicas > 1,
    )
    key_file = arguments.api_key_file

    def replica() -> Replica:
        keys = Keys.read(Path(key_file)) if key_file else None
        return Replica(Service(bundles, settings, keys))

    class Pictures:
        """A replica, as Ray sees it."""

        app: Replica

        def check_health(self) -> None:
            """Tell Ray whether the replica has to be replaced."""
            models = self.app.service.models
            if models.failure is not None or not models.alive:
                raise EngineError(models.failure or "an engine thread has ended or hangs")

    deployment = serve.deployment(
        name="bksdm",
        max_ongoing_requests=PER_REPLICA,
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.target_requests,
        },
        ray_actor_options={"num_cpus": arguments.threads},
        graceful_shutdown_timeout_s=settings.grace_seconds,
    )
    application: serve.Application = deployment(serve.ingress(replica)(Pictures)).bind()
    return application
