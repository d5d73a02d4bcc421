r"""Branches with their effective weights: pure functions of x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from quarflow.backends.shapes import ChainShape
from quarflow.ops.activations import Activation
from quarflow.ops.conv_paper import dense_value_and_diagonal
from quarflow.ops.value_diagonal import Pass, value_and_diagonal

__all__ = ["BoundBranch", "BoundBranches"]


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast asks for where x is, None outside of it and for float64."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None

    return torch.get_autocast_dtype(kind)


@dataclass(frozen=True)
class BoundBranch:
    r"""One branch F with its effective weights and context bound: a pure function of x.

    x is a vector, shape (*, D), or, where the options have taps, an image as rows of pixels,
    (N, H, W, C).

    Attributes:
        weights: Effective weights, the last one already scaled, (D k_out, D k_in); of images the
            first is (C k, taps C) and the last (taps C, C k).
        blocks: Their diagonal blocks (of the centre taps), (D, k_out, k_in).
        biases: Shape (D k_out), or (*, D k_out) when a context of shape (*, C) is bound.
        options: Activation, order, taps, and how the pass is done.
        bound: The certified bound on abs(d), shape (D).
        implementation: ``fused``, or ``paper``: dense masked convolutions under autograd.
        modelled: Which variables of vectors are modelled, bool, shape (*, D); None for all. Of
            the others x is not looked at, and F and d are 0.
    """

    weights: tuple[Tensor, ...]
    blocks: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    options: Pass
    bound: Tensor
    implementation: str = "fused"
    modelled: Tensor | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value F(x) and diagonal d of its Jacobian, of the shape of x and the context.

        Of images under autocast the hidden units are in its type; F and d stay in that of x.
        """
        if self.options.taps is not None:
            return self._of_images(x)
        batch = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        F, d = value_and_diagonal(
            self._chosen(x).expand(*batch, x.shape[-1]).reshape(-1, x.shape[-1]),
            self.weights,
            self.blocks,
            self.flat(batch).biases,
            self.options,
        )
        F, d = (part.reshape(*batch, x.shape[-1]) for part in (F, d))

        return self._chosen(F), self._chosen(d)

    def _chosen(self, x: Tensor) -> Tensor:
        return x if self.modelled is None else torch.where(self.modelled, x, 0)

    def _of_images(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype, layers = autocast_dtype(x), (self.weights, self.blocks, self.biases)
        if self.implementation == "paper":
            F, d = dense_value_and_diagonal(x, *layers, self.options)
        else:
            options = self.options if dtype is None else replace(self.options, dtype=dtype)
            with torch.autocast(x.device.type, enabled=False):
                F, d = value_and_diagonal(x, *layers, options)
        if dtype is not None:
            # The exact d obeys the bound, so this can only undo rounding.
            d = torch.minimum(torch.maximum(d, -self.bound), self.bound)

        return F, d

    @property
    def event_dim(self) -> int:
        """1 for vectors, 3 for images."""
        return 1 if self.options.taps is None else 3

    @property
    def activation(self) -> Activation:
        """Between the layers."""
        return self.options.activation

    @property
    def reverse(self) -> bool:
        """Whether the order is reversed."""
        return self.options.reverse

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the bound context, and of what is modelled."""
        own = self.biases[0].shape[:-1]
        if self.modelled is None:
            return own

        return torch.broadcast_shapes(own, self.modelled.shape[:-1])

    def flat(self, batch_shape: torch.Size) -> BoundBranch:
        """The same branch for a batch flattened to (N, D): context repeated where it must be."""

        def repeated(part: Tensor) -> Tensor:
            if part.dim() == 1:
                return part

            return part.expand(*batch_shape, part.shape[-1]).flatten(0, -2)

        return self._with_rows(repeated)

    def rows(self, index: Tensor) -> BoundBranch:
        """The same flat branch for some of its rows."""
        return self._with_rows(lambda part: part if part.dim() == 1 else part[index])

    def _with_rows(self, change: Callable[[Tensor], Tensor]) -> BoundBranch:
        if not self.batch_shape:
            return self
        modelled = None if self.modelled is None else change(self.modelled)

        return replace(self, biases=tuple(map(change, self.biases)), modelled=modelled)


@dataclass(frozen=True, eq=False)
class BoundBranches(Sequence[BoundBranch]):
    """The bound branches of all steps, T of them, in tensors stacked over the steps.

    Attributes:
        weights, blocks, biases, bound: As in :class:`BoundBranch`, with T in front.
        options: For each step.
        shape: As backends know the branches, of vectors.
        implementation: Of all of them.
        modelled: As in :class:`BoundBranch`, the same for all.
    """

    weights: tuple[Tensor, ...]
    blocks: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    options: tuple[Pass, ...]
    bound: Tensor
    shape: ChainShape
    implementation: str = "fused"
    modelled: Tensor | None = None

    @overload
    def __getitem__(self, t: int) -> BoundBranch: ...
    @overload
    def __getitem__(self, t: slice) -> list[BoundBranch]: ...
    def __getitem__(self, t: int | slice) -> BoundBranch | list[BoundBranch]:
        if isinstance(t, slice):
            return [self[i] for i in range(*t.indices(len(self)))]

        return BoundBranch(
            tuple([w[t] for w in self.weights]),
            tuple([b[t] for b in self.blocks]),
            tuple([b[t] for b in self.biases]),
            self.options[t],
            self.bound[t],
            self.implementation,
            self.modelled,
        )

    def masked(self, modelled: Tensor | None) -> BoundBranches:
        """The same of some variables, bool, shape (*, D), all others 0; None for all."""
        return replace(self, modelled=modelled)

    def __len__(self) -> int:
        return len(self.options)

    def __iter__(self) -> Iterator[BoundBranch]:
        return iter(self[:])
