r"""Gradients of an inverse by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quarflow.solvers import solve

__all__ = ["implicit_root"]

LEFT = 1e-4  # of a gradient: less is what the solver left

# x -> (f(x), slopes), both of the shape of x, (*, D)
Function = Callable[[Tensor], tuple[Tensor, Tensor]]


def implicit_root(x: Tensor, z: Tensor, f: Function, **solver: Any) -> Tensor:
    r"""The root x of f(x) = z, with gradients to z and to all that f is made of.

    .. math:: \mathrm{d}x = J^{-1} (\mathrm{d}z - \mathrm{d}f)

    The backward pass solves :math:`J^\top v = g` by :func:`quarflow.solvers.solve`: its sweeps
    cost a vector-Jacobian product each, and no graph of the forward sweeps is kept. Where it is to
    be differentiated itself, v is an implicit root too, and so on: to any order.

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
    # At a constant x second derivatives through df(x) would be lost: a second step, at the root
    # that the first gives derivatives to, has them (as Newton's method doubles the order).
    asked: dict[str, Tensor] = {}
    once: Tensor = _Implicit.apply(x, f(x)[0] - z, f, solver, asked)
    if not once.requires_grad:
        return once
    root: Tensor = _Implicit.apply(once, f(once)[0] - z, f, solver, asked)

    return root


class _Implicit(torch.autograd.Function):
    r"""Identity on the root x of r(x) = 0, with :math:`dx = -J^{-1} \, dr` as its derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, f: Function, solver: dict, asked: dict[str, Tensor]
    ) -> Tensor:
        root = x.clone()
        ctx.save_for_backward(root)  # an output: where gradients are followed, so is the root
        ctx.f, ctx.solver, ctx.asked = f, solver, asked

        return root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (root,) = ctx.saved_tensors
        twice = torch.is_grad_enabled()
        size = grad.detach().abs().amax()
        if ctx.needs_input_grad[0]:
            ctx.asked["size"] = size
        elif not twice and size <= LEFT * ctx.asked.get("size", size.new_zeros(())):
            # In first derivatives the two ways to the first step cancel, but for rounding.
            return None, torch.zeros_like(grad), None, None, None
        with torch.enable_grad():
            x = root.detach().requires_grad_()
            z, slope = ctx.f(x)
        slope = slope.detach().expand_as(x)

        def vjp(v: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(z, x, v, retain_graph=True)
            return product

        v = _transposed_root(vjp, grad.detach(), slope, ctx.solver)
        if not twice:
            return (grad if ctx.needs_input_grad[0] else None), -v, None, None, None

        # Somebody wants second derivatives: v itself is a root, of J^T v = g, whose map depends on
        # the root x and on all that f is made of.
        value = ctx.f(root)[0]

        def transposed(v: Tensor) -> tuple[Tensor, Tensor]:
            (product,) = torch.autograd.grad(value, root, v, create_graph=True)
            return product, slope

        solver = {**ctx.solver, "reverse": not ctx.solver.get("reverse", False)}

        v = implicit_root(v, grad, transposed, **solver)

        return (grad if ctx.needs_input_grad[0] else None), -v, None, None, None


def _transposed_root(
    vjp: Callable[[Tensor], Tensor], grad: Tensor, slope: Tensor, solver: dict
) -> Tensor:
    """v of J^T v = g, in the shape of g (*, D), by the solver: J^T is triangular as J is."""
    rows = slope.reshape(-1, slope.shape[-1])
    right = grad.reshape_as(rows)
    # Gradients can be of any size, tolerances are relative to about 1.
    size = right.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(right.dtype).tiny)
    right = right / size

    def transposed(v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        full = torch.zeros_like(rows).index_copy(0, index, v)
        return vjp(full.reshape_as(grad)).reshape_as(rows)[index], rows[index]

    # v can be far larger than the right-hand side, and its rounding with it: fewer digits.
    tolerance = 1e-9 if grad.dtype == torch.float64 else 1e-5
    options = {"tolerance": tolerance, **solver}
    v: Tensor = size * solve(transposed, right, start=right / rows, **options).x

    return v.reshape_as(grad)
