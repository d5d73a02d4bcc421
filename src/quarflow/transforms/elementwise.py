r"""Elementwise affine maps and permutations: exact inverses, cheap log-dets."""

from __future__ import annotations

import torch
from torch import Tensor

from quarflow.transforms.base import REALS, Transform

__all__ = ["Affine", "Permutation"]


class Affine(Transform):
    r"""Elementwise :math:`z = x \, e^s + b`, increasing in each variable.

    Arguments:
        shift: b, shape (*, D); for images one for each channel, (C).
        log_scale: s, likewise.
        scale: Its exponential, if it is known already.
        event_dim: 1 for vectors, 3 for images.

    Example:
        >>> t = Affine(torch.ones(2), torch.zeros(2))
        >>> t(torch.zeros(2)), t.inv(torch.ones(2))
        (tensor([1., 1.]), tensor([0., 0.]))
        >>> t = Affine(torch.ones(2), torch.zeros(2), event_dim=3)
        >>> t(torch.zeros(2, 4, 4)).shape, t.log_abs_det_jacobian(torch.zeros(2, 4, 4), None)
        (torch.Size([2, 4, 4]), tensor(0.))
    """

    def __init__(
        self, shift: Tensor, log_scale: Tensor, scale: Tensor | None = None, event_dim: int = 1
    ) -> None:
        super().__init__()
        if event_dim == 3:
            shift, log_scale = shift[:, None, None], log_scale[:, None, None]
            scale = None if scale is None else scale[:, None, None]
            self.domain = self.codomain = REALS[3]
        self.shift, self.log_scale = shift, log_scale
        self.scale = log_scale.exp() if scale is None else scale

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, then shift."""
        z = torch.addcmul(self.shift, x, self.scale)

        return z, self._ladj(z)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Shift back, then scale back."""
        x = (z - self.shift) / self.scale

        return x, -self._ladj(x)

    def _ladj(self, x: Tensor) -> Tensor:
        if self.domain.event_dim == 1:
            return self.log_scale.sum(-1).expand(x.shape[:-1])

        return (x.shape[-2] * x.shape[-1] * self.log_scale.sum()).expand(x.shape[:-3])

    def __repr__(self) -> str:
        if self.domain.event_dim == 3:
            return f"Affine(channels={len(self.shift)})"

        return f"Affine(features={self.shift.shape[-1]})"


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
