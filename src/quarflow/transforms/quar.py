r"""The QuAR step: x + F(x) with a triangular Jacobian."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Size, Tensor

from quarflow.nn.bound import BoundBranch
from quarflow.solvers import Solution, solve
from quarflow.transforms.solved import Function, SolvedStep, among
from quarflow.transforms.substitution import substitute

__all__ = ["QuARStep"]

WIDENED = 5e-8  # residual asked for in float64 when the answer is rounded to float32


EVENT = (-3, -2, -1)  # dimensions of one image; of one vector the last


class QuARStep(SolvedStep):
    r"""Quasi-autoregressive residual step :math:`f(x) = x + F(x)`, of vectors or images.

    .. math:: \log\det J = \sum_i \log(1 + d_i), \quad d_i = \partial F_i / \partial x_i

    Since :math:`|d_i| \le \sigma < 1` and the Jacobian is triangular, f is increasing in each own
    variable and hence a global bijection, whatever the off-diagonal weights. Of an image, a
    pixel's channels depend on the pixels before it in raster order and on its own channels up to
    theirs (reversed, on those after).

    Reference:
        | Quasi-Autoregressive Residual (QuAR) Flows (Gopal, 2020), section 4, appendix C
        | https://arxiv.org/abs/2009.07419

    Arguments:
        branch: F with effective weights and context bound; it says whether of vectors, shape
            (*, D), or of images, (*, C, H, W).
        solver: Keyword arguments of :func:`quarflow.solvers.solve`, for the inverse.

    Example:
        >>> from quarflow.nn import Branch
        >>> step = QuARStep(Branch(2, (8,), reverse=[False]).bind()[0])
        >>> x = torch.tensor([0.5, -1.0])
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-5)
        True
        >>> from quarflow.nn import ConvBranch
        >>> step = QuARStep(ConvBranch((1, 4, 4), 8, [False], [True]).bind()[0])
        >>> x = torch.randn(2, 1, 4, 4)
        >>> bool((step.inv(step(x)) - x).abs().max() < 1e-3)
        True
    """

    def __init__(self, branch: BoundBranch, **solver: Any) -> None:
        super().__init__(branch.event_dim, solver)
        self.branch = branch

    def to(self, dtype: torch.dtype) -> Self:
        """The same step in another type; points that came in float32 need fewer digits."""
        new = super().to(dtype)
        if self.branch.bound.dtype != torch.float64 and dtype == torch.float64:
            new.solver = {"tolerance": WIDENED, **self.solver}

        return new

    def call_and_diagonal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) and the diagonal d of F's Jacobian, both of the shape of x."""
        if self.event_dim == 1:
            F, d = self.branch(x)
        else:
            F, d = (_images(part, x.shape) for part in self.branch(_pixels(x)))

        return x + F, d

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact, in one pass; log1p of a d below -1 would be NaN, never a wrong number."""
        z, d = self.call_and_diagonal(x)
        batch = z.shape[: z.dim() - self.event_dim]

        return z, torch.log1p(d).sum(EVENT[-self.event_dim :]).expand(batch)

    def inverse_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """By :func:`quarflow.solvers.solve`; gradients by the implicit function theorem."""
        if torch.is_grad_enabled():
            x = self._inverse(z)
            return x, -self.call_and_ladj(x)[1]
        # The solver's sweep at its answer gave the slopes there.
        found = self.solve(z)
        x = self.solved(found, z)
        assert found.slope is not None  # they were asked for

        return x, -found.slope.log().sum(-1).reshape(x.shape[: x.dim() - self.event_dim])

    def inverse_near(self, z: Tensor, x: Tensor, tolerance: float) -> Tensor:
        """The inverse of z, found from an x that is close to it."""
        return self.solved(self.solve(z, start=x, slopes=False, tolerance=tolerance), z)

    def root(self, z: Tensor) -> Tensor:
        """Without the slopes."""
        return self.solve(z, slopes=False).x

    @torch.no_grad()
    def solve(
        self, z: Tensor, start: Tensor | None = None, slopes: bool = True, **options: Any
    ) -> Solution:
        """The inverse with iterations and residuals, points flattened to rows (N, D).

        By substitution in compiled kernels, for vectors, unless a method is asked for; by the
        methods of the solvers otherwise, and for rows that it leaves. Images are in raster order.

        Arguments:
            z: Shape (*, D) or (*, C, H, W).
            start: Where to start, of the shape of the answer; z by default.
            slopes: Whether those at the answer are asked for.
            options: Instead of the step's own options of the solver.
        """
        shape = self.shape(z)
        y = self.rows(z.detach(), shape)
        if start is not None:
            start = self.rows(start.detach(), shape)
        options = {**self.solver, **options}
        tolerance = options.get("tolerance")
        options["tolerance"] = self.tolerance(y.dtype) if tolerance is None else tolerance
        f, other, found = self.function(shape), self.other(shape, y.dtype), None
        if not options.keys() & {"method", "max_iterations"}:
            flat = self.branch.flat(shape[:-1])
            found = substitute(flat, y, start, options["tolerance"], slopes)
        if found is None:
            options |= {"reverse": self.branch.reverse, "other": other}
            return solve(f, y, start=start, **options)

        left = (~(found.residual <= options["tolerance"])).nonzero().squeeze(-1)
        if not len(left):
            return found
        begun = found.x[left]
        rest = solve(
            among(f, left),
            y[left],
            reverse=self.branch.reverse,
            start=begun,
            other=lambda: among(other(), left),
            **options,
        )

        return found.replaced(left, rest)

    def function(self, shape: Size) -> Function:
        """f and its slopes as the solver sees them, for points of a shape."""
        branch = self.branch if self.event_dim == 3 else self.branch.flat(shape[:-1])
        C, H, W = (1, 1, *shape)[-3:]
        one = (H, W, C) if self.event_dim == 3 else (W,)
        total = shape[: len(shape) - self.event_dim].numel()

        def f(x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
            own = branch if rows is None or len(rows) == total else branch.rows(rows)
            F, d = own(x.reshape(-1, *one))
            return x + F.reshape(x.shape), 1 + d.reshape(x.shape)

        return f

    @property
    def bound(self) -> Tensor:
        """The certified bound on abs(d), shape (D)."""
        return self.branch.bound

    def measured(self, x: Tensor) -> float:
        """The largest abs(d) over the points x."""
        return float(self.call_and_diagonal(x)[1].abs().max())

    @property
    def context_shape(self) -> Size:
        """Batch shape of the context that is bound."""
        return self.branch.batch_shape

    def rows(self, x: Tensor, shape: Size) -> Tensor:
        """Points as rows (N, D); images in raster order, all channels of a pixel together."""
        return super().rows(x, shape) if self.event_dim == 1 else _pixels(x).flatten(1)

    def points(self, rows: Tensor, shape: Size) -> Tensor:
        """Points of a shape from their rows."""
        if self.event_dim == 1:
            return super().points(rows, shape)
        C, H, W = shape[-3:]

        return _images(rows.reshape(-1, H, W, C), shape)

    @property
    def _transposed(self) -> dict[str, Any]:
        return {"reverse": not self.branch.reverse}

    def __repr__(self) -> str:
        order = "reversed" if self.branch.reverse else "natural"
        size = "features" if self.event_dim == 1 else "channels"

        return f"QuARStep({size}={len(self.branch.bound)}, order={order})"


def _pixels(x: Tensor) -> Tensor:
    """(*, C, H, W) to rows of pixels (N, H, W, C)."""
    return x.reshape(x.shape[:-3].numel(), *x.shape[-3:]).permute(0, 2, 3, 1).contiguous()


def _images(pixels: Tensor, shape: Size) -> Tensor:
    """Rows of pixels back to (*, C, H, W)."""
    return pixels.permute(0, 3, 1, 2).reshape(shape)
