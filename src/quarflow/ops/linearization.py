r"""A layer of a plain network, and the derivative of a whole one as a linear map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as fn
from torch import Tensor

__all__ = ["Linearization", "product"]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a layer does: a matrix product, or for kernels (out, in, size, size) a convolution."""
    if weight.dim() == 4:
        return fn.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    if bias is None or bias.dim() == 1:
        return fn.linear(x, weight, bias)

    return fn.linear(x, weight) + bias


def _transposed(g: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() == 4:
        return fn.conv_transpose2d(g, weight, padding=weight.shape[-1] // 2)

    return g @ weight


@dataclass(frozen=True)
class Linearization:
    r"""The derivative J of a network at N points: products with it, or the matrix itself.

    The slopes of the activations are all that is kept from the forward pass, so a product costs
    one product per layer, with or without autograd.

    Attributes:
        weights: Weight matrices, (out, in), or kernels, (out, in, size, size).
        slopes: Derivatives of the activations before each layer, (N, in) or (N, in, H, W); None
            where there is no activation.
        shape: (C, H, W) for images, which are vectors (N, C H W) here.
    """

    weights: tuple[Tensor, ...]
    slopes: tuple[Tensor | None, ...]
    shape: tuple[int, ...] | None = None

    def jvp(self, v: Tensor) -> Tensor:
        """J v, for v of shape (N, D)."""
        t = self._opened(v)
        for weight, slope in zip(self.weights, self.slopes, strict=True):
            t = product(t if slope is None else slope * t, weight)

        return self._closed(t, v)

    def vjp(self, v: Tensor) -> Tensor:
        """v^T J, for v of shape (N, D)."""
        g = self._opened(v)
        for weight, slope in zip(self.weights[::-1], self.slopes[::-1], strict=True):
            g = _transposed(g, weight)
            g = g if slope is None else g * slope

        return self._closed(g, v)

    def dense(self) -> Tensor:
        """J as matrices, shape (N, D, D): the work of D products."""
        if self.shape is not None:
            some = next(s for s in self.slopes if s is not None)
            basis = torch.eye(math.prod(self.shape), dtype=some.dtype, device=some.device)
            return torch.stack([self.vjp(row.expand(len(some), -1)) for row in basis], 1)
        jacobian = self.weights[0]
        for weight, slope in zip(self.weights[1:], self.slopes[1:], strict=True):
            assert slope is not None
            jacobian = weight @ (slope[..., None] * jacobian)

        return jacobian

    def rows(self, index: Tensor | slice) -> Linearization:
        """The derivative at some of the points."""
        return replace(self, slopes=tuple([s if s is None else s[index] for s in self.slopes]))

    def _opened(self, v: Tensor) -> Tensor:
        return v if self.shape is None else v.reshape(-1, *self.shape)

    def _closed(self, t: Tensor, v: Tensor) -> Tensor:
        return t if self.shape is None else t.reshape(v.shape).to(v.dtype)
