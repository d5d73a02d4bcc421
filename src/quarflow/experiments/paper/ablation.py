"""Ablation: what each choice of a QuAR flow is worth, on toys and on real tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from quarflow.experiments.paper.ablation_data import Data, data_set
from quarflow.experiments.paper.forecast import Progress
from quarflow.experiments.paper.run import Numbers, Run, mean_and_error, stop_if, with_error
from quarflow.flows import QuAR
from quarflow.solvers import InversionError
from quarflow.training import TrainingSettings, has_checkpoint, remove_checkpoint, train
from quarflow.transforms import QuARStep

__all__ = ["DATA", "DEFAULT", "FACTORS", "ablation", "one_at_a_time", "variants"]

DATA = ("eight_gaussians", "checkerboard", "two_spirals", "pinwheel", "magic")
FACTORS: dict[str, tuple[Any, ...]] = {
    "norm": ("dimension", "operator"),
    "order": ("alternate", "fixed"),
    "activation": ("sin", "elu", "lipswish"),
    "trick": (True, False),
    "mix": ("none", "lu"),
}
DEFAULT = {name: levels[0] for name, levels in FACTORS.items()}  # the library's
INVERTED = 2000  # points, to count sweeps

Variant = dict[str, Any]


def one_at_a_time() -> list[Variant]:
    """The default, and each other level of each factor with all else at its default.

    Example:
        >>> len(one_at_a_time())
        7
    """
    others = [(name, level) for name, levels in FACTORS.items() for level in levels[1:]]

    return [dict(DEFAULT)] + [DEFAULT | {name: level} for name, level in others]


def variants(factorial: bool) -> list[Variant]:
    """All combinations of the levels, or one factor at a time.

    Example:
        >>> len(variants(factorial=True))
        48
    """
    if not factorial:
        return one_at_a_time()

    return [dict(zip(FACTORS, v, strict=True)) for v in itertools.product(*FACTORS.values())]


def name_of(variant: Mapping[str, Any]) -> str:
    """A file name.

    Example:
        >>> name_of(DEFAULT)
        'dimension-alternate-sin-trick-none'
    """
    parts = dict(variant) | {"trick": "trick" if variant["trick"] else "notrick"}

    return "-".join(map(str, parts.values()))


def ablation(
    folder: Path,
    steps: int,
    seed: int = 0,
    seeds: int = 3,
    data: Sequence[str] = DATA,
    factorial: bool = False,
    quiet: bool = False,
) -> Numbers:
    """Train every variant on every data set with every seed; returns the numbers.

    Arguments:
        folder: For everything that is written.
        steps: Updates per flow.
        seed, seeds: The first seed and how many.
        data: Names of toys, ``magic``, or files of tables.
        factorial: All 48 combinations, instead of one factor at a time.
        quiet: Print nothing.
    """
    sets = [data_set(name) for name in data]
    settings = {
        "steps": steps,
        "seed": seed,
        "seeds": seeds,
        "data": [d.name for d in sets],
        "factorial": factorial,
    }
    # Data, seeds and combinations only say which parts there are.
    run = Run("ablation", folder, settings, free=("seeds", "data", "factorial"), quiet=quiet)
    found: dict[tuple[str, str], list[Numbers]] = {}
    for number, d in itertools.product(range(seed, seed + seeds), sets):
        for variant in variants(factorial):
            name = name_of(variant)
            make = partial(_train, run, d, variant, steps, number)
            part = run.part(f"{d.name}-{name}-{number}", make)
            found.setdefault((d.name, name), []).append(part)

    names = [name_of(v) for v in variants(factorial)]
    numbers: Numbers = {
        "results": {d.name: {name: _summary(found[d.name, name]) for name in names} for d in sets},
        "effects": {d.name: _effects(d.name, found, factorial) for d in sets},
    }
    _tables(run, sets, numbers, factorial)
    run.figure(_draw(sets, numbers["effects"]))
    run.finish(numbers)

    return numbers


def _train(run: Run, data: Data, variant: Variant, steps: int, seed: int, folder: Path) -> Numbers:
    torch.manual_seed(seed)
    flow = QuAR(data.features, **variant)
    every = max(steps // 10, 1)
    per_epoch = max(len(data.train) // min(512, len(data.train)), 1)
    settings = TrainingSettings(
        batch_size=512,
        learning_rate=5e-3,
        max_epochs=-(-steps // per_epoch),
        warmup_steps=min(100, every),
        patience=0,
        weight_decay=data.weight_decay,
        seed=seed,
        evaluate_every=every,
    )
    label = f"{data.name}, {name_of(variant)}, seed {seed}"
    with Progress(run, label, f"{steps:,} updates") as progress:
        result = train(
            flow,
            data.train,
            data.valid,
            settings,
            device="cpu",
            checkpoint=folder,
            resume=has_checkpoint(folder),
            on_event=progress,
        )
    stop_if(result.interrupted, result.stopped)
    with torch.no_grad():
        log_p = flow.eval()().log_prob(data.test).double()
    remove_checkpoint(folder)

    return {
        "nats": -log_p.mean().item(),
        "nats_error": log_p.std().item() / len(log_p) ** 0.5,
        "updates": result.steps,
        "best_update": result.best_step,
        "recoveries": result.recoveries,
        "seconds": result.seconds,
        "sweeps": sweeps(flow),
    }


@torch.no_grad()
def sweeps(flow: QuAR) -> int | None:
    """The largest number of sweeps that any of 2,000 samples takes in any step, in float64.

    None where some sample does not converge.
    """
    wide = QuAR(**flow.arguments).double()
    wide.load_state_dict(flow.state_dict())
    p = wide()
    z = p.base.sample((INVERTED,), generator=torch.Generator().manual_seed(0)).double()
    most = 0
    try:
        for step in reversed(p.transform.transforms):
            if isinstance(step, QuARStep):
                solution = step.solve(z)
                most, z = max(most, int(solution.iterations.max())), solution.x
            else:
                z = step.inv(z)
    except InversionError:
        return None

    return most


def _summary(parts: Sequence[Numbers]) -> Numbers:
    nats, error = mean_and_error([part["nats"] for part in parts])
    most = [part["sweeps"] for part in parts]

    return {
        "nats": nats,
        "nats_error": error,
        "sweeps": None if None in most else max(most),
        "seconds": mean_and_error([part["seconds"] for part in parts])[0],
        "seeds": list(parts),
    }


def _effects(
    data: str, found: Mapping[tuple[str, str], Sequence[Numbers]], factorial: bool
) -> dict[str, Numbers]:
    """Nats of each level less those of the default level, all else and the seed being equal."""
    effects = {}
    for factor, levels in FACTORS.items():
        for level in levels[1:]:
            gaps = []
            for variant in variants(factorial):
                other = variant | {factor: level}
                if variant[factor] != levels[0] or (data, name_of(other)) not in found:
                    continue
                pairs = zip(
                    found[data, name_of(other)], found[data, name_of(variant)], strict=True
                )
                gaps += [a["nats"] - b["nats"] for a, b in pairs]
            mean, error = mean_and_error(gaps)
            effects[_level(factor, level)] = {"nats": mean, "nats_error": error, "n": len(gaps)}

    return effects


def _level(factor: str, level: Any) -> str:
    return {"trick": "no trick"}.get(factor, f"{factor} {level}")


def _tables(run: Run, sets: Sequence[Data], numbers: Numbers, factorial: bool) -> None:
    results, effects = numbers["results"], numbers["effects"]
    steps, seeds = run.settings["steps"], run.settings["seeds"]
    run.table(
        f"QuAR flows, {steps:,} updates, {seeds} seed(s): nats on new points, less is better",
        ["norm, order, activation, trick, mix", *(d.name for d in sets), "largest sweeps"],
        [
            [
                name_of(variant).replace("-", " "),
                *(_nats(results[d.name][name_of(variant)]) for d in sets),
                _most(results[d.name][name_of(variant)]["sweeps"] for d in sets),
            ]
            for variant in variants(factorial)
        ],
    )
    run.table(
        "Nats lost (+) or gained (-) against the default level, "
        + ("mean over all else" if factorial else "all else at its default"),
        ["", *(d.name for d in sets)],
        [
            [level, *(_nats(effects[d.name][level], "+") for d in sets)]
            for level in effects[sets[0].name]
        ],
    )


def _nats(found: Mapping[str, Any], sign: str = "") -> str:
    return with_error(found["nats"], found["nats_error"], 3, sign)


def _most(sweeps: Iterable[int | None]) -> str:
    counts = list(sweeps)

    return "failed" if None in counts else str(max(c for c in counts if c is not None))


def _draw(sets: Sequence[Data], effects: Mapping[str, Mapping[str, Numbers]]) -> Any:
    """Every effect with its standard error, a panel per data set."""
    from matplotlib.figure import Figure

    from quarflow.report.style import DATA as BLUE
    from quarflow.report.style import INK, MODEL, house_style

    with house_style():
        figure = Figure(figsize=(2.0 * len(sets) + 1.3, 2.9), layout="constrained")
        axes = figure.subplots(1, len(sets), sharey=True, squeeze=False)[0]
        for panel, d in zip(axes, sets, strict=True):
            for i, effect in enumerate(effects[d.name].values()):
                colour = BLUE if effect["nats"] <= 0 else MODEL
                panel.errorbar(
                    effect["nats"],
                    i,
                    xerr=effect["nats_error"] or 0,
                    fmt="o",
                    color=colour,
                    markersize=4.5,
                    linewidth=1.2,
                )
            panel.axvline(0, color=INK, linewidth=0.8)
            panel.set_title(d.name.replace("_", " "))
            panel.locator_params(axis="x", nbins=4)
        levels = list(effects[sets[0].name])
        axes[0].set_yticks(range(len(levels)), levels)
        axes[0].set_ylim(len(levels) - 0.5, -0.5)
        figure.supxlabel("nats against the default level (left is better)", fontsize=9)

    return figure
