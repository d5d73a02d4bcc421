r"""Log-determinants of I + J from products with J: estimates, and the exact reference.

.. math:: \log\det(I + J) = \sum_{k \ge 1} \frac{(-1)^{k+1}}{k} \, \mathrm{tr}(J^k),
    \quad \mathrm{tr}(A) = E[v^\top A v]

for :math:`\|J\| < 1` and probes v with mean 0 and covariance I (Hutchinson).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as fn
from torch import Tensor
from torch.autograd.function import once_differentiable

from quarflow.modes import torch_only
from quarflow.nn.network import Derivative, Network

__all__ = [
    "DISTRIBUTIONS",
    "MODES",
    "PROBES",
    "Draws",
    "LogDet",
    "exact_logdet",
    "neumann_logdet",
    "series_logdet",
    "value_and_logdet",
]

MODES = ("unbiased", "truncated", "exact")
DISTRIBUTIONS = ("poisson", "geometric")
PROBES = ("gaussian", "rademacher")


@dataclass(frozen=True)
class Draws:
    r"""The random numbers of one estimate.

    Attributes:
        v: Probes, shape (N, D).
        counts: How many terms of the series each row takes, shape (N).
        weights: Weight of term k at [k - 1]: one over the probability that it is taken.

    Example:
        >>> Draws(torch.ones(5, 2), torch.full((5,), 3), torch.ones(3)).v.shape
        torch.Size([5, 2])
    """

    v: Tensor
    counts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class LogDet:
    r"""How log-determinants are computed.

    * ``unbiased``: ``terms`` terms always, and a random number N more of them (Russian
      roulette), each divided by the probability that it is taken. Every row draws its own N.
    * ``truncated``: ``terms`` terms; biased (i-ResNet).
    * ``exact``: the determinant of the whole Jacobian, D times the work of a product.

    With ``poisson`` the chance of term k falls like 1 / k!, faster than the term itself, so that
    the variance of the unbiased estimate is infinite in principle; the rare draws that make it so
    are hardly ever met. With ``geometric`` it is finite when
    :math:`\mathrm{Lip}(F)^2 < \text{rate} / (1 + \text{rate})`.

    Reference:
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019), section 3
        | https://arxiv.org/abs/1906.02735

    Arguments:
        mode: One of :data:`MODES`.
        terms: Number of terms that are always taken.
        distribution: Of the number of further terms, one of :data:`DISTRIBUTIONS`.
        rate: Mean number of further terms.
        probe: Distribution of v, one of :data:`PROBES`.
        neumann_gradient: Whether gradients are estimated by the Neumann series, which needs no
            graph through the powers of J; in expectation they are those of the same terms.
        memory_saving: Whether gradients of the log-det are computed in the forward pass
            already, so that its graph is not kept; needs ``neumann_gradient``.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> LogDet("truncated", terms=10).mode
        'truncated'
    """

    mode: str = "unbiased"
    terms: int = 2
    distribution: str = "poisson"
    rate: float = 2.0
    probe: str = "gaussian"
    neumann_gradient: bool = True
    memory_saving: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("logdet", self.mode, MODES),
            ("distribution", self.distribution, DISTRIBUTIONS),
            ("probe", self.probe, PROBES),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, not {value!r}.")
        least = 1 if self.mode == "truncated" else 0
        if self.terms < least:
            raise ValueError(f"terms must be at least {least}, not {self.terms}.")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, not {self.rate}.")
        if self.memory_saving and not self.neumann_gradient:
            raise ValueError("memory_saving needs neumann_gradient=True.")

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Draws:
        """Random numbers for the rows of x, (N, D)."""
        options: dict[str, Any] = {"dtype": x.dtype, "device": x.device, "generator": generator}
        v = torch.randn(x.shape, **options)
        if self.probe == "rademacher":
            v = torch.where(v < 0, -1.0, 1.0).to(x)
        counts = torch.full((len(x),), self.terms, device=x.device)
        if self.mode == "unbiased":
            counts = counts + self._further(
                torch.rand(len(x), **options | {"dtype": torch.double})
            )
        most = int(counts.max()) if len(x) else 0
        k = torch.arange(1, most + 1, device=x.device, dtype=torch.double) - self.terms

        return Draws(v, counts, (1 / self._chance(k)).to(x))

    def _chance(self, k: Tensor) -> Tensor:
        """P(N >= k), 1 for k <= 0."""
        rate = torch.full_like(k, self.rate)
        if self.distribution == "poisson":
            some = torch.special.gammainc(k.clamp_min(1), rate)
        else:
            some = (rate / (1 + rate)) ** k.clamp_min(1)

        return torch.where(k <= 0, 1.0, some)

    def _further(self, u: Tensor) -> Tensor:
        """Numbers N of further terms, from uniform numbers: those k with P(N >= k) > u."""
        u = u.clamp_min(2.0**-53)
        if self.distribution == "poisson":
            most = self.rate + 12 * self.rate**0.5 + 40
        else:
            most = 53 * math.log(2) / math.log1p(1 / self.rate) + 2
        chance = self._chance(torch.arange(1, int(most), device=u.device, dtype=u.dtype))

        return len(chance) - torch.searchsorted(chance.flip(0), u, right=True)


def exact_logdet(derivative: Derivative) -> Tensor:
    """Log-det of I + J from the whole Jacobian, shape (N); its sign is + where Lip(F) < 1."""
    J = derivative.dense()
    identity = torch.eye(J.shape[-1], dtype=J.dtype, device=J.device)

    return torch.linalg.slogdet(identity + J)[1]


def series_logdet(derivative: Derivative, draws: Draws) -> Tensor:
    """The weighted power series, shape (N), differentiable term by term."""
    return _powers(derivative, draws)[0]


def neumann_logdet(derivative: Derivative, draws: Draws) -> Tensor:
    r"""The same value, with the gradient of the Neumann series.

    .. math:: \nabla \log\det(I + J) = E\Big[\sum_{k \ge 0} (-1)^k v^\top J^k \, \nabla J \, v\Big]

    Only the last product is differentiated; the powers are plain numbers.
    """
    if not torch.is_grad_enabled():
        return _powers(derivative, draws)[0]
    with torch.no_grad():
        value, w = _powers(derivative, draws)

    return _with_gradient(value, _surrogate(derivative, draws.v, w))


def _with_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    return value + (surrogate - surrogate.detach())


def _surrogate(derivative: Derivative, v: Tensor, w: Tensor) -> Tensor:
    return (w * derivative.jvp(v)).sum(-1)


def _powers(derivative: Derivative, draws: Draws) -> tuple[Tensor, Tensor]:
    r"""The series, (N), and :math:`\sum_k (-1)^k c_{k+1} v^\top J^k`, (N, D)."""
    # Rows that take many terms first: those which still go on are then a prefix.
    order = draws.counts.argsort(descending=True)
    alive = (
        (draws.counts[:, None] > torch.arange(len(draws.weights)).to(draws.counts)).sum(0).tolist()
    )
    derivative, v = derivative.rows(order), draws.v[order]
    Jv = derivative.jvp(v)
    rows = len(v)
    value, w, power = v.new_zeros(rows), torch.zeros_like(v), v  # power: v^T J^(k - 1)
    for k, (n, weight) in enumerate(zip(alive, draws.weights, strict=True), start=1):
        signed = weight if k % 2 else -weight
        value = value + fn.pad(signed / k * (power[:n] * Jv[:n]).sum(-1), (0, rows - n))
        w = w + fn.pad(signed * power[:n], (0, 0, 0, rows - n))
        if k < len(alive):
            power = derivative.rows(slice(alive[k])).vjp(power[: alive[k]])
    back = order.argsort()

    return value[back], w[back]


def value_and_logdet(
    network: Network, x: Tensor, method: LogDet, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    r"""F(x) and log det(I + J_F(x)) as ``method`` says.

    Arguments:
        network: F.
        x: Shape (N, D).
        method: How the log-det is computed.
        generator: Of the random numbers; the global one by default.

    Returns:
        Shapes (N, D) and (N).
    """
    if method.mode == "exact":
        value, derivative = network.linearize(x)
        return value, exact_logdet(derivative)

    draws = method.draw(x, generator)
    if method.memory_saving and torch.is_grad_enabled() and not torch_only():
        found: tuple[Tensor, Tensor] = _BackwardInForward.apply(
            network, draws, x, *network.tensors
        )
        return found
    value, derivative = network.linearize(x)
    estimate = neumann_logdet if method.neumann_gradient else series_logdet

    return value, estimate(derivative, draws)


class _BackwardInForward(torch.autograd.Function):
    r"""Value and log-det, of which the graph of the log-det is used up at once.

    Chen et al. (2019) assume that all rows of the log-det get the same upstream gradient, as in a
    mean log-likelihood; where they do not, the gradient is computed again, with the same draws.
    One backward pass only: its graph goes with it.
    """

    @staticmethod
    def forward(
        ctx: Any, network: Network, draws: Draws, x: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.network, ctx.v = network, draws.v
        inputs = [
            t.detach().requires_grad_(need)
            for t, need in zip((x, *tensors), ctx.needs_input_grad[2:], strict=True)
        ]
        ctx.wanted = [t for t in inputs if t.requires_grad]
        with torch.enable_grad():
            value, derivative = network.with_tensors(tuple(inputs[1:])).linearize(inputs[0])
            with torch.no_grad():
                logdet, ctx.w = _powers(derivative, draws)
            surrogate = _surrogate(derivative, draws.v, ctx.w).sum()
            ctx.grads = _gradients(surrogate, ctx.wanted, keep=True)
        ctx.value, ctx.inputs = value, inputs

        return value.detach(), logdet

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_value: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
        grads = _gradients(ctx.value, ctx.wanted, grad_value)
        first = grad_logdet.reshape(-1)[:1]
        if torch.equal(grad_logdet, first.expand_as(grad_logdet)):
            of_logdet = [g * first for g in ctx.grads]
        else:
            with torch.enable_grad():
                network = ctx.network.with_tensors(tuple(ctx.inputs[1:]))
                derivative = network.linearize(ctx.inputs[0])[1]
                surrogate = _surrogate(derivative, ctx.v, ctx.w)
            of_logdet = _gradients(surrogate, ctx.wanted, grad_logdet)
        total = iter([a + b for a, b in zip(grads, of_logdet, strict=True)])

        return (None, None, *(next(total) if t.requires_grad else None for t in ctx.inputs))


def _gradients(
    y: Tensor, inputs: list[Tensor], grad: Tensor | None = None, keep: bool = False
) -> list[Tensor]:
    return list(torch.autograd.grad(y, inputs, grad, retain_graph=keep, materialize_grads=True))
