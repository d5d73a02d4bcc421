r"""What is certain about the steps of a flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quarflow.transforms import SolvedStep, Transform

__all__ = ["StepCertificate", "certify"]


@dataclass(frozen=True)
class StepCertificate:
    r"""What is certain about one step: abs(d), or Lip(F), <= bound <= sigma < 1.

    Attributes:
        step: Number of the step, from 0.
        sigma: The bound set at construction.
        bound: The certified bound for the present weights, at most sigma.
        measured: Largest abs(d), or norm of F's Jacobian, seen on the given data; None without.

    Example:
        >>> from quarflow.flows import QuAR
        >>> step, _ = QuAR(2, transforms=2, sigma=0.9).certificate(torch.randn(50, 2))
        >>> step.measured <= step.bound <= step.sigma
        True
    """

    step: int
    sigma: float
    bound: float
    measured: float | None


@torch.no_grad()
def certify(transform: Transform, sigma: float, x: Tensor | None) -> list[StepCertificate]:
    """The certificates of all steps x + F(x) of a transform, measured on what x becomes."""
    found: list[StepCertificate] = []

    def look(part: Transform, x: Tensor | None) -> None:
        if isinstance(part, SolvedStep):
            bound, measured = float(part.bound.max()), None if x is None else part.measured(x)
            found.append(StepCertificate(len(found), sigma, bound, measured))

    def visit(part: Transform, x: Tensor) -> Tensor:
        look(part, x)
        z: Tensor = part(x)
        return z

    if x is not None:
        transform.walk(x, visit)
    else:
        for part in transform.parts:
            look(part, None)

    return found
