"""Measure the cost of the loop itself: host time per step with networks that do nothing.

    bksdm bench overhead

Four loops take turns in one run, on one thread, for one 512×512 picture (latents 1×4×64×64) with
guidance at 25 PNDM steps: diffusers' pipeline with stub modules, the loop in numpy with stub
engines, and the loop on a GPU with a device that drops its work, which leaves what the host does to
enqueue it: with a launch for each step (``cuda``), and with one for all of them (``in-loops``).
``per step`` leaves set-up out by subtracting a call with one step; ``whole`` is all of the call
divided by its steps. The driver's own time to launch a CUDA graph is in neither: it needs a GPU.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bksdm.engines.protocol import TensorSpec
from bksdm.runtime.cuda.session import Session, Shape
from bksdm.runtime.guidance import Guidance
from bksdm.runtime.host import HostExecutor
from bksdm.runtime.job import DenoisingJob
from bksdm.runtime.noise_predictor import NoisePredictor
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.samplers import step_table
from bksdm.runtime.samplers.stable_diffusion import SCHEDULE
from bksdm.runtime.sampling import Denoising, Watch
from bksdm.runtime.tokenizer import Tokens

STEPS = 25
SIDE, WIDTH, TOKENS = 64, 768, 77


def job_of(steps: int) -> DenoisingJob:
    """Return a request for a picture with a number of PNDM steps."""
    start = np.zeros((1, 4, SIDE, SIDE), np.float32)
    table = step_table(SCHEDULE, steps)
    return DenoisingJob(
        prompts=("a",),
        negative_prompts=("",),
        guidance=Guidance(7.5),
        table=table,
        latents=start,
        noises=start[:0, None],
    )


def diffusers_loop() -> Callable[[int], object]:
    """Return a call of diffusers' pipeline whose modules return constants."""
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    noise = torch.zeros(2, 4, SIDE, SIDE)
    unet = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    unet.forward = lambda *arguments, **named: (noise,)
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=1,
            num_hidden_layers=1,
            vocab_size=8,
        )
    )
    pipeline = StableDiffusionPipeline(
        vae,
        text,
        None,
        unet,
        PNDMScheduler.from_config(SCHEDULE),
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    embeddings = torch.zeros(1, TOKENS, WIDTH)
    latents = torch.zeros(1, 4, SIDE, SIDE)
    return lambda steps: pipeline(
        prompt_embeds=embeddings,
        negative_prompt_embeds=embeddings,
        latents=latents,
        num_inference_steps=steps,
        output_type="latent",
        return_dict=False,
    )


def numpy_loop() -> Callable[[int], object]:
    """Return a call of the loop on the host whose engines return constants."""
    single = np.dtype(np.float32)

    def engine(output: str, shape: tuple[int, ...], **inputs: TensorSpec) -> Any:
        result = {output: np.zeros(shape, single)}
        stub = lambda feeds: result  # noqa: E731
        stub.inputs = inputs  # type: ignore[attr-defined]
        return stub

    ids = TensorSpec(np.dtype(np.int64), ("batch", TOKENS))
    sample = TensorSpec(single, ("batch", 4, "height", "width"))
    unet = engine(
        "out_sample",
        (2, 4, SIDE, SIDE),
        sample=sample,
        timestep=TensorSpec(single, ("batch",)),
        encoder_hidden_states=TensorSpec(single, ("batch", TOKENS, WIDTH)),
    )
    text_encoder = engine("last_hidden_state", (2, TOKENS, WIDTH), input_ids=ids)
    tokenizer: Any = SimpleNamespace(
        length=TOKENS, rows=lambda texts: Tokens(*np.zeros((2, len(texts), TOKENS), np.int64))
    )
    encode = PromptEncoder(
        tokenizer,
        lambda skipped: text_encoder,
    )
    vae_decoder = engine("sample", (1, 3, 8, 8), latent_sample=sample)
    executor = HostExecutor(encode, NoisePredictor(unet), vae_decoder, 0.18215)
    return lambda steps: executor(job_of(steps), Watch(), {})


def cuda_loop(in_loops: bool) -> Callable[[int], object]:
    """Return a call of the loop on a simulated device that does no work.

    Parameters
    ----------
    in_loops : bool
        Whether one launch makes all steps.
    """
    half, single, whole = (np.dtype(t) for t in (np.float16, np.float32, np.int64))

    def host(size: int) -> Any:
        array = np.zeros(size, np.uint8)
        return SimpleNamespace(array=array, size=size, address=array.ctypes.data)

    nothing = SimpleNamespace(
        enqueue=lambda stream: None, can_record=lambda stream: True, launch=lambda: None
    )
    device: Any = SimpleNamespace(
        stream=0,
        allocate=lambda size: SimpleNamespace(size=size, address=0),
        allocate_host=host,
        clear=lambda memory: None,
        copy=lambda target, source, size: None,
        synchronize=lambda: None,
        record=lambda work: nothing,
        record_loop=lambda body, after: nothing,
    )
    plans: dict[str, Any] = {
        name: SimpleNamespace(
            tensors=tensors,
            bind=lambda bindings, scratch: nothing,
            least_rows=lambda name: 1,
            recordable=True,
        )
        for name, tensors in {
            "text_encoder": {
                "input_ids": TensorSpec(whole, ("?", TOKENS)),
                "last_hidden_state": TensorSpec(half, ("?", TOKENS, WIDTH)),
            },
            "unet": {
                "sample": TensorSpec(half, ("?", 4, "?", "?")),
                "timestep": TensorSpec(single, ("?",)),
                "out_sample": TensorSpec(half, ("?", 4, "?", "?")),
            },
            "vae_decoder": {
                "latent_sample": TensorSpec(half, ("?", 4, "?", "?")),
                "sample": TensorSpec(half, ("?", 3, "?", "?")),
            },
        }.items()
    }
    kernel = lambda count, *arguments: None  # noqa: E731
    session = Session(
        device,
        plans,
        lambda name: kernel,
        scratch=SimpleNamespace(size=1, address=0),
        shape=Shape(1, True, 8 * SIDE, 8 * SIDE),
        vae_scale=8,
        scaling_factor=0.18215,
        in_loops=in_loops,
    )
    ids = np.zeros((2, TOKENS), np.int64)

    def run(steps: int) -> None:
        job = job_of(steps)
        trajectory = session.join(ids, job)
        denoising = Denoising(job, trajectory)
        while not denoising.done:
            for _ in range(session.launch(len(job.table) if in_loops else 1)):
                denoising.advance(None)
        # The device left the flags alone, so only the steps are of interest here.
        trajectory.leave()

    return run


def measure(
    loops: dict[str, Callable[[int], object]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return seconds per step, without and with set-up; the first three rounds are not timed."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    few = len(step_table(SCHEDULE, 1))
    many = len(step_table(SCHEDULE, STEPS))
    for number in range(-3, rounds):
        for name, loop in loops.items():
            times = []
            for steps in (1, STEPS):
                loop(steps)
                start = time.perf_counter()
                loop(steps)
                times.append(time.perf_counter() - start)
            if number >= 0:
                found[name].append(((times[1] - times[0]) / (many - few), times[1] / many))
    return found


def report(rounds: int) -> str:
    """Return a table of the medians, and how they compare; leaves torch on one thread."""
    torch.set_num_threads(1)
    loops = {
        "diffusers": diffusers_loop(),
        "numpy": numpy_loop(),
        "cuda": cuda_loop(False),
        "in-loops": cuda_loop(True),
    }
    found = measure(loops, rounds)
    medians = {
        name: [statistics.median(column) * 1e6 for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    lines = [
        f"{platform.machine()}, torch {torch.__version__}, numpy {np.__version__}",
        f"median µs{'per step':>12}{'whole':>10}{'diffusers / it':>18}",
    ]
    lines += [
        f"{name:<9}{step:12.1f}{whole:10.1f}{medians['diffusers'][1] / whole:18.1f}"
        for name, (step, whole) in medians.items()
    ]
    return "\n".join(lines)
