r"""QuAR flows over vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from quarflow.flows.actnorm import ActNorms, standardise
from quarflow.flows.bases import SCALAR, Selected
from quarflow.flows.bases import base as make_base
from quarflow.flows.flow import Flow, FlowDistribution
from quarflow.flows.linear import GaussianStart, LinearMixes
from quarflow.flows.register import family
from quarflow.nn import Branch, ContextNetwork
from quarflow.nn.bound import BoundBranches
from quarflow.transforms import Centred, Composed, Only, QuARChain, QuARStep, Transform

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
        return x.new_ones(x.shape[1])
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
        context: Number C of context variables, or of what the embedding gives.
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
        context_features: Widths of a network that all steps read the context through, and that
            sets location and scale at the entry and at the exit, with a straight line from the
            context; see :class:`quarflow.nn.ContextNetwork`. Without any, the context moves the
            hidden units of the steps by a linear map.
        embedding: A module of your own that makes the context, shape (*, C), of what
            ``flow(c)`` is given. Flows with one are not saved in folders.

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
        context_features: Sequence[int] = (),
        embedding: nn.Module | None = None,
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

        if context_features and (not context or min(context_features) < 1):
            raise ValueError(
                "context_features must be positive widths, and only of a flow with a context, not "
                f"{tuple(context_features)} with context={context}."
            )
        if embedding is not None and not context:
            raise ValueError("An embedding needs context=, the number of variables it gives.")

        self.order, self.mix = order, mix
        reverse = [order == "alternate" and t % 2 == 1 for t in range(transforms)]
        reads = context_features[-1] if context_features else context
        self.branches = Branch(
            features, hidden_features, reverse, reads, activation, norm, sigma, trick
        )
        self.reading = (
            ContextNetwork(context, context_features, features) if context_features else None
        )
        self.embedding = embedding
        self.actnorms = ActNorms(transforms + 1, features)
        self.mixes = LinearMixes(transforms, features) if mix == "lu" and features > 1 else None
        self.start = GaussianStart(features, context) if start == "gaussian" else None
        self.base = make_base(base, features)

    def forward(self, c: Tensor | None = None, modelled: Tensor | None = None) -> FlowDistribution:
        r"""The distribution of the modelled variables given the context.

        Which they are may differ from row to row. Of all others values are not looked at, NaN
        included, and z and samples are 0; they are integrated out, or given where the context
        tells of them. For any choice it is a normalised density of those that are modelled.

        Arguments:
            c: Context, shape (*, C), or what the embedding takes; None if the flow has none.
            modelled: Which variables are, bool, shape (*, D); None for all.

        Raises:
            ValueError: if the context is missing, not wanted or of the wrong width, or the mask
                is none.

        Example:
            >>> x, holes = torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]])
            >>> QuAR(2)(modelled=holes).log_prob(x).isfinite()
            tensor([True])
        """
        c = self.read_context(c)
        self._check_modelled(modelled)
        shape = SCALAR if c is None else c.shape[:-1]
        if modelled is None:
            return FlowDistribution(self.transform(c), self.base(shape), shape)
        shape = torch.broadcast_shapes(shape, modelled.shape[:-1])
        base = Selected(self.base(shape), modelled)

        return FlowDistribution(self.transform(c, modelled), base, shape)

    def transforms(self, c: Tensor | None, modelled: Tensor | None = None) -> list[Transform]:
        """(Start,) affine, (mix,) step, affine, ..., affine."""
        branches, first, last = self._bound(c, modelled)
        affines = self.actnorms(modelled)
        mixes = self.mixes(modelled) if self.mixes is not None else None
        only: list[Transform] = [] if modelled is None else [Only(modelled)]
        chain = [*only, *first, affines[0]]
        for t, branch in enumerate(branches):
            if mixes is not None:
                chain.append(mixes[t])
            chain += [QuARStep(branch), affines[t + 1]]

        return [*chain, *last, *only]

    def transform(self, c: Tensor | None, modelled: Tensor | None = None) -> Composed:
        """The transforms in one; without mixes between them they are fused."""
        if self.mixes is not None:
            return Composed(self.transforms(c, modelled), exact=True)
        branches, first, last = self._bound(c, modelled)

        return QuARChain(branches, *self.actnorms.stacked(), first, last)

    def _bound(
        self, c: Tensor | None, modelled: Tensor | None
    ) -> tuple[BoundBranches, list[Transform], list[Transform]]:
        """The branches, and what comes before the first affine map and after the last."""
        first: list[Transform] = [] if self.start is None else [self.start(c, modelled)]
        last: list[Transform] = []
        if self.reading is not None and c is not None:
            read = self.reading(c)
            entry, exit_ = zip(read.locations, read.log_scales, strict=True)
            first.append(Centred(*entry, modelled))
            last.append(Centred(*exit_, modelled))
            c = read.features

        return self.branches.bind(c).masked(modelled), first, last

    def read_context(self, c: Tensor | None) -> Tensor | None:
        """The context as ``transforms`` takes it, shape (*, C): embedded, and looked at."""
        if self.embedding is not None and c is not None:
            c = self.embedding(c)

        return super().read_context(c)

    def _check_modelled(self, modelled: Tensor | None) -> None:
        if modelled is None:
            return
        if modelled.dtype != torch.bool or modelled.shape[-1:] != (self.features,):
            raise ValueError(
                f"modelled must be a bool tensor of shape (*, {self.features}), not "
                f"{modelled.dtype} of shape {tuple(modelled.shape)}."
            )

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
    def initialize(
        self, x: Tensor, c: Tensor | None = None, modelled: Tensor | None = None
    ) -> bool:
        """Fit the start of training to data; only the first time.

        Locations that a context network sets begin as a linear regression, every affine map is
        set so that its output is standardised on x, and, with sines, dimensions with spikes in
        their marginal density get units of high frequency, see ``Branch.sharpen``.

        Arguments:
            x: Data, shape (*, D).
            c: Context, as ``flow(c)`` takes it.
            modelled: Which variables of each row are looked at, bool, of the shape of x.

        Returns:
            Whether anything was done: not on a flow that has been initialised or loaded.
        """
        c = self.read_context(c)
        self._check_modelled(modelled)
        if self.actnorms.initialized:
            return False
        seen = (
            torch.ones_like(x, dtype=torch.bool) if modelled is None else modelled.expand(x.shape)
        )
        if (x.isfinite() | ~seen).all():
            rows = x.reshape(-1, self.features)
            given = None if c is None else c.expand(*x.shape[:-1], -1).reshape(len(rows), -1)
            self._begin(rows, given, seen.reshape(rows.shape))

        return standardise(
            self.transform(c, modelled), [self.actnorms], x, self.actnorms.initialized, modelled
        )

    def _begin(self, x: Tensor, c: Tensor | None, seen: Tensor) -> None:
        """Set what is not an affine map of its own, from rows (N, D)."""
        if self.branches.activation == "sin":
            if seen.all():
                peak = sharpness(x)
            else:
                columns = zip(x.mT, seen.mT, strict=True)
                peak = torch.cat([sharpness(column[there, None]) for column, there in columns])
            self.branches.sharpen(torch.where(peak >= SPIKY, peak.clamp(max=MAX_SHARPNESS), 1.0))
        if self.reading is not None and c is not None and self.start is None:
            self.reading.start_from(x, c, seen)

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
