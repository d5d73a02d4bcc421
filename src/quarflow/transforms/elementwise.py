r"""Elementwise affine maps and permutations: exact inverses, cheap log-dets."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.transforms.base import REALS, Transform

__all__ = ["Affine", "Centred", "Only", "Permutation", "among"]


def among(modelled: Tensor | None, values: Tensor, others: Tensor | float) -> Tensor:
    """Values where a mask, if there is one, says so, and others elsewhere.

    Example:
        >>> among(torch.tensor([True, False]), torch.ones(2), 0)
        tensor([1., 0.])
    """
    return values if modelled is None else torch.where(modelled, values, others)


class Affine(Transform):
    r"""Elementwise :math:`z = x \, e^s + b`, increasing in each variable.

    Arguments:
        shift: b, shape (*, D); for images one for each channel, (C).
        log_scale: s, likewise.
        scale: Its exponential, if it is known already.
        event_dim: 1 for vectors, 3 for images.
        modelled: Which variables it maps, bool, shape (*, D), of vectors; all others stay.

    Example:
        >>> t = Affine(torch.ones(2), torch.zeros(2))
        >>> t(torch.zeros(2)), t.inv(torch.ones(2))
        (tensor([1., 1.]), tensor([0., 0.]))
        >>> t = Affine(torch.ones(2), torch.zeros(2), event_dim=3)
        >>> t(torch.zeros(2, 4, 4)).shape, t.log_abs_det_jacobian(torch.zeros(2, 4, 4), None)
        (torch.Size([2, 4, 4]), tensor(0.))
    """

    def __init__(
        self,
        shift: Tensor,
        log_scale: Tensor,
        scale: Tensor | None = None,
        event_dim: int = 1,
        modelled: Tensor | None = None,
    ) -> None:
        super().__init__()
        if event_dim == 3:
            shift, log_scale = shift[:, None, None], log_scale[:, None, None]
            scale = None if scale is None else scale[:, None, None]
            self.domain = self.codomain = REALS[3]
        self.shift, self.log_scale, self.modelled = shift, log_scale, modelled
        self.scale = log_scale.exp() if scale is None else scale

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, then shift."""
        z = among(self.modelled, torch.addcmul(self.shift, x, self.scale), x)

        return z, self._ladj(z)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Shift back, then scale back."""
        x = among(self.modelled, (z - self.shift) / self.scale, z)

        return x, -self._ladj(x)

    def _ladj(self, x: Tensor) -> Tensor:
        if self.domain.event_dim == 1:
            return among(self.modelled, self.log_scale, 0).sum(-1).expand(x.shape[:-1])

        return (x.shape[-2] * x.shape[-1] * self.log_scale.sum()).expand(x.shape[:-3])

    def __repr__(self) -> str:
        if self.domain.event_dim == 3:
            return f"Affine(channels={len(self.shift)})"

        return f"Affine(features={self.shift.shape[-1]})"


class Centred(Transform):
    r"""Elementwise :math:`z = (x - m) \, e^s`: whatever the scale is, m comes to 0.

    Arguments:
        location: m, shape (*, D).
        log_scale: s, shape (*, D).
        modelled: Which variables it maps, bool, shape (*, D); all others stay.

    Example:
        >>> t = Centred(torch.ones(2), torch.zeros(2))
        >>> t(torch.ones(2)), t.inv(torch.zeros(2))
        (tensor([0., 0.]), tensor([1., 1.]))
    """

    def __init__(
        self, location: Tensor, log_scale: Tensor, modelled: Tensor | None = None
    ) -> None:
        super().__init__()
        self.location, self.log_scale, self.modelled = location, log_scale, modelled

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Shift, then scale."""
        z = among(self.modelled, (x - self.location) * self.log_scale.exp(), x)

        return z, among(self.modelled, self.log_scale, 0).sum(-1).expand(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Scale back, then shift back."""
        x = among(self.modelled, torch.addcmul(self.location, z, (-self.log_scale).exp()), z)

        return x, -among(self.modelled, self.log_scale, 0).sum(-1).expand(x.shape[:-1])

    def __repr__(self) -> str:
        return f"Centred(features={self.location.shape[-1]})"


class Only(Transform):
    r"""Some variables as they are, whatever the others are, of which nothing but 0 is left.

    It is a bijection of the variables that are modelled, which is what its ladj, 0, is of.

    Arguments:
        modelled: Which variables, bool, shape (*, D).

    Example:
        >>> Only(torch.tensor([True, False]))(torch.tensor([1.0, float("nan")]))
        tensor([1., 0.])
    """

    def __init__(self, modelled: Tensor) -> None:
        super().__init__()
        self.modelled = modelled

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Volume is preserved."""
        z = torch.where(self.modelled, x, 0)

        return z, z.new_zeros(z.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The same again."""
        return self.call_and_ladj(z)

    def __repr__(self) -> str:
        return f"Only(features={self.modelled.shape[-1]})"


class Permutation(Transform):
    r"""Reorder the variables: :math:`z_i = x_{order_i}`.

    Arguments:
        order: A permutation of 0 ... D - 1, shape (D).

    Raises:
        ValueError: if it is not a permutation.

    Example:
        >>> Permutation(torch.tensor([2, 0, 1]))(torch.tensor([1.0, 2.0, 3.0]))
        tensor([3., 1., 2.])
    """

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
            raise ValueError(f"order must be a permutation of 0 to {len(order) - 1}.")
        self.order = order

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Volume is preserved."""
        return x[..., self.order], x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse permutation."""
        return z[..., self.order.argsort()], z.new_zeros(z.shape[:-1])

    @property
    def sign(self) -> int:
        """An odd permutation reverses orientation."""
        matrix = torch.eye(len(self.order), dtype=torch.float64)[self.order.cpu()]

        return int(torch.linalg.det(matrix).sign())

    def __repr__(self) -> str:
        return f"Permutation({self.order.tolist()})"
