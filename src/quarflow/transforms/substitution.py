r"""The inverse of a QuAR step by substitution, where a backend does it."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.nn.bound import BoundBranch
from quarflow.ops.recurrence import Layers
from quarflow.ops.substitution import substituted
from quarflow.solvers import AIM, Solution, default_tolerance

__all__ = ["substitute"]


@torch.no_grad()
def substitute(
    branch: BoundBranch, y: Tensor, start: Tensor | None = None, tolerance: float | None = None
) -> Solution | None:
    r"""Solve x + F(x) = y, one variable after the other.

    Arguments:
        branch: F, flat: with biases for all rows or one for each.
        y: Right-hand sides, shape (N, D).
        start: Where to start, shape (N, D); y by default.
        tolerance: Largest residual, relative to 1 + abs(y); see
            :func:`quarflow.solvers.default_tolerance`.

    Returns:
        What was found, with its residuals, some of which may be above the tolerance or NaN; None
        where no backend takes it.

    Example:
        >>> from quarflow.nn import Branch
        >>> branch = Branch(2, (8,), reverse=[False]).bind()[0]
        >>> found = substitute(branch, torch.tensor([[0.5, -1.0]]))
        >>> found is None or bool(found.residual <= 1e-6)
        True
    """
    if branch.event_dim != 1 or branch.modelled is not None:
        return None
    layers = Layers(branch.weights, branch.blocks, branch.biases, branch.reverse)
    tolerance = default_tolerance(y.dtype) if tolerance is None else tolerance
    found = substituted(
        layers, branch.activation, y, y if start is None else start, AIM * tolerance
    )

    if found is None:
        return None

    return Solution(found.x, found.slope, found.evaluations, found.residual)
