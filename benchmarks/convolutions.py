"""Convolutions of a network on a CPU: torch's (oneDNN) against matrix products, layer by layer.

For each kind of layer that `stages/models/convolutions.py` may compute as a product: milliseconds
forward and backward (with both gradients), best of several. Decides PIXELS there.

Run: python -m benchmarks.convolutions
"""

import argparse
import time
from collections import Counter

import torch
from torch import Tensor, nn

from stages.models import convolutions
from stages.models.classifier import Classifier
from stages.models.convolutions import MatmulConv2d


def layers_of(arch: str, size: int) -> Counter[tuple[int, int, int, int, int]]:
    """(in, out, kernel, stride, side of the input) -> how many layers."""
    model, found = Classifier(arch, ("a", "b", "c"), size).eval(), Counter()

    def count(layer, inputs):
        shape = (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
        found[(*shape, inputs[0].shape[-1])] += 1

    for layer in model.modules():
        if type(layer) is MatmulConv2d:
            layer.register_forward_pre_hook(count)
    model(torch.zeros(1, 3, size, size))
    return found


def milliseconds(layer: nn.Module, x: Tensor, repeats: int) -> tuple[float, float]:
    """Forward, and backward: the best of several."""
    forward, backward = [], []
    gradient = torch.ones_like(layer(x))
    for _ in range(repeats):
        start = time.perf_counter()
        y = layer(x)
        middle = time.perf_counter()
        torch.autograd.grad(y, (x, layer.weight), gradient)
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    return 1000 * min(forward), 1000 * min(backward)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    p = parser.parse_args()
    convolutions.PIXELS = {1: 10**6, 3: 10**6}
    columns = ("layer", "count", "output pixels", "bf16: conv F, B", "product F, B")
    columns += ("float32: conv F, B", "product F, B")
    print("| " + " | ".join(columns) + " |\n" + len(columns) * "|---" + "|")
    for (inputs, outputs, kernel, stride, side), count in sorted(
        layers_of(p.arch, p.size).items(), key=lambda item: -item[0][-1]
    ):
        pixels = ((side - 1) // stride + 1) ** 2
        cells = []
        for dtype in (torch.bfloat16, torch.float32):
            for kind in (nn.Conv2d, MatmulConv2d):
                layer = kind(inputs, outputs, kernel, stride, kernel // 2, bias=False)
                layer = layer.to(dtype).to(memory_format=torch.channels_last)
                x = torch.randn(p.batch, inputs, side, side, dtype=dtype)
                x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
                cells.append("{:.2f}, {:.2f}".format(*milliseconds(layer, x, p.repeats)))
        name = f"{inputs}→{outputs}, {kernel}×{kernel}, stride {stride}"
        print(f"| {name} | {count} | {pixels} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
