"""The whole server as one ASGI application."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from bksdm.serve import a1111_api, health, jobs_api, openai_api
from bksdm.serve.jobs import Jobs
from bksdm.serve.middleware import Answered, Identified, Limited, Logged
from bksdm.serve.openapi import document
from bksdm.serve.service import Service, traced

STATIC = Path(__file__).parent / "static"


def make_app(service: Service) -> ASGIApp:
    """Return the application of a service."""
    described = document(service)

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    async def openapi(request: Request) -> Response:
        return JSONResponse(described)

    settings = service.settings
    routes: list[BaseRoute] = [*openai_api.routes(service), *health.routes(service)]
    if not settings.one_of_several:
        routes += [
            *jobs_api.routes(service, Jobs(service)),
            *a1111_api.routes(service),
            Route("/", page),
            Route("/openapi.json", openapi),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
    middleware = [
        Middleware(Logged, metrics=service.metrics),
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "idempotency-key", "x-api-key"],
            expose_headers=["x-request-id", "retry-after", "location"],
        ),
        Middleware(Answered),
        Middleware(Limited, limits=settings.limits),
        Middleware(Identified, keys=service.keys),
    ]
    if traced():
        from bksdm.serve.traces import Traced

        middleware.insert(0, Middleware(Traced))
    app = Starlette(routes=routes, middleware=middleware)
    # Starlette would answer these in a form of its own.
    app.add_exception_handler(HTTPException, _raise)
    return app


async def _raise(request: Request, error: Exception) -> Response:
    raise error
