"""Add the engine's graphs to the checkpoint: one folder then serves diffusers and the runtime.

    python graphs.py --checkpoint models/emoji

Graphs compute in float32 and read the checkpoint's own float16 weights. Only the VAE's two halves
get a file each, because ONNX finds external data nowhere but beside the graph.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from safetensors.numpy import load_file, save_file

from bksdm.export.exporter import export
from bksdm.export.parity import format_table
from bksdm.export.shared_weights import share_weights
from bksdm.runtime.integrity import write_sums
from bksdm.runtime.preview import PREVIEW_FILE

_VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"
_VAE_HALVES = {
    "vae_decoder": ("decoder.", "post_quant_conv."),
    "vae_encoder": ("encoder.", "quant_conv."),
}
_SHARED = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae_decoder": "weights.safetensors",
    "vae_encoder": "weights.safetensors",
    "vae_decoder_tiny": "diffusion_pytorch_model.safetensors",
}


def add_graphs(checkpoint: Path) -> None:
    """Export the checkpoint and write its graphs, each beside its weights.

    Raises
    ------
    ExportError
        The export misses parity with torch.
    """
    vae = load_file(checkpoint / _VAE_WEIGHTS)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        print(format_table(export(checkpoint, bundle, progress=print)))
        for component, prefixes in _VAE_HALVES.items():
            folder = checkpoint / component
            folder.mkdir(exist_ok=True)
            half = {name: value for name, value in vae.items() if name.startswith(prefixes)}
            save_file(half, folder / _SHARED[component])
            # It is written for its owner alone.
            (folder / _SHARED[component]).chmod(0o644)
            shutil.copyfile(bundle / component / "config.json", folder / "config.json")
        preview = Path("vae_decoder") / PREVIEW_FILE
        shutil.copyfile(bundle / preview, checkpoint / preview)
        for component, weights in _SHARED.items():
            folder = checkpoint / component
            graph = folder / "model.onnx"
            share_weights(bundle / component / "model.onnx", folder / weights, graph)
        fast = Path("tokenizer") / "tokenizer.json"
        shutil.copyfile(bundle / fast, checkpoint / fast)
    write_sums(checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="models/emoji")
    add_graphs(parser.parse_args().checkpoint)
