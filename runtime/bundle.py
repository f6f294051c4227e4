"""A bundle on disk: the Optimum/diffusers ONNX folder, opened and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bksdm.engines.errors import BundleError
from bksdm.models import BUILT_IN, bundle_folder
from bksdm.runtime.loaded_configuration import (
    loaded_sample_size,
    loaded_scheduler,
    scheduler_class,
)
from bksdm.runtime.validation import folder, no_folder
from bksdm.storage.digest import DIGESTS, file_digests, joined_digest
from bksdm.storage.files import read_regular
from bksdm.storage.graph_file import GraphFile
from bksdm.storage.places import engines_folder

PIPELINES = (
    "StableDiffusionPipeline",
    "LatentConsistencyModelPipeline",
    "ORTStableDiffusionPipeline",
    "ORTLatentConsistencyModelPipeline",
)
TINY_VAE = "AutoencoderTiny"
"""The class of VAEs whose encoder makes latents, not a distribution of such."""
COMPONENTS = ("text_encoder", "unet", "vae_decoder")
OPTIONAL_COMPONENTS = ("vae_encoder", "vae_decoder_tiny")
CONTROLNET = "controlnet_"
"""Begins the names of the folders of ControlNets; the rest is what pictures ask for."""
FULL, TINY = "full", "tiny"
DECODERS = {FULL: "vae_decoder", TINY: "vae_decoder_tiny"}
"""The networks that make pixels, by what a picture asks for."""


@dataclass(frozen=True)
class Bundle:
    """The checked configuration of one bundle.

    Attributes
    ----------
    path : Path
        The folder.
    scheduler : mapping
        ``scheduler/scheduler_config.json`` as diffusers loads it; what one picture is drawn with
        :func:`~bksdm.runtime.loaded_configuration.scheduler_fields` takes from it.
    latent_channels, sample_size, cross_attention_dim : int
        Of the UNet; ``sample_size`` is the default height and width in latent pixels, the larger
        one where they differ.
    scaling_factor : float
        Latents are divided by it before the VAE decoder.
    vae_scale : int
        Pixels per latent pixel along each side.
    sample_sides : (int, int), optional
        Default height and width in latent pixels, where they differ.
    encodes_exactly : bool
        Whether the VAE encoder makes latents, and not a distribution to draw them from.
    tiny_scaling_factor : float, optional
        That of the tiny VAE decoder; None where the bundle has none.
    guidance_width : int, optional
        Of the embedding of the guidance scale that the UNet takes, ``time_cond_proj_dim``; None
        where guidance takes two halves of a batch.
    """

    path: Path
    scheduler: Mapping[str, Any]
    latent_channels: int
    sample_size: int
    cross_attention_dim: int
    scaling_factor: float
    vae_scale: int
    sample_sides: tuple[int, int] | None = None
    encodes_exactly: bool = False
    tiny_scaling_factor: float | None = None
    guidance_width: int | None = None

    @classmethod
    def of(cls, path: str | Path | Bundle) -> Bundle:
        """Return a bundle that is open, or open one at a path.

        Raises
        ------
        RequestError
            It is neither.
        BundleError
            As of :meth:`open`.
        """
        return path if isinstance(path, Bundle) else cls.open(folder("path", path))

    @classmethod
    def open(cls, path: str | Path, graphs: bool = True) -> Bundle:
        """Read and check a bundle.

        Parameters
        ----------
        path : str or Path
            The folder, or ``emoji`` for the model that comes with the package.
        graphs : bool
            Whether the networks' graphs have to be there; ``bksdm export`` checks all else first.

        Raises
        ------
        BundleError
            Names the file, and the field where one is wrong.
        """
        path = bundle_folder(path)
        if not path.is_dir():
            raise BundleError(
                f"{path}: {no_folder(path)}; make a bundle with `bksdm export`, or take the "
                f"built-in {', '.join(BUILT_IN)}"
            )
        if not (path / "model_index.json").exists():
            raise BundleError(f"{path}: not a bundle; model_index.json is missing")
        index = read_json(path / "model_index.json")
        kind = index.get("_class_name")
        if kind not in PIPELINES:
            raise BundleError(
                f"{path / 'model_index.json'}: _class_name is {kind!r}; "
                f"supported: {', '.join(PIPELINES)}"
            )
        for component in COMPONENTS:
            model = path / component / "model.onnx"
            if graphs and not model.is_file():
                hint = "; it is a diffusers checkpoint, run `bksdm export` on it first"
                torch_weights = any(path.glob("unet/*.safetensors"))
                raise BundleError(f"{model}: missing{hint if torch_weights else ''}")
        unet = read_json(path / "unet" / "config.json")
        vae = read_json(path / "vae_decoder" / "config.json")
        unet_file, vae_file = path / "unet/config.json", path / "vae_decoder/config.json"
        blocks = _blocks(vae_file, vae)
        kinds = vae.get("up_block_types", blocks)
        if not isinstance(kinds, list) or len(kinds) != len(blocks):
            raise BundleError(
                f"{vae_file}: block_out_channels has {len(blocks)} widths, but up_block_types is "
                f"{kinds!r}; it must be as the export wrote it"
            )
        latent_channels = _integer(unet_file, unet, "in_channels", 64)
        if latent_channels != _integer(vae_file, vae, "latent_channels", 64):
            raise BundleError(f"{unet_file}: in_channels differs from the VAE's latent_channels")
        embedded = None
        if unet.get("time_cond_proj_dim") is not None:
            embedded = _integer(unet_file, unet, "time_cond_proj_dim", 65536)
        sides = _sample_sides(unet_file, unet)
        return cls(
            path=path,
            scheduler=read_scheduler(path, index),
            latent_channels=latent_channels,
            sample_size=max(sides),
            cross_attention_dim=_cross_attention_dim(unet_file, unet),
            scaling_factor=_scaling_factor(vae_file, vae),
            vae_scale=2 ** (len(blocks) - 1),
            sample_sides=sides if sides[0] != sides[1] else None,
            encodes_exactly=vae.get("_class_name") == TINY_VAE,
            tiny_scaling_factor=_tiny_scaling_factor(path, latent_channels, len(blocks)),
            guidance_width=embedded,
        )

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width in pixels of a picture whose size is not asked for."""
        height, width = self.sample_sides or (self.sample_size, self.sample_size)
        return height * self.vae_scale, width * self.vae_scale

    @property
    def precision(self) -> str:
        """What its UNet computes in: ``float32``, ``float16``, ``int8`` or ``fp8``.

        Raises
        ------
        BundleError
            The UNet's graph is damaged.
        """
        graph = GraphFile.read(self.model("unet"))
        return graph.quantized or str(graph.inputs["sample"].dtype)

    @property
    def components(self) -> tuple[str, ...]:
        """The networks that are present and that a picture is made with."""
        optional = (c for c in OPTIONAL_COMPONENTS if self.model(c).is_file())
        return (*COMPONENTS, *optional)

    @property
    def controlnets(self) -> tuple[str, ...]:
        """The names of its ControlNets."""
        found = sorted(self.path.glob(f"{CONTROLNET}*/model.onnx"))
        return tuple(model.parent.name.removeprefix(CONTROLNET) for model in found)

    def pools_control(self, name: str) -> bool:
        """Return whether a ControlNet has one value per channel, ``global_pool_conditions``.

        Raises
        ------
        BundleError
            Its configuration is missing or damaged.
        """
        config = read_json(self.path / f"{CONTROLNET}{name}" / "config.json")
        return bool(config.get("global_pool_conditions"))

    @property
    def decoders(self) -> tuple[str, ...]:
        """What pictures may ask for of :data:`DECODERS`."""
        return (FULL,) if self.tiny_scaling_factor is None else (FULL, TINY)

    def decoder_scaling(self, vae: str) -> float:
        """Return the factor that latents are divided by before one of :attr:`decoders`."""
        scaling = self.scaling_factor if vae == FULL else self.tiny_scaling_factor
        assert scaling is not None
        return scaling

    @property
    def text_layers(self) -> int:
        """Number of the text encoder's layers.

        Raises
        ------
        BundleError
            Its configuration does not say.
        """
        path = self.path / "text_encoder" / "config.json"
        return _integer(path, read_json(path), "num_hidden_layers", 1024)

    @property
    def text_embeddings(self) -> int:
        """Number of tokens that the text encoder knows.

        Raises
        ------
        BundleError
            Its configuration is missing or damaged.
        """
        path = self.path / "text_encoder" / "config.json"
        # transformers' CLIPTextConfig takes CLIP's own number where none is stated.
        return _integer(path, {"vocab_size": 49408, **read_json(path)}, "vocab_size", 2**31)

    @property
    def masks_padding(self) -> bool:
        """Whether the text encoder is told which tokens are padding, ``use_attention_mask``.

        Raises
        ------
        BundleError
            Its configuration is missing or damaged.
        """
        return bool(read_json(self.path / "text_encoder" / "config.json").get("use_attention_mask"))

    @property
    def has_safety_checker(self) -> bool:
        """Whether pictures can be checked; the checker is no part of :attr:`components`."""
        return self.model("safety_checker").is_file()

    def widths(self, component: str) -> tuple[int, ...]:
        """Return how many channels each block of the UNet or the VAE has.

        Where the configuration does not say, those of ``UNet2DConditionModel``.

        Raises
        ------
        BundleError
            It says something else.
        """
        path = self.path / component / "config.json"
        blocks = read_json(path).get("block_out_channels", [320, 640, 1280, 1280])
        if not isinstance(blocks, list) or not blocks or not all(type(n) is int for n in blocks):
            raise BundleError(f"{path}: block_out_channels must be a list of whole numbers")
        return tuple(blocks)

    def model(self, component: str) -> Path:
        """Return the path of a component's graph."""
        return self.path / component / "model.onnx"

    def digest(self) -> str:
        """Return the SHA-256 of every graph, weight file and configuration, hexadecimal."""
        digests = file_digests(self.files(), engines_folder(self.path) / DIGESTS)
        return joined_digest({f.relative_to(self.path): d for f, d in digests.items()})

    def files(self) -> list[Path]:
        """Return every file that a picture may depend on."""
        controls = (f"{CONTROLNET}{name}" for name in self.controlnets)
        folders = (*self.components, *controls, "scheduler", "tokenizer", "safety_checker")
        files = [f for folder in folders for f in sorted((self.path / folder).rglob("*"))]
        return [file for file in files if file.is_file()]


