"""What a column is like: on a lattice, with ties, with heavy tails. Plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SORTED_ROWS = 200_000  # rows looked at for ties: sorting more tells nothing new
TAIL_ROWS = 20_000  # rows that decide whether tails are tamed
ATOM_SHARE, ATOM_ROWS = 0.005, 5  # a value repeated this often is no accident of rounding
REPEATED_SHARE = 0.001  # values repeated this often stay apart
FLOOR = 1e-3  # ties are spread over at least this part of the column's spread
COMMON = 0.98  # a lattice that holds this part of the rows is the column's own
OFF_LATTICE = 0.02  # how far from the lattice a value may lie, in steps
SCREEN = 1e-3  # nats that float32 may be wrong by, generously
GAIN = 0.02  # nats that taming must bring to be worth it


@dataclass(frozen=True)
class Ties:
    """Where a column repeats its values.

    Attributes:
        step: Width of the noise that fills the gaps.
        grid, origin: The lattice origin + k grid that all values lie on; grid None: no lattice.
        atoms: Single values repeated often.
    """

    step: float
    grid: float | None
    origin: float
    atoms: tuple[float, ...]


def find_ties(x: np.ndarray, *, forced: bool = False) -> Ties | None:
    """Ties in a column (N,) that matter to a density; None for a continuous one.

    A column of whole numbers always counts. Another counts if it lies on a lattice and has
    fewer distinct values than half its rows, or has fewer than a fifth, or if one value makes
    up 0.5 % of the rows.

    Arguments:
        x: Shape (N,).
        forced: The user says that it counts.
    """
    sample = subsample(x, SORTED_ROWS)
    values, counts = distinct(sample)
    rows = len(sample)
    atom = counts >= max(ATOM_ROWS, ATOM_SHARE * rows)
    crowding = len(values) / rows
    whole = bool(np.all(x == np.round(x))) and float(np.abs(x).max()) <= 2.0**53
    if not (forced or whole or atom.any() or crowding < 0.5):
        return None
    rest = np.repeat(values[~atom], counts[~atom])
    floor = _floor(sample, rest, values, counts)
    often = np.argsort(-counts, kind="stable")[: min(int(atom.sum()), 64)]
    atoms = tuple(float(value) for value in np.sort(values[often]))
    common = _common(values, counts) if crowding < 0.2 else values
    lattice = _find_lattice(x, values, common, whole)
    if lattice is not None:
        origin, grid = lattice
        # so fine that it is nearly continuous, but for the atoms
        if atoms and grid < floor * (1 - OFF_LATTICE):
            return Ties(floor, grid, origin, atoms)
        if forced or whole or atoms or crowding < 0.5:
            return Ties(grid, grid, origin, ())
        return None
    if not (forced or atoms or crowding < 0.2):
        return None
    return Ties(_step(floor, rest, values, counts, atom), None, 0.0, atoms)


def _floor(sample: np.ndarray, rest: np.ndarray, values: np.ndarray, counts: np.ndarray) -> float:
    """The least width of the noise; between atoms the column may be continuous: ``rest``."""
    wide = float(sample.std())
    quartiles = np.percentile(rest, [25, 75]) if len(rest) else np.zeros(2)
    middle = float(quartiles[1] - quartiles[0])  # keeps long tails from setting the floor
    floor = FLOOR * (min(wide, middle) if middle > 0 else wide)
    # a few large values must not merge the small ones
    neighbours = values[counts >= max(ATOM_ROWS, REPEATED_SHARE * len(sample))]
    return min(floor, float(np.diff(neighbours).min(initial=np.inf)))


def _find_lattice(
    x: np.ndarray, values: np.ndarray, common: np.ndarray, whole: bool
) -> tuple[float, float] | None:
    """(origin, step) of all values of x, or a coarser one of the common values alone."""
    find = _whole_lattice if whole else _lattice
    lattice = find(values)
    if lattice is not None and len(x) > SORTED_ROWS and not _on_lattice(x, *lattice):
        lattice = None
    if 5 <= len(common) < len(values):  # hundredths throughout, but for some odd value
        coarse = find(common)
        if coarse is not None and (lattice is None or coarse[1] > 1.5 * lattice[1]):
            return coarse
    return lattice


def _step(
    floor: float, rest: np.ndarray, values: np.ndarray, counts: np.ndarray, atom: np.ndarray
) -> float:
    """The width of the noise where there is no lattice."""
    gaps = np.diff(values)
    if gaps.min() >= floor:
        return float(gaps.min())  # few values, far apart
    if len(rest) == 0 or (~atom).sum() / len(rest) < 0.2:
        # tied throughout: the usual gap, but no wider than between values that repeat
        return max(floor, min(float(np.median(gaps)), _closest(values, counts)))
    return floor


def find_tails(v: np.ndarray, finest: float = 0.0) -> tuple[float, float] | None:
    """(center, spread) where asinh((v - center) / spread) is nearer to a Gaussian than v is.

    Compared by the likelihood of the best Gaussian, Jacobian included, over a small grid.
    None where that gains less than 0.02 nats (and somewhat more on few rows).

    Arguments:
        v: Shape (N,).
        finest: Width of the noise in v, below which there is no detail for a spread to show.
    """
    v = subsample(v, TAIL_ROWS)
    few = v[:: max(1, len(v) // 2000)]
    deviation = float(few.std())
    if not deviation > 0:
        return None
    percentiles = np.percentile(few, [0, 2, 10, 25, 50, 75, 90, 98, 100])
    low, quarter, three, high = percentiles[[2, 3, 5, 6]]
    widths = [w for w in (three - quarter, high - low) if w > 0] or [1e-2 * deviation]
    smallest = max(min(widths) / 30, 1e-6 * deviation, finest)
    spreads = np.geomspace(smallest, max(3 * deviation, 2 * smallest), 10)
    promising = _promising(few, np.unique(percentiles), spreads)
    middle, wide = promising[0]
    if len(promising) > 1:
        _, middle, wide = max((_asinh_fit(few, c, s), c, s) for c, s in promising)
    ratio = float(spreads[1] / spreads[0])
    finer = [wide * ratio**power for power in (-2 / 3, -1 / 3, 0, 1 / 3, 2 / 3)]
    finer = [max(spread, finest) for spread in finer]
    gain, center, spread = max((_asinh_fit(v, middle, s), middle, s) for s in finer)
    gain += float(np.log(v.std()))  # against the Gaussian of v itself
    return (float(center), float(spread)) if gain > GAIN + 5 / len(v) else None


def subsample(x: np.ndarray, rows: int) -> np.ndarray:
    """At most ``rows`` of the entries, the same ones every time."""
    if len(x) <= rows:
        return x
    return x[np.random.default_rng(0).choice(len(x), rows, replace=False)]


def _promising(
    v: np.ndarray, centers: np.ndarray, spreads: np.ndarray
) -> list[tuple[float, float]]:
    """The pairs that may have the best ``_asinh_fit``, by a look at all of them in float32.

    Its rounding is far below the margin, except where y hardly varies: those pairs stay in.
    """
    scores = np.empty((len(centers), len(spreads)))
    sure = np.empty(scores.shape, dtype=bool)
    unit = spreads[0]  # so that neither very large nor very small data leave float32's range
    v, middles, widths = v / unit, centers / unit, (spreads / unit).astype(np.float32)[:, None]
    t, w, y = (np.empty((len(spreads), len(v)), dtype=np.float32) for _ in range(3))
    for i, middle in enumerate(middles):
        np.divide((v - middle).astype(np.float32), widths, out=t)
        np.multiply(t, t, out=w)
        w += 1
        np.sqrt(w, out=y)
        y += np.abs(t)
        np.log(y, out=y)
        np.copysign(y, t, out=y)  # asinh(t)
        np.log(w, out=w)
        y -= y.mean(axis=1, keepdims=True)
        deviation = np.sqrt(np.einsum("ij,ij->i", y, y) / len(v))
        sure[i] = deviation > 1e-3
        scores[i] = -np.log(np.maximum(deviation, 1e-30)) - 0.5 * w.mean(axis=1) - np.log(spreads)
    best = scores[sure].max(initial=-np.inf)
    chosen = np.argwhere(~sure | (scores >= best - SCREEN))
    return [(centers[i], spreads[j]) for i, j in chosen]


def _asinh_fit(v: np.ndarray, center: float, spread: float) -> float:
    """Mean log-likelihood under the transformed Gaussian, up to the constant it shares."""
    t = (v - center) / spread
    y = np.arcsinh(t)
    deviation = float(y.std())
    if not deviation > 0:
        return -np.inf
    return -float(np.log(deviation)) - float(np.log(np.hypot(1.0, t)).mean()) - np.log(spread)


def distinct(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values and their counts; values that differ by float rounding count as one."""
    values, counts = np.unique(x, return_counts=True)
    rounding = 16 * np.finfo(np.float64).eps * float(np.abs(values).max())
    first = np.flatnonzero(np.diff(values, prepend=-np.inf) > rounding)
    return values[first], np.add.reduceat(counts, first)


