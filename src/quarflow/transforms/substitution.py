r"""The inverse of a QuAR step by forward substitution, in compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.backends.cpu import chain as native
from quarflow.nn.bound import BoundBranch
from quarflow.ops.recurrence import Layers
from quarflow.ops.value_diagonal import single_step
from quarflow.solvers import AIM, Solution, default_tolerance

__all__ = ["substitute"]

EVALUATIONS = 200  # of a variable: enough to bisect the whole range of float64 a few times


@torch.no_grad()
def substitute(
    branch: BoundBranch, y: Tensor, start: Tensor | None = None, tolerance: float | None = None
) -> Solution | None:
    r"""Solve x + F(x) = y, one variable after the other.

    Given the variables before it, each one's equation has a single unknown and is increasing in
    it: Newton, inside a bracket once there is one. What earlier variables contribute to the
    hidden units of a variable is computed once, so that all D variables take about as long as
    one evaluation of F, and besides only the diagonal blocks are evaluated again and again.

    Arguments:
        branch: F, flat: with biases for all rows or one for each.
        y: Right-hand sides, shape (N, D).
        start: Where to start, shape (N, D); y by default.
        tolerance: Largest residual, relative to 1 + abs(y); see
            :func:`quarflow.solvers.default_tolerance`.

    Returns:
        What was found, with its residuals, some of which may be above the tolerance or NaN; None
        where there are no kernels for it.

    Example:
        >>> from quarflow.nn import Branch
        >>> branch = Branch(2, (8,), reverse=[False]).bind()[0]
        >>> found = substitute(branch, torch.tensor([[0.5, -1.0]]))
        >>> found is None or bool(found.residual <= 1e-6)
        True
    """
    if branch.event_dim != 1:
        return None
    layers = Layers(branch.weights, branch.blocks, branch.biases, branch.reverse)
    shape = native.Shape.of(layers.blocks, branch.activation.name, (branch.reverse,))
    tensors = single_step(layers)
    tolerance = default_tolerance(y.dtype) if tolerance is None else tolerance
    start = y if start is None else start
    if not native.usable(shape, y, (*tensors, start)):
        return None
    found = native.solve(shape, y, start, tensors, AIM * tolerance, EVALUATIONS)

    return Solution(found.x, found.slope, found.evaluations, found.residual)
