"""Tell what a file of weights is by the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from bksdm.engines.errors import ExportError
from bksdm.export.library_errors import library_errors

UNET = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
"""What the names of a network's tensors begin with in CompVis' naming."""

_FAMILY = ("v1", "v2")
# By diffusers' names: what the file is, where that says more than the name.
_OTHERS = {
    "xl_base": "Stable Diffusion XL",
    "xl_refiner": "the refiner of Stable Diffusion XL",
    "xl_inpaint": "Stable Diffusion XL for inpainting",
    "inpainting": "Stable Diffusion for inpainting",
    "inpainting_v2": "Stable Diffusion 2 for inpainting",
    "instruct-pix2pix": "InstructPix2Pix",
    "upscale": "Stable Diffusion's upscaler",
    "sd3": "Stable Diffusion 3",
}
_SUPPORTED = "supported are Stable Diffusion 1.x and 2.x and BK-SDM"


def require_family(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Return ``v1`` or ``v2``, as diffusers tells them apart.

    Raises
    ------
    ExportError
        It is neither; says what the file is instead, and what to do with it.
    """
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    if any("lora" in key.lower() for key in tensors):
        raise ExportError(
            f"{path}: a LoRA, which changes a model and is none; export the model that it is for "
            f"with --lora {path.name}"
        )
    if tensors.keys() & {"emb_params", "string_to_param"} or (
        len(tensors) <= 2 and all(tensor.ndim <= 2 for tensor in tensors.values())
    ):
        raise ExportError(
            f"{path}: no checkpoint; if it is a textual inversion, export a model with "
            f"--embedding {path.name}"
        )
    with library_errors(f"{path}: a file of another kind of model; {_SUPPORTED}"):
        kind = str(infer_diffusers_model_type(tensors))
    if kind not in _FAMILY:
        raise ExportError(f"{path}: a file of {_OTHERS.get(kind, kind)}; {_SUPPORTED}")
    if not any(key.startswith(UNET) for key in tensors):
        plain = {key.removeprefix(prefix) for key in tensors for prefix in VAES}
        if any(key.startswith("decoder.") for key in plain):
            raise ExportError(f"{path}: a VAE alone; export a model with --vae {path.name}")
        if any(key.startswith("down_blocks.") for key in tensors):
            raise ExportError(f"{path}: a UNet of diffusers alone; name the folder of its pipeline")
        raise ExportError(f"{path}: holds no UNet ({UNET}…); {_SUPPORTED}")
    return kind