def _closest(values: np.ndarray, counts: np.ndarray) -> float:
    """The smallest gap between neighbours among the values that repeat."""
    return float(np.diff(values[counts > 1]).min(initial=np.inf))


def _common(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The most frequent values, which make up nearly all rows."""
    order = np.argsort(-counts, kind="stable")
    enough = np.searchsorted(np.cumsum(counts[order]), COMMON * counts.sum()) + 1
    return np.sort(values[order[:enough]])


def _whole_lattice(values: np.ndarray) -> tuple[float, float] | None:
    if len(values) < 2:
        return None
    step = float(np.gcd.reduce(np.diff(values).astype(np.int64)))
    return float(values[0] % step), step


def _lattice(values: np.ndarray) -> tuple[float, float] | None:
    """(origin, step) of the coarsest lattice that the sorted distinct values lie on."""
    if len(values) < 2:
        return None
    gaps = np.diff(values)
    smallest = float(gaps.min())
    if (values[-1] - values[0]) / smallest > 1e12:
        return None
    for parts in range(1, 13):  # the smallest gap seen may be a few steps
        step = smallest / parts
        near = gaps[gaps < 20 * step]
        if np.abs(near / step - np.round(near / step)).max(initial=0) > 0.25:
            continue
        for reach in (3.0, 30.0, 1e3, 1e5, np.inf):  # longer gaps tell the step more exactly
            near = gaps[gaps <= max(reach, parts + 0.5) * step]
            step = float(near.sum() / np.round(near / step).sum())
        found = _tidy(values, *_line(values, gaps, step))
        if _on_lattice(values, *found):
            return found
    return None


def _line(values: np.ndarray, gaps: np.ndarray, step: float) -> tuple[float, float]:
    """Least squares of value = origin + step k."""
    k = np.concatenate([[0.0], np.cumsum(np.round(gaps / step))])
    k -= k.mean()
    slope = float((k * (values - values.mean())).sum() / (k * k).sum())
    origin = float(values[0]) % slope
    return origin, slope


def _tidy(values: np.ndarray, origin: float, step: float) -> tuple[float, float]:
    """The lattice in round numbers (0.01 for 0.00999999998), where those serve as well."""
    for digits in range(1, 8):
        rounder = float(f"{step:.{digits}g}")
        if _on_lattice(values, 0.0, rounder, 1e-6):
            return 0.0, rounder
    exact = _off(values, origin, step)
    for digits in range(1, 8):  # shifted, as by centring
        rounder = float(f"{step:.{digits}g}")
        shift = values[0] + (values - values[0] + rounder / 2) % rounder - rounder / 2
        shifted = float(np.median(shift)) % rounder
        if _off(values, shifted, rounder) <= 1.2 * exact + 1e-9:
            return shifted, rounder
    return origin, step


def _on_lattice(x: np.ndarray, origin: float, step: float, within: float = OFF_LATTICE) -> bool:
    return _off(x, origin, step) <= within


def _off(x: np.ndarray, origin: float, step: float) -> float:
    """The largest distance from the lattice, in steps."""
    k = (x - origin) / step
    return float(np.abs(k - np.round(k)).max())
