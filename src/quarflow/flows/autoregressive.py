r"""Affine autoregressive flows over vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from quarflow.flows.actnorm import ActNorms
from quarflow.flows.bases import base as make_base
from quarflow.flows.checks import check_sizes
from quarflow.flows.flow import Flow
from quarflow.flows.register import family
from quarflow.nn import MADE
from quarflow.transforms import AutoregressiveStep, Transform

__all__ = ["Autoregressive"]

ORDERS = ("alternate", "fixed")


@family
class Autoregressive(Flow):
    r"""Affine autoregressive flow on masked networks: MAF, or IAF with ``inverse=True``.

    ``transforms`` autoregressive steps, with an elementwise affine map before and after each.
    As MAF, log_prob takes one pass per step and sampling up to D; as IAF it is the other way
    round.

    Reference:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of steps.
        hidden_features: Widths of the hidden layers.
        inverse: False for MAF, True for IAF.
        order: ``alternate`` reverses the order every other step, ``fixed`` never does.
        activation: ``elu``, ``sin``, ``lipswish`` or ``tanh``.
        limit: Largest absolute log-scale; see :class:`quarflow.transforms.AutoregressiveStep`.
        method: How to invert, ``sequential`` or ``newton``.
        base: ``normal``, or ``student-t`` for heavy tails.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> flow = Autoregressive(3, context=2, transforms=4, hidden_features=(32, 32))
        >>> x, c = torch.randn(10, 3), torch.randn(10, 2)
        >>> flow(c).log_prob(x).shape
        torch.Size([10])
        >>> flow(c).sample((5,)).shape
        torch.Size([5, 10, 3])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        inverse: bool = False,
        order: Literal["alternate", "fixed"] = "alternate",
        activation: str = "elu",
        limit: float = 5.0,
        method: Literal["sequential", "newton"] = "sequential",
        base: Literal["normal", "student-t"] = "normal",
    ) -> None:
        super().__init__(features, context)
        check_sizes(features, context, transforms, hidden_features)
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, not {order!r}.")
        if not limit > 0:
            raise ValueError(f"limit must be above 0, not {limit}.")
        if method not in ("sequential", "newton"):
            raise ValueError(f"method must be 'sequential' or 'newton', not {method!r}.")
        self.inverse, self.limit, self.method = inverse, limit, method
        self.reverse = tuple(order == "alternate" and t % 2 == 1 for t in range(transforms))
        self.networks = MADE(
            features, hidden_features, self.reverse, context=context, activation=activation
        )
        self.actnorms = ActNorms(transforms + 1, features)
        self.base = make_base(base, features)

    def transforms(self, c: Tensor | None) -> list[Transform]:
        """Affine, step, affine, ..., affine."""
        affines = self.actnorms()
        chain: list[Transform] = [affines[0]]
        for t, network in enumerate(self.networks.bind(c)):
            step = AutoregressiveStep(network, self.reverse[t], self.limit, self.method)
            chain += [step.inv if self.inverse else step, affines[t + 1]]

        return chain

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"features={self.features}, context={self.context}, inverse={self.inverse}"
