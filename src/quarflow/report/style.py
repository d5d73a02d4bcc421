"""The look of every figure: one palette, light grids, text that is never parsed as mathematics."""

import base64
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from quarflow.files import write_whole

DATA = "#2b5c8a"  # the rows that were given
MODEL = "#d9772b"  # what the model says: samples, expectations
INK = "#2a2f36"
MUTED = "#7b848f"
GRID = "#e6e9ed"

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a column may be called "$x$"
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.edgecolor": "#c3c9d0",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 5),
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": "#c3c9d0",
    "ytick.color": "#c3c9d0",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
}

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the palette and silence notes about glyphs, without touching the caller's settings."""
    with mpl.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        warnings.filterwarnings("ignore", message=".*identical low and high.*")
        yield


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function in the house style."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with house_style():
            return draw(*args, **kwargs)

    return inside


@styled
def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


@dataclass(frozen=True)
class Picture:
    """A figure inside the page: a ``data:`` address, so that the page needs no other file."""

    address: str
    width: int  # in the page's pixels, so that text has the same size in every figure


def picture(figure: Figure, dpi: int = 160) -> Picture:
    """The figure as it goes into the page."""
    content = base64.b64encode(png(figure, dpi)).decode("ascii")
    return Picture("data:image/png;base64," + content, round(figure.get_figwidth() * 92))


def save_png(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write the figure to ``path``; the file appears whole or not at all.

    Arguments:
        figure: What was drawn.
        path: The file; its folder must exist.
        dpi: Dots per inch.
    """
    write_whole(path, png(figure, dpi))


def grid_of(count: int, width: float, height: float, across: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure ``width`` inches wide with ``count`` panels, each ``height`` inches high.

    Arguments:
        count: Panels.
        width, height: Inches, of the figure and of each panel.
        across: Panels in a row.
    """
    columns = min(count, across)
    rows = -(-count // columns)
    # Few panels keep the size they would have in a full row: no giant single histogram.
    shown = width if columns == across else min(width, 3.5 * columns)
    if columns < across:
        height *= 1.3
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.05, wspace=0.0, hspace=0.0)
    figure = Figure(figsize=(shown, height * rows + 0.1), layout=layout)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, list(panels[:count])
