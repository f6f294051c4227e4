"""Train the small classifier by which ``bksdm evaluate`` judges generated pictures.

python classifier.py --icons PACKAGE --run FOLDER --minutes 4 -o FOLDER

It never sees a picture that the model drew: it learns from the icons at many sizes, places and
background colours, blurred and noisy. Its accuracy is measured on icons that went through the
autoencoder on backgrounds left out of its training.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import random
from pathlib import Path

import numpy as np
import onnx
import torch
from concepts import BACKGROUNDS, CONCEPTS
from diffusers import AutoencoderKL
from icons import SIDE, load_icons, render
from onnx import TensorProto, helper, numpy_helper
from run import Run, arguments
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (24, 48, 80, 80)
STRIDES = (2, 2, 2, 1)
SHRINK = 2
"""The classifier looks at 64×64 pixels: generated pictures are blurred at the scale of one."""
PEAK_RATE = 3e-3
BATCH = 32
JUDGED = 1024
HELD_OUT_HUES = (0.70, 0.85)
"""Purple: hues of the backgrounds on which the accuracy is measured, none of the model's own."""


class Classifier(nn.Module):
    """Convolutions with batch norm, the mean over the picture, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for before, after, stride in zip((3, *WIDTHS), WIDTHS, STRIDES, strict=False):
            self.convolutions.append(nn.Conv2d(before, after, 3, stride, padding=1))
            self.norms.append(nn.BatchNorm2d(after))
        self.head = nn.Linear(WIDTHS[-1], len(CONCEPTS))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [batch, concepts] for pictures [batch, 3, 128, 128] in −1 … 1."""
        x = functional.avg_pool2d(pictures, SHRINK)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = norm(convolution(x)).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _random_colour(rng: random.Random, held_out: bool) -> list[float]:
    """Return RGB in 0 … 1: a grey, one near the model's own, or any hue but the held-out ones."""
    low, high = HELD_OUT_HUES
    if held_out:
        return list(colorsys.hsv_to_rgb(rng.uniform(low, high), rng.uniform(0.2, 0.9), 0.8))
    draw = rng.random()
    if draw < 0.2:
        return [rng.random()] * 3
    if draw < 0.6:
        named = rng.choice(list(BACKGROUNDS.values()))
        return [min(1.0, max(0.0, value / 255 + rng.gauss(0, 0.04))) for value in named]
    hue = (high + rng.random() * (1 - (high - low))) % 1
    return list(colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 1), rng.uniform(0.2, 1)))


def draw(icons: Tensor, labels: Tensor, rng: random.Random, held_out: bool = False) -> Tensor:
    """Return pictures [labels, 3, 128, 128] in −1 … 1: any place and size, plain background."""
    count = len(labels)
    size = 70 + 54 * torch.rand(count)
    slack = (SIDE - size).clamp(min=4)[:, None] / 2
    centre = SIDE / 2 + (torch.rand(count, 2) * 2 - 1) * slack
    rgb = torch.tensor([_random_colour(rng, held_out) for _ in range(count)])
    return render(icons[labels], size, centre, rgb)


def spoil(pictures: Tensor) -> Tensor:
    """Blur, stain and shift colours, about as a small autoencoder and a sampler do."""
    count = len(pictures)
    factor = (2, 4, 6)[int(torch.randint(3, ()))]
    blurred = functional.interpolate(
        functional.avg_pool2d(pictures, factor), size=SIDE, mode="bilinear"
    )
    share = torch.rand(count, 1, 1, 1)
    stains = functional.interpolate(torch.randn(count, 3, 16, 16), size=SIDE, mode="bilinear")
    fine = torch.randn(count, 3, SIDE, SIDE)
    noise = torch.rand(count, 1, 1, 1)
    spoiled = (1 - share) * pictures + share * blurred + noise * (0.2 * stains + 0.08 * fine)
    gain = 1 + 0.1 * torch.randn(count, 3, 1, 1)
    return (spoiled * gain + 0.08 * torch.randn(count, 3, 1, 1)).clamp(-1, 1)


