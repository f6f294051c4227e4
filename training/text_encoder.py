"""Train the text encoder to tell concept and colour from a caption.

    python text_encoder.py --run FOLDER --minutes 4

The UNet is trained on its frozen output, so every caption is encoded only once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from concepts import COLOURS, CONCEPTS, captions, training_pairs
from run import Run, arguments
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 128
PEAK_RATE = 2e-3
BATCH = 32
GOOD_LOSS = 0.002
"""Smoothed sum of four cross-entropies at which captions are told apart for certain."""


class Reader(nn.Module):
    """The text encoder with two linear heads, which are thrown away after training."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=tokenizer.model_max_length,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # transformers' 0.02 is meant for widths of 512 and more.
        self.encoder.get_input_embeddings().weight.data.mul_(5)
        self.concept = nn.Linear(WIDTH, len(CONCEPTS))
        self.colour = nn.Linear(WIDTH, len(COLOURS))

    def loss(self, ids: Tensor, concept: Tensor, colour: Tensor, end: int) -> Tensor:
        """Return the cross-entropies at the end of the text and at a random padding token.

        Both, because the UNet attends to all 77 positions.
        """
        states = self.encoder(ids).last_hidden_state
        rows = torch.arange(len(ids))
        first_end = (ids == end).float().argmax(1)
        later = torch.randint(20, ids.shape[1], (len(ids),))
        total = torch.zeros(())
        for position in (first_end, later):
            state = states[rows, position]
            total = total + cross_entropy(self.concept(state), concept)
            total = total + cross_entropy(self.colour(state), colour)
        return total


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids, int64 [texts, 77]."""
    length = tokenizer.model_max_length
    rows = tokenizer(texts, padding="max_length", max_length=length, truncation=True).input_ids
    return torch.tensor(rows)


def train(folder: Path, minutes: float) -> None:
    """Train until captions are told apart or the budget is spent."""
    run = Run(folder, "text_encoder", minutes)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    examples = sorted({(text, pair) for pair in training_pairs() for text in captions(*pair)})
    ids = encode(tokenizer, [text for text, _ in examples])
    concept = torch.tensor([CONCEPTS.index(name) for _, (name, _) in examples])
    colour = torch.tensor([COLOURS.index(name) for _, (_, name) in examples])
    model = Reader(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE)
    run.resume(model=model, optimizer=optimizer)
    while run.goes_on():
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1, (run.step + 1) / 30) * (1 - run.fraction) + 1e-5
        chosen = torch.randint(len(ids), (BATCH,))
        total = model.loss(ids[chosen], concept[chosen], colour[chosen], tokenizer.eos_token_id)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.advance(loss=total.item())
        if run.mean("loss") < GOOD_LOSS:
            break
    model.encoder.save_pretrained(folder / "text_encoder")


if __name__ == "__main__":
    options = arguments(argparse.ArgumentParser(description=__doc__)).parse_args()
    train(options.run, options.minutes)
