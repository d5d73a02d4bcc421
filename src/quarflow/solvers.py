r"""Root finding for triangular residual maps: the one place where inverses are computed.

Every method solves :math:`f(x) = y` for a map that is strictly increasing in each own variable,
stops each sample on its residual, and raises when a sample did not get there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quarflow.modes import recorded, transformed

__all__ = [
    "METHODS",
    "InversionError",
    "Map",
    "Solution",
    "default_tolerance",
    "listed",
    "other_dtype",
    "solve",
]

AIM = 0.5  # of the tolerance
ROUNDINGS = 16  # times the size of rounding: residuals that are nothing else
STUCK = 3  # sweeps without improvement, after which Newton steps are held back
LONGEST_STEP = 1.0  # how far, at first; variables are standardised, more or less

# f(x, rows) -> (f(x), slopes): x is (n, D), rows says which of the N samples are asked for, and
# the slopes df_i/dx_i are positive.
Map = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class InversionError(RuntimeError):
    """Some samples did not reach the tolerance, or what they reached is not good enough.

    Attributes:
        failed: How many samples.
        residual: The largest residual among them, relative to 1 + abs(y).
    """

    def __init__(
        self,
        failed: int,
        total: int,
        residual: float,
        tolerance: float,
        message: str | None = None,
    ) -> None:
        self.failed, self.residual = failed, residual
        super().__init__(
            message
            or f"{failed} of {total} samples could not be inverted: the largest residual is "
            f"{residual:.1e}, relative to 1 + |y|, where {tolerance:.1e} is asked for. Most "
            "often y or the context is very far from the data, or the dtype is too coarse: try "
            "float64, or leave these samples out."
        )


@dataclass(frozen=True)
class Solution:
    r"""What a solver found.

    Attributes:
        x: The root, shape (N, D).
        slope: df_i/dx_i there, shape (N, D); None where they were not asked for.
        iterations: Sweeps (evaluations of f) that each sample took, shape (N); by substitution,
            evaluations of the variable that took most.
        residual: Largest abs(f(x) - y) / (1 + abs(y)) of each sample, shape (N).
    """

    x: Tensor
    slope: Tensor | None
    iterations: Tensor
    residual: Tensor

    def replaced(self, rows: Tensor, other: Solution) -> Solution:
        """The same with what another method found for some rows; its sweeps come on top."""
        slope = None
        if self.slope is not None and other.slope is not None:
            slope = self.slope.index_copy(0, rows, other.slope)

        return Solution(
            self.x.index_copy(0, rows, other.x),
            slope,
            self.iterations.index_add(0, rows, other.iterations),
            self.residual.index_copy(0, rows, other.residual),
        )


def listed(mask: Tensor, most: int = 5) -> str:
    """Which rows a mask (N) marks, in words.

    Example:
        >>> listed(torch.tensor([True, False, True]))
        'rows 0, 2'
    """
    rows = mask.nonzero().squeeze(-1).tolist()
    shown = ", ".join(map(str, rows[:most]))

    return f"row{'s' * (len(rows) > 1)} {shown}{', ...' if len(rows) > most else ''}"


def other_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for float64, and float64 for all others."""
    return torch.float32 if dtype == torch.float64 else torch.float64


def default_tolerance(dtype: torch.dtype) -> float:
    """Residual, relative to 1 + abs(y), that is asked for: 1e-6 in float32, 2e-13 in float64.

    Example:
        >>> default_tolerance(torch.float64)
        2e-13
    """
    return 2e-13 if dtype == torch.float64 else 1e-6


