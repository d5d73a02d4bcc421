r"""QuAR flows over vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from quarflow.flows.actnorm import ActNorms
from quarflow.flows.bases import base as make_base
from quarflow.flows.flow import Flow
from quarflow.flows.linear import GaussianStart, LinearMixes
from quarflow.flows.register import family
from quarflow.nn import Branch
from quarflow.transforms import Composed, QuARChain, QuARStep, Transform

__all__ = ["QuAR"]

ORDERS = ("alternate", "fixed")
MIXES = ("none", "lu")
STARTS = ("none", "gaussian")

SPIKY = 4.0  # peaks of a density, in units of a normal one's, from which units are sharpened
MAX_SHARPNESS = 10.0  # 30 was worse on the spiky columns of HIGGS


def sharpness(x: Tensor) -> Tensor:
    r"""How high each marginal density peaks, in units of a normal one of the same deviation.

    Taken from the shortest interval that holds a twentieth of the rows (20 rows at least).

    Arguments:
        x: Rows, shape (N, D).

    Returns:
        Shape (D); 1 where the rows are too few to tell.

    Example:
        >>> x = torch.linspace(0, 1, 1001)[:, None]
        >>> round(sharpness(x).item(), 1)  # uniform: 0.29 / 0.4
        0.7
    """
    N = len(x)
    held = max(20, N // 20)
    if held >= N:
        return torch.ones_like(x[0])
    ordered = x.sort(dim=0).values
    shortest = (ordered[held:] - ordered[:-held]).amin(0)
    std = x.std(0)
    tiny = torch.finfo(x.dtype).eps * (1 + std)

    return torch.where(std > tiny, held / N * std / (0.399 * shortest.clamp_min(tiny)), 1.0)


@family
class QuAR(Flow):
    r"""Quasi-autoregressive residual flow with exact log-density.

    ``transforms`` QuAR steps, with an elementwise affine map before and after each.

    Reference:
        | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020)
        | https://arxiv.org/abs/2009.07419

    Arguments:
        features: Number D of features.
        context: Number C of context variables.
        transforms: Number T of residual steps.
        hidden_features: Widths of the hidden layers, rounded up to a multiple of D.
        norm: ``dimension`` (abs(d) < sigma) or ``operator`` (Lip(F) < sigma, the paper's).
        order: ``alternate`` reverses the order every other step, ``fixed`` never does.
        activation: ``sin``, ``elu`` (the paper's), ``lipswish`` or ``tanh``.
        sigma: Strict bound on abs(d), in (0, 1).
        mix: ``lu`` puts an invertible linear mix before each step, ``none`` nothing.
        base: ``normal``, or ``student-t`` for heavy tails.
        trick: Whether theta of the Lipschitz Trick is learned.
        start: ``gaussian`` puts a fixed linear map before the first step, which
            :meth:`start_from` sets; ``none`` nothing.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> flow = QuAR(3, context=2, transforms=4, hidden_features=(32, 32))
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
        norm: Literal["dimension", "operator"] = "dimension",
        order: Literal["alternate", "fixed"] = "alternate",
        activation: str = "sin",
        sigma: float = 0.97,
        mix: Literal["none", "lu"] = "none",
        base: Literal["normal", "student-t"] = "normal",
        trick: bool = True,
        start: Literal["none", "gaussian"] = "none",
    ) -> None:
        super().__init__(features, context)
        if transforms < 1:
            raise ValueError(f"transforms must be at least 1, not {transforms}.")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, not {order!r}.")
        if mix not in MIXES:
            raise ValueError(f"mix must be one of {MIXES}, not {mix!r}.")

        if start not in STARTS:
            raise ValueError(f"start must be one of {STARTS}, not {start!r}.")

        self.order, self.mix = order, mix
        reverse = [order == "alternate" and t % 2 == 1 for t in range(transforms)]
        self.branches = Branch(
            features, hidden_features, reverse, context, activation, norm, sigma, trick
        )
        self.actnorms = ActNorms(transforms + 1, features)
        self.mixes = LinearMixes(transforms, features) if mix == "lu" and features > 1 else None
        self.start = GaussianStart(features, context) if start == "gaussian" else None
        self.base = make_base(base, features)

    def transforms(self, c: Tensor | None) -> list[Transform]:
        """(Start,) affine, (mix,) step, affine, ..., affine."""
        affines, mixes = self.actnorms(), self.mixes() if self.mixes is not None else None
        chain: list[Transform] = [] if self.start is None else [self.start(c)]
        chain.append(affines[0])
        for t, branch in enumerate(self.branches.bind(c)):
            if mixes is not None:
                chain.append(mixes[t])
            chain += [QuARStep(branch), affines[t + 1]]

        return chain

    def transform(self, c: Tensor | None) -> Composed:
        """The transforms in one; without mixes between them they are fused."""
        if self.mixes is not None:
            return super().transform(c)

        first = None if self.start is None else self.start(c)

        return QuARChain(self.branches.bind(c), *self.actnorms.stacked(), first)

    def start_from(self, matrix: Tensor, shift: Tensor, context: Tensor | None = None) -> None:
        r"""Start from the Gaussian that z = matrix x + shift + context c makes standard.

        The affine maps between the steps stay identities: what they would standardise on the
        rows that the Gaussian was fitted to is too narrow for others.

        Arguments:
            matrix: Lower triangular with a positive diagonal, shape (D, D).
            shift: Shape (D).
            context: Shape (D, C), None without context.

        Raises:
            ValueError: if the flow was made without ``start="gaussian"``.
        """
        if self.start is None:
            raise ValueError("This flow has no such map: make it with start='gaussian'.")
        self.start.set(matrix, shift, context)
        self.actnorms.initialized.fill_(True)

    @torch.no_grad()
    def initialize(self, x: Tensor, c: Tensor | None = None) -> bool:
        """Fit the start of training to data; only the first time.

        Every affine map is set so that its output is standardised on x, and, with sines,
        dimensions with spikes in their marginal density get units of high frequency, see
        ``Branch.sharpen``.

        Arguments:
            x: Data, shape (*, D).
            c: Context, shape (*, C).

        Returns:
            Whether anything was done: not on a flow that has been initialised or loaded.
        """
        self._check_context(c)
        has_frequencies = self.branches.activation == "sin"
        if not self.actnorms.initialized and has_frequencies and x.isfinite().all():
            peak = sharpness(x.reshape(-1, self.features))
            self.branches.sharpen(torch.where(peak >= SPIKY, peak.clamp(max=MAX_SHARPNESS), 1.0))

        return super().initialize(x, c)

    @property
    def largest_slope(self) -> float:
        """sigma: what abs(d) is at most."""
        return self.branches.sigma

    def extra_repr(self) -> str:
        """Options, for printing."""
        return (
            f"features={self.features}, context={self.context}, order={self.order!r}, "
            f"mix={self.mix!r}"
        )
