r"""Stacks of linear mixes, with their parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quarflow.nn.derived import Derived
from quarflow.transforms import LinearLU, LinearTriangular

__all__ = ["GaussianStart", "LinearMixes"]


class LinearMixes(Derived):
    r"""Invertible linear mixes of a flow, which start as identities; see :class:`LinearLU`.

    Arguments:
        steps: Number T of mixes.
        features: Number D of variables.

    Example:
        >>> LinearMixes(1, 2)()[0](torch.tensor([1.0, 2.0]))
        tensor([1., 2.], grad_fn=<SqueezeBackward4>)
    """

    position: Tensor

    def __init__(self, steps: int, features: int) -> None:
        super().__init__()
        pairs = features * (features - 1) // 2
        self.lower = nn.Parameter(torch.zeros(steps, pairs))
        self.upper = nn.Parameter(torch.zeros(steps, pairs))
        self.log_diagonal = nn.Parameter(torch.zeros(steps, features))
        self.register_derived()

    def derive(self) -> dict[str, Tensor]:
        """Where the numbers below the diagonal stand in the flat matrix."""
        features = self.log_diagonal.shape[1]
        row, column = torch.tril_indices(features, features, -1)

        return {"position": row * features + column}

    def forward(self, modelled: Tensor | None = None) -> list[LinearLU]:
        """The T linear maps, of the variables that a mask (*, D) says."""
        T, D = self.log_diagonal.shape
        index = self.position.expand(T, -1)
        lower, upper = (
            packed.new_zeros(T, D * D).scatter(1, index, packed).unflatten(1, (D, D))
            for packed in (self.lower, self.upper)
        )

        return [
            LinearLU(*parts, modelled)
            for parts in zip(
                lower.unbind(), upper.mT.unbind(), self.log_diagonal.unbind(), strict=True
            )
        ]

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        T, D = self.log_diagonal.shape

        return f"features={D}, steps={T}"


class GaussianStart(nn.Module):
    r"""The map that makes a Gaussian standard, :math:`z = L x + b + B c` with L triangular.

    It is found in closed form and not trained: what training adds, the steps add. It starts as
    the identity; :meth:`set` puts a map in, which is saved with the parameters.

    Arguments:
        features: Number D of variables.
        context: Number C of context variables.

    Example:
        >>> start = GaussianStart(2)
        >>> start.set(torch.eye(2) / 2, torch.ones(2))
        >>> start()(torch.zeros(2))
        tensor([1., 1.])
    """

    lower: Tensor
    log_diagonal: Tensor
    shift: Tensor
    context: Tensor | None

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        self.register_buffer("lower", torch.zeros(features, features))
        self.register_buffer("log_diagonal", torch.zeros(features))
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("context", torch.zeros(features, context) if context else None)

    def forward(self, c: Tensor | None = None, modelled: Tensor | None = None) -> LinearTriangular:
        """The map given the context (*, C), of the variables that a mask (*, D) says."""
        shift = self.shift.view_as(self.shift)
        if self.context is not None and c is not None:
            shift = shift + c @ self.context.mT

        log_diagonal = self.log_diagonal.view_as(self.log_diagonal)

        return LinearTriangular(self.lower, log_diagonal, shift, modelled)

    @torch.no_grad()
    def set(self, matrix: Tensor, shift: Tensor, context: Tensor | None = None) -> None:
        """Put in L (D, D) with a positive diagonal, b (D), and B (D, C) with a context."""
        self.lower.copy_(matrix.tril(-1))
        self.log_diagonal.copy_(matrix.diagonal().log())
        self.shift.copy_(shift)
        if self.context is not None:
            self.context.zero_() if context is None else self.context.copy_(context)

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        context = 0 if self.context is None else self.context.shape[1]

        return f"features={len(self.shift)}, context={context}"
