r"""Stacks of linear mixes, with their parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quarflow.transforms import LinearLU

__all__ = ["LinearMixes"]


class LinearMixes(nn.Module):
    r"""Invertible linear mixes of a flow, which start as identities; see :class:`LinearLU`."""

    position: Tensor

    def __init__(self, steps: int, features: int) -> None:
        super().__init__()
        pairs = features * (features - 1) // 2
        self.lower = nn.Parameter(torch.zeros(steps, pairs))
        self.upper = nn.Parameter(torch.zeros(steps, pairs))
        self.log_diagonal = nn.Parameter(torch.zeros(steps, features))
        row, column = torch.tril_indices(features, features, -1)
        self.register_buffer("position", row * features + column, persistent=False)

    def forward(self) -> list[LinearLU]:
        """The T linear maps."""
        T, D = self.log_diagonal.shape
        index = self.position.expand(T, -1)
        lower, upper = (
            packed.new_zeros(T, D * D).scatter(1, index, packed).unflatten(1, (D, D))
            for packed in (self.lower, self.upper)
        )

        return [
            LinearLU(*parts)
            for parts in zip(
                lower.unbind(), upper.mT.unbind(), self.log_diagonal.unbind(), strict=True
            )
        ]

    def extra_repr(self) -> str:
        """Shapes, for printing."""
        T, D = self.log_diagonal.shape

        return f"features={D}, steps={T}"
