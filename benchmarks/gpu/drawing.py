"""Pictures from networks that are chosen one by one, rather than by an engine's name."""

from __future__ import annotations

from typing import NoReturn

from bksdm.runtime.bundle import Bundle
from bksdm.runtime.cuda.device import Device
from bksdm.runtime.cuda.executor import CudaExecutor
from bksdm.runtime.cuda.networks import Networks
from bksdm.runtime.pipeline import TextToImage
from bksdm.runtime.prompt_encoder import PromptEncoder
from bksdm.runtime.tokenizer import Tokenizer


def tokens_only(tokenizer: Tokenizer) -> PromptEncoder:
    """Return what the loop on a GPU takes of prompts that are plain: their tokens."""

    def refuse(skipped: int) -> NoReturn:
        raise AssertionError("plain prompts are encoded on the GPU")

    return PromptEncoder(tokenizer, refuse)


def opened_model(bundle: Bundle, networks: Networks, device: Device) -> TextToImage:
    """Return the model of a bundle for plain prompts, without pictures to start from."""
    tokenizer = Tokenizer.load(bundle.path / "tokenizer", bundle.text_embeddings)
    return TextToImage(bundle, CudaExecutor(bundle, tokens_only(tokenizer), networks, device))
