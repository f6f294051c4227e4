"""Add the tokens of textual inversions to a tokenizer and a text encoder, as diffusers does."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bksdm.engines.errors import ExportError
from bksdm.export.json_files import read_json
from bksdm.export.library_errors import library_errors
from bksdm.export.quiet import quiet
from bksdm.export.weights import files_of, load_pickle, read_safetensors, read_tensors, readable

_TABLE = "embeddings.token_embedding.weight"
_A1111, _BARE = "string_to_param", "emb_params"
_XL = ("clip_g", "clip_l")


@dataclass(frozen=True)
class Embedding:
    """One textual inversion.

    Attributes
    ----------
    path : Path
        Its file.
    token : str
        What stands for it in a prompt.
    vectors : Tensor
        [n, width]; the further ones belong to ``token_1``, ``token_2`` …, which diffusers'
        ``maybe_convert_prompt`` and our tokenizer put behind the first.
    """

    path: Path
    token: str
    vectors: Tensor

    @property
    def tokens(self) -> list[str]:
        """One for every vector."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors)))]


def split_token(text: str) -> tuple[Path, str | None]:
    """Split ``FILE[:TOKEN]``; a colon may also be part of the name, if there is such a file."""
    name, colon, token = text.rpartition(":")
    if not colon or os.path.exists(text):
        return Path(text), None
    return Path(name), token


def read_embedding(path: Path, token: str | None = None) -> Embedding:
    """Read a file of diffusers, ``{token: vectors}``, or of A1111.

    Parameters
    ----------
    path : Path
        Safetensors, or a pickle of tensors alone.
    token : str, optional
        In place of the one that the file names; files with ``emb_params`` or a bare tensor name
        none.

    Raises
    ------
    ExportError
        It is missing, damaged or something else, or names no token and none is given.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file; --embedding takes FILE or FILE:TOKEN")
    with readable(path):
        content = read_safetensors(path) if path.suffix == ".safetensors" else load_pickle(path)
    named, vectors = _content(path, content)
    word = named if token is None else token
    if not word:
        raise ExportError(f"{path}: names no token; write --embedding {path}:TOKEN")
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.numel():
        raise ExportError(f"{path}: not a textual inversion of vectors for one text encoder")
    if not vectors.float().isfinite().all():
        raise ExportError(f"{path}: holds values that are not finite numbers")
    return Embedding(path, word, vectors.detach().reshape(-1, vectors.shape[-1]))


def _content(path: Path, content: Any) -> tuple[str | None, Any]:
    """Return the token that a file names, and its vectors."""
    if isinstance(content, Tensor):
        return None, content
    if isinstance(content, Mapping):
        if _A1111 in content and isinstance(content[_A1111], Mapping):
            name = content.get("name")
            return name if isinstance(name, str) else None, content[_A1111].get("*")
        if _BARE in content:
            return None, content[_BARE]
        if content.keys() & {*_XL}:
            raise ExportError(f"{path}: a textual inversion for Stable Diffusion XL")
        if len(content) == 1:
            return next((str(key), value) for key, value in content.items())
    raise ExportError(f"{path}: not a textual inversion, which holds the vectors of one token")


def add_embeddings(
    embeddings: list[Embedding], checkpoint: Path, variant: str | None, target: Path
) -> None:
    """Write the tokenizer and the text encoder of a checkpoint with further tokens.

    Parameters
    ----------
    embeddings
        Their numbers follow those of the tokenizer, in this order.
    checkpoint
        A folder that `bksdm.export.source.resolve` accepted.
    variant
        Of its weight files.
    target
        The folder for ``tokenizer`` and ``text_encoder``, which must not be there.

    Raises
    ------
    ExportError
        A token is known already, or the vectors have another width than the text encoder's.
    """
    from safetensors.torch import save_file
    from transformers import CLIPTokenizer

    files = files_of(checkpoint, "text_encoder", variant)
    tensors = read_tensors(checkpoint, files)
    name = next((key for key in tensors if key.endswith(_TABLE)), None)
    if name is None:
        raise ExportError(f"{checkpoint / files[0]}: has no {_TABLE}")
    table = tensors[name]
    with quiet(), library_errors(f"{checkpoint / 'tokenizer'}: cannot be extended"):
        tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
        for embedding in embeddings:
            _require_fit(embedding, tokenizer.get_vocab(), table)
            first = len(tokenizer)
            for token in embedding.tokens:
                tokenizer.add_tokens(token)
            table = torch.cat([table[:first], embedding.vectors])
        tokenizer.save_pretrained(target / "tokenizer")
    folder = target / "text_encoder"
    folder.mkdir()
    fields = read_json(checkpoint / "text_encoder" / "config.json")
    text = json.dumps({**fields, "vocab_size": len(table)}, indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    save_file({**tensors, name: table}, folder / "model.safetensors", {"format": "pt"})


def _require_fit(embedding: Embedding, vocabulary: Mapping[str, int], table: Tensor) -> None:
    for token in (embedding.token, f"{embedding.token}_1", *embedding.tokens):
        if token in vocabulary:
            raise ExportError(
                f"{embedding.path}: the tokenizer knows {token!r} already; choose another by "
                f"--embedding {embedding.path}:TOKEN"
            )
    if embedding.vectors.shape[1] != table.shape[1]:
        raise ExportError(
            f"{embedding.path}: made for another model: its vectors have "
            f"{embedding.vectors.shape[1]} numbers, the text encoder's {table.shape[1]}"
        )
    if len(table) < len(vocabulary):
        raise ExportError(
            f"{embedding.path}: the tokenizer knows {len(vocabulary)} tokens, the text encoder "
            f"only {len(table)}"
        )
