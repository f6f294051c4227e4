"""Fields of A1111's WebUI API as an order; what cannot be honoured is named.

Most clients send every field of the API with its default. Those that are off, or mean nothing
beside the others, pass; all others are refused rather than ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from bksdm.runtime.a1111 import A1111Text
from bksdm.runtime.a1111_options import options_of
from bksdm.runtime.noise import CPU, CUDA
from bksdm.serve.errors import FieldError
from bksdm.serve.order import Order, config_of, count_of
from bksdm.serve.service import Service
from bksdm.serve.uploads import from_base64, picture

NOTHING: tuple[Any, ...] = (None, "", [], {}, 0, False)
OFF: Mapping[str, tuple[Any, ...]] = {
    "enable_hr": NOTHING,
    "restore_faces": NOTHING,
    "tiling": NOTHING,
    "styles": NOTHING,
    "subseed_strength": NOTHING,
    "script_name": NOTHING,
    "script_args": NOTHING,
    "alwayson_scripts": NOTHING,
    # The server writes no files.
    "save_images": NOTHING,
    "refiner_checkpoint": NOTHING,
    "s_churn": NOTHING,
    "s_tmin": NOTHING,
    "s_min_uncond": NOTHING,
    "s_noise": (None, 1),
    "infotext": NOTHING,
    "firstpass_image": NOTHING,
    "include_init_images": NOTHING,
    # Pictures are stretched to the size that is asked for.
    "resize_mode": NOTHING,
    "initial_noise_multiplier": (None, 1),
}
"""What fields must be, of those that change a picture in ways that there are not here."""
IDLE = {
    "do_not_save_samples",
    "do_not_save_grid",
    "disable_extra_networks",
    "override_settings_restore_afterwards",
    "comments",
    "force_task_id",
    # Without enable_hr:
    "hr_scale",
    "hr_upscaler",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "hr_checkpoint_name",
    "hr_sampler_name",
    "hr_scheduler",
    "hr_prompt",
    "hr_negative_prompt",
    "hr_additional_modules",
    "firstphase_width",
    "firstphase_height",
    # Without subseed_strength:
    "subseed",
    "seed_resize_from_h",
    "seed_resize_from_w",
    # Without s_churn, a refiner, or a model that edits by instruction:
    "s_tmax",
    "refiner_switch_at",
    "image_cfg_scale",
}
"""Fields without a meaning here, whatever they are."""
USED = {
    "prompt",
    "negative_prompt",
    "seed",
    "sampler_name",
    "sampler_index",
    "scheduler",
    "batch_size",
    "n_iter",
    "steps",
    "cfg_scale",
    "width",
    "height",
    "eta",
    "denoising_strength",
    "override_settings",
    "send_images",
}
USED_OF_IMAGES = {
    "init_images",
    "mask",
    "mask_blur",
    "mask_blur_x",
    "mask_blur_y",
    "inpainting_fill",
    "inpaint_full_res",
    "inpaint_full_res_padding",
    "inpainting_mask_invert",
    "latent_mask",
    "mask_round",
}
NOISE = {"CPU": CPU, "NV": CUDA, "GPU": CUDA}
"""A1111's ``randn_source``: whose noise a seed means."""
ORIGINAL = 1
"""Of ``inpainting_fill``: begin with what lies under the mask."""


@dataclass(frozen=True)
class Paste:
    """What is done with pictures in the end: what the mask leaves is the picture that was sent.

    Attributes
    ----------
    image, mask : Image
        What was sent, and where it is drawn anew, with soft edges.
    """

    image: Image.Image
    mask: Image.Image

    def __call__(self, drawn: Image.Image) -> Image.Image:
        """Return a drawn picture with the rest of the other around it."""
        size = drawn.size
        return Image.composite(drawn, self.image.resize(size), self.mask.resize(size))


def order_of(
    fields: Mapping[str, Any], service: Service, images: bool
) -> tuple[Order, Paste | None]:
    """Return what the fields of ``txt2img`` or ``img2img`` ask for.

    Parameters
    ----------
    fields : mapping
        Of the request.
    service : Service
        Has limits, and the model that was chosen.
    images : bool
        Whether it is ``img2img``.

    Raises
    ------
    FieldError
        A field is wrong, or cannot be honoured.
    """
    known = USED | IDLE | set(OFF) | (USED_OF_IMAGES if images else set())
    for name, value in fields.items():
        if name not in known:
            raise FieldError(str(name), f"{str(name)!r:.60} is not a field of this request")
        if name in OFF and value not in OFF[name]:
            raise FieldError(name, f"{name} is not honoured here; leave it out")
    options = _options(fields)
    model, stated = _overridden(fields.get("override_settings"), service)
    options |= stated
    sent: dict[str, Image.Image] = {}
    paste = None
    if images:
        strength = fields.get("denoising_strength")
        options["strength"] = 0.75 if strength is None else strength
        sent, paste = _pictures(fields, service)
    config = config_of(options, service.settings.limits)
    return Order(config, model, sent.get("image"), sent.get("mask")), paste


