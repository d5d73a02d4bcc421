"""Buffers that follow from a module's options, right wherever the module is moved to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

__all__ = ["Derived"]


class Derived(nn.Module):
    r"""A module with buffers, masks for example, that follow from its options.

    They are not saved with the parameters. ``to_empty``, which leaves anything in the memory it
    takes, and which a module built on the meta device is moved by, does not spoil them: they are
    made anew wherever they get new memory.

    Example:
        >>> class Masked(Derived):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.register_derived()
        ...     def derive(self):
        ...         return {"mask": torch.eye(2)}
        >>> with torch.device("meta"):
        ...     module = Masked()
        >>> module.to_empty(device="cpu").mask
        tensor([[1., 0.],
                [0., 1.]])
    """

    def derive(self) -> dict[str, Tensor]:
        """The buffers by name, made from the options."""
        raise NotImplementedError

    def register_derived(self) -> None:
        """Make the buffers, on the device where new parameters are; at the end of __init__."""
        place = torch.empty(0).device
        for name, value in self._made().items():
            self.register_buffer(name, value.to(place), persistent=False)

    def _made(self) -> dict[str, Tensor]:
        with torch.device("cpu"):
            return self.derive()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        applied = super()._apply(fn, recurse)
        moved = [name for name, old in before.items() if self._buffers[name] is not old]
        made: dict[str, Any] = self._made() if moved else {}
        for name in moved:
            value = self._buffers[name]
            if name in made and value is not None and not value.is_meta:
                self._buffers[name] = made[name].to(value.device)

        return applied