@torch.no_grad()
def accuracy(model: Classifier, icons: Tensor, vae: AutoencoderKL) -> float:
    """Return the share of autoencoded icons on held-out backgrounds that are told right."""
    rng = random.Random(1)
    torch.manual_seed(1)
    right = 0
    for labels in torch.split(torch.randint(len(icons), (JUDGED,)), BATCH):
        pictures = draw(icons, labels, rng, held_out=True)
        decoded = vae.decode(vae.encode(pictures).latent_dist.sample()).sample
        right += int((model(decoded.clamp(-1, 1)).argmax(1) == labels).sum())
    return right / JUDGED


def write_onnx(model: Classifier, path: Path) -> None:
    """Write the network with its norms folded into the convolutions.

    ``pictures``, float32 [batch, 3, 128, 128] in −1 … 1, to ``logits`` [batch, concepts] and the
    ``features`` [batch, 80] that they are linear in. Made by hand: an exported graph carries the
    paths and versions of the machine that made it.
    """
    tensors: list[TensorProto] = []

    def constant(name: str, value: Tensor) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(value.detach()), name))
        return name

    pool = [SHRINK, SHRINK]
    nodes = [helper.make_node("AveragePool", ["pictures"], ["x"], kernel_shape=pool, strides=pool)]
    for index, (convolution, norm, stride) in enumerate(
        zip(model.convolutions, model.norms, STRIDES, strict=True)
    ):
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        fused = nn.utils.fuse_conv_bn_eval(convolution, norm)
        inputs = ["x" if index == 0 else f"relu{index - 1}"]
        inputs.append(constant(f"w{index}", fused.weight))
        if fused.bias is not None:
            inputs.append(constant(f"b{index}", fused.bias))
        output = [f"conv{index}"]
        nodes.append(helper.make_node("Conv", inputs, output, strides=[stride] * 2, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"]))
    head = ["features", constant("w", model.head.weight), constant("b", model.head.bias)]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"relu{len(WIDTHS) - 1}"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["features"]),
        helper.make_node("Gemm", head, ["logits"], transB=1),
    ]
    describe = helper.make_tensor_value_info
    pictures = describe("pictures", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])
    logits = describe("logits", TensorProto.FLOAT, ["batch", len(CONCEPTS)])
    features = describe("features", TensorProto.FLOAT, ["batch", WIDTHS[-1]])
    outputs = [logits, features]
    graph = helper.make_graph(nodes, "emoji-classifier", [pictures], outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def train(icons_package: Path, folder: Path, minutes: float, target: Path) -> None:
    """Train until the budget is spent; write the network, its labels and its accuracy."""
    icons = load_icons(icons_package)
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    run = Run(folder, "classifier", minutes)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, weight_decay=1e-2)
    rng = random.Random(run.resume(model=model, optimizer=optimizer))
    while run.goes_on():
        rate = PEAK_RATE * min(1, (run.step + 1) / 30) * (1 + math.cos(math.pi * run.fraction)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate + 1e-5
        labels = torch.randint(len(icons), (BATCH,))
        total = functional.cross_entropy(model(spoil(draw(icons, labels, rng))), labels)
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        run.advance(loss=total.item())
    measured = accuracy(model.eval(), icons, vae)
    run.log(f"accuracy {measured:.4f}")
    target.mkdir(parents=True, exist_ok=True)
    write_onnx(model, target / "classifier.onnx")
    description = {
        "labels": CONCEPTS,
        "accuracy": measured,
        "pictures": JUDGED,
        "measured_on": "autoencoded icons of random place and size on purple backgrounds, "
        "which training left out",
    }
    text = json.dumps(description, indent=2) + "\n"
    (target / "classifier.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    parser = arguments(argparse.ArgumentParser(description=__doc__))
    parser.add_argument("--icons", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("-o", "--output", type=Path, required=True, help="models/emoji/classifier")
    options = parser.parse_args()
    train(options.icons, options.run, options.minutes, options.output)
