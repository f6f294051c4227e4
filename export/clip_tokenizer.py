"""Find the tokenizer of a checkpoint whose file holds none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from bksdm.engines.errors import ExportError
from bksdm.export.json_files import read_json

_PAIR = ("vocab.json", "merges.txt")
_WHOLE = "tokenizer.json"
# Numbers of these in CLIP's vocabulary, which all models of the family share.
_WORDS = {"a</w>": 320, "photo</w>": 1125, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
_HINT = (
    "give --tokenizer FOLDER, of any Stable Diffusion model, or fetch CLIP's by "
    "`hf download openai/clip-vit-large-patch14 vocab.json merges.txt`"
)


def copy_tokenizer(
    target: Path, tokenizer: Path | None, config: Path | None, checkpoint: Path, pad: str
) -> None:
    """Write a folder with the tokenizer of a checkpoint.

    Parameters
    ----------
    target
        The new folder.
    tokenizer
        A folder that holds one, or has one in ``tokenizer/``.
    config
        A diffusers folder, for want of that; without both, CLIP's own is taken from the hub's
        cache, where any Stable Diffusion model may have left it.
    checkpoint
        For messages.
    pad
        The token that pads, if no file of the tokenizer says it.

    Raises
    ------
    ExportError
        There is none.
    """
    given = tokenizer or config
    source = _in(given) if given is not None else next(_cached(), None)
    if source is None:
        missing = f"no tokenizer in {given}" if given else "the file holds no tokenizer"
        raise ExportError(f"{checkpoint}: {missing}; {_HINT}")
    names = [path.name for path in sorted(source.iterdir()) if path.suffix in (".json", ".txt")]
    target.mkdir()
    # Of a cache, whose model may be another one, nothing but the vocabulary.
    for name in names if given is not None else _PAIR:
        shutil.copyfile(source / name, target / name)
    settings = ("tokenizer_config.json", "special_tokens_map.json", _WHOLE)
    if not any((target / name).exists() for name in settings):
        (target / settings[0]).write_text(json.dumps({"model_max_length": 77, "pad_token": pad}))


def _in(folder: Path) -> Path | None:
    for place in (folder / "tokenizer", folder):
        if (place / _WHOLE).is_file() or all((place / name).is_file() for name in _PAIR):
            return place
    return None


def _cached() -> Iterator[Path]:
    """Yield the folders of the hub's cache that hold CLIP's vocabulary."""
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = "models--*/snapshots/*"
    for pattern in (f"{snapshots}/tokenizer", snapshots):
        for folder in sorted(Path(HF_HUB_CACHE).glob(pattern)):
            if all((folder / name).is_file() for name in _PAIR):
                vocabulary = read_json(folder / _PAIR[0])
                if all(vocabulary.get(word) == number for word, number in _WORDS.items()):
                    yield folder
