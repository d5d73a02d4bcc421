r"""Ways to compute a causal convolution, and a whole branch, at the sizes of MNIST and CIFAR-10.

    python benchmarks/conv.py [--out FILE.json] [--repeats N]

First and last layer (C to hidden channels and back), forward and backward, as

* ``dense``: a 3 x 3 convolution with a mask, 9 taps;
* ``2x3``: one convolution of 2 x 3 taps, one of them zero;
* ``two``: a 1 x 3 convolution of the row above plus a 1 x 2 of the own row;
* ``gathered``: the 5 taps side by side, one matrix product per pixel (what quarflow does).

Then a whole branch: value and diagonal, alone and with its gradient, as quarflow does it (hidden
units kept or computed anew) and as the paper does (two dense evaluations under autograd). Times
are CPU seconds of one thread, the median of the repeats: they hold on a busy machine too, as far
as its caches let them.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.experiments.timing import median_seconds
from quarflow.files import write_json
from quarflow.nn import ConvBranch
from quarflow.ops.conv_paper import dense_kernels
from quarflow.ops.taps import causal_taps, gather_taps, sum_taps

# (C, H, W), hidden channels, images: MNIST's and CIFAR-10's first scale, CIFAR-10's others, digits
SIZES = [
    ((1, 28, 28), 512, 4),
    ((3, 32, 32), 528, 4),
    ((12, 16, 16), 528, 16),
    ((48, 8, 8), 528, 32),
    ((1, 8, 8), 64, 64),
]
TAPS = causal_taps(3)


def seconds(run: Callable[[], object], repeats: int) -> float:
    return median_seconds(run, repeats, clock=time.process_time)


def layers(x: Tensor, weight: Tensor, last: bool) -> dict[str, Callable[[], Tensor]]:
    """Ways to convolve x (N, C, H, W) with weight (out, taps, in)."""

    def kernel() -> Tensor:
        return dense_kernels(weight, TAPS)

    def two() -> Tensor:
        own = kernel()[:, :, 1:2, :2]
        row = fn.conv2d(fn.pad(x, (1, 1, 1, 0))[:, :, :-1], kernel()[:, :, :1])
        return row + fn.conv2d(fn.pad(x, (1, 0, 0, 0)), own)

    def gathered() -> Tensor:
        rows = x.permute(0, 2, 3, 1)
        if last:  # many channels in, few out: multiply first, then sum over taps
            return sum_taps(rows @ weight.transpose(0, 1).flatten(0, 1).mT, TAPS)
        return gather_taps(rows, TAPS) @ weight.flatten(1).mT

    return {
        "dense": lambda: fn.conv2d(x, kernel(), padding=1),
        "2x3": lambda: fn.conv2d(fn.pad(x, (1, 1, 1, 0)), kernel()[:, :, :2]),
        "two": two,
        "gathered": gathered,
    }


def measure_layers(repeats: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for (C, H, W), hidden, N in SIZES:
        for last in (False, True):
            inputs, outputs = (hidden, C) if last else (C, hidden)
            # As it stands in memory in each way: pixels together for the gathered one.
            planes = torch.randn(N, inputs, H, W, requires_grad=True)
            rows = torch.randn(N, H, W, inputs).permute(0, 3, 1, 2).requires_grad_()
            weight = torch.randn(outputs, len(TAPS), inputs, requires_grad=True)
            times = {}
            for name in ("dense", "2x3", "two", "gathered"):
                x = rows if name == "gathered" else planes
                run = layers(x, weight, last)[name]

                def train(
                    run: Callable[[], Tensor] = run, leaves: tuple[Tensor, ...] = (x, weight)
                ) -> None:
                    torch.autograd.grad(run().sum(), leaves)

                times[name] = seconds(train, repeats)
            found.append({"layer": f"{inputs} -> {outputs}", "size": [H, W], "images": N, **times})
            print(f"{inputs:4} -> {outputs:4} at {H}x{W}, {N} images:", shown(times), flush=True)

    return found


def measure_branches(repeats: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for shape, hidden, N in SIZES:
        torch.manual_seed(0)
        C, H, W = shape
        bound = ConvBranch(shape, hidden, [False], [True]).bind()[0]
        leaves = [
            tuple(t.detach().requires_grad_() for t in group)
            for group in (bound.weights, bound.blocks, bound.biases)
        ]
        bound = replace(bound, weights=leaves[0], blocks=leaves[1], biases=leaves[2])
        x = torch.randn(N, H, W, C, requires_grad=True)
        tensors = [x, *leaves[0], *leaves[1], *leaves[2]]
        times = {}
        for name in ("kept", "recomputed", "paper"):
            options = replace(bound.options, recompute=name == "recomputed")
            way = "paper" if name == "paper" else "fused"
            branch = replace(bound, options=options, implementation=way)

            def test(branch: Callable = branch, x: Tensor = x) -> None:
                with torch.no_grad():
                    branch(x)

            def train(branch: Callable = branch, x: Tensor = x, tensors: list = tensors) -> None:
                F, d = branch(x)
                torch.autograd.grad(F.square().sum() - torch.log1p(d).sum(), tensors)

            times[f"{name} train"] = seconds(train, repeats)
            if name != "recomputed":
                times[f"{'quarflow' if name == 'kept' else name} test"] = seconds(test, repeats)
        found.append({"shape": list(shape), "hidden": hidden, "images": N, **times})
        print(f"branch {shape}, width {hidden}, {N} images:", shown(times), flush=True)

    return found


def shown(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in times.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers = {
        "torch": str(torch.__version__),
        "processor": platform.processor() or platform.machine(),
        "unit": "CPU seconds, one thread",
        "layers": measure_layers(options.repeats),
        "branches": measure_branches(options.repeats),
    }
    if options.out is not None:
        write_json(options.out, numbers, indent=2)


if __name__ == "__main__":
    main()
