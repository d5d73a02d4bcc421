r"""What every bijection here has in common, on top of ``torch.distributions.Transform``."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import is_dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Size, Tensor
from torch.distributions import Transform as TorchTransform
from torch.distributions import constraints

from quarflow.solvers import Solution
from quarflow.transforms.trust import Amplification, amplification

__all__ = ["REALS", "Inverse", "Transform", "Visit", "call_and_ladj"]

Visit = Callable[["Transform", Tensor], Tensor]  # of a part and what it gets, to what it gives


# All vectors, and all images, by their number of dimensions.
REALS = {dims: constraints.independent(constraints.real, dims) for dims in (1, 3)}


class Transform(TorchTransform):
    r"""A bijection x -> z of vectors: pure tensors, no parameters of its own.

    Subclasses give ``call_and_ladj`` and ``inverse_and_ladj``; the rest follows. Both take and
    return shape (*, D), and the ladj has the batch shape (*).

    Example:
        >>> class Cube(Transform):
        ...     def call_and_ladj(self, x):
        ...         return x**3, (3 * x**2).log().sum(-1)
        ...     def inverse_and_ladj(self, z):
        ...         x = z ** (1 / 3)
        ...         return x, -(3 * x**2).log().sum(-1)
        >>> Cube().inv(torch.tensor([8.0]))
        tensor([2.])
    """

    domain = REALS[1]
    codomain = REALS[1]
    bijective = True

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = f(x) and log abs det of its Jacobian."""
        raise NotImplementedError

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = f^-1(z) and log abs det of the Jacobian of the inverse."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    @property
    def parts(self) -> list[Transform]:
        """The transforms that it is made of, first to last; itself if there are none."""
        return [self]

    def walk(self, x: Tensor, visit: Visit) -> Tensor:
        """The value, each part of the way by ``visit(part, x)``: to look on, or to change it."""
        return visit(self, x)

    def mapped(self, change: Callable[[Transform], Transform]) -> Transform:
        """The same with every part changed."""
        return change(self)

    def invert(self, z: Tensor) -> tuple[Tensor, list[Solution]]:
        """The inverse without gradients, and the solutions of the parts that are solved for.

        Returns:
            x, and the solutions with their iterations and residuals, that of the first part
            first.
        """
        with torch.no_grad():
            return self._inverse(z), []

    def inverse_near(self, z: Tensor, x: Tensor, tolerance: float) -> Tensor:
        """The inverse of z where x is already close to it, to a residual of tolerance at most."""
        return self._inverse(z)

    def inverse_and_amplification(self, z: Tensor) -> tuple[Tensor, Amplification]:
        """x, and what rounding does to it; see :func:`quarflow.transforms.trust.amplification`."""
        x = self._inverse(z)

        return x, amplification([self], [z, x])

    def loosened(self, tolerance: float) -> Self:
        """The same map, whose inverse, where it is iterative, stops at larger residuals."""
        if not hasattr(self, "solver"):
            return self
        new = copy(self)
        new.solver = {"tolerance": tolerance, **self.solver}

        return new

    def to(self, dtype: torch.dtype) -> Self:
        """The same map with all its floating-point tensors in another type."""
        new = copy(self)
        for name, value in vars(self).items():
            setattr(new, name, cast(value, dtype))

        return new

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The ladj at x, for users of ``torch.distributions``."""
        return self.call_and_ladj(x)[1]

    @property
    def inv(self) -> Inverse:
        """The inverse bijection z -> x."""
        return Inverse(self)

    @property
    def sign(self) -> int:
        """Triangular maps here are increasing in each own variable."""
        return 1

    def forward_shape(self, shape: Size) -> Size:
        """Shapes do not change."""
        return shape

    def inverse_shape(self, shape: Size) -> Size:
        """Shapes do not change."""
        return shape

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class Inverse(Transform):
    r"""The inverse of a transform, itself a transform.

    Arguments:
        transform: The bijection x -> z that it inverts.

    Example:
        >>> from quarflow.transforms import Affine
        >>> Inverse(Affine(torch.ones(1), torch.zeros(1)))(torch.ones(1))
        tensor([0.])
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self._forward = transform
        self.domain, self.codomain = transform.codomain, transform.domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The transform's ``inverse_and_ladj``."""
        return self._forward.inverse_and_ladj(x)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The transform's ``call_and_ladj``."""
        return self._forward.call_and_ladj(z)

    def _call(self, x: Tensor) -> Tensor:
        return self._forward._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._forward._call(y)

    def condition(self, z: Tensor) -> Tensor:
        """By how much rounding of z is amplified in x, estimated, shape (*).

        Times the rounding of z, 6e-8 in float32 and 1e-16 in float64, it is how far x may be off,
        relative to 1 + abs(x). It costs as much as two to three inverses.

        Arguments:
            z: Shape (*, D).

        Example:
            >>> from quarflow.transforms import Affine
            >>> flat = Affine(torch.zeros(1), torch.tensor([-10.0])).to(torch.float64)  # flat
            >>> round(float(flat.inv.condition(torch.tensor([1e-6]).double()).log10()))
            4
        """
        return self._forward.inverse_and_amplification(z)[1].condition

    def with_amplification(self, z: Tensor) -> tuple[Tensor, Amplification]:
        """x, and what rounding does to it."""
        return self._forward.inverse_and_amplification(z)

    def loosened(self, tolerance: float) -> Inverse:
        """The inverse of the transform, loosened."""
        return Inverse(self._forward.loosened(tolerance))

    def forward_shape(self, shape: Size) -> Size:
        """The transform's ``inverse_shape``."""
        return self._forward.inverse_shape(shape)

    def inverse_shape(self, shape: Size) -> Size:
        """The transform's ``forward_shape``."""
        return self._forward.forward_shape(shape)

    @property
    def inv(self) -> Any:
        """The transform itself."""
        return self._forward

    @property
    def sign(self) -> int:
        """Orientation is that of the transform."""
        return self._forward.sign

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inverse) and self._forward == other._forward

    def __hash__(self) -> int:
        return hash((Inverse, self._forward))

    def __repr__(self) -> str:
        return f"{self._forward!r}.inv"


def call_and_ladj(transform: TorchTransform, x: Tensor) -> tuple[Tensor, Tensor]:
    """``call_and_ladj`` of any torch transform.

    Example:
        >>> import torch
        >>> from torch.distributions import AffineTransform
        >>> call_and_ladj(AffineTransform(0.0, 2.0, event_dim=1), torch.ones(1))
        (tensor([2.]), tensor(0.6931))
    """
    if isinstance(transform, Transform):
        return transform.call_and_ladj(x)
    y = transform(x)

    return y, transform.log_abs_det_jacobian(x, y)


Value = TypeVar("Value")


def cast(value: Value, dtype: torch.dtype) -> Value:
    """A copy of tensors, and of what holds them, in another floating-point type."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value  # type: ignore[return-value]
    if isinstance(value, (list, tuple)):
        make = getattr(value, "_make", type(value))  # of named tuples
        return make([cast(item, dtype) for item in value])
    if isinstance(value, Transform):
        return value.to(dtype)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{k: cast(v, dtype) for k, v in vars(value).items()})

    return value
