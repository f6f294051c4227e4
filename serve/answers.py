"""Errors, in the form of the API that was asked."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from bksdm.engines.errors import BksdmError, RequestError, SamplerError
from bksdm.serve.errors import FieldError, NotFound, ServeError, Unauthorized, Withdrawn
from bksdm.serve.order import field_error

LOG = logging.getLogger("bksdm.serve")
OPENAI, A1111 = ("/v1/images", "/v1/models"), ("/sdapi/",)
"""Beginnings of the paths of other APIs; all the rest is ours, and answers as RFC 9457 has it."""
OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def error_of(error: Exception) -> ServeError:
    """Return what is answered to an exception; what is nobody's fault but ours is logged."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, ClientDisconnect):
        return Withdrawn("the client is gone")
    if isinstance(error, (RequestError, SamplerError)):
        return field_error(error)
    if isinstance(error, HTTPException):
        known = ServeError(error.detail)
        known.status = error.status_code
        known.code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        return known
    LOG.error("request failed", exc_info=error)
    told = str(error) if isinstance(error, BksdmError) else "a fault of the server; see its log"
    return ServeError(told)


def error_body(path: str, error: ServeError) -> dict[str, Any]:
    """Return the body of an answer, as the API of a path has it."""
    field = error.field if isinstance(error, FieldError) else ""
    if path.startswith(OPENAI):
        status = openai_status(error)
        code = "model_not_found" if isinstance(error, NotFound) else error.code
        kind = OPENAI_TYPES.get(status, "server_error")
        return {
            "error": {"message": str(error), "type": kind, "param": field or None, "code": code}
        }
    if path.startswith(A1111):
        detail: Any = str(error)
        if isinstance(error, FieldError):
            where = ["body", field] if field else ["body"]
            detail = [{"loc": where, "msg": str(error), "type": "value_error"}]
        return {"error": error.code, "detail": detail, "body": "", "errors": str(error)}
    told: dict[str, Any] = {
        "type": "about:blank",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "detail": str(error),
        "code": error.code,
    }
    return {**told, "field": field} if field else told


def openai_status(error: ServeError) -> int:
    """Return the status that OpenAI's clients expect."""
    return 400 if isinstance(error, FieldError) else error.status


def answer(path: str, error: ServeError) -> JSONResponse:
    """Return an error as a response."""
    status = openai_status(error) if path.startswith(OPENAI) else error.status
    ours = not path.startswith((*OPENAI, *A1111))
    response = JSONResponse(
        error_body(path, error),
        status,
        media_type="application/problem+json" if ours else "application/json",
    )
    if error.retry_after is not None:
        response.headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
        response.headers["retry-after-ms"] = str(max(1, math.ceil(error.retry_after * 1000)))
    if isinstance(error, Unauthorized):
        # Not Basic, which is taken too: browsers would ask in a window of their own.
        response.headers["www-authenticate"] = "Bearer"
    return response
