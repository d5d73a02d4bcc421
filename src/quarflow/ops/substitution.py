r"""The inverse of a QuAR step by forward substitution."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.backends.shapes import ChainShape, Root
from quarflow.ops.activations import Activation
from quarflow.ops.backend import backend_for
from quarflow.ops.recurrence import Layers
from quarflow.ops.value_diagonal import single_step

__all__ = ["substituted"]

EVALUATIONS = 200  # of a variable: enough to bisect the whole range of float64 a few times


@torch.no_grad()
def substituted(
    layers: Layers,
    phi: Activation,
    y: Tensor,
    start: Tensor,
    tolerance: float,
    slopes: bool = True,
) -> Root | None:
    """Solve x + F(x) = y, one variable after the other.

    Given the variables before it, each one's equation has a single unknown and is increasing in
    it: Newton, inside a bracket once there is one. What earlier variables contribute to the
    hidden units of a variable is computed once, so that all D variables take about as long as
    one evaluation of F, and besides only the diagonal blocks are evaluated again and again: at
    least once at the root, so that residuals are what they would be in a pass of their own.

    In torch one variable after the other is slow, so there the reference are the methods of
    :mod:`quarflow.solvers`.

    Arguments:
        layers: Those of F, with biases for all rows or one for each.
        phi: The activation between them.
        y: Right-hand sides, shape (N, D).
        start: Where to start, shape (N, D).
        tolerance: Largest residual, relative to 1 + abs(y).
        slopes: Whether those at the root are asked for.

    Returns:
        What was found, with its residuals, some of which may be above the tolerance or NaN; None
        where no backend takes it.
    """
    shape = ChainShape.of(layers.blocks, phi.name, (layers.reverse,))
    tensors = single_step(layers)
    backend = backend_for("chain", shape, (y, start, *tensors))
    if backend is None:
        return None

    return backend.solve(shape, y, start, tensors, tolerance, EVALUATIONS, slopes)
