r"""The density of a table of numbers and categories, for any columns given any others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quarflow.data.columns import Columns
from quarflow.density.patterns import unpack
from quarflow.flows.mixed import MixedQuAR, Pair

__all__ = ["Bound", "TableModel"]


class TableModel(nn.Module):
    r"""A flow over standardised numbers and codes, with the preprocessing of columns before it.

    Rows x (N, D) are in the data's own units, float64, a category by its code; NaN is missing.
    Masks (N, D) say which columns of each row are given, and which are modelled; the others, and
    all cells that are missing, are absent: integrated out, and ignored. Context c (N, C) is in
    its own units.

    Arguments:
        flow: Over the numbers and discrete variables that the columns consist of.
        columns: The fitted preprocessing.
        context_columns: That of the context, None without one.
    """

    def __init__(
        self, flow: MixedQuAR, columns: Columns, context_columns: Columns | None = None
    ) -> None:
        super().__init__()
        self.flow, self.columns, self.context_columns = flow, columns, context_columns
        self.parts = columns.parts()
        self.numbers = Columns(self.parts.columns)
        self.map, self.cells = self.numbers.transform(), self.numbers.cells()
        self.context_map = None if context_columns is None else context_columns.transform()

    # What may be asked of it

    def log_prob(
        self,
        x: Tensor,
        given: Tensor | None = None,
        modelled: Tensor | None = None,
        c: Tensor | None = None,
    ) -> Tensor:
        """Log of the probability times the density of what is modelled, in nats, shape (N).

        Arguments:
            x: Rows (N, D).
            given: Mask (N, D); None for nothing.
            modelled: Mask (N, D); None for all that is not given.
            c: Context (N, C).
        """
        asked = self.bind(x, given, modelled, c)
        numbers, here = asked.numbers, asked.modelled[0]
        if self.cells.needed(numbers, here).any():
            total = self.cells.average(numbers, asked.density, here)
        else:
            total = asked.density(numbers)

        return torch.where(asked.impossible, -torch.inf, total)

    def sample(
        self,
        x: Tensor,
        given: Tensor,
        modelled: Tensor,
        c: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Rows (N, D) with what is modelled drawn, what is given kept, and NaN elsewhere."""
        asked = self.bind(x, given, modelled, c, empty=True)
        u, codes = self.flow.sample(*asked.standardised(), generator)
        numbers = self.map.inv(u.double())
        numbers = self.cells.settle(numbers, generator or torch.default_generator)

        return self._joined(asked, numbers, codes)

    def noise(self, x: Tensor, given: Tensor, modelled: Tensor, c: Tensor | None = None) -> Tensor:
        """The base noise (N, D) of the modelled numbers; 0 elsewhere."""
        asked = self.bind(x, given, modelled, c)
        out = torch.zeros_like(x)
        out[:, self.parts.numbers] = self.flow.noise(*asked.standardised()).to(x.dtype)

        return out

    def from_noise(
        self,
        z: Tensor,
        x: Tensor,
        given: Tensor,
        modelled: Tensor,
        c: Tensor | None = None,
    ) -> Tensor:
        """Rows (N, D) with the modelled numbers made of noise z (N, D), the rest as in x.

        Modelled categories are those of x. A modelled number that x does not have is taken to be
        none of the single values that its column may often hold.
        """
        asked = self.bind(x, given, modelled, c, empty=True)
        codes = asked.codes.clone()
        for i, variable in enumerate(self.parts.discrete):
            if variable.number is not None:
                missing = asked.modelled[1][:, i] & (codes[:, i] < 0)
                codes[:, i] = torch.where(missing, variable.size - 1, codes[:, i])
        (u, _), known, wanted, context = asked.standardised()
        z = z[:, self.parts.numbers]
        u = self.flow.from_noise(z, (u, codes), known, wanted, context)

        return self._joined(asked, self.map.inv(u.double()), codes)

    def probabilities(
        self, x: Tensor, given: Tensor, column: int, c: Tensor | None = None
    ) -> Tensor:
        """Probabilities (N, K) of the codes of a column alone, given what is given.

        Of a number that often holds single values: of each of these, and of being none of them.

        Raises:
            ValueError: if the column has no probabilities, but a density.
        """
        if column not in self.parts.owner:
            name = self.columns.names[column]
            raise ValueError(f"The column {name!r} is a number: it has a density.")
        asked = self.bind(x, given, torch.zeros_like(given), c)
        u, known, _, context = asked.standardised()

        return self.flow.probabilities(u, known, self.parts.owner.index(column), context)

    # For training

    def forward(self, packed: Tensor) -> Bound:
        """The density under packed masks and context, whose ``log_prob(x)`` is to be raised."""
        return Bound(self, packed)

    def initialize(self, x: Tensor, packed: Tensor) -> bool:
        """Data-dependent initialisation of the flow, from rows in data units."""
        asked = Bound(self, packed).asked(x)

        return self.flow.initialize(*asked.standardised())

    # Parts and masks

    def bind(
        self,
        x: Tensor,
        given: Tensor | None,
        modelled: Tensor | None,
        c: Tensor | None,
        empty: bool = False,
    ) -> Asked:
        """Rows and masks, in numbers and codes.

        Arguments:
            empty: Whether modelled cells may be missing, as those that are to be filled in.
        """
        x = self.parts.tidy(x)
        numbers, codes = self.parts.split(x)
        there = ~x.isnan()
        given = torch.zeros_like(there) if given is None else given & there
        modelled = ~given if modelled is None else modelled & ~given
        if not empty:
            modelled = modelled & there
        masks = self.parts.masks(given, modelled)
        known = masks.given_numbers, masks.given_codes
        wanted = masks.modelled_numbers, masks.modelled_codes
        impossible = self.parts.impossible(x, modelled)
        if not empty:
            wanted = wanted[0], wanted[1] & (codes >= 0)
            known, wanted = self.flow.masks((numbers, codes), known, wanted)

        return Asked(
            self,
            x,
            given,
            numbers,
            codes,
            known,
            wanted,
            impossible,
            self._context(c, numbers, known),
        )

    def _context(self, c: Tensor | None, numbers: Tensor, known: Pair) -> Tensor | None:
        """What is always known, (N, C + F): the context, and angles of numbers that are given."""
        parts = []
        if c is not None and self.context_map is not None:
            parts.append(self.context_map(c))
        if self.parts.feature_owner and self.flow.patterns:
            here = known[0][:, self.parts.feature_owner]
            parts.append(torch.where(here, self.parts.circles(numbers), 0.0))

        return torch.cat(parts, 1).to(self.flow.dtype) if parts else None

    def _joined(self, asked: Asked, numbers: Tensor, codes: Tensor) -> Tensor:
        """Rows of numbers and codes in data units, with what is given as it was."""
        snapped = self.numbers.snap(numbers)
        numbers = torch.where(numbers.isnan(), torch.nan, snapped)
        x = self.parts.join(numbers, codes)

        return torch.where(asked.given_cells, asked.x, x)


