"""Every picture of the report: plain functions from arrays to a matplotlib figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from scipy import stats

from quarflow.report.calibration import Calibration, ks_between
from quarflow.report.style import DATA, INK, MODEL, MUTED, grid_of, styled

WIDTH = 10.4  # inches; the page shows it at its full width

Lattice = tuple[float, float] | None  # width and origin of a discrete column's lattice


@styled
def training_figure(history: Sequence[dict]) -> Figure:
    """Draw nats on training and validation rows, and the learning rate, against steps."""
    step = np.array([entry["step"] for entry in history], dtype=float)
    train = np.array([entry["train_nats"] for entry in history], dtype=float)
    valid = np.array([entry["valid_nats"] for entry in history], dtype=float)
    rate = np.array([entry["learning_rate"] for entry in history], dtype=float)
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    nats, rates = figure.subplots(1, 2, width_ratios=[2.3, 1])
    mark = "o" if len(step) < 8 else None
    nats.plot(step, train, color=DATA, label="training rows", marker=mark, markersize=3)
    nats.plot(step, valid, color=MODEL, label="validation rows", marker=mark, markersize=3)
    seen = np.concatenate([train, valid])
    seen = seen[np.isfinite(seen)]
    if len(seen) > 20:  # the first steps would flatten everything that matters
        low, high = seen.min(), np.quantile(seen, 0.93)
        nats.set_ylim(low - 0.06 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
    if np.isfinite(valid).any():
        best = int(np.nanargmin(np.where(np.isfinite(valid), valid, np.nan)))
        nats.plot(step[best], valid[best], "o", color=MODEL, markersize=6, mec="white", mew=1.2)
        nats.annotate(
            f"best {valid[best]:.3f}",
            (step[best], valid[best]),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center" if 0.1 < (best + 1) / len(step) < 0.9 else ("right" if best else "left"),
            color=INK,
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )
    nats.set(xlabel="steps", ylabel="nats per row", title="Loss (lower is better)")
    nats.legend(loc="upper right")
    rates.plot(step, rate, color=MUTED, marker=mark, markersize=3)
    rates.set_ylim(0, max(float(np.nanmax(rate)), 1e-12) * 1.08)
    rates.set(xlabel="steps", title="Learning rate")
    for panel in (nats, rates):
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def shown_range(values: np.ndarray, lattice: Lattice = None) -> tuple[float, float]:
    """Where to draw one column: its central 99 % and a margin, its full range if close."""
    low, high = (float(edge) for edge in np.quantile(values, [0.005, 0.995]))
    least, most = float(values.min()), float(values.max())
    width = high - low
    low = least if low - least < 0.15 * width else low
    high = most if most - high < 0.15 * width else high
    margin = max(0.04 * (high - low), 0.75 * (lattice[0] if lattice else 0.0))
    if margin <= 0:
        margin = 0.5 * max(abs(low), 1.0)
    return low - margin, high + margin


def bins_of(low: float, high: float, lattice: Lattice, bins: int = 50) -> np.ndarray:
    """Bin edges over [low, high]; of a discrete column, halfway between its values.

    Arguments:
        low, high: The range.
        lattice: (width, origin) of a discrete column, None for a continuous one.
        bins: How many, about.
    """
    if lattice:
        width, origin = lattice
        first = np.floor((low - origin) / width) - 0.5
        last = np.ceil((high - origin) / width) + 0.5
        stride = max(1, round((last - first) / bins))
        return np.arange(first, last + stride, stride) * width + origin
    return np.linspace(low, high, bins + 1)


def draw_marginal(
    panel: Axes, data: np.ndarray | None, samples: np.ndarray | None, lattice: Lattice
) -> None:
    """Draw the histogram of one column: data filled, samples as a line.

    Arguments:
        panel: Where to draw.
        data, samples: Shape (N,) each, or None.
        lattice: (width, origin) of a discrete column, None for a continuous one.
    """
    shown = data if data is not None else samples
    if shown is None:
        return
    low, high = shown_range(shown, lattice)
    edges = bins_of(low, high, lattice)
    for values, kind in ((data, "data"), (samples, "samples")):
        if values is None:
            continue
        height = np.histogram(values, edges)[0] / max(len(values), 1) / np.diff(edges)
        if kind == "data":
            panel.stairs(height, edges, fill=True, color=DATA, alpha=0.32, label="data")
        else:
            panel.stairs(height, edges, color=MODEL, linewidth=1.3, label="samples")
    panel.set_xlim(low, high)
    panel.set_ylim(0, None)
    panel.set_yticks([])
    panel.grid(visible=False)
    panel.spines["left"].set_visible(False)
    panel.xaxis.set_major_locator(MaxNLocator(4))


@styled
def pair_figure(
    data: np.ndarray,
    samples: np.ndarray,
    names: Sequence[str],
    lattices: Sequence[Lattice] | None = None,
    *,
    points: int = 3000,
    seed: int = 0,
) -> Figure:
    """Draw all pairs of a few columns: data below the diagonal, as many samples above it.

    Arguments:
        data, samples: Shape (N, D) each.
        names: Labels of the D columns.
        lattices: (width, origin) of the discrete columns, None for the others.
        points: Rows drawn of each, at most.
        seed: Of which rows.
    """
    size = data.shape[1]
    lattices = lattices or [None] * size
    rng = np.random.default_rng(seed)
    points = min(points, len(data), len(samples))
    clouds = {
        DATA: data[rng.choice(len(data), points, replace=False)],
        MODEL: samples[rng.choice(len(samples), points, replace=False)],
    }
    side = {2: 3.3, 3: 2.9, 4: 2.4}.get(size, WIDTH / size)
    layout = ConstrainedLayoutEngine(w_pad=0.025, h_pad=0.025, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(side * size, side * size * 0.94), layout=layout)
    panels = figure.subplots(size, size, squeeze=False)
    limits = [shown_range(data[:, i], lattices[i]) for i in range(size)]
    for row in range(size):
        for column in range(size):
            panel = panels[row, column]
            if row == column:
                draw_marginal(panel, data[:, row], samples[:, row], lattices[row])
            else:
                colour = DATA if row > column else MODEL
                cloud = clouds[colour]
                # Discrete columns: a little width makes the weight of each value visible.
                shift = [
                    (rng.random(points) - 0.5) * 0.6 * (lattice[0] if lattice else 0.0)
                    for lattice in (lattices[column], lattices[row])
                ]
                panel.plot(
                    cloud[:, column] + shift[0],
                    cloud[:, row] + shift[1],
                    linestyle="none",
                    marker=".",
                    markersize=2.4,
                    markeredgewidth=0,
                    color=colour,
                    alpha=0.45 if points > 1500 else 0.7,
                    rasterized=True,
                )
                panel.set_ylim(limits[row])
                panel.yaxis.set_major_locator(MaxNLocator(4))
            panel.set_xlim(limits[column])
            panel.xaxis.set_major_locator(MaxNLocator(3))
            if row < size - 1:
                panel.tick_params(labelbottom=False)
            else:
                panel.set_xlabel(names[column])
            if column > 0:
                panel.tick_params(labelleft=False)
            else:
                panel.set_ylabel(names[row])
    key = panels[0, 0].get_legend_handles_labels()
    panels[0, 0].legend(*key, loc="upper right", handlelength=1.1, borderaxespad=0.1)
    return figure


@styled
def marginals_figure(
    data: np.ndarray | None,
    samples: np.ndarray | None,
    names: Sequence[str],
    lattices: Sequence[Lattice],
) -> Figure:
    """Draw a histogram of every column given, (N, D) each: data filled, samples as a line.

    Arguments:
        data, samples: Shape (N, D) each, or None.
        names: Labels of the D columns.
        lattices: (width, origin) of the discrete columns, None for the others.
    """
    figure, panels = grid_of(len(names), WIDTH, 1.75)
    for i, panel in enumerate(panels):
        ours = None if data is None else data[:, i]
        theirs = None if samples is None else samples[:, i]
        draw_marginal(panel, ours, theirs, lattices[i])
        panel.set_title(names[i])
        if ours is not None and theirs is not None:
            note = f"KS {ks_between(ours, theirs):.3f}"
            panel.set_title(note, loc="right", color=MUTED, fontsize=8)
    panels[0].legend(loc="best", handlelength=1.1)
    return figure


@styled
def quantile_figure(
    calibration: Calibration, shown: Sequence[int], names: Sequence[str]
) -> Figure:
    """Draw quantiles of latent coordinates less the normal's: a detrended QQ plot.

    A perfect fit is the horizontal line, within the band that chance allows 19 times in 20.

    Arguments:
        calibration: Of the latents.
        shown: Which coordinates.
        names: What they are called.
    """
    figure, panels = grid_of(len(shown), WIDTH, 1.75)
    count = len(calibration.scores)
    at = (np.arange(count) + 0.5) / count
    if count > 400:  # few points in the middle, all of the tails
        keep = np.unique(
            np.r_[:60, np.linspace(0, count - 1, 300).astype(int), count - 60 : count]
        )
    else:
        keep = np.arange(count)
    at = at[keep]
    normal = stats.norm.ppf(at)
    band = 1.96 * np.sqrt(at * (1 - at) / count) / stats.norm.pdf(normal)
    for panel, i in zip(panels, shown, strict=True):
        seen = np.sort(calibration.scores[:, i])[keep]
        panel.fill_between(normal, -band, band, color=MODEL, alpha=0.18, linewidth=0)
        panel.axhline(0, color=MODEL, linewidth=1)
        panel.plot(normal, seen - normal, color=DATA, linewidth=1.4)
        reach = max(0.35, 1.15 * float(np.abs(seen - normal)[np.abs(normal) < 3.1].max()))
        panel.set_ylim(-reach, reach)
        panel.set_xlim(normal[0], normal[-1])
        panel.set_title(names[i])
        panel.xaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel("normal quantile", fontsize=9)
    figure.supylabel("latent less normal", fontsize=9)
    return figure


@styled
def pit_figure(calibration: Calibration, shown: Sequence[int], names: Sequence[str]) -> Figure:
    """Draw histograms of the probability integral transform; a perfect fit is flat at 1.

    Arguments:
        calibration: Of the latents.
        shown: Which coordinates.
        names: What they are called.
    """
    figure, panels = grid_of(len(shown), WIDTH, 1.6)
    count = len(calibration.scores)
    bins = int(np.clip(count // 50, 5, 25))
    edges = np.linspace(0, 1, bins + 1)
    band = 1.96 * np.sqrt(bins / count)
    for panel, i in zip(panels, shown, strict=True):
        height = np.histogram(calibration.pit[:, i], edges)[0] * bins / count
        panel.stairs(height, edges, fill=True, color=DATA, alpha=0.32)
        panel.stairs(height, edges, color=DATA, linewidth=1)
        panel.axhspan(1 - band, 1 + band, color=MODEL, alpha=0.18, linewidth=0)
        panel.axhline(1, color=MODEL, linewidth=1)
        panel.set_title(names[i])
        panel.set_title(f"KS {calibration.ks[i]:.3f}", loc="right", color=MUTED, fontsize=8)
        panel.set_xlim(0, 1)
        panel.set_ylim(0, max(1.6, 1.08 * float(height.max())))
        panel.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        panel.yaxis.set_major_locator(MaxNLocator(3))
    return figure


@styled
def joint_figure(
    calibration: Calibration, data_scores: np.ndarray, sample_scores: np.ndarray | None
) -> Figure:
    """Draw the squared latent norm against chi-square, and log-densities of data and samples.

    Arguments:
        calibration: Of the latents.
        data_scores: Log-densities (N,) of rows.
        sample_scores: Log-densities (N,) of samples, or None.
    """
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    features = calibration.scores.shape[1]
    law = stats.chi2(features)
    high = max(float(law.ppf(0.9995)), float(np.quantile(calibration.squared_norm, 0.995)))
    low = 0.0 if features < 30 else float(min(law.ppf(1e-5), calibration.squared_norm.min()))
    edges = np.linspace(low, high, 61)
    count = len(calibration.squared_norm)
    height = np.histogram(calibration.squared_norm, edges)[0] / count / np.diff(edges)
    left.stairs(height, edges, fill=True, color=DATA, alpha=0.32, label="rows")
    expected = np.diff(law.cdf(edges)) / np.diff(edges)
    left.stairs(expected, edges, color=MODEL, linewidth=1.4, label=f"chi-square({features})")
    left.set(title="Squared norm of the latents", yticks=[], xlim=(low, high))
    left.legend(loc="upper right", handlelength=1.1)
    every = data_scores if sample_scores is None else np.concatenate([data_scores, sample_scores])
    low, high = shown_range(every[np.isfinite(every)])
    edges = np.linspace(low, high, 61)
    for values, kind in ((data_scores, "data"), (sample_scores, "samples")):
        if values is None:
            continue
        height = np.histogram(values, edges)[0] / len(values) / np.diff(edges)
        if kind == "data":
            right.stairs(height, edges, fill=True, color=DATA, alpha=0.32, label=kind)
        else:
            right.stairs(height, edges, color=MODEL, linewidth=1.4, label=kind)
    right.set(title="Log-density of rows and of samples", xlim=(low, high), yticks=[])
    right.legend(loc="upper left", handlelength=1.1)
    for panel in (left, right):
        panel.set_ylim(0, None)
        panel.spines["left"].set_visible(False)
        panel.grid(visible=False, axis="y")
    return figure
