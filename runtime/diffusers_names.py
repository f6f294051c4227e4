"""Names of diffusers' pipelines that mean nothing here, and what to use instead.

``docs/porting.md`` shows them beside what has a meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from bksdm.engines.errors import RequestError
from bksdm.runtime.validation import shown

Self = TypeVar("Self")

ADAPTERS = "IP adapters are not implemented"
EXPORTED = "it is part of the bundle; give it to `bksdm export`"
ON_LOADING = "the engine decides where networks run: from_pretrained(path, engine='onnxruntime')"
SAMPLER = "name a sampler in the call: sampler='dpm++2m'; `bksdm samplers` lists them"
FUSED = "loaded LoRAs are used as they are; `bksdm export --lora FILE:SCALE` merges one"

CALL: Mapping[str, str] = {
    "ip_adapter_image": ADAPTERS,
    "ip_adapter_image_embeds": ADAPTERS,
    "padding_mask_crop": "crop image and mask before the call, and paste the result back",
    "masked_image_latents": "UNets that are shown the masked image are not supported; give image",
}
"""Arguments of a call."""

LOADING: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "unet",
            "vae",
            "text_encoder",
            "tokenizer",
            "revision",
            "token",
            "cache_dir",
            "subfolder",
            "force_download",
            "proxies",
            "from_flax",
            "custom_pipeline",
            "custom_revision",
            "image_encoder",
            "feature_extractor",
        ),
        EXPORTED,
    ),
    **dict.fromkeys(
        ("device_map", "max_memory", "offload_folder", "offload_state_dict", "quantization_config"),
        ON_LOADING,
    ),
    "controlnet": "ControlNets are part of the bundle: `bksdm export --controlnet NAME=FOLDER`; a "
    "call names them",
    "variant": "a bundle has one set of weights; give it to `bksdm export`",
    "scheduler": SAMPLER,
}
"""Arguments of loading, of which only None has a meaning."""

WITHOUT_EFFECT = (
    "use_safetensors",
    "low_cpu_mem_usage",
    "local_files_only",
    "requires_safety_checker",
    "mirror",
    "use_onnx",
)
"""Arguments of loading that say how weights are read; a bundle is read in one way."""


def refuse(given: Mapping[str, Any], instead: Mapping[str, str]) -> None:
    """Refuse arguments that are given and mean nothing here.

    Raises
    ------
    RequestError
        Names the first of them, and what to use instead.
    """
    for name, value in given.items():
        if value is not None and name in instead:
            raise RequestError(f"{name} cannot be given: {instead[name]}")


def refuse_unknown(given: Mapping[str, Any]) -> None:
    """Refuse what ``from_pretrained`` does not know.

    Raises
    ------
    RequestError
        Names the first of them.
    """
    refuse(given, LOADING)
    for name in given:
        if name not in (*LOADING, *WITHOUT_EFFECT):
            raise RequestError(f"from_pretrained takes no {shown(name)}")


class Instead:
    """An attribute that is not here: asking for it says what to use, and it cannot be set."""

    def __init__(self, instead: str) -> None:
        self.__doc__ = f"Not here: {instead}."

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Instead:
        if instance is not None:
            self._refuse()
        return self

    def __set__(self, instance: object, value: object) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AttributeError(f"{self._name}: {str(self.__doc__).removeprefix('Not here: ')}")


class DiffusersNames:
    """What programs ask of a pipeline of diffusers beside calling it."""

    scheduler = Instead(SAMPLER)
    unet = Instead("networks run in engines; docs/architecture.md says where")
    vae = Instead("decode(latents) returns pixels, with the scaling factor applied")
    tokenizer = Instead("prompts are tokenized in the call; prompt_embeds takes embeddings")
    fuse_lora = Instead(FUSED)
    unfuse_lora = Instead(FUSED)
    disable_lora = Instead("loras={} in a call draws without; unload_lora_weights() unloads all")
    enable_lora = Instead("loaded LoRAs are active until set_adapters says otherwise")
    load_textual_inversion = Instead("give it to `bksdm export`")
    load_ip_adapter = Instead(ADAPTERS)
    enable_freeu = Instead("it is not implemented")
    enable_vae_tiling = Instead("it is not implemented; ask for a smaller picture")
    enable_model_cpu_offload = Instead(ON_LOADING)
    enable_sequential_cpu_offload = Instead(ON_LOADING)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Do nothing: the graph's attention is already of the form that its engine runs best."""

    def disable_attention_slicing(self) -> None:
        """Do nothing, for the same reason."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Do nothing, for the same reason."""

    def enable_vae_slicing(self) -> None:
        """Do nothing: pictures are always decoded one by one on the host."""

    def set_progress_bar_config(self, **options: Any) -> None:
        """Do nothing: a call prints no progress; ``on_step`` is called with every step."""
