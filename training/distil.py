"""Distil the finished model's UNet to one that draws in one to four steps, without two halves.

    python distil.py --icons PACKAGE --checkpoint models/emoji --run FOLDER --minutes 3

Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378): what the student makes of a
noisy picture in one step shall be what it makes of the same picture one step of the teacher later.
The scale of guidance becomes an input of the student, ``timestep_cond``. ``bksdm export`` takes the
checkpoint that is written, ``FOLDER/emoji-lcm``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
from pathlib import Path

import torch
from assemble import halve
from diffusers import LCMScheduler, UNet2DConditionModel
from diffusers.pipelines import LatentConsistencyModelPipeline
from latents import of_checkpoint
from run import Run, arguments
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from unet import OFFSET_NOISE, Captions, scheduler

PEAK_RATE = 2e-4
BATCH = 16
TRAINED_STEPS = 50
"""``original_inference_steps`` of the sampler: the timesteps that the student is trained at."""
SKIPPED = 2
"""How many of these a step of the teacher is long."""
LARGEST_SCALE = 8.0
EMBEDDING = 256
DECAY = 0.97
HUBER = 1e-3


def student_of(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of the teacher that also takes ``timestep_cond``, and ignores it at first."""
    config = {**teacher.config, "time_cond_proj_dim": EMBEDDING}
    student = UNet2DConditionModel.from_config(config)
    student.load_state_dict(teacher.state_dict(), strict=False)
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    return student.to(memory_format=torch.channels_last)


class Distillation:
    """The teacher's steps, and how far the student is from being consistent along them.

    Parameters
    ----------
    teacher : UNet2DConditionModel
        Predicts noise.
    empty : Tensor, shape [tokens, width]
        The embedding of the empty caption.
    """

    def __init__(self, teacher: UNet2DConditionModel, empty: Tensor) -> None:
        self._teacher, self._empty = teacher, empty
        self._alphas = scheduler().alphas_cumprod
        self._times = torch.arange(1, TRAINED_STEPS + 1) * (1000 // TRAINED_STEPS) - 1

    def _parts(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return √ᾱ and √(1 − ᾱ), [batch, 1, 1, 1]; before the first timestep there is no noise."""
        alpha = torch.where(timestep < 0, 1.0, self._alphas[timestep.clamp(min=0)])
        alpha = alpha[:, None, None, None]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def data(
        self,
        student: UNet2DConditionModel,
        noisy: Tensor,
        timestep: Tensor,
        states: Tensor,
        embedding: Tensor,
    ) -> Tensor:
        """Return the picture that the student sees in noise; c_skip and c_out are 0 and 1 here."""
        signal, noise = self._parts(timestep)
        predicted = student(
            noisy.contiguous(memory_format=torch.channels_last),
            timestep.clamp(min=0),
            encoder_hidden_states=states,
            timestep_cond=embedding,
            return_dict=False,
        )[0]
        return torch.where(
            timestep[:, None, None, None] < 0, noisy, (noisy - noise * predicted) / signal
        )

    @torch.no_grad()
    def _teacher_step(
        self, noisy: Tensor, timestep: Tensor, following: Tensor, states: Tensor, scale: Tensor
    ) -> Tensor:
        """Go one guided step of DDIM."""
        count = len(noisy)
        both = torch.cat([self._empty.expand(count, -1, -1), states])
        unconditional, conditional = self._teacher(
            torch.cat([noisy] * 2).contiguous(memory_format=torch.channels_last),
            torch.cat([timestep] * 2),
            encoder_hidden_states=both,
            return_dict=False,
        )[0].chunk(2)
        predicted = unconditional + scale[:, None, None, None] * (conditional - unconditional)
        signal, noise = self._parts(timestep)
        later_signal, later_noise = self._parts(following)
        return later_signal * (noisy - noise * predicted) / signal + later_noise * predicted

    def loss(
        self,
        student: UNet2DConditionModel,
        target: UNet2DConditionModel,
        latents: Tensor,
        states: Tensor,
    ) -> Tensor:
        """Return the pseudo-Huber distance of the two ends of a teacher's step."""
        count = len(latents)
        timestep = self._times[torch.randint(TRAINED_STEPS, (count,))]
        following = timestep - SKIPPED * (1000 // TRAINED_STEPS)
        scale = 1 + (LARGEST_SCALE - 1) * torch.rand(count)
        embedding = LatentConsistencyModelPipeline.get_guidance_scale_embedding(
            None, scale - 1, embedding_dim=EMBEDDING
        )
        signal, noise = self._parts(timestep)
        white = torch.randn_like(latents)
        # As in the teacher's training, or the student would read backgrounds from the noise.
        offset = OFFSET_NOISE * torch.randn(count, latents.shape[1], 1, 1)
        noisy = signal * latents + noise * (white + offset)
        stepped = self._teacher_step(noisy, timestep, following, states, scale)
        with torch.no_grad():
            wanted = self.data(target, stepped, following, states, embedding)
        found = self.data(student, noisy, timestep, states, embedding)
        return ((found - wanted).square() + HUBER**2).sqrt().mean() - HUBER


def train(icons: Path, checkpoint: Path, folder: Path, minutes: float) -> None:
    """Train until the budget is spent, then write the checkpoint ``emoji-lcm``."""
    run = Run(folder, "distil", minutes)
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32)
    teacher = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    teacher.requires_grad_(False).to(memory_format=torch.channels_last)
    data = of_checkpoint(icons, checkpoint, folder)
    texts = Captions(tokenizer, encoder.eval())
    student = student_of(teacher)
    target = copy.deepcopy(student).requires_grad_(False)
    distillation = Distillation(teacher, texts.empty)
    optimizer = torch.optim.AdamW(
        student.parameters(), PEAK_RATE, betas=(0.9, 0.99), weight_decay=0, foreach=True
    )
    run.resume(student=student, target=target, optimizer=optimizer)
    while run.goes_on():
        rate = PEAK_RATE * min(1, (run.step + 1) / 50) * (1 + math.cos(math.pi * run.fraction)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate + 1e-6
        chosen = torch.randint(len(data["latents"]), (BATCH,))
        states = texts.draw(data["pair"][chosen], dropout=0)
        total = distillation.loss(student, target, data["latents"][chosen], states)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(list(target.parameters()), list(student.parameters()), 1 - DECAY)
        run.advance(loss=total.item())
    write(target, checkpoint, folder / "emoji-lcm")


def write(unet: UNet2DConditionModel, checkpoint: Path, folder: Path) -> None:
    """Write the checkpoint with another UNet, in float16, and LCM's scheduler."""
    for name in ("text_encoder", "tokenizer", "vae"):
        left_out = shutil.ignore_patterns("*.onnx")
        shutil.copytree(checkpoint / name, folder / name, ignore=left_out, dirs_exist_ok=True)
    halve("unet", unet)
    unet.to(memory_format=torch.contiguous_format).save_pretrained(folder / "unet")
    LCMScheduler.from_config(scheduler().config).save_pretrained(folder / "scheduler")
    index = json.loads((checkpoint / "model_index.json").read_text(encoding="utf-8"))
    index["scheduler"] = ["diffusers", "LCMScheduler"]
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model_index.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--checkpoint", type=Path, required=True, help="models/emoji")
    options = parser.parse_args()
    train(options.icons, options.checkpoint, options.run, options.minutes)
