"""The part of A1111's WebUI API that other programs draw with: ``/sdapi/v1/``."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import replace
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bksdm.runtime.a1111 import A1111Text
from bksdm.runtime.a1111_options import SAMPLERS
from bksdm.runtime.picture_formats import encode_picture
from bksdm.runtime.samplers import NAMED
from bksdm.runtime.samplers.names import aliases
from bksdm.runtime.samplers.sampler import SPACINGS
from bksdm.serve.a1111_fields import Paste, model_name, order_of
from bksdm.serve.bodies import json_object
from bksdm.serve.callers import Caller
from bksdm.serve.errors import FieldError, Withdrawn
from bksdm.serve.events import ended_or_gone
from bksdm.serve.service import Draft, File, Service
from bksdm.serve.uploads import from_base64, record

PREVIEWS = 10
"""How often ``progress`` has a new picture to show."""


class _UnderWay:
    """What A1111's clients draw, for ``progress`` and ``interrupt``, which name no request."""

    def __init__(self) -> None:
        self._drafts: list[tuple[Caller, Draft]] = []

    def add(self, caller: Caller, draft: Draft) -> None:
        self._drafts.append((caller, draft))

    def remove(self, draft: Draft) -> None:
        self._drafts = [entry for entry in self._drafts if entry[1] is not draft]

    def of(self, caller: Caller) -> list[Draft]:
        """Return the drafts of a caller, the oldest first."""
        return [draft for whose, draft in self._drafts if whose.name == caller.name]


def routes(service: Service) -> list[Route]:
    """Return the routes of this API."""
    under_way = _UnderWay()

    async def txt2img(request: Request) -> Response:
        return await _draw(request, service, under_way, images=False)

    async def img2img(request: Request) -> Response:
        return await _draw(request, service, under_way, images=True)

    async def progress(request: Request) -> Response:
        drafts = under_way.of(request.state.caller)
        wanted = request.query_params.get("skip_current_image", "").lower() not in ("true", "1")
        return JSONResponse(await asyncio.to_thread(_progress, drafts, wanted))

    async def interrupt(request: Request) -> Response:
        for draft in under_way.of(request.state.caller):
            draft.ticket.interrupt()
        return JSONResponse({})

    async def show_options(request: Request) -> Response:
        return JSONResponse(_settings(service))

    async def set_options(request: Request) -> Response:
        fields, known = await json_object(request), _settings(service)
        for name, value in fields.items():
            if name != "sd_model_checkpoint" and known.get(name, ...) != value:
                raise FieldError(name, f"{name!r:.60} cannot be set here")
        if "sd_model_checkpoint" in fields:
            chosen = model_name(fields["sd_model_checkpoint"], service)
            await service.models.get(chosen)
            service.chosen = chosen
        return JSONResponse({})

    async def models(request: Request) -> Response:
        return JSONResponse([_model(name) for name in service.models.bundles])

    async def loras(request: Request) -> Response:
        names = service.models.loras[service.chosen].loaded
        return JSONResponse([{"name": n, "alias": n, "path": "", "metadata": {}} for n in names])

    async def samplers(request: Request) -> Response:
        return JSONResponse([_sampler(name) for name in _plain_samplers()])

    async def schedulers(request: Request) -> Response:
        return JSONResponse([_scheduler(name) for name in ("automatic", "uniform", *SPACINGS)])

    async def scripts(request: Request) -> Response:
        return JSONResponse({"txt2img": [], "img2img": []})

    async def png_info(request: Request) -> Response:
        fields = await json_object(request)
        content = from_base64("image", fields.get("image"))
        most = service.settings.limits.sent_pixels
        found = await asyncio.to_thread(record, "image", content, most)
        return JSONResponse(_info(found.a1111, dict(found.own)))

    prefix = "/sdapi/v1"
    return [
        Route(f"{prefix}/txt2img", txt2img, methods=["POST"]),
        Route(f"{prefix}/img2img", img2img, methods=["POST"]),
        Route(f"{prefix}/progress", progress),
        Route(f"{prefix}/interrupt", interrupt, methods=["POST"]),
        Route(f"{prefix}/options", show_options, methods=["GET"]),
        Route(f"{prefix}/options", set_options, methods=["POST"]),
        Route(f"{prefix}/sd-models", models),
        Route(f"{prefix}/loras", loras),
        Route(f"{prefix}/samplers", samplers),
        Route(f"{prefix}/schedulers", schedulers),
        Route(f"{prefix}/scripts", scripts),
        Route(f"{prefix}/png-info", png_info, methods=["POST"]),
    ]


