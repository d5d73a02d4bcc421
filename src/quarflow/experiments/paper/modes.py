"""Where the eight modes are after every flow: what figures 4, 5 and 6 share."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quarflow.experiments.paper.eight import DATA, MODELS, Model, train, trained
from quarflow.experiments.paper.run import Numbers, RecipeError, Run, read_json
from quarflow.flows import Flow
from quarflow.seeds import seeded
from quarflow.transforms import Affine, Composed

__all__ = ["FIGURES", "modes", "path"]

POINTS = 4000
ACROSS = 6  # panels
FIGURES = {"figure4": "autoregressive", "figure5": "quar", "figure6": "residual"}


def modes(
    name: str,
    folder: Path,
    steps: int | None = None,
    seed: int = 0,
    source: Path | None = None,
    quiet: bool = False,
) -> Numbers:
    """Train a flow on eight Gaussians, follow its modes, draw; returns the numbers.

    Arguments:
        name: Of the recipe, one of :data:`FIGURES`.
        folder: For everything that is written.
        steps: Updates, if it is to be trained.
        seed: Of all random choices.
        source: Folder of a figure 3, to take its flow of that seed instead of training one.
        quiet: Print nothing.

    Raises:
        RecipeError: if ``source`` holds no such flow.
    """
    model = FIGURES[name]
    kind = MODELS[model]
    part = f"{model}-{seed}"
    settings: Numbers = {"model": model, "seed": seed}
    if source is not None:
        found, weights = _take(source, part, steps), source / "parts" / part
        settings |= {"steps": found["steps"], "source": source.name}
        run = Run(name, folder, settings, quiet=quiet)
    else:
        if steps is None:
            raise RecipeError("Give steps, or a source to take a flow from.")
        run = Run(name, folder, settings | {"steps": steps}, quiet=quiet)
        found = run.part(part, partial(train, run, kind, steps, seed))
        weights = run.keep(part)
    flow = trained(kind, weights)

    x, labels = DATA.sample_labelled(POINTS, seeded(0, "modes"))
    stages, ladjs = path(flow, x)
    numbers = {"kl": found["kl"], **_motion(stages, ladjs)}
    run.table(
        f"{kind.title}, KL {found['kl']:.4f} nats: what its flows do, {found['steps']:,} updates",
        ["flow", "moves by", "bends by", "changes volume by (nats)"],
        [
            [i + 1, f"{a:.2f}", f"{b:.2f}", f"{c:.2f}"]
            for i, (a, b, c) in enumerate(
                zip(numbers["moves"], numbers["bends"], numbers["volume"], strict=True)
            )
        ]
        + [["sum"] + [f"{sum(numbers[key]):.2f}" for key in ("moves", "bends", "volume")]],
    )
    run.figure(_draw(kind, found["kl"], stages, labels))
    run.finish(numbers)

    return numbers


def _take(source: Path, part: str, steps: int | None) -> Numbers:
    """The numbers of a flow of figure 3."""
    start = source / "run.json"
    if not start.is_file() or read_json(start).get("recipe") != "figure3":
        raise RecipeError(f"{source} is not the folder of a figure 3; see quarflow paper figure3.")
    path = source / "parts" / f"{part}.json"
    if not path.is_file():
        raise RecipeError(f"{source} holds no {part}; make it with quarflow paper figure3.")
    found: Numbers = read_json(path)
    if steps is not None and steps != found["steps"]:
        raise RecipeError(f"{part} in {source} had {found['steps']} updates, not {steps}.")

    return found


@torch.no_grad()
def path(flow: Flow, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Points after every flow with the affine map behind it, and what each flow does to volume.

    Arguments:
        flow: Affine, flow, affine, ..., flow, affine.
        x: Shape (N, 2).

    Returns:
        The T + 1 stages, the first after the first affine map, shapes (N, 2); and the T log-dets
        of the flows alone, shapes (N).
    """
    chain = flow().transform
    assert isinstance(chain, Composed)
    stages, ladjs = [], []
    for transform in chain.transforms:
        x, ladj = transform.call_and_ladj(x)
        if isinstance(transform, Affine):
            stages.append(x)
        else:
            ladjs.append(ladj)

    return stages, ladjs


def _motion(stages: list[Tensor], ladjs: list[Tensor]) -> Numbers:
    """What every flow does, in root mean squares over points.

    ``moves``: how far points go, in standardised coordinates. ``bends``: what is left of it when
    the best affine map from stage to stage is taken out. ``volume``: by how much the log-det
    differs from its mean, which an affine map could take out.
    """
    z = [(stage - stage.mean(0)) / stage.std(0) for stage in stages]
    moves, bends = [], []
    for a, b in pairwise(z):
        moves.append(_rms(b - a))
        ones = torch.cat((a, torch.ones_like(a[:, :1])), 1)
        bends.append(_rms(b - ones @ torch.linalg.lstsq(ones, b).solution))

    return {
        "moves": moves,
        "bends": bends,
        "volume": [(ladj - ladj.mean()).square().mean().sqrt().item() for ladj in ladjs],
    }


def _rms(step: Tensor) -> float:
    return step.square().sum(-1).mean().sqrt().item()


def _draw(model: Model, kl: float, stages: list[Tensor], labels: Tensor) -> Any:
    """One panel per stage, one colour per mode; in the last panel the ways of the modes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from quarflow.report.style import house_style

    colours = mpl.colormaps["hsv"]([(k + 0.4) / DATA.parts * 0.97 for k in range(DATA.parts)])
    colours[:, :3] *= 0.86  # less glaring
    panels = len(stages) + 1
    rows = -(-panels // ACROSS)
    with house_style():
        figure = Figure(figsize=(1.75 * ACROSS, 1.92 * rows + 0.35), layout="constrained")
        axes = figure.subplots(rows, ACROSS, squeeze=False).ravel()
        for i, (panel, stage) in enumerate(zip(axes, stages, strict=False)):
            panel.scatter(
                *stage.T, s=1.2, c=colours[labels], linewidths=0, alpha=0.8, rasterized=True
            )
            reach = 1.08 * torch.quantile(stage.abs(), 0.999).item()
            last = i == len(stages) - 1
            name = "data, standardised" if not i else f"after flow {i}" + " = z" * last
            _frame(panel, reach, name)
        ways = torch.stack(
            [
                torch.stack([stage[labels == k].mean(0) for stage in stages])
                for k in range(DATA.parts)
            ]
        )
        for way, colour in zip(ways, colours, strict=True):
            axes[len(stages)].plot(*way.T, color=colour, linewidth=0.9, marker=".", markersize=2.5)
            axes[len(stages)].plot(*way[-1], "o", color=colour, markersize=4)
        _frame(axes[len(stages)], 1.15 * ways.abs().max().item(), "the means' ways")
        for panel in axes[panels:]:
            panel.set_axis_off()
        figure.suptitle(
            f"{model.title} flow on eight Gaussians, KL {kl:.4f} nats", x=0.01, ha="left"
        )

    return figure


def _frame(panel: Any, reach: float, title: str) -> None:
    panel.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[])
    panel.set_aspect("equal")
    panel.set_title(title, fontsize=8)
    panel.text(
        0.98, 0.02, f"±{reach:.1f}", transform=panel.transAxes, ha="right", fontsize=6.5, alpha=0.6
    )