@torch.no_grad()
def solve(
    f: Map,
    y: Tensor,
    method: str = "newton",
    tolerance: float | None = None,
    max_iterations: int | None = None,
    reverse: bool = False,
    start: Tensor | None = None,
    other: Callable[[], Map] | None = None,
) -> Solution:
    r"""Solve f(x) = y, sample by sample.

    * ``newton``: Newton-Jacobi, :math:`x \leftarrow x - (f(x) - y) / (1 + d)`. The diagonal is
      free, so a sweep costs one evaluation. Exact in at most D sweeps for an affine F. A sample
      whose residual stops falling goes over to ``gauss_seidel``.
    * ``fixed_point``: :math:`x \leftarrow y - F(x)`, the paper's Algorithm 1.
    * ``gauss_seidel``: Newton-Jacobi inside ever smaller chunks of the order, each chunk
      solved before the next; down to single variables, where a bracket makes it certain.

    Samples leave the batch as they converge.

    Arguments:
        f: The map and its slopes; see :data:`Map`.
        y: Right-hand sides, shape (N, D).
        method: One of :data:`METHODS`.
        tolerance: Largest residual, relative to 1 + abs(y); a sample that does not get there is
            still accepted where its residual is what rounding makes of f(x) in this dtype.
        max_iterations: Largest number of sweeps of a sample, at least 1. By default as many as
            the method needs: 50 + 2 D simultaneous ones (in D sweeps a triangular map is solved
            but for the curvature), 20 times as many for ``fixed_point``, then the chunks.
        reverse: Whether variables depend on later ones, instead of on earlier ones.
        start: Where to start, shape (N, D); y by default.
        other: Gives the same map in the other of float32 and float64, to see how much rounding
            there is in f(x); called only if a sample does not reach the tolerance.

    Raises:
        InversionError: if a sample does not converge.
        NotImplementedError: inside torch.func's transforms and forward-mode derivatives.
        ValueError: if there is no method of that name, y is not finite, or max_iterations is
            below 1.

    Example:
        >>> f = lambda x, rows: (x + x.sin() / 2, 1 + x.cos() / 2)
        >>> solution = solve(f, torch.ones(1, 1, dtype=torch.float64))
        >>> round(solution.x.item(), 6), solution.residual.item() < 1e-12
        (0.684037, True)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, not {method!r}.")
    _refuse_tracing(y)
    if not torch.isfinite(y).all():
        raise ValueError("y holds NaN or infinite values, which no x maps to.")
    tolerance = default_tolerance(y.dtype) if tolerance is None else tolerance
    if max_iterations is not None and max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, not {max_iterations}.")
    limit = sys.maxsize if max_iterations is None else max_iterations

    state = _State(f, y, y.clone() if start is None else start.clone(), tolerance, limit)
    METHODS[method](state, 50 + 2 * y.shape[-1], reverse)

    failed = ~(state.residual <= tolerance)
    if max_iterations is None and failed.any():
        failed = failed.index_put(
            (failed.nonzero(as_tuple=True)), _unresolved(state, failed, other)
        )
    if failed.any():
        worst = state.residual[failed].nan_to_num(nan=float("inf")).max()
        raise InversionError(int(failed.sum()), len(y), float(worst), tolerance)

    return Solution(state.x, state.slope, state.iterations, state.residual)


def _refuse_tracing(y: Tensor) -> None:
    """Raise where torch follows operations, not values, by which an iteration knows to stop."""
    if recorded():
        raise NotImplementedError(
            "This inverse is found by iteration, as long as these values need it: it cannot be "
            "recorded (torch.jit.trace, torch.export, make_fx) for other values. Record log_prob, "
            "or the transform from data to noise."
        )
    if transformed(y):
        raise NotImplementedError(
            "This inverse is found by iteration, which looks at values to know when to stop: "
            "torch.func (vmap, grad, jacrev, jvp, ...) and forward-mode derivatives cannot follow "
            "that. Give it a batch instead of vmap, and use torch.autograd.grad, or "
            "torch.autograd.functional.jacobian or hessian, which are exact."
        )


def _unresolved(state: _State, failed: Tensor, other: Callable[[], Map] | None) -> Tensor:
    r"""Of the samples that failed: whether the residual is more than rounding of f(x).

    Two dtypes tell how large rounding is at a point: what it makes of f(x) in the coarser one is
    nearly all of the difference, and in the finer one smaller by the ratio of their units.
    """
    rows = failed.nonzero().squeeze(-1)
    x, y = state.x[rows], state.y[rows]
    value = state.f(x, rows)[0]
    unit = torch.finfo(y.dtype).eps
    rounding = unit * (1 + x.abs() + y.abs()).amax(-1)
    if other is not None:
        second = other()(x.to(other_dtype(y.dtype)), rows)[0]
        differs = (second.double() - value.double()).abs().amax(-1)
        ratio = min(1.0, unit / torch.finfo(second.dtype).eps)
        # An overflow in float32 says nothing about float64.
        rounding = rounding + ratio * differs.nan_to_num(nan=0.0, posinf=0.0).to(rounding)

    return ~((value - y).abs().amax(-1) <= ROUNDINGS * rounding)


class _State:
    """The best iterate of every sample so far, with its residual."""

    def __init__(self, f: Map, y: Tensor, x: Tensor, tolerance: float, limit: int) -> None:
        self.f, self.y, self.x, self.tolerance, self.limit = f, y, x, tolerance, limit
        self.scale = 1 + y.abs()
        self.slope = torch.ones_like(y)
        self.residual = y.new_full((len(y),), float("inf"))
        self.iterations = torch.zeros(len(y), dtype=torch.long, device=y.device)

    def open(self) -> Tensor:
        """Samples that have not converged and have sweeps left."""
        open_ = ~(self.residual <= self.tolerance) & (self.iterations < self.limit)

        return open_.nonzero().squeeze(-1)

    def evaluate(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """f(x) - y and the slopes, counted as one sweep of those samples."""
        value, slope = self.f(x, rows)
        self.iterations[rows] += 1

        return value - self.y[rows], slope

    def keep(self, rows: Tensor, x: Tensor, slope: Tensor, size: Tensor) -> None:
        """Note iterates that are better than the best so far."""
        better = size < self.residual[rows]
        index = rows[better]
        self.x[index], self.slope[index], self.residual[index] = (
            x[better],
            slope[better],
            size[better],
        )


def _sweep(state: _State, sweeps: int, newton: bool, patience: int) -> None:
    """Simultaneous sweeps over all variables, until converged, out of sweeps or out of hope."""
    rows = state.open()
    x, hope = state.x[rows], torch.full_like(rows, patience)
    longest, last = torch.full_like(x, LONGEST_STEP / 2), torch.zeros_like(x)
    for _ in range(min(sweeps, state.limit)):
        if not len(rows):
            return
        error, slope = state.evaluate(x, rows)
        size = (error / state.scale[rows]).abs().amax(-1)
        hope = torch.where(size < 0.9 * state.residual[rows], patience, hope - 1)
        state.keep(rows, x, slope, size)
        # Aim below the tolerance, and accept within it once rounding lets nothing improve.
        done = (size <= AIM * state.tolerance) | (
            (state.residual[rows] <= state.tolerance) & (hope < patience)
        )
        going = ~done & (hope > 0) & size.isfinite()
        step = error / slope if newton else error
        stuck = newton & (hope <= patience - STUCK)
        if stuck.any():
            # Where 1 + d is small a Newton step overshoots far: hold it within LONGEST_STEP,
            # twice as far for each sweep that keeps its direction.
            turned = step * last < 0
            longest = torch.where(turned, (longest / 2).clamp_min(LONGEST_STEP), 2 * longest)
            step = torch.where(stuck[:, None], step.clamp(-longest, longest), step)
        x, last = x - step, step
        if not going.all():
            x, rows, hope = x[going], rows[going], hope[going]
            longest, last = longest[going], last[going]


def _newton(state: _State, sweeps: int, reverse: bool) -> None:
    # Residuals of a triangular map may grow for a while before they fall: patience, then chunks.
    _sweep(state, sweeps, newton=True, patience=12)
    _gauss_seidel(state, sweeps, reverse)


def _fixed_point(state: _State, sweeps: int, reverse: bool) -> None:
    _sweep(state, 20 * sweeps, newton=False, patience=20 * sweeps)


def _gauss_seidel(state: _State, sweeps: int, reverse: bool) -> None:
    D = state.y.shape[-1]
    chunks = 4
    while len(state.open()):
        chunks = min(chunks, D)
        _chunked(state, chunks, sweeps, reverse)
        if chunks == D:
            return
        chunks *= 4


def _chunked(state: _State, chunks: int, sweeps: int, reverse: bool) -> None:
    """Solve chunk after chunk of the order, each with the ones before it held fixed."""
    order = torch.arange(state.y.shape[-1], device=state.y.device)
    active = state.open()
    x = state.x[active]
    x = torch.where(x.isfinite(), x, state.y[active])
    for part in (order.flip(0) if reverse else order).tensor_split(chunks):
        if len(part) == 1:
            _bracketed(state, active, x, part)
        else:
            _newton_part(state, active, x, part, sweeps)
    error, slope = state.evaluate(x, active)
    size = (error / state.scale[active]).abs().amax(-1)
    state.keep(active, x, slope, size)


def _evaluate_part(
    state: _State, active: Tensor, x: Tensor, part: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the rows that are not done yet: which, their part of x, its error and slopes."""
    rows = rows[state.iterations[active[rows]] < state.limit - 1]  # the last is for the residual
    error, slope = state.evaluate(x[rows], active[rows])
    error, slope = error[:, part], slope[:, part]
    # Half the tolerance leaves room for what later chunks are still to round.
    size = (error / state.scale[active[rows]][:, part]).abs().amax(-1)
    going = size > 0.5 * state.tolerance
    rows = rows[going]

    return rows, x[rows][:, part], error[going], slope[going]