def read_text(path: Path) -> str:
    """Read a text in UTF-8.

    Raises
    ------
    BundleError
        The file is missing, unreadable, no regular file or no such text.
    """
    try:
        return read_regular(path).decode()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path}: missing") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{path}: cannot be read ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    BundleError
        The file is missing, unreadable, no regular file, no JSON or no object.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: must hold a JSON object")
    return value


def read_scheduler(path: Path, index: Mapping[str, Any]) -> dict[str, object]:
    """Read a folder's scheduler configuration as its index and diffusers' pipelines have it.

    Raises
    ------
    BundleError
        Names the file, of a bundle or a checkpoint.
    """
    class_name = scheduler_class(index)
    if class_name is None:
        raise BundleError(
            f"{path / 'model_index.json'}: scheduler must name a class of diffusers, "
            f"not {index.get('scheduler')!r}"
        )
    file = path / "scheduler" / "scheduler_config.json"
    try:
        return loaded_scheduler(read_json(file), class_name)
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from error


def _sample_sides(path: Path, unet: Mapping[str, Any]) -> tuple[int, int]:
    """Return the UNet's default height and width, which may be one number."""
    size = loaded_sample_size(unet)
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    height, width = (_integer(path, {"sample_size": side}, "sample_size", 1024) for side in sides)
    return height, width


