r"""Rows of a table as numbers and codes: what a model of both is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from quarflow.data.column import Column
from quarflow.data.times import cyclic_parts

__all__ = ["Discrete", "Masks", "Parts"]


@dataclass(frozen=True)
class Discrete:
    """A discrete variable.

    Attributes:
        columns: The columns that it stems from: one, or all of a one-hot block.
        size: How many codes it has: 0 to size - 1.
        masses: Of the indicator of a number's point masses, their values; the last code means
            that the number is another one.
        number: The number, by its place among the numbers, that such an indicator switches on.
    """

    columns: tuple[int, ...]
    size: int
    masses: tuple[float, ...] = ()
    number: int | None = None


class Masks(NamedTuple):
    """Which numbers (N, Dn) and codes (N, Dd) are given, and which are modelled."""

    given_numbers: Tensor
    given_codes: Tensor
    modelled_numbers: Tensor
    modelled_codes: Tensor


class Parts:
    """The columns of a table (N, D) as Dn numbers and Dd discrete variables, and back.

    Discrete variables are the categories, the one-hot blocks, and an indicator for each number
    that has point masses, in the order of their (first) columns. A code is -1 where its value is
    missing or no category known.

    Arguments:
        columns: The fitted preprocessing, D columns.

    Attributes:
        numbers: Columns that are numbers, by position in the table.
        columns: The same columns themselves, without their point masses: what is to be
            transformed.
        discrete: The discrete variables.
        sizes: How many codes each has.
        owner: The first column each stems from.
        switch: For each number the discrete variable that switches it on, -1 for none.

    Example:
        >>> color = Column(name="color", kind="category", categories=("D", "E"))
        >>> rain = Column(name="rain", point_masses=((0.0, 0.7),))
        >>> parts = Parts([color, rain])
        >>> x = torch.tensor([[1.0, 0.0], [torch.nan, 2.5]], dtype=torch.float64)
        >>> numbers, codes = parts.split(x)
        >>> numbers.tolist(), codes.tolist()
        ([[nan], [2.5]], [[1, 0], [-1, 1]])
        >>> parts.join(numbers, codes).tolist()
        [[1.0, 0.0], [nan, 2.5]]
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.features = len(columns)
        self._all = tuple(columns)
        in_block = {j for j, column in enumerate(columns) if column.one_hot is not None}
        self.numbers = [
            j for j, c in enumerate(columns) if c.kind != "category" and j not in in_block
        ]
        self.columns = tuple(
            columns[j].model_copy(update={"point_masses": ()}) for j in self.numbers
        )
        self.discrete = self._discrete()
        self.sizes = [variable.size for variable in self.discrete]
        self.owner = [variable.columns[0] for variable in self.discrete]
        self.switch = [-1] * len(self.numbers)
        for i, variable in enumerate(self.discrete):
            if variable.number is not None:
                self.switch[variable.number] = i
        self.feature_owner = self._feature_owner()

    @property
    def switches(self) -> tuple[int, ...]:
        """For each discrete variable 0, or the place of the number it switches on, from 1."""
        return tuple(0 if v.number is None else v.number + 1 for v in self.discrete)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers (N, Dn), float64, and codes (N, Dd), whole, of rows x (N, D).

        A number is NaN where it is missing and where it is a point mass.
        """
        x = x.to(torch.float64)
        numbers = x[..., self.numbers].clone()
        codes = [self._codes(x, variable) for variable in self.discrete]
        for variable, code in zip(self.discrete, codes, strict=True):
            if variable.number is not None:
                off = code != variable.size - 1
                numbers[..., variable.number] = torch.where(
                    off, torch.nan, numbers[..., variable.number]
                )
        if not codes:
            return numbers, torch.empty((*x.shape[:-1], 0), dtype=torch.long, device=x.device)

        return numbers, torch.stack(codes, -1)

    def join(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Rows (N, D) of numbers (N, Dn) and codes (N, Dd); NaN for NaN and for -1."""
        rows = torch.full(
            (*numbers.shape[:-1], self.features),
            torch.nan,
            dtype=torch.float64,
            device=numbers.device,
        )
        rows[..., self.numbers] = numbers.to(torch.float64)
        for i, variable in enumerate(self.discrete):
            code = codes[..., i]
            gone = code < 0
            if variable.number is not None:
                known = torch.tensor([*variable.masses, 0.0], dtype=torch.float64).to(rows.device)
                own = rows[..., variable.columns[0]]
                mass = known[code.clamp(min=0)]
                last = code == variable.size - 1
                value = torch.where(last, own, mass)
                rows[..., variable.columns[0]] = torch.where(gone, torch.nan, value)
            elif len(variable.columns) == 1:
                rows[..., variable.columns[0]] = torch.where(gone, torch.nan, code.double())
            else:
                for k, j in enumerate(variable.columns):
                    rows[..., j] = torch.where(gone, torch.nan, (code == k).double())

        return rows

    def masks(self, given: Tensor, modelled: Tensor, codes: Tensor | None = None) -> Masks:
        """Masks of columns, (N, D), as masks of numbers and of codes.

        Arguments:
            given, modelled: Which values are given and which modelled; none is both.
            codes: With them a number under a point mass is neither; without, as its column is.

        Raises:
            ValueError: where columns of one block are not all alike.
        """
        for variable in self.discrete:
            self._refuse_part_of_block(variable, given, modelled)
        found = []
        for mask in (given, modelled):
            numbers = mask[..., self.numbers].clone()
            of_codes = mask[..., self.owner].clone()
            for variable in self.discrete if codes is not None else ():
                if variable.number is not None and codes is not None:
                    i = self.switch[variable.number]
                    numbers[..., variable.number] &= codes[..., i] == variable.size - 1
            found += [numbers, of_codes]

        return Masks(*found)

    def impossible(self, x: Tensor, modelled: Tensor | None = None) -> Tensor:
        """Rows (N) of x (N, D) that hold, where modelled, what their columns never held.

        That is a label that is none of the categories, or a one-hot block without a 1, or with
        several.
        """
        found = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
        for variable in self.discrete:
            if variable.number is not None:
                continue
            block = x[..., list(variable.columns)]
            if len(variable.columns) == 1:
                value = block[..., 0]
                wrong = (value < 0) | (value >= variable.size) | (value != value.round())
                wrong &= ~value.isnan()
            else:
                there = ~block.isnan()
                ones = (block == 1).sum(-1)
                odd = (there & (block != 0) & (block != 1)).any(-1)
                wrong = odd | (ones > 1) | (there.all(-1) & (ones == 0))
            if modelled is not None:
                wrong &= modelled[..., variable.columns[0]]
            found |= wrong

        return found

    def tidy(self, x: Tensor) -> Tensor:
        """Rows x (N, D) whose one-hot blocks are there as a whole or not at all.

        A 1 tells the rest of its block; a block with a hole and no 1 is missing.
        """
        x = x.clone()
        for variable in self.discrete:
            if len(variable.columns) == 1:
                continue
            where = list(variable.columns)
            block = x[..., where]
            holes = block.isnan().any(-1, keepdim=True)
            told = (block == 1).any(-1, keepdim=True)
            filled = torch.where(told, block.nan_to_num(0.0), torch.nan)
            x[..., where] = torch.where(holes, filled, block)

        return x

    def circles(self, numbers: Tensor) -> Tensor:
        """Sines and cosines (N, F) of periodic numbers and of dates' cyclic parts.

        They are what other columns may depend on where these are given: two for each angle, in
        the order of ``feature_owner``, 0 where the number (N, Dn) is NaN.
        """
        found = []
        for i, column in enumerate(self.columns):
            value = numbers[..., i].to(torch.float64)
            if column.kind == "periodic":
                turns = ((value - column.start) / (column.period or 1.0))[..., None]
            elif column.cyclic:
                parts = cyclic_parts(value.detach().cpu().numpy(), column)
                turns = torch.from_numpy(np.ascontiguousarray(parts)).to(value.device)
            else:
                continue
            angles = 2 * torch.pi * turns
            both = torch.stack([angles.sin(), angles.cos()], -1)
            found.append(both.flatten(-2).nan_to_num(0.0))
        if not found:
            return torch.empty((*numbers.shape[:-1], 0), dtype=torch.float64).to(numbers.device)

        return torch.cat(found, -1)

    def _feature_owner(self) -> list[int]:
        """The number that each sine or cosine belongs to."""
        angles = [
            1 if column.kind == "periodic" else len(column.cyclic) for column in self.columns
        ]

        return [i for i, count in enumerate(angles) for _ in range(2 * count)]

    def _discrete(self) -> tuple[Discrete, ...]:
        found, blocks = [], set()
        for j, column in enumerate(self._all):
            if column.one_hot is not None:
                if column.one_hot not in blocks:
                    blocks.add(column.one_hot)
                    where = [i for i, c in enumerate(self._all) if c.one_hot == column.one_hot]
                    found.append(Discrete(tuple(where), len(where)))
            elif column.kind == "category":
                found.append(Discrete((j,), len(column.categories)))
            elif column.point_masses:
                values = tuple(value for value, _ in column.point_masses)
                number = self.numbers.index(j)
                found.append(Discrete((j,), len(values) + 1, values, number))

        return tuple(found)

    def _codes(self, x: Tensor, variable: Discrete) -> Tensor:
        """Codes (N) of one variable."""
        block = x[..., list(variable.columns)]
        value = block[..., 0]
        if variable.number is not None:
            known = torch.tensor(variable.masses, dtype=torch.float64, device=x.device)
            same = value[..., None] == known
            found = torch.where(same.any(-1), same.long().argmax(-1), variable.size - 1)
            return torch.where(value.isnan(), -1, found)
        if len(variable.columns) == 1:
            fits = (value >= 0) & (value < variable.size) & (value == value.round())
            return torch.where(fits, value.nan_to_num(0.0), -1.0).long()
        ones = block == 1

        return torch.where(ones.sum(-1) == 1, ones.long().argmax(-1), -1)

    def _refuse_part_of_block(self, variable: Discrete, given: Tensor, modelled: Tensor) -> None:
        where = list(variable.columns)
        for mask in (given, modelled):
            block = mask[..., where]
            if len(where) > 1 and (block != block[..., :1]).any():
                names = ", ".join(repr(self._all[j].name) for j in where[:6])
                raise ValueError(
                    f"The columns {names} are one category; ask for all of them or none."
                )
