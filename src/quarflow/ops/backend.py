"""Which backend computes an operation: asked here, once for each call and once for its gradient.

A backend is a module, a folder in :mod:`quarflow.backends`, with the functions of
:class:`Backend`. To add one is to add it to ``BACKENDS``. What none of them takes is computed by
the reference in torch that stands with each operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from quarflow.backends import cpu
from quarflow.backends.shapes import ChainShape, Packing, PixelLayers, Root
from quarflow.modes import unwatched

__all__ = ["BACKENDS", "Backend", "backend_for", "needs_gradient", "signed"]

Gradients = tuple[Tensor, Tensor | None, list[Tensor], list[Tensor], list[Tensor]]


class Backend(Protocol):
    """What a backend offers; each function is described where the operation is.

    Gradients of weights need only be right where these may differ from 0.
    """

    def status(self) -> str:
        """Whether it is in use, in a few words: those of one that is not begin with "not used"."""

    def takes(self, op: str, shape: Any, tensors: Sequence[Tensor]) -> bool:
        """Whether it computes this.

        Arguments:
            op: ``packing``, ``bounds``, ``chain`` (with ``branch`` and ``solve``) or ``pixels``.
            shape: The operation's sizes and options.
            tensors: All that it reads.
        """

    def assemble(
        self, packing: Packing, off: Sequence[Tensor], on: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """:mod:`quarflow.ops.packing`."""

    def collect(
        self, packing: Packing, dense: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """:mod:`quarflow.ops.packing`."""

    def product_bound(self, blocks: Sequence[Tensor]) -> Tensor:
        """:mod:`quarflow.ops.bounds`."""

    def product_gradients(self, blocks: Sequence[Tensor], of_product: Tensor) -> list[Tensor]:
        """:mod:`quarflow.ops.bounds`."""

    def chain_forward(
        self,
        shape: ChainShape,
        x: Tensor,
        tensors: Sequence[Tensor],
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:mod:`quarflow.ops.chain`."""

    def chain_backward(
        self,
        shape: ChainShape,
        x: Tensor,
        tensors: Sequence[Tensor],
        gz: Tensor,
        gl: Tensor,
        mask: Tensor | None = None,
    ) -> list[Tensor]:
        """:mod:`quarflow.ops.chain`."""

    def branch(
        self, shape: ChainShape, x: Tensor, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """:mod:`quarflow.ops.value_diagonal`."""

    def pixels_forward(
        self, layers: PixelLayers, A: Tensor, slopes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """:mod:`quarflow.ops.value_diagonal`."""

    def pixels_backward(
        self, layers: PixelLayers, A: Tensor, slopes: Tensor | None, gy: Tensor, gd: Tensor
    ) -> Gradients:
        """:mod:`quarflow.ops.value_diagonal`."""

    def solve(
        self,
        shape: ChainShape,
        y: Tensor,
        start: Tensor,
        tensors: Sequence[Tensor],
        tolerance: float,
        evaluations: int,
    ) -> Root:
        """:mod:`quarflow.ops.substitution`."""


BACKENDS: tuple[Backend, ...] = (cpu,)


def backend_for(op: str, shape: Any, tensors: Sequence[Tensor]) -> Backend | None:
    """The first backend that takes an operation; None for the reference in torch.

    All stand aside while torch traces, compiles or differentiates forward: it can't see inside.

    Arguments:
        op, shape, tensors: As in :meth:`Backend.takes`.

    Example:
        >>> backend_for("bounds", None, [torch.ones(2, 2, device="meta")]) is None
        True
    """
    if unwatched():
        for backend in BACKENDS:
            if backend.takes(op, shape, tensors):
                return backend

    return None


def needs_gradient(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient of what is computed from these may be asked for."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor.requires_grad:
                return True

    return False


def signed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with its signature kept, for :meth:`torch.autograd.Function.forward`.

    Torch asks for it at each call, and to make it anew takes longer than a kernel.
    """
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    return forward
