r"""What a Gaussian says of some variables given any others: location and scale, row by row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GaussianRegression"]

RIDGE = 1e-3  # variance that every variable has of its own, at least
LEAST_ROWS = 3  # that two variables must share to have a covariance
MOST_FACTORS = 24


class GaussianRegression(nn.Module):
    r"""Regression of each of D variables on any others, under one Gaussian of S variables.

    .. math:: x = \mu + W f + \Psi^{1/2} e, \quad P = I + W_G^T \Psi_G^{-1} W_G, \quad
        m_i = \mu_i + W_i P^{-1} W_G^T \Psi_G^{-1} (x_G - \mu_G), \quad
        s_i^2 = \Psi_i + W_i P^{-1} W_i^T

    for whatever set G is known in a row: in closed form for each of the :math:`2^S` sets, without
    training. It begins as the standard normal, which knows nothing. Of more than 24 variables
    the common part is that of the 24 strongest principal components.

    Arguments:
        features: Number D of variables to tell of; the first ones.
        more: How many further variables may be known.

    Example:
        >>> guess = GaussianRegression(2)
        >>> x = torch.randn(1000, 1) + 0.1 * torch.randn(1000, 2)
        >>> guess.fit(x, torch.ones_like(x, dtype=torch.bool))
        >>> m, log_s = guess(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]]))
        >>> bool((m[0, 1] - 1).abs() < 0.1), bool(log_s[0, 1] < -1)
        (True, True)
    """

    mean: Tensor
    factors: Tensor
    own: Tensor

    def __init__(self, features: int, more: int = 0) -> None:
        super().__init__()
        self.features = features
        size = features + more
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("factors", torch.zeros(size, min(size, MOST_FACTORS)))
        self.register_buffer("own", torch.ones(size))

    @torch.no_grad()
    def fit(self, x: Tensor, there: Tensor) -> None:
        """Take mean and covariance of rows x (N, S), of which ``there`` says what is known.

        Each pair of variables by the rows that have both; then the nearest covariance that there
        can be.
        """
        seen = there.double()
        values = torch.where(there, x.double(), 0.0)
        mean = values.sum(0) / seen.sum(0).clamp_min(1)
        moved = torch.where(there, values - mean, 0.0)
        rows = seen.mT @ seen
        found = torch.where(rows >= LEAST_ROWS, (moved.mT @ moved) / rows.clamp_min(1), 0.0)
        lengths, directions = torch.linalg.eigh(found)
        count = self.factors.shape[1]
        factors = directions[:, -count:] * lengths[-count:].clamp_min(0).sqrt()
        self.mean.copy_(mean)
        self.factors.copy_(factors)
        self.own.copy_((found.diagonal() - factors.square().sum(1)).clamp_min(RIDGE))

    def forward(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Locations and log-scales of the first D variables, shapes (N, D), in the type of x.

        Arguments:
            x: Shape (N, S); what is not known is ignored.
            known: Shape (N, S).
        """
        D, W = self.features, self.factors.double()  # (S, r)
        r, k = W.shape[1], known.double()
        told = k / self.own.double()
        products = (W[:, :, None] * W[:, None, :]).flatten(1)  # (S, r^2)
        precision = (told @ products).unflatten(1, (r, r)) + torch.eye(r).to(W)
        lower = torch.linalg.cholesky(precision)
        moved = torch.where(known, x.double() - self.mean.double(), 0.0)
        score = ((told * moved) @ W)[:, :, None]
        location = self.mean[:D].double() + torch.cholesky_solve(score, lower)[..., 0] @ W[:D].mT
        spread = torch.linalg.solve_triangular(lower, W[:D].mT.expand(len(x), -1, -1), upper=False)
        variance = self.own[:D].double() + spread.square().sum(1)

        return location.to(x.dtype), (0.5 * variance.log()).to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"features={self.features}, more={len(self.mean) - self.features}"
