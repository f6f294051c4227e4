"""What every request passes: its id, its log line, its limits, its key, and what becomes of errors.

Pure ASGI: Starlette's own base class for middleware would hide that a client is gone.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bksdm.serve.answers import answer, error_of
from bksdm.serve.callers import Keys
from bksdm.serve.errors import ServeError, TooLarge
from bksdm.serve.metrics import Metrics
from bksdm.serve.settings import Limits

LOG = logging.getLogger("bksdm.serve.requests")
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
OPEN = re.compile(r"/|/static/.*|/favicon\.ico|/health/(live|ready)|/openapi\.json|/v1/files/.*")
"""Paths that need no key: the page itself, probes, the description, and links, which are signed."""
FREE = re.compile(r"/v1/jobs/.+|/sdapi/v1/(progress|interrupt)|/metrics|/v1/models")
"""Paths that do not count for a key's rate: they draw nothing."""
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


class Logged:
    """Gives a request its id, counts it, and logs one line about it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        number = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": number, "told": {}}
        start, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            told: dict[str, Any] = {
                "request_id": number,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 4),
                **scope["state"]["told"],
            }
            LOG.info("request", extra={"told": told})


class Answered:
    """Turns exceptions into answers of the API that was asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if scope["type"] != "http" or begun:
                raise
            told = error_of(error)
            scope["state"]["told"]["error"] = told.code
            await answer(scope["path"], told)(scope, receive, send)


class Limited:
    """Refuses bodies that are too large, by what they say or by what comes, or too slow."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        most = self._limits.body_bytes
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length[:18]) > most:
            raise TooLarge(f"the body may have {most} bytes here")
        received, complete = 0, False

        async def counting() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._limits.body_seconds)
            except TimeoutError as error:
                slow = ServeError("the body came too slowly")
                slow.status, slow.code = 408, "timeout"
                raise slow from error
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > most:
                raise TooLarge(f"the body may have {most} bytes here")
            return message

        await self._app(scope, counting, send)


class Identified:
    """Finds out who calls, by the key."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and not OPEN.fullmatch(scope["path"]):
            client = scope.get("client")
            counts = FREE.fullmatch(scope["path"]) is None
            address = client[0] if client else ""
            caller = self._keys.caller(Headers(scope=scope), address, counts)
            scope["state"]["caller"] = caller
            scope["state"]["told"]["caller"] = caller.name
        await self._app(scope, receive, send)
