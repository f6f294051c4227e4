"""Read bodies of requests: JSON, or the parts of a form, which never touch a disk."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from bksdm.serve.errors import FieldError

MOST_PARTS = 64


class _InMemory(MultiPartParser):
    # What is larger goes to a temporary file; bodies are limited before.
    spool_max_size = 2**62


async def json_object(request: Request) -> dict[str, Any]:
    """Return a body that is a JSON object.

    Raises
    ------
    FieldError
        It is none.
    """
    content = await request.body()
    try:
        found = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FieldError("", "the body must be a JSON object, which this is not") from error
    if not isinstance(found, dict):
        raise FieldError("", f"the body must be a JSON object, not {type(found).__name__}")
    return found


async def form_parts(request: Request, most_bytes: int) -> list[tuple[str, str | bytes]]:
    """Return name and content of each part of a form: texts, and files as bytes.

    Raises
    ------
    FieldError
        It is no such form.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise FieldError("", "the body must be multipart/form-data")
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=MOST_PARTS,
        max_fields=MOST_PARTS,
        max_part_size=most_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise FieldError("", "the body is a damaged form") from error
    parts: list[tuple[str, str | bytes]] = []
    for name, part in form.multi_items():
        parts.append((name, part if isinstance(part, str) else await part.read()))
    return parts


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
