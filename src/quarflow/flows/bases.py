r"""Base distributions: modules that give a distribution over vectors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints

SCALAR = Size()  # no batch dimensions

__all__ = ["BASES", "Base", "Normal", "Selected", "StudentT", "base"]


class Base(Distribution):
    r"""Independent coordinates with density known in closed form; events have shape (D).

    Arguments:
        like: Its last dimension is D; samples have its type and device.
        batch_shape: (*), of the contexts, for each of which there are samples.

    Example:
        >>> Normal(torch.zeros(3), Size([5])).sample((2,)).shape
        torch.Size([2, 5, 3])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, like: Tensor, batch_shape: Size = SCALAR) -> None:
        super().__init__(batch_shape, like.shape[-1:], validate_args=False)
        self._like = like

    def rsample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Differentiable samples, shape (*sample_shape, *batch_shape, D)."""
        raise NotImplementedError

    def sample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples, shape (*sample_shape, *batch_shape, D)."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def cdf(self, value: Tensor) -> Tensor:
        """Cumulative distribution of each coordinate, shape (*, D)."""
        raise NotImplementedError

    def logs(self, value: Tensor) -> Tensor:
        """Log-density of each coordinate, shape (*, D)."""
        raise NotImplementedError


class Normal(Base):
    r"""Standard normal.

    Arguments:
        like: Its last dimension is D; samples have its type and device.
        batch_shape: (*), of the contexts.

    Example:
        >>> Normal(torch.zeros(2)).log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, shape (*)."""
        D = value.shape[-1]

        return -0.5 * (value * value).sum(-1) - 0.5 * D * math.log(2 * math.pi)

    def logs(self, value: Tensor) -> Tensor:
        """Of each coordinate, shape (*, D)."""
        return -0.5 * (value * value) - 0.5 * math.log(2 * math.pi)

    def rsample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Standard normal numbers."""
        like = self._like

        return torch.randn(
            self._extended_shape(Size(sample_shape)),
            dtype=like.dtype,
            device=like.device,
            generator=generator,
        )

    def cdf(self, value: Tensor) -> Tensor:
        """Normal cumulative distribution."""
        return torch.special.ndtr(value)


class StudentT(Base):
    r"""Student-t with its own degrees of freedom for each coordinate.

    Residual steps have bounded slopes, so the tails of the base are the tails of the model.

    Arguments:
        df: Degrees of freedom, above 0, shape (D).
        batch_shape: (*), of the contexts.

    Example:
        >>> StudentT(torch.tensor([5.0])).log_prob(torch.zeros(1))
        tensor(-0.9686)
    """

    def __init__(self, df: Tensor, batch_shape: Size = SCALAR) -> None:
        super().__init__(df, batch_shape)
        self.df = df

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, shape (*)."""
        return self.logs(value).sum(-1)

    def logs(self, value: Tensor) -> Tensor:
        """Of each coordinate, shape (*, D)."""
        df = self.df
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()

        return constant - (df + 1) / 2 * torch.log1p(value * value / df)

    def rsample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Normal numbers over the root of gamma numbers."""
        shape = self._extended_shape(Size(sample_shape))
        df = self.df.expand(shape)
        normal = torch.randn(shape, dtype=df.dtype, device=df.device, generator=generator)
        gamma = torch._standard_gamma(df / 2, generator=generator)

        return normal * (df / 2 / gamma.clamp_min(torch.finfo(df.dtype).tiny)).sqrt()

    def cdf(self, value: Tensor) -> Tensor:
        """Student-t cumulative distribution, computed by scipy on the CPU."""
        from scipy.stats import t

        found = t.cdf(value.detach().cpu().double().numpy(), self.df.detach().cpu().numpy())

        return torch.as_tensor(found, dtype=value.dtype, device=value.device)


class Selected(Base):
    r"""The coordinates of another base that are modelled; all others are 0.

    Arguments:
        base: Of all coordinates, its batch shape that of contexts and masks.
        modelled: Which are, bool, shape (*, D).

    Example:
        >>> p = Selected(Normal(torch.zeros(2)), torch.tensor([True, False]))
        >>> p.log_prob(torch.zeros(2)), bool(p.sample()[1] == 0)
        (tensor(-0.9189), True)
    """

    def __init__(self, base: Base, modelled: Tensor) -> None:
        super().__init__(base._like, base.batch_shape)
        self.base, self.modelled = base, modelled

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the modelled coordinates, shape (*)."""
        return self.logs(value).sum(-1)

    def logs(self, value: Tensor) -> Tensor:
        """Of each coordinate, 0 for those that are not modelled, shape (*, D)."""
        return torch.where(self.modelled, self.base.logs(value), 0)

    def rsample(
        self, sample_shape: Any = SCALAR, generator: torch.Generator | None = None
    ) -> Tensor:
        """Those of the base, and zeros."""
        return torch.where(self.modelled, self.base.rsample(sample_shape, generator), 0)

    def cdf(self, value: Tensor) -> Tensor:
        """That of the base."""
        return self.base.cdf(value)


class _NormalModule(nn.Module):
    """No parameters; a buffer says on which device and in which type to sample."""

    like: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("like", torch.zeros(features), persistent=False)

    def forward(self, batch_shape: Size = SCALAR) -> Normal:
        return Normal(self.like, batch_shape)

    def extra_repr(self) -> str:
        return f"features={len(self.like)}"


class _StudentTModule(nn.Module):
    """Degrees of freedom above 2, so that variances exist; they start at 12."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.df_raw = nn.Parameter(torch.full((features,), math.log(math.expm1(10.0))))

    def forward(self, batch_shape: Size = SCALAR) -> StudentT:
        return StudentT(2 + nn.functional.softplus(self.df_raw), batch_shape)

    def extra_repr(self) -> str:
        return f"features={len(self.df_raw)}"


BASES: dict[str, type[nn.Module]] = {"normal": _NormalModule, "student-t": _StudentTModule}


def base(name: str, features: int) -> nn.Module:
    """A module that gives a base distribution.

    Arguments:
        name: One of :data:`BASES`.
        features: Number D of variables.

    Raises:
        ValueError: if there is no base of that name.

    Example:
        >>> base("student-t", 2)().sample((3,)).shape
        torch.Size([3, 2])
    """
    if name not in BASES:
        raise ValueError(f"base must be one of {sorted(BASES)}, not {name!r}.")

    return BASES[name](features)
