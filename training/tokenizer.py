"""Make the CLIP tokenizer: byte-level BPE whose merges come from the captions' words.

python tokenizer.py --run FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from concepts import captions, training_pairs
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bksdm.export.dummy_tokenizer import END, START, byte_symbols, write_tokenizer

LENGTH = 77
"""Tokens of a caption, padding included, as in all of Stable Diffusion."""


def learn_merges() -> list[tuple[str, str]]:
    """Return the merges that make one token of every word in the captions."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    texts = [text.replace(",", " ,") for pair in training_pairs() for text in captions(*pair)]
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(first, second) for first, second in merges]


def write(folder: Path) -> None:
    """Write the tokenizer's files: any text can be tokenised, byte by byte if need be."""
    merges = learn_merges()
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    write_tokenizer(folder, {token: index for index, token in enumerate(tokens)}, merges, LENGTH)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of saves and results")
    write(parser.parse_args().run / "tokenizer")