async def _draw(request: Request, service: Service, under_way: _UnderWay, images: bool) -> Response:
    fields = await json_object(request)
    order, paste = await asyncio.to_thread(order_of, fields, service, images)
    steps = order.config.num_inference_steps
    served = await service.models.get(order.model)
    if (served.bundle.path / "vae_decoder" / "preview.json").is_file():
        order = replace(order, previews=min(PREVIEWS, steps - 1))
    draft = await service.begin(order, request.state.caller)
    request.state.told["model"] = draft.model
    if service.settings.log_prompts:
        request.state.told["prompt"] = order.config.prompt
    under_way.add(request.state.caller, draft)
    try:
        if not await ended_or_gone(draft.ticket, request.receive):
            raise Withdrawn("the client is gone")
    finally:
        draft.cancel()
        under_way.remove(draft)
    draft.ticket.wait(0)
    files = await draft.files()
    if paste is not None:
        files = await asyncio.to_thread(_pasted, files, paste)
    shown = [] if fields.get("send_images") is False else [_text(file.content) for file in files]
    sent = {k: v for k, v in fields.items() if k not in ("init_images", "mask")}
    return JSONResponse({"images": shown, "parameters": sent, "info": _told(draft, files)})


def _pasted(files: list[File], paste: Paste) -> list[File]:
    pasted = []
    for file in files:
        image = paste(Image.open(io.BytesIO(file.content)))
        pasted.append(replace(file, content=encode_picture(image, file.record)))
    return pasted


def _told(draft: Draft, files: list[File]) -> str:
    """Return what A1111 says of the pictures: JSON in a text."""
    config = draft.ticket.request.config
    first = config.seed if isinstance(config.seed, int) else (config.seed or (0,))[0]
    seeds = list(config.seed) if isinstance(config.seed, tuple) else [first] * len(files)
    told = {
        "prompt": config.prompts[0],
        "all_prompts": [config.prompts[0]] * len(files),
        "negative_prompt": config.negative_prompts[0],
        "seed": first,
        "all_seeds": seeds,
        "width": config.width,
        "height": config.height,
        "sampler_name": config.sampler,
        "cfg_scale": config.guidance_scale,
        "steps": config.num_inference_steps,
        "batch_size": len(files),
        "sd_model_name": draft.model,
        "infotexts": [file.record.a1111 for file in files],
    }
    return json.dumps(told)


def _progress(drafts: list[Draft], wanted: bool) -> dict[str, Any]:
    """Return how far the oldest request of a caller is."""
    state: dict[str, Any] = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "",
        "job_count": len(drafts),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    told: dict[str, Any] = {"progress": 0.0, "eta_relative": 0.0}
    told |= {"current_image": None, "textinfo": None}
    if not drafts:
        return {**told, "state": state}
    ticket = drafts[0].ticket
    total = ticket.plan.evaluations
    state |= {
        "interrupted": ticket.interrupted,
        "job": "drawing",
        "sampling_step": ticket.step,
        "sampling_steps": total,
    }
    told |= {
        "progress": ticket.step / total,
        "eta_relative": drafts[0].served.scheduler.estimate(ticket),
    }
    if wanted and ticket.previews:
        small = io.BytesIO()
        Image.fromarray(ticket.previews[-1].pixels[0]).save(small, "PNG")
        told["current_image"] = _text(small.getvalue())
    return {**told, "state": state}


def _settings(service: Service) -> dict[str, Any]:
    return {
        "sd_model_checkpoint": service.chosen,
        "CLIP_stop_at_last_layers": 1,
        "randn_source": "CPU",
        "samples_format": "png",
    }


def _model(name: str) -> dict[str, Any]:
    told = {"title": name, "model_name": name, "filename": name}
    return {**told, "hash": None, "sha256": None, "config": None}


def _plain_samplers() -> list[str]:
    """Return samplers without those that are another one with a spacing."""
    return [name for name in NAMED if name.rpartition("-")[2] not in SPACINGS]


def _sampler(name: str) -> dict[str, Any]:
    shown = SAMPLERS.get(name, name)
    return {"name": shown, "aliases": [name, *aliases(name)], "options": {}}


def _scheduler(name: str) -> dict[str, Any]:
    told = {"name": name, "label": name.capitalize(), "aliases": None}
    return {**told, "default_rho": -1, "need_inner_model": False}


def _info(a1111: str, own: dict[str, str]) -> dict[str, Any]:
    read = A1111Text.read(a1111)
    named = {"Prompt": read.prompt, "Negative prompt": read.negative_prompt, **read.settings}
    items = {"parameters": a1111, **{f"bksdm:{name}": value for name, value in own.items()}}
    return {"info": a1111, "items": items, "parameters": named if a1111 else {}}


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
