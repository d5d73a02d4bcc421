r"""The convolutional branch the way the paper describes it, to compare with.

Masked weights stand in dense 3 x 3 kernels, value and derivative are two dense forward
evaluations, and autograd goes back through both. The numbers are those of
:mod:`quarflow.ops.value_diagonal`; time and memory are not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor

from quarflow.ops.recurrence import Tensors
from quarflow.ops.taps import Taps
from quarflow.ops.value_diagonal import Pass

__all__ = ["dense_kernels", "dense_value_and_diagonal"]


def dense_kernels(weight: Tensor, taps: Taps) -> Tensor:
    """Square kernels, as ``conv2d`` takes them, from (out, taps, in): zero where no tap is.

    Example:
        >>> dense_kernels(torch.ones(1, 2, 1), ((0, -1), (0, 0)))[0, 0]
        tensor([[0., 0., 0.],
                [1., 1., 0.],
                [0., 0., 0.]])
    """
    reach = max(max(abs(i), abs(j)) for i, j in taps)
    rows, columns = (torch.tensor(o, device=weight.device) for o in zip(*taps, strict=True))
    size = 2 * reach + 1
    dense = weight.new_zeros(weight.shape[0], weight.shape[2], size * size)

    return dense.index_copy(2, (rows + reach) * size + columns + reach, weight.mT).unflatten(
        2, (size, size)
    )


def _block_diagonal(blocks: Tensor) -> Tensor:
    """(C, k_out, k_in) to a 1 x 1 kernel (C k_out, C k_in) with zeros between channels."""
    return torch.block_diag(*blocks.unbind())[:, :, None, None]


def dense_value_and_diagonal(
    x: Tensor, weights: Tensors, blocks: Tensors, biases: Tensors, options: Pass
) -> tuple[Tensor, Tensor]:
    """F(x) and d by two dense evaluations; arguments as ``value_and_diagonal``.

    The derivative goes through kernels of the size of the value's, in which only the diagonal
    blocks of the centre tap are not zero.
    """
    phi, taps = options.activation, options.taps
    assert taps is not None
    C, count = x.shape[-1], len(taps)
    h = x.permute(0, 3, 1, 2)
    t = torch.ones_like(h)
    last = len(weights) - 1
    for layer, (weight, block, bias) in enumerate(zip(weights, blocks, biases, strict=True)):
        if layer or options.preactivation:
            h, slope = phi(h)
            t = slope * t
        if layer == 0:
            kernel = dense_kernels(weight.unflatten(1, (count, C)), taps)
        elif layer == last:
            kernel = dense_kernels(weight.unflatten(0, (count, C)).transpose(0, 1), taps)
        else:
            kernel = weight[:, :, None, None]
        reach = kernel.shape[-1] // 2
        own = fn.pad(_block_diagonal(block), (reach,) * 4)
        h = fn.conv2d(h, kernel, bias, padding=reach)
        t = fn.conv2d(t, own, padding=reach)

    return h.permute(0, 2, 3, 1).to(x.dtype), t.permute(0, 2, 3, 1).to(x.dtype)