def _options(fields: Mapping[str, Any]) -> dict[str, Any]:
    prompt, negative = (_text(fields, name) for name in ("prompt", "negative_prompt"))
    sampler = _text(fields, "sampler_name") or _text(fields, "sampler_index")
    scheduler = _text(fields, "scheduler").title() or "Automatic"
    told = {"Sampler": sampler, "Schedule type": scheduler} if sampler else {}
    options, lost = options_of(A1111Text(prompt, negative, told))
    if lost:
        named = "sampler_name" if lost[0].startswith("Sampler: ") else "prompt"
        raise FieldError(named, f"{named}: {lost[0]!r:.80} is not honoured here")
    number = {
        "num_inference_steps": ("steps", 50),
        "guidance_scale": ("cfg_scale", 7.0),
        "width": ("width", None),
        "height": ("height", None),
    }
    for name, (field, default) in number.items():
        options[name] = default if fields.get(field) is None else fields[field]
    eta = fields.get("eta")
    if options.get("sampler") == "ddim":
        options["eta"] = eta or 0.0
    elif eta not in (None, 0, 1) or isinstance(eta, bool):
        raise FieldError(
            "eta", "eta is for DDIM; other samplers add the noise that they are made for"
        )
    counts = [
        1 if fields.get(name) is None else count_of(name, fields[name], 1, 1024)
        for name in ("batch_size", "n_iter")
    ]
    pictures = counts[0] * counts[1]
    options["num_images_per_prompt"] = pictures
    seed = fields.get("seed")
    if seed is not None and seed != -1:
        first = count_of("seed", seed, 0, 2**63)
        options["seed"] = tuple(first + k for k in range(pictures)) if pictures > 1 else first
    return options


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, (str, type(None))):
        raise FieldError(name, f"{name} must be a text")
    return value or ""


def _overridden(settings: Any, service: Service) -> tuple[str, dict[str, Any]]:
    """Return the model and the options that ``override_settings`` state."""
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise FieldError("override_settings", "override_settings must be an object")
    model, options = service.chosen, dict[str, Any]()
    for name, value in settings.items():
        if name == "sd_model_checkpoint":
            model = model_name(value, service)
        elif name == "CLIP_stop_at_last_layers":
            options["clip_skip"] = count_of(name, value, 1, 1024) - 1
        elif name == "randn_source" and isinstance(value, str) and value in NOISE:
            options["noise"] = NOISE[value]
        else:
            raise FieldError(
                "override_settings", f"override_settings: {name!r:.60} is not honoured"
            )
    return model, options


def model_name(title: Any, service: Service) -> str:
    """Return the name of the model that A1111's clients call by its title or name.

    Raises
    ------
    FieldError
        There is none.
    """
    if not isinstance(title, str) or title not in service.models.bundles:
        there = ", ".join(service.models.bundles)
        raise FieldError("sd_model_checkpoint", f"sd_model_checkpoint must be one of {there}")
    return title


def _pictures(
    fields: Mapping[str, Any], service: Service
) -> tuple[dict[str, Image.Image], Paste | None]:
    most = service.settings.limits.sent_pixels
    given = fields.get("init_images")
    if not isinstance(given, list) or len(given) != 1:
        raise FieldError("init_images", "init_images must be a list of one picture")
    image = picture("init_images", from_base64("init_images", given[0]), most).convert("RGB")
    if fields.get("mask") is None:
        return {"image": image}, None
    if fields.get("inpaint_full_res"):
        raise FieldError("inpaint_full_res", "inpaint_full_res is not honoured; send false")
    fill = fields.get("inpainting_fill")
    if fill not in (None, ORIGINAL) and fields.get("denoising_strength") != 1:
        raise FieldError(
            "inpainting_fill", f"inpainting_fill can only be {ORIGINAL}, the picture as it is"
        )
    mask = picture("mask", from_base64("mask", fields["mask"]), most).convert("L")
    if fields.get("inpainting_mask_invert"):
        mask = ImageOps.invert(mask)
    radii = [_blur(fields, axis) for axis in ("mask_blur_x", "mask_blur_y")]
    soft = mask.filter(ImageFilter.GaussianBlur((radii[0], radii[1]))) if any(radii) else mask
    return {"image": image, "mask": mask}, Paste(image, soft)


def _blur(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    value = fields.get("mask_blur") if value is None else value
    return 0 if value is None else count_of("mask_blur", value, 0, 64)
