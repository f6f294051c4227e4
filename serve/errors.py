"""What a server answers in place of pictures: a status, a code, and one line."""

from __future__ import annotations

from bksdm.engines.errors import BksdmError


class ServeError(BksdmError):
    """An answer without pictures.

    Parameters
    ----------
    message : str
        One line: what is wrong, and what to do.
    retry_after : float, optional
        After how many seconds the same request would be taken.
    """

    status = 500
    code = "server_error"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineFailed(ServeError):
    """The engine ended with an error while these pictures were made."""

    code = "engine_failed"


class Unavailable(ServeError):
    """The server is starting, stopping, or without an engine."""

    status, code = 503, "unavailable"


class Refused(ServeError):
    """The queue is full, or a caller asks too often."""

    status, code = 429, "too_many_requests"


class TooLate(ServeError):
    """The pictures could not be, or were not, ready in the time that the request gives."""

    status, code = 504, "deadline"


class Withdrawn(ServeError):
    """Cancelled by who asked for it, or the client is gone."""

    status, code = 499, "cancelled"


class NotFound(ServeError):
    """There is no such model, job or file."""

    status, code = 404, "not_found"


class TooLarge(ServeError):
    """The request has more bytes, pixels or text than the server takes."""

    status, code = 413, "too_large"


class Unauthorized(ServeError):
    """The request has no key, or one that is not known."""

    status, code = 401, "unauthorized"


class FieldError(ServeError):
    """A field is wrong, or cannot be honoured.

    Parameters
    ----------
    field : str
        Its name; empty where the fault is not one field's.
    message : str
        One line that names it.
    """

    status, code = 422, "invalid_field"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
