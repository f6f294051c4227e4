"""The layers of a network that a LoRA can change, and which of them a file means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from bksdm.engines.errors import LoraError
from bksdm.engines.lora_inputs import layer_of
from bksdm.runtime.lora.file import Lora, LoraLayer
from bksdm.storage.graph_file import GraphFile

Shape = tuple[int, ...]
_OTHER = "a LoRA made for another architecture"
# A level that transformers 5 has dropped, and files of before still have.
_LEVEL = "text_model."
_TURNED = ".weight.T"


def layers_of(model: Path) -> dict[str, Shape]:
    """Return the shape of each linear layer and convolution of a graph, by its name.

    Parameters
    ----------
    model : Path
        ``model.onnx`` as `bksdm export` wrote it; the weights of others have no names.

    Returns
    -------
    dict
        [out, in] or [out, in, k, k].

    Raises
    ------
    BundleError
        The file is missing, or no ONNX graph.
    """
    layers: dict[str, Shape] = {}
    for weight in GraphFile.read(model).weights:
        name = layer_of(weight.name)
        if name is not None and len(weight.dims) in (2, 4) and "embeddings." not in name:
            layers[name] = weight.dims[::-1] if _TURNED in weight.name else weight.dims
    return layers


def with_aliases(component: str, layers: Iterable[str]) -> dict[str, str]:
    """Return names of layers by every name that a file may use for them.

    Parameters
    ----------
    component : str
        ``unet`` or ``text_encoder``.
    layers : iterable of str
        The network's own names.
    """
    return {alias: name for name in layers for alias in _aliases(component, name)}


def match(
    lora: Lora, layer: LoraLayer, names: Mapping[str, str], shapes: Mapping[str, Shape]
) -> str:
    """Return the name of the network's layer that one of a file's is for.

    Parameters
    ----------
    lora : Lora
        The file, for messages.
    layer : LoraLayer
        One of its layers.
    names : mapping
        Of :func:`with_aliases`.
    shapes : mapping
        Of :func:`layers_of`.

    Raises
    ------
    LoraError
        There is none, or it has another shape.
    """
    name = names.get(layer.module)
    if name is None:
        raise LoraError(
            f"{lora.path}: {layer.name}: the {layer.component} has no such layer; {_OTHER}"
        )
    if without_ones(layer.shape) != without_ones(shapes[name]):
        raise LoraError(
            f"{lora.path}: {layer.name} is for {list(layer.shape)}, "
            f"the {layer.component} has {list(shapes[name])}; {_OTHER}"
        )
    return name


def without_ones(shape: Shape) -> Shape:
    """Return the shape of a linear layer for a convolution of 1 by 1, which computes the same."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _aliases(component: str, name: str) -> Iterator[str]:
    bare = name.removeprefix(_LEVEL) if component == "text_encoder" else name
    for known in (bare, _LEVEL + bare) if component == "text_encoder" else (bare,):
        yield known
        yield known.replace(".", "_")
