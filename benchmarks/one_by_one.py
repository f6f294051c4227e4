"""A server that draws one picture after the other, to compare with.

python -m bksdm.benchmarks.one_by_one BUNDLE THREADS
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bksdm.runtime.pipeline import TextToImage
from bksdm.serve.server import listen


def make_app(model: TextToImage) -> Starlette:
    """Return an application that draws requests in the order in which they come."""
    # One thread, whose queue is the server's.
    drawing = ThreadPoolExecutor(1)

    def draw(fields: dict[str, object]) -> str:
        (picture,) = model(**fields).images  # type: ignore[arg-type]
        content = io.BytesIO()
        picture.save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    async def generations(request: Request) -> Response:
        fields = await request.json()
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(drawing, draw, fields)
        return JSONResponse({"data": [{"b64_json": content}]})

    return Starlette(routes=[Route("/v1/images/generations", generations, methods=["POST"])])


def _main(bundle: str, threads: str) -> None:
    listening = listen("127.0.0.1", 0)
    app = make_app(TextToImage.load(Path(bundle), threads=int(threads)))
    host, port = listening.getsockname()[:2]
    print(f"serving on http://{host}:{port}", flush=True)
    config = uvicorn.Config(app, log_level="error", http="h11", ws="none")
    asyncio.run(uvicorn.Server(config).serve([listening]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
