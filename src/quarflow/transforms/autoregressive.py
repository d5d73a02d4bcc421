r"""The affine autoregressive step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from quarflow.nn.mlp import BoundMLP
from quarflow.solvers import Map, Solution, other_dtype, solve
from quarflow.transforms.base import Transform, cast
from quarflow.transforms.implicit import implicit_root

__all__ = ["AutoregressiveStep"]


class AutoregressiveStep(Transform):
    r"""Affine in each variable, with shift and scale from the variables before it.

    .. math:: z_i = x_i \, e^{s_i(x_{<i})} + b_i(x_{<i}), \quad \log\det J = \sum_i s_i

    The log-scale is clamped softly to (-limit, limit), :math:`s = a / (1 + |a| / \text{limit})`:
    the inverse divides by the scale, and one that a far outlier drove towards 0 would send
    samples to infinity. Unlike tanh, the clamp keeps a gradient far out.

    Reference:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057

    Arguments:
        network: A masked network with 2 D outputs, context bound: shifts, then log-scales.
        reverse: Whether the order is reversed.
        limit: Largest absolute log-scale.
        method: How to invert: ``sequential`` solves one variable after the other, in D passes,
            each of which autograd can follow; ``newton`` is :func:`quarflow.solvers.solve`,
            where samples stop as soon as they have converged, with gradients by the implicit
            function theorem.
        solver: Further keyword arguments of the solver.

    Raises:
        ValueError: if there is no method of that name.

    Example:
        >>> from quarflow.nn import MADE
        >>> step = AutoregressiveStep(MADE(3, (16,), reverse=[False]).bind()[0])
        >>> x = torch.tensor([0.5, -1.0, 2.0])
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        network: BoundMLP,
        reverse: bool = False,
        limit: float = 5.0,
        method: Literal["sequential", "newton"] = "sequential",
        **solver: Any,
    ) -> None:
        super().__init__()
        if method not in ("sequential", "newton"):
            raise ValueError(f"method must be 'sequential' or 'newton', not {method!r}.")
        self.network, self.reverse, self.limit = network, reverse, limit
        self.method, self.solver = method, solver

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, in one pass."""
        shift, log_scale = self._parameters(self.network, x)

        return x * log_scale.exp() + shift, log_scale.sum(-1).expand(self._shape(x)[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By the method chosen."""
        z = z.expand(self._shape(z))
        if self.method == "sequential":
            return self._sequential(z)
        x = self.solve(z).x.reshape(z.shape)
        if torch.is_grad_enabled():
            x = implicit_root(x, z, self._call_and_slope, reverse=not self.reverse)

        return x, -self.call_and_ladj(x)[1]

    def solve(self, z: Tensor) -> Solution:
        """The inverse by the solver with iterations and residuals, rows flattened to (N, D)."""
        shape = self._shape(z)
        y = z.detach().expand(shape).reshape(-1, shape[-1])
        network = self.network.flat(shape[:-1])

        def map_of(network: BoundMLP) -> Map:
            def f(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
                net = network if len(rows) == len(y) else network.rows(rows)
                shift, log_scale = self._parameters(net, x)
                scale = log_scale.exp()
                return x * scale + shift, scale

            return f

        def other() -> Map:
            return map_of(cast(network, other_dtype(y.dtype)))

        return solve(map_of(network), y, reverse=self.reverse, other=other, **self.solver)

    def _sequential(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # Variables not known yet are held at 0: what is masked must not meet an infinity.
        D = z.shape[-1]
        known = [z.new_zeros(z.shape[:-1])] * D
        ladj = z.new_zeros(z.shape[:-1])
        for i in reversed(range(D)) if self.reverse else range(D):
            shift, log_scale = self._parameters(self.network, torch.stack(known, -1))
            known[i] = (z[..., i] - shift[..., i]) * (-log_scale[..., i]).exp()
            ladj = ladj - log_scale[..., i]

        return torch.stack(known, -1), ladj

    def _parameters(self, network: BoundMLP, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, a = network(x).chunk(2, -1)

        return shift, a / (1 + a.abs() / self.limit)

    def _call_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._parameters(self.network, x)
        scale = log_scale.exp()

        return x * scale + shift, scale

    def _shape(self, x: Tensor) -> torch.Size:
        return torch.broadcast_shapes(x.shape, (*self.network.batch_shape, x.shape[-1]))

    def __repr__(self) -> str:
        features = self.network.weights[0].shape[-1]
        order = "reversed" if self.reverse else "natural"

        return f"AutoregressiveStep(features={features}, order={order})"
