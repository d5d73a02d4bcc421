r"""A flow over standardised columns, as a density in the data's own units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Transform as TorchTransform

from quarflow.data.columns import Columns
from quarflow.flows.bases import SCALAR
from quarflow.flows.flow import Flow, FlowDistribution
from quarflow.transforms import Composed, Transform, call_and_ladj

__all__ = ["DataUnits", "data_units"]

Measure = Callable[[Tensor], Tensor] | None


class _Preprocessed(Transform):
    """A fixed transform of the columns, which computes in float64, before a chain of steps."""

    def __init__(self, columns: TorchTransform, dtype: torch.dtype, measure: Measure) -> None:
        super().__init__()
        self.columns, self.dtype, self.measure = columns, dtype, measure

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised variables in the flow's type; the ladj stays in float64."""
        u, ladj = call_and_ladj(self.columns, x)

        return u.to(self.dtype), self._measured(x, ladj)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Back to data units, in float64."""
        z = z.double()
        x = self.columns.inv(z)

        return x, -self._measured(x, call_and_ladj(self.columns, x)[1])

    def _measured(self, x: Tensor, ladj: Tensor) -> Tensor:
        return ladj if self.measure is None else ladj + self.measure(x)

    def __repr__(self) -> str:
        return f"Preprocessed({self.columns!r})"


class DataUnits(nn.Module):
    r"""Puts the preprocessing of columns in front of a flow, with its exact log-det.

    Called like a flow: ``model(c).log_prob(x)`` with x and c in the data's own units, float64.

    Arguments:
        flow: A flow over standardised variables.
        columns: Data units to standardised variables, a float64 transform.
        context_columns: The same for the context, None without context.
        measure: Logs of the widths of cells at x, which turn densities into the probabilities of
            discrete columns; None where there are none.
    """

    def __init__(
        self,
        flow: Flow,
        columns: TorchTransform,
        context_columns: TorchTransform | None = None,
        measure: Measure = None,
    ) -> None:
        super().__init__()
        self.measure = measure
        self.flow, self.columns, self.context_columns = flow, columns, context_columns

    @property
    def dtype(self) -> torch.dtype:
        """Of the flow's parameters."""
        return next(self.flow.parameters()).dtype

    def forward(self, c: Tensor | None = None) -> FlowDistribution:
        """The distribution of x, in data units, given c, in data units."""
        if c is not None and self.context_columns is not None:
            c = self.context_columns(c).to(self.dtype)
        inner = self.flow(c)
        transform = Composed(
            [_Preprocessed(self.columns, self.dtype, self.measure), inner.transform]
        )
        shape = SCALAR if c is None else c.shape[:-1]

        return FlowDistribution(transform, inner.base, shape)

    def initialize(self, x: Tensor, c: Tensor | None = None) -> bool:
        """Data-dependent initialisation of the flow, from data in data units."""
        if c is not None and self.context_columns is not None:
            c = self.context_columns(c).to(self.dtype)

        return self.flow.initialize(self.columns(x).to(self.dtype), c)


def data_units(flow: Flow, columns: Columns, context: Columns | None) -> DataUnits:
    """The flow with the preprocessing of columns and context in front of it."""
    given, cells = None if context is None else context.transform(), columns.cells()

    return DataUnits(
        flow, columns.transform(), given, cells.log_measure if cells.discrete else None
    )
