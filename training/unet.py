"""Train the UNet on cached latents and caption embeddings.

    python unet.py --run FOLDER --minutes 70

A longer budget on a later start goes on from the last save.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from concepts import COLOURS, CONCEPTS, captions, training_pairs
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from run import Run, arguments, save_grid
from text_encoder import WIDTH, encode
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

PEAK_RATE = 1.2e-3
BATCH = 16
CAPTION_DROPOUT = 0.1
OFFSET_NOISE = 0.25
"""Standard deviation of noise that is the same in all of a picture. White noise averages to nearly
nothing over 16×16 latents, so the background would show through any amount of it, and the UNet
would not learn to take its colour from the text."""
SNR_CAP = 5.0
OVERSHOOT = 8.0
"""Largest excess of a picture over others that the UNet learns to take back. Guidance overshoots:
it moves from what any caption would give towards, and beyond, what this caption gives."""
UNDERSHOOT = 0.25
"""Share of that by which a picture may also fall short, as it does where few multistep steps swing
around the solution."""
DECAY = 0.999
SAMPLE_MINUTES = 10.0
SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 4.0


def create() -> UNet2DConditionModel:
    """Return BK-SDM-Small's topology at 48 to 256 channels; heads are 16, 32 and 64 wide."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 96, 192, 256),
        cross_attention_dim=WIDTH,
        # diffusers takes this for the number of heads.
        attention_head_dim=(3, 3, 3, 4),
        norm_num_groups=8,
    ).to(memory_format=torch.channels_last)


def scheduler() -> PNDMScheduler:
    """Return Stable Diffusion 1.4's schedule."""
    made = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    # As in Stable Diffusion's own file: for samplers that would otherwise clip.
    made.register_to_config(clip_sample=False)
    return made


class Average(nn.Module):
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.values = nn.ParameterList(
            nn.Parameter(p.detach().clone(), requires_grad=False) for p in model.parameters()
        )

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model; fast in the first steps."""
        decay = min(DECAY, (1 + step) / (20 + step))
        torch._foreach_lerp_(list(self.values), list(model.parameters()), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the averaged parameters with the model's."""
        for average, parameter in zip(self.values, model.parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


class Captions:
    """Embeddings of every caption, computed once."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        lists = [captions(*pair) for pair in training_pairs()]
        texts = sorted({text for texts in lists for text in texts})
        number = {text: i for i, text in enumerate(texts)}
        self._choices = [torch.tensor([number[text] for text in texts]) for texts in lists]
        ids = encode(tokenizer, texts)
        with torch.no_grad():
            self._states = torch.cat(
                [encoder(part).last_hidden_state for part in torch.split(ids, 64)]
            )
            self.empty = encoder(encode(tokenizer, [""])).last_hidden_state[0]

    def draw(self, pairs: Tensor, dropout: float = CAPTION_DROPOUT) -> Tensor:
        """Return embeddings [pairs, 77, 128] of random captions, some of them empty."""
        chosen = [
            choices[torch.randint(len(choices), ())]
            for choices in (self._choices[pair] for pair in pairs.tolist())
        ]
        states = self._states[torch.stack(chosen)]
        states[torch.rand(len(pairs)) < dropout] = self.empty
        return states


def overshoot(latents: Tensor, signal: Tensor) -> Tensor:
    """Return what to add to latents, [batch, 4, 16, 16], to exaggerate half of them.

    Each is moved away from a mix of the batch's mean and another picture, the less the clearer it
    already shows: ``signal`` is the ratio of picture to noise, [batch, 1, 1, 1].
    """
    count = len(latents)
    share, amount, chance = torch.rand(3, count, 1, 1, 1)
    amount = (1 + UNDERSHOOT) * amount - UNDERSHOOT
    others = share * latents.mean(0) + (1 - share) * latents[torch.randperm(count)]
    largest = (1 / signal).clamp(max=OVERSHOOT)
    return (chance < 0.5) * amount * largest * (latents - others)


def loss(
    unet: UNet2DConditionModel, latents: Tensor, states: Tensor, alphas: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss and the plain mean squared error of the noise prediction.

    Weights are min(SNR, 5) / SNR (Hang et al., "Efficient Diffusion Training via Min-SNR
    Weighting Strategy", 2023). The timesteps of a batch are spread evenly.
    """
    count = len(latents)
    noise = torch.randn_like(latents) + OFFSET_NOISE * torch.randn(count, latents.shape[1], 1, 1)
    spread = (torch.arange(count) + torch.rand(count)) * len(alphas) / count
    timestep = spread.long()[torch.randperm(count)]
    alpha = alphas[timestep][:, None, None, None]
    signal = alpha.sqrt() / (1 - alpha).sqrt()
    noise = noise + signal * overshoot(latents, signal)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    predicted = unet(
        noisy.contiguous(memory_format=torch.channels_last),
        timestep,
        encoder_hidden_states=states,
        return_dict=False,
    )[0]
    errors = (predicted - noise).square().mean((1, 2, 3))
    snr = (alphas / (1 - alphas))[timestep]
    return (errors * snr.clamp(max=SNR_CAP) / snr).mean(), errors.detach().mean()


def sample_prompts() -> list[str]:
    """Return one prompt per concept, every other one with a colour."""
    prompts = []
    for position, concept in enumerate(CONCEPTS):
        colour = COLOURS[position % len(COLOURS)]
        prompts.append(f"a {concept}" + (f" on a {colour} background" if position % 2 else ""))
    return prompts


def train(folder: Path, minutes: float) -> None:
    """Train until the budget is spent, with sample pictures every few minutes."""
    run = Run(folder, "unet", minutes)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    data = torch.load(folder / "latents.pt", weights_only=True)
    texts = Captions(tokenizer, encoder)
    unet = create()
    pipeline = StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler(), None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    alphas = pipeline.scheduler.alphas_cumprod
    average = Average(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), PEAK_RATE, betas=(0.9, 0.99), foreach=True)
    run.resume(unet=unet, average=average, optimizer=optimizer)
    order = torch.empty(0, dtype=torch.long)
    sampled = run.minutes
    while run.goes_on():
        rate = PEAK_RATE * min(1, (run.step + 1) / 100) * (1 + math.cos(math.pi * run.fraction)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate + 1e-5
        if len(order) < BATCH:
            order = torch.randperm(len(data["latents"]))
        chosen, order = order[:BATCH], order[BATCH:]
        states = texts.draw(data["pair"][chosen])
        total, plain = loss(unet, data["latents"][chosen], states, alphas)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet, run.step)
        run.advance(mse=plain.item(), loss=total.item())
        if run.minutes - sampled > SAMPLE_MINUTES:
            sampled = run.minutes
            average.swap(unet)
            sample(pipeline, folder / f"samples-{sampled:03.0f}.png")
            average.swap(unet)
            run.pause()
    average.swap(unet)
    sample(pipeline, folder / "samples-final.png")


@torch.no_grad()
def sample(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Draw one picture per concept."""
    drawn = pipeline(
        sample_prompts(),
        num_inference_steps=SAMPLE_STEPS,
        guidance_scale=SAMPLE_GUIDANCE,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    save_grid(torch.from_numpy(np.asarray(drawn)).permute(0, 3, 1, 2) * 2 - 1, path, columns=9)


if __name__ == "__main__":
    options = arguments(argparse.ArgumentParser(description=__doc__)).parse_args()
    train(options.run, options.minutes)
