"""What runs a server asks of it: is it alive, is it ready, and its metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bksdm.serve.service import Service

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def routes(service: Service) -> list[Route]:
    """Return the routes."""

    async def live(request: Request) -> Response:
        alive = service.models.alive
        return JSONResponse({"alive": alive}, 200 if alive else 503)

    async def ready(request: Request) -> Response:
        told = {"ready": service.ready, "reason": service.models.failure}
        if service.stopping:
            told["reason"] = "stopping"
        return JSONResponse(told, 200 if service.ready else 503)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=PROMETHEUS)

    return [
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/metrics", metrics),
    ]