def _newton_part(state: _State, active: Tensor, x: Tensor, part: Tensor, sweeps: int) -> None:
    """Newton-Jacobi on some variables of x, in place."""
    rows = torch.arange(len(active), device=x.device)
    for _ in range(sweeps):
        rows, at, error, slope = _evaluate_part(state, active, x, part, rows)
        new = at - error / slope
        x[rows[:, None], part] = new
        rows = rows[(new != at).any(-1) & new.isfinite().all(-1)]
        if not len(rows):
            return


def _bracketed(state: _State, active: Tensor, x: Tensor, part: Tensor) -> None:
    """Newton on one variable of x, in place, kept inside a bracket and bisected in turn."""
    rows = torch.arange(len(active), device=x.device)
    low = x.new_full((len(active), 1), -float("inf"))
    high = x.new_full((len(active), 1), float("inf"))
    for sweep in range(200):
        rows, at, error, slope = _evaluate_part(state, active, x, part, rows)
        if not len(rows):
            return
        # f is increasing in its own variable, so the sign of the error says where the root is.
        low[rows] = torch.where(error < 0, at, low[rows])
        high[rows] = torch.where(error > 0, at, high[rows])
        middle = (low[rows] + high[rows]) / 2
        # While one side is open, ever longer steps: slopes that mislead cannot hold it up.
        stretch = torch.where(middle.isfinite(), 1.0, 2.0 ** (sweep // 8))
        new = at - stretch * error / slope
        outside = (new <= low[rows]) | (new >= high[rows]) | (sweep % 4 == 3)
        new = torch.where(outside & middle.isfinite(), middle, new)
        x[rows[:, None], part] = new
        rows = rows[(new != at).any(-1)]
        if not len(rows):
            return


METHODS: dict[str, Callable[[_State, int, bool], None]] = {
    "newton": _newton,
    "fixed_point": _fixed_point,
    "gauss_seidel": _gauss_seidel,
}
