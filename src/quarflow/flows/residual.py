r"""Residual flows over vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from quarflow.flows.actnorm import ActNorms
from quarflow.flows.bases import SCALAR
from quarflow.flows.bases import base as make_base
from quarflow.flows.checks import check_sigma, check_sizes
from quarflow.flows.estimated import Estimated
from quarflow.flows.flow import Flow
from quarflow.flows.register import family
from quarflow.nn import LipschitzMLP
from quarflow.transforms import Composed, LogDet, ResidualStep, Transform

__all__ = ["ResidualFlow", "ResidualFlowDistribution"]


LOGDET = LogDet()


class ResidualFlowDistribution(Estimated):
    r"""The distribution of a residual flow, whose log-density is mostly an estimate.

    Each call draws new probes. The standard error of one call is about

    .. math:: \sqrt{\textstyle\sum_\text{steps} 2 \, \| \log(I + J)_\text{symmetric} \|_F^2}

    for Gaussian probes, plus what the roulette adds: 1.8 nats for eight steps trained on eight
    Gaussians. ``probe="rademacher"`` drops the diagonal from the sum, which is much of it in
    few dimensions. It does not shrink with the number of terms, only with repeated calls:
    :meth:`log_prob_and_error` averages them and says what is left. With
    ``logdet="truncated"`` there is a bias on top, which no averaging removes; with
    ``logdet="exact"`` there is no error and no random number.

    The estimate of the log-density is unbiased; its exponential, as a density, is not.

    See :class:`ResidualFlow`.

    Arguments:
        transform, base, context_shape, event_shape: As in :class:`FlowDistribution`.

    Example:
        >>> import torch
        >>> p = ResidualFlow(2, transforms=2, hidden_features=(8,))()
        >>> p.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """


@family
class ResidualFlow(Flow):
    r"""Residual flow: steps x + F(x) with Lip(F) < 1 and dense Jacobians.

    ``transforms`` residual steps, with an elementwise affine map before and after each. The
    log-det is a power series. In training it takes ``logdet.terms`` terms and a random number
    more, in evaluation (``flow.eval()``) ``eval_terms``: the log-densities of the two modes differ
    in their noise when unbiased, and in their bias when truncated.

    The branch has no activation before its first layer. Context enters every layer of it, without
    constraint: it does not count for the Lipschitz constant in x.

    Reference:
        | Residual Flows for Invertible Generative Modeling (Chen et al., 2019)
        | https://arxiv.org/abs/1906.02735

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of residual steps.
        hidden_features: Widths of the hidden layers.
        activation: ``lipswish`` (the reference's), ``elu``, ``sin`` or ``tanh``.
        sigma: Largest norm of each layer, in (0, 1): Lip(F) is at most its power to the number
            of layers.
        logdet: How log-dets are computed in training, or its ``mode`` alone: ``unbiased``,
            ``truncated`` or ``exact``; see :class:`quarflow.transforms.LogDet`.
        eval_terms: Terms that are always taken in evaluation.
        base: ``normal``, or ``student-t`` for heavy tails.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> flow = ResidualFlow(2, transforms=4, hidden_features=(16,), logdet="exact")
        >>> flow().log_prob(torch.zeros(10, 2)).shape
        torch.Size([10])
        >>> flow().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        *,
        transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        activation: str = "lipswish",
        sigma: float = 0.97,
        logdet: LogDet | Literal["unbiased", "truncated", "exact"] = LOGDET,
        eval_terms: int = 20,
        base: Literal["normal", "student-t"] = "normal",
    ) -> None:
        super().__init__(features, context)
        check_sizes(features, context, transforms, hidden_features)
        check_sigma(sigma)
        assert isinstance(logdet, LogDet)
        self._logdets = {True: logdet, False: replace(logdet, terms=eval_terms)}
        self.branches = LipschitzMLP(
            features, hidden_features, transforms, context, activation, sigma
        )
        self.actnorms = ActNorms(transforms + 1, features)
        self.base = make_base(base, features)

    @property
    def logdet(self) -> LogDet:
        """How log-dets are computed now, in training or in evaluation."""
        return self._logdets[self.training]

    def transforms(self, c: Tensor | None) -> list[Transform]:
        """Affine, step, affine, ..., affine."""
        affines = self.actnorms()
        chain: list[Transform] = [affines[0]]
        for t, branch in enumerate(self.branches.bind(c)):
            chain += [ResidualStep(branch, self.logdet), affines[t + 1]]

        return chain

    def forward(self, c: Tensor | None = None) -> ResidualFlowDistribution:
        """The distribution given the context.

        Arguments:
            c: Context, shape (*, C); None if the flow has none.

        Raises:
            ValueError: if the context is missing, not wanted or of the wrong width.
        """
        self._check_context(c)
        shape = SCALAR if c is None else c.shape[:-1]

        return ResidualFlowDistribution(Composed(self.transforms(c)), self.base(shape), shape)

    @property
    def largest_slope(self) -> float:
        """What ``sigma`` and the number of layers allow Lip(F) to be."""
        return float(self.arguments["sigma"] ** len(self.branches.layers))

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"features={self.features}, context={self.context}, logdet={self.logdet.mode!r}"