def _blocks(path: Path, vae: Mapping[str, Any]) -> list[Any]:
    blocks = vae.get("block_out_channels")
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 8:
        raise BundleError(f"{path}: block_out_channels must be a list of 1 to 8 widths")
    return blocks


def _scaling_factor(path: Path, vae: Mapping[str, Any]) -> float:
    scaling = vae.get("scaling_factor", 1.0 if vae.get("_class_name") == TINY_VAE else 0.18215)
    number = isinstance(scaling, (int, float)) and not isinstance(scaling, bool)
    if not number or not 1e-6 < scaling < 1e6:
        raise BundleError(f"{path}: scaling_factor must be a positive number")
    return float(scaling)


def _tiny_scaling_factor(bundle: Path, channels: int, blocks: int) -> float | None:
    """Return that of the tiny decoder beside the VAE, if there is one, and check that it fits."""
    path = bundle / DECODERS[TINY] / "config.json"
    if not path.is_file():
        return None
    tiny = read_json(path)
    if _integer(path, tiny, "latent_channels", 64) != channels:
        raise BundleError(f"{path}: latent_channels differs from the VAE's")
    if len(_blocks(path, tiny)) != blocks:
        raise BundleError(f"{path}: block_out_channels has other than the VAE's {blocks} widths")
    return _scaling_factor(path, tiny)


def _cross_attention_dim(path: Path, unet: Mapping[str, Any]) -> int:
    """Return the width of the text's embeddings, which may stand there for every block."""
    widths = unet.get("cross_attention_dim")
    if isinstance(widths, list) and widths and all(width == widths[0] for width in widths):
        unet = {"cross_attention_dim": widths[0]}
    return _integer(path, unet, "cross_attention_dim", 65536)


def _integer(path: Path, fields: Mapping[str, Any], name: str, highest: int) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        raise BundleError(f"{path}: {name} must be an integer from 1 to {highest}, not {value!r}")
    return value
