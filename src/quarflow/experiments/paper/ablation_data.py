"""The data of the ablation: toys drawn afresh, and tables split in three."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quarflow.data.toys import TOYS, toy
from quarflow.experiments.paper.fit import Draws
from quarflow.experiments.paper.run import RecipeError
from quarflow.seeds import seeded
from quarflow.training import Rows

__all__ = ["Data", "data_set"]

VALID, TEST = 5_000, 20_000  # points of a toy
NOISE = 0.01  # standard deviations, so that no flow can win by spikes on ties


@dataclass(frozen=True)
class Data:
    """What a flow is fitted to.

    Attributes:
        name: For tables and file names.
        features: Number D of columns.
        train, valid: Rows to fit and to choose the best weights by.
        test: Points to score, shape (N, D).
        weight_decay: What rows that run out need; none for toys, which do not.
    """

    name: str
    features: int
    train: Rows
    valid: Rows
    test: Tensor
    weight_decay: float


class Noisy:
    """Rows of a table, with new noise each time they are asked for."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        """The rows, shape (n, D)."""
        x = self.rows[index]

        return x + NOISE * torch.randn(x.shape, generator=generator), None


def data_set(name: str) -> Data:
    """A toy by name, the built-in table ``magic``, or the table in a file.

    Raises:
        RecipeError: if there is neither a toy nor a file of that name.
        TableError: if a file is no table of numbers.

    Example:
        >>> data_set("magic").features
        10
    """
    if name in TOYS:
        source = toy(name)
        test = source.sample(TEST, seeded(0, "test"))
        fresh = Draws(source.sample, 512)  # an epoch is one update
        return Data(name, source.features, fresh, Draws(source.sample, VALID), test, 0.0)
    if name == "magic":
        from quarflow.data.demo import load_magic

        return _table(name, load_magic().X)
    if not Path(name).is_file():
        raise RecipeError(
            f"There is no data set {name!r}: give magic, a file of a table, or one of the toys "
            f"{', '.join(sorted(TOYS))}."
        )
    from quarflow.data.tables import read_table

    return _table(Path(name).stem, read_table(name).values)


def _table(name: str, values: np.ndarray) -> Data:
    """80 % to fit, 10 % to choose by, 10 % to test, standardised by the first."""
    rows = torch.from_numpy(values).double()
    rows = rows[torch.randperm(len(rows), generator=seeded(0, "split"))]
    a, b = int(0.8 * len(rows)), int(0.9 * len(rows))
    spread = rows[:a].std(0)
    if a < 2 or len(rows) - b < 2 or not (spread > 0).all():
        raise RecipeError(f"{name}: a table needs 20 rows or more, and no constant column.")
    rows = ((rows - rows[:a].mean(0)) / spread).float()
    test = Noisy(rows[b:]).batch(torch.arange(len(rows) - b), seeded(0, "test"))[0]

    return Data(name, rows.shape[1], Noisy(rows[:a]), Noisy(rows[a:b]), test, 0.3)