@dataclass(frozen=True)
class Asked:
    """Rows and what is asked of them, in numbers (N, Dn) and codes (N, d).

    Attributes:
        model: The model that is asked.
        x, given_cells: The rows (N, D), and which of their cells are given.
        numbers, codes: What they consist of, in data units.
        given, modelled: Masks, of numbers and codes.
        impossible: Which rows (N) hold, where they are modelled, a category that never occurred.
        c: Standardised context, (N, C).
    """

    model: TableModel
    x: Tensor
    given_cells: Tensor
    numbers: Tensor
    codes: Tensor
    given: Pair
    modelled: Pair
    impossible: Tensor
    c: Tensor | None

    def density(self, numbers: Tensor) -> Tensor:
        """Log-density (N) at numbers (N, Dn) in the place of the rows' own."""
        model, here = self.model, self.modelled[0]
        u, logs = model.map.call_and_logs(numbers)
        pair = u.to(model.flow.dtype), self.codes
        found = model.flow.log_prob(pair, self.given, self.modelled, self.c)
        logs = torch.where(here, logs, 0.0).sum(-1)

        return found + logs + model.cells.log_measure(numbers, here)

    def standardised(self) -> tuple[Pair, Pair, Pair, Tensor | None]:
        """Arguments of the flow's functions: values, what is given and modelled, context."""
        u = self.model.map.call_and_logs(self.numbers)[0].to(self.model.flow.dtype)
        u = torch.where(self.numbers.isnan(), torch.nan, u)

        return (u, self.codes), self.given, self.modelled, self.c


class Bound:
    """The density of rows under a pattern and a context, one for each row.

    Arguments:
        model: The model.
        packed: What :func:`quarflow.density.patterns.pack` gave.
    """

    def __init__(self, model: TableModel, packed: Tensor) -> None:
        self.model = model
        self.given, self.modelled, self.c = unpack(packed, len(model.columns))

    def asked(self, x: Tensor) -> Asked:
        """The rows (n, D) in numbers and codes."""
        return self.model.bind(x, self.given, self.modelled, self.c)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (n) at points x (n, D), whose discrete numbers have noise."""
        asked = self.asked(x)

        return asked.density(asked.numbers)


def takes_holes(flow: nn.Module, missing: str) -> bool:
    """Whether rows may have missing values, which are then integrated out."""
    return isinstance(flow, MixedQuAR) and flow.patterns and missing != "refuse"
