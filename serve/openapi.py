"""The OpenAPI document of a server, made from the one list of options."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import Any, get_args, get_origin, get_type_hints

from bksdm.runtime.generation_config import DEFAULTS, OPTIONS, GenerationConfig
from bksdm.runtime.lora.use import LoraUse
from bksdm.serve.openai_fields import MOST_PARTIAL_IMAGES
from bksdm.serve.order import FORMATS, MAX_PREVIEWS, MAX_TIMEOUT
from bksdm.serve.service import Service

LORA_FIELDS: dict[str, type] = {"name": str, "scale": float, "sha256": str}
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
Schema = dict[str, Any]


def option_schema(name: str) -> Schema:
    """Return the schema of an option of a picture."""
    option, hint = OPTIONS[name], get_type_hints(GenerationConfig)[name]
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    forms = [_form(kind) for kind in kinds]
    if isinstance(option.validate, partial):
        limits = option.validate.keywords
        forms[0] |= {"minimum": limits["lowest"], "maximum": limits["highest"]}
    told: Schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
    told["description"] = f"{option.help} ({option.values})"
    if DEFAULTS[name] is not None and name != "prompt":
        told["default"] = DEFAULTS[name]
    return told


def _form(kind: Any) -> Schema:
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _form(get_args(kind)[0])}
    return _lora() if kind is LoraUse else {"type": TYPES[kind]}


def _lora() -> Schema:
    return {
        "type": "object",
        "properties": {name: {"type": TYPES[kind]} for name, kind in LORA_FIELDS.items()},
        "required": ["name"],
        "additionalProperties": False,
    }


def document(service: Service) -> Schema:
    """Return the document."""
    names = list(service.models.bundles)
    options = {name: option_schema(name) for name in OPTIONS}
    model = {"type": "string", "enum": names, "default": names[0]}
    timeout = {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT}
    image = {"type": "string", "contentEncoding": "base64", "description": "or a data URL"}
    output = {"type": "string", "enum": [*FORMATS], "default": "png"}
    quality = {"type": "integer", "minimum": 1, "maximum": 100}
    own = {
        **options,
        "model": model,
        "image": image,
        "mask": image,
        "control_image": {"anyOf": [image, {"type": "array", "items": image}]},
        "output_format": output,
        "quality": quality,
        "timeout": timeout,
        "previews": {"type": "integer", "minimum": 0, "maximum": MAX_PREVIEWS},
    }
    openai = {
        **options,
        "model": model,
        "n": {"type": "integer", "minimum": 1, "maximum": service.settings.limits.images},
        "size": {"type": "string", "pattern": r"^(auto|[0-9]+x[0-9]+)$"},
        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
        "output_format": output,
        "output_compression": quality,
        "stream": {"type": "boolean"},
        "partial_images": {"type": "integer", "minimum": 0, "maximum": MOST_PARTIAL_IMAGES},
        "user": {"type": "string"},
        "timeout": timeout,
    }
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    texts = {name: {"type": "string"} for name in openai if name not in ("model", "prompt")}
    form = {**texts, "prompt": {"type": "string"}, "image": file, "mask": file}
    a1111 = {
        name: {"type": kind}
        for name, kind in {
            "prompt": "string",
            "negative_prompt": "string",
            "steps": "integer",
            "cfg_scale": "number",
            "width": "integer",
            "height": "integer",
            "seed": "integer",
            "batch_size": "integer",
            "sampler_name": "string",
            "scheduler": "string",
        }.items()
    }
    a1111_images = {**a1111, "init_images": {"type": "array", "items": image}, "mask": image}
    sdapi = "/sdapi/v1"
    paths = {
        "/v1/images/generations": _post("Draw pictures, as OpenAI has it", openai, ["prompt"]),
        "/v1/images/edits": _post("Draw from a picture", form, ["prompt", "image"], form=True),
        "/v1/models": _get("Models"),
        "/v1/jobs": _post("Begin a job", own, ["prompt"], status="202"),
        "/v1/jobs/{job}": {
            **_get("A job", "job"),
            "delete": {**_get("Cancel a job", "job")["get"]},
        },
        "/v1/jobs/{job}/events": _get("What happens to a job", "job", "text/event-stream"),
        "/v1/files/{name}": _get("A finished picture", "name", "image/*"),
        f"{sdapi}/txt2img": _post("Draw pictures, as A1111's WebUI has it", a1111, []),
        f"{sdapi}/img2img": _post("Draw from a picture", a1111_images, ["init_images"]),
        f"{sdapi}/options": {
            **_get("Settings"),
            **_post("Choose a model", {"sd_model_checkpoint": model}, []),
        },
        f"{sdapi}/png-info": _post("Read how a picture was made", {"image": image}, ["image"]),
        f"{sdapi}/interrupt": {"post": _operation("End what is drawn, with what there is")},
        **{
            f"{sdapi}/{name}": _get(words)
            for name, words in {
                "progress": "How far it is",
                "sd-models": "Models",
                "loras": "LoRAs of the chosen model",
                "samplers": "Samplers",
                "schedulers": "Spacings of noise levels",
            }.items()
        },
        "/health/live": _get("Whether the engine threads are alive"),
        "/health/ready": _get("Whether requests are taken"),
        "/metrics": _get("Metrics", media="text/plain"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "bksdm serve", "version": version("bksdm-runtime")},
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            }
        },
        "security": [{"bearer": []}, {"basic": []}] if service.keys.required else [],
    }


def _operation(summary: str, media: str = "application/json", status: str = "200") -> Schema:
    refused = {code: {"description": words} for code, words in _REFUSALS.items()}
    return {
        "summary": summary,
        "responses": {status: {"description": "done", "content": {media: {}}}, **refused},
    }


_REFUSALS = {
    "400": "a field is wrong, in OpenAI's API",
    "401": "the key is missing",
    "404": "there is none of that name",
    "413": "too large",
    "422": "a field is wrong",
    "429": "the queue is full; see Retry-After",
    "503": "not ready",
    "504": "not in time",
}


def _get(summary: str, name: str = "", media: str = "application/json") -> Schema:
    told = _operation(summary, media)
    if name:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return {"get": told}


def _post(
    summary: str,
    properties: Schema,
    required: list[str],
    status: str = "200",
    form: bool = False,
) -> Schema:
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    media = "multipart/form-data" if form else "application/json"
    body = {"required": True, "content": {media: {"schema": schema}}}
    return {"post": {**_operation(summary, status=status), "requestBody": body}}
