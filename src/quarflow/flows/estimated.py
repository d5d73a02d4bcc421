r"""Distributions whose log-density is an estimate, with random numbers of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.flows.flow import FlowDistribution
from quarflow.transforms import ResidualStep, Transform

__all__ = ["Estimated"]


class Estimated(FlowDistribution):
    r"""What the distributions of residual flows over vectors and over images have in common.

    Arguments:
        transform, base, context_shape, event_shape: As in :class:`FlowDistribution`.

    Example:
        >>> from quarflow.flows import ResidualFlow
        >>> mean, error = ResidualFlow(2, transforms=1)().log_prob_and_error(torch.zeros(5, 2))
        >>> mean.shape, error.shape
        (torch.Size([5]), torch.Size([5]))
    """

    def log_prob(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Log-density in nats, shape (*): an *estimate*, unless ``logdet="exact"``.

        Arguments:
            value: As the distribution takes it.
            generator: Of the probes and the roulette; the global one by default.
        """
        self.check(value)
        transform = self.transform
        if generator is not None:

            def seeded(part: Transform) -> Transform:
                return part.with_generator(generator) if isinstance(part, ResidualStep) else part

            transform = transform.mapped(seeded)
        z, ladj = transform.call_and_ladj(value)

        return self.base.log_prob(z) + ladj

    def log_prob_and_error(
        self, value: Tensor, probes: int = 16, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean of repeated estimates of the log-density and its standard error, both (*).

        Arguments:
            value: As the distribution takes it.
            probes: Number of estimates, at least 2.
            generator: Of the probes and the roulette; the global one by default.

        Raises:
            ValueError: if there are fewer than 2 probes.
        """
        if probes < 2:
            raise ValueError(f"probes must be at least 2 for a standard error, not {probes}.")
        estimates = torch.stack([self.log_prob(value, generator) for _ in range(probes)])

        return estimates.mean(0), estimates.std(0) / probes**0.5
