"""What torch is doing besides computing: what must stand aside then, kernels and own gradients."""

from __future__ import annotations

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

__all__ = ["forward_mode", "recorded", "torch_only", "traced", "transformed", "unwatched"]


def traced() -> bool:
    """Whether operations are being recorded: by ``torch.jit.trace``, or by a dispatch mode
    (``make_fx``, ``torch.export``, counters), none of which sees inside a kernel.

    Example:
        >>> traced()
        False
    """
    return torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def recorded() -> bool:
    """Whether what is computed now becomes a program for other values: ``torch.jit.trace``,
    ``make_fx`` or ``torch.export``.
    """
    proxy = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)

    return torch.jit.is_tracing() or proxy is not None


def forward_mode() -> bool:
    """Whether derivatives are carried forward: ``torch.func.jvp``, ``jacfwd`` and ``hessian``, or
    :mod:`torch.autograd.forward_ad`.

    Example:
        >>> found = []
        >>> one = torch.ones(1)
        >>> _ = torch.func.jvp(lambda x: found.append(forward_mode()) or x, (one,), (one,))
        >>> found, forward_mode()
        ([True], False)
    """
    if forward_ad._current_level >= 0:
        return True
    if torch._C._functorch.maybe_current_level() is None:
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []

    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in stack)


def torch_only() -> bool:
    """Whether only torch's own operations will do: functions with a backward pass by hand have no
    derivative forward, and cannot be recorded as what they compute.
    """
    if torch.compiler.is_compiling():
        return False  # it follows them

    return traced() or forward_mode()


def unwatched() -> bool:
    """Whether torch does nothing besides computing: nothing is compiled, recorded or
    differentiated forward, so that what it can't see into may be called.

    Example:
        >>> unwatched()
        True
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0:
        return False

    return torch._C._functorch.maybe_current_level() is None or not forward_mode()


def transformed(*tensors: Tensor) -> bool:
    """Whether a tensor is one of torch.func's, or carries a tangent: its value must not be asked
    for.

    Example:
        >>> found = []
        >>> _ = torch.func.vmap(lambda x: found.append(transformed(x)) or x)(torch.ones(2))
        >>> found
        [True]
    """
    return any(
        torch._C._functorch.is_functorch_wrapped_tensor(t)
        or (forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None)
        for t in tensors
    )
