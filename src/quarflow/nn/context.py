r"""What a context does to a flow: where variables are, how wide they are, and what steps read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from quarflow.nn.draws import uniform_

__all__ = ["ContextNetwork", "Read"]

WIDEST = 3.0  # log-scales stay within, and are linear in what the network says near 0


class Read(NamedTuple):
    """What was read of a context, of shape (*, C).

    Attributes:
        features: What the steps read instead of it, shape (*, H).
        locations, log_scales: Of the affine maps at the entry and at the exit, (*, D) each.
    """

    features: Tensor
    locations: tuple[Tensor, Tensor]
    log_scales: tuple[Tensor, Tensor]


class ContextNetwork(nn.Module):
    r"""A trunk that the steps share, and the affine maps that the context sets.

    .. math:: h = \tanh(W \ldots \text{silu}(W c + b)), \quad m = A c + B h, \quad
        s = r / \sqrt{1 + (r / 3)^2}, \quad r = G h

    The trunk is bounded: far outside of what it has seen, m goes on as the straight line A c, and
    scales and steps stay as they are at the edge. All but the trunk starts at 0.

    Arguments:
        context: Number C of context variables.
        widths: Of the layers of the trunk; the last is H.
        features: Number D of variables of the flow.

    Example:
        >>> read = ContextNetwork(2, (16, 8), features=3)(torch.randn(5, 2))
        >>> read.features.shape, read.locations[0].shape
        (torch.Size([5, 8]), torch.Size([5, 3]))
    """

    def __init__(self, context: int, widths: Sequence[int], features: int) -> None:
        super().__init__()
        sizes = [context, *widths]
        self.weights = nn.ParameterList(_drawn(b, a) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(_drawn(b, fan=a) for a, b in pairwise(sizes))
        # locations at the entry and at the exit, then log-scales likewise
        self.skip = nn.Parameter(torch.zeros(2 * features, context))
        self.heads = nn.Parameter(torch.zeros(4 * features, widths[-1]))

    def forward(self, c: Tensor) -> Read:
        """What the flow reads of c, shape (*, C)."""
        h = c
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = fn.linear(h, weight, bias)
            h = h.tanh() if i + 1 == len(self.weights) else fn.silu(h)
        moved, raw = fn.linear(h, self.heads).chunk(2, -1)
        entry, exit_ = (fn.linear(c, self.skip) + moved).chunk(2, -1)
        log_scale = raw * (1 + (raw / WIDEST) ** 2).rsqrt()
        first, last = log_scale.chunk(2, -1)

        return Read(h, (entry, exit_), (first, last))

    @torch.no_grad()
    def start_from(self, x: Tensor, c: Tensor, seen: Tensor) -> None:
        """Begin with locations at the entry that are linear regressions on the context.

        Arguments:
            x: Rows, shape (N, D).
            c: Their contexts, shape (N, C).
            seen: Which variables of each row count, bool, shape (N, D).
        """
        rows = c.double()
        for i, (column, there) in enumerate(zip(x.double().mT, seen.mT, strict=True)):
            self.skip[i] = _slope(column[there], rows[there])

    def extra_repr(self) -> str:
        """Widths, for printing."""
        widths = [self.skip.shape[1], *[weight.shape[0] for weight in self.weights]]

        return " -> ".join(map(str, widths))


def _slope(x: Tensor, c: Tensor) -> Tensor:
    """Of x (N) on c (N, C), by a ridge as strong as one row; 0 without rows."""
    if not len(x):
        return c.new_zeros(c.shape[1])
    moved = c - c.mean(0)
    square = moved.mT @ moved + torch.eye(c.shape[1]).to(c)

    return torch.linalg.solve(square, moved.mT @ (x - x.mean()))


def _drawn(*shape: int, fan: int | None = None) -> nn.Parameter:
    """Uniform, its size from the number of inputs."""
    fan = shape[-1] if fan is None else fan

    return nn.Parameter(uniform_(torch.empty(shape)).mul_(fan**-0.5))
