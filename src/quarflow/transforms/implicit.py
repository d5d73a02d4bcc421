r"""Gradients of an inverse by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from quarflow.solvers import solve

__all__ = ["implicit_root"]

# x -> (f(x), slopes), both of the shape of x, (*, D)
Function = Callable[[Tensor], tuple[Tensor, Tensor]]


def implicit_root(x: Tensor, z: Tensor, f: Function, **solver: Any) -> Tensor:
    r"""The root x of f(x) = z, with gradients to z and to all that f is made of.

    .. math:: \mathrm{d}x = J^{-1} (\mathrm{d}z - \mathrm{d}f)

    The backward pass solves :math:`J^\top v = g` by :func:`quarflow.solvers.solve`: its sweeps
    cost a vector-Jacobian product each, and no graph of the forward sweeps is kept.

    Arguments:
        x: The root, shape (*, D), without gradients.
        z: Right-hand side, shape (*, D).
        f: Gives f(x) and the slopes df_i/dx_i.
        solver: Keyword arguments of the solver; ``reverse`` is that of the transposed map.

    Example:
        >>> a = torch.tensor([3.0], requires_grad=True)
        >>> f = lambda x: (a * x, a.expand_as(x))
        >>> x = implicit_root(torch.tensor([2.0]), torch.tensor([6.0]), f)
        >>> torch.autograd.grad(x.sum(), a)  # x = 6 / a
        (tensor([-0.6667]),)
    """
    # The residual is zero in value and carries the gradients of weights, context and z.
    root: Tensor = _Implicit.apply(x, f(x)[0] - z, f, solver)

    return root


class _Implicit(torch.autograd.Function):
    r"""Identity on the root x of r(x) = 0, with :math:`dx = -J^{-1} \, dr` as its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, f: Function, solver: dict) -> Tensor:
        ctx.save_for_backward(x)
        ctx.f, ctx.solver = f, solver

        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z, slope = ctx.f(x)
        slope = slope.detach().expand_as(x).reshape(-1, x.shape[-1])
        right = grad.reshape_as(slope)
        # Gradients can be of any size, tolerances are relative to about 1.
        size = right.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(right.dtype).tiny)
        right = right / size

        def transposed(v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            # J^T is triangular the other way round: the same solver, with a linear map.
            full = torch.zeros_like(slope).index_copy(0, rows, v)
            (product,) = torch.autograd.grad(z, x, full.reshape_as(x), retain_graph=True)
            return product.reshape_as(slope)[rows], slope[rows]

        # v can be far larger than the right-hand side, and its rounding with it: fewer digits.
        tolerance = 1e-9 if x.dtype == torch.float64 else 1e-5
        options = {"tolerance": tolerance, **ctx.solver}
        v = size * solve(transposed, right, start=right / slope, **options).x

        return None, -v.reshape_as(x), None, None
