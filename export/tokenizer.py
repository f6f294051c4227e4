"""Write a checkpoint's tokenizer so that every reader tokenizes alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bksdm.engines.errors import BundleError, ExportError
from bksdm.runtime.tokenizer_files import TokenizerFiles


def read_tokenizer(checkpoint: Path) -> TokenizerFiles:
    """Return a checkpoint's tokenizer as transformers loads it.

    Raises
    ------
    ExportError
        One of its files is missing, damaged, or not supported.
    """
    try:
        return TokenizerFiles.read(checkpoint / "tokenizer")
    except BundleError as error:
        raise ExportError(str(error)) from error


def tokenizer_texts(files: TokenizerFiles) -> dict[str, str]:
    """Return the files of a tokenizer, by their names, as all of transformers' versions read them.

    The files agree with one another, so it does not matter which of them a reader uses. Settings
    that a checkpoint states in several places have been merged.
    """
    backend = files.backend
    whole = json.loads(backend.to_str())
    vocabulary: dict[str, int] = whole["model"]["vocab"]
    in_order = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in whole["model"]["merges"])]
    stated = {name: token for name, token in files.named.items() if token is not None}
    added = sorted(backend.get_added_tokens_decoder().items())
    config: dict[str, Any] = {
        **files.named,
        "added_tokens_decoder": {
            str(index): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for index, token in added
        },
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": files.length,
        "padding_side": "left" if files.pads_left else "right",
        "split_special_tokens": backend.encode_special_tokens,
        "tokenizer_class": "CLIPTokenizer",
        "truncation_side": "left" if files.cuts_left else "right",
    }
    return {
        "tokenizer.json": backend.to_str(pretty=True) + "\n",
        "vocab.json": json.dumps(in_order, ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(merges) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        "special_tokens_map.json": json.dumps(stated, indent=2, ensure_ascii=False) + "\n",
    }
