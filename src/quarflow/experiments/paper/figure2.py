"""Figure 2: one overparametrised QuAR step in one dimension, with and without the Lipschitz Trick.

The data are a mixture of two uniform densities, which a step of bounded slope cannot fit quite.
With the trick the layers are free and only the output is scaled, by sigma / (theta + P). Without
it theta is 0, and each layer is normalised on its own, which costs flexibility in two ways that
are shown apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quarflow.data.toys import toy
from quarflow.experiments.paper.fit import Fit, fitted, load_weights
from quarflow.experiments.paper.run import Numbers, Run, mean_and_error, with_error
from quarflow.flows import Flow, QuAR, ResidualFlow
from quarflow.ops.bounds import spectral_bound

__all__ = ["figure2"]

DATA = toy("two_uniforms")
HIDDEN = (128, 128, 128)  # appendix A.1: 1-128-128-128-1
SIGMA = 0.97
LEARNING_RATE = 5e-3
NODES = 20_001  # of the quadrature, in each box
SHOWN = (-3.0, 3.0)


class UnitNorm(nn.Module):
    """Divides matrices, shape (*, m, n), by a certified bound on their spectral norm."""

    def forward(self, weight: Tensor) -> Tensor:
        """The matrices, of norm at most 1."""
        return weight / spectral_bound(weight)[..., None, None].to(weight.dtype)


def _step(**options: Any) -> Flow:
    """Affine map, one QuAR step, affine map."""
    return QuAR(
        1, transforms=1, hidden_features=HIDDEN, activation="elu", norm="operator", **options
    )


def _hard() -> Flow:
    flow = _step(trick=False, sigma=SIGMA)
    for layer in flow.branches.layers:  # type: ignore[union-attr]
        # In one dimension there are no off-diagonal blocks: this is the whole matrix.
        parametrize.register_parametrization(layer, "diagonal", UnitNorm())

    return flow


def _soft() -> Flow:
    sigma = SIGMA ** (1 / (len(HIDDEN) + 1))  # the product over the layers is sigma
    return ResidualFlow(
        1, transforms=1, hidden_features=HIDDEN, activation="elu", sigma=sigma, logdet="exact"
    )


@dataclass(frozen=True)
class Variant:
    """One way of bounding the step's slope."""

    name: str
    title: str
    make: Callable[[], Flow]


VARIANTS = (
    Variant("trick", "with the Lipschitz Trick", partial(_step, sigma=SIGMA)),
    Variant("hard", "without: theta = 0, each layer of norm 1", _hard),
    Variant("soft", "without: each layer of norm at most 1", _soft),
    Variant("theta-0", "theta = 0, layers free", partial(_step, trick=False, sigma=SIGMA)),
)
WITH, WITHOUT = "trick", "hard"  # the two that the paper compares


def figure2(
    folder: Path, steps: int, seed: int = 0, seeds: int = 5, quiet: bool = False
) -> Numbers:
    """Train every variant with every seed, compare, draw; returns the numbers.

    Arguments:
        folder: For everything that is written.
        steps: Updates per flow.
        seed, seeds: The first seed and how many.
        quiet: Print nothing.
    """
    settings = {"steps": steps, "seed": seed, "seeds": seeds}
    run = Run("figure2", folder, settings, free=("seeds",), quiet=quiet)
    parts: dict[str, list[Numbers]] = {v.name: [] for v in VARIANTS}
    for number in range(seed, seed + seeds):
        for variant in VARIANTS:
            make = partial(_train, run, variant, steps, number)
            parts[variant.name].append(run.part(f"{variant.name}-{number}", make))

    gains = [
        without["kl"] - with_["kl"]
        for with_, without in zip(parts[WITH], parts[WITHOUT], strict=True)
    ]
    numbers = {
        "variants": {v.name: _summary(parts[v.name]) for v in VARIANTS},
        "gain": mean_and_error(gains)[0],
        "gain_error": mean_and_error(gains)[1],
        "seeds where the trick is better": sum(gain > 0 for gain in gains),
    }
    rows = []
    for variant in VARIANTS:
        found = numbers["variants"][variant.name]
        spread = [f"{part['kl']:.4f}" for part in parts[variant.name]]
        mean = with_error(found["kl"], found["kl_error"], 4)
        rows.append([variant.title, f"{found['parameters']:,}", mean, *spread])
    run.table(
        f"Two uniform densities, {steps:,} updates: KL to the data in nats, by quadrature",
        ["", "parameters", "mean", *(f"seed {n}" for n in range(seed, seed + seeds))],
        rows,
    )
    flows = {name: _trained(name, run.keep(f"{name}-{seed}")) for name in (WITH, WITHOUT)}
    run.figure(_draw(flows, parts))
    run.finish(numbers)

    return numbers


def _train(run: Run, variant: Variant, steps: int, seed: int, folder: Path) -> Numbers:
    return fitted(
        variant.make,
        DATA.sample,
        Fit(steps, LEARNING_RATE, seed=seed),
        lambda flow: {"kl": divergence(flow)},
        lambda flow: {"kl": divergence(flow), "mass": _mass(flow)},
        folder,
        run,
        variant.name,
    )


def _trained(name: str, folder: Path) -> Flow:
    flow = next(v for v in VARIANTS if v.name == name).make()
    load_weights(flow, folder)

    return flow


def _summary(parts: Sequence[Numbers]) -> Numbers:
    kl, error = mean_and_error([part["kl"] for part in parts])

    return {
        "parameters": parts[0]["parameters"],
        "kl": kl,
        "kl_error": error,
        "seeds": list(parts),
    }


@torch.no_grad()
def log_density(flow: Flow, x: Tensor) -> Tensor:
    """Log-density, shape (N), of points (N) in float64."""
    return flow().log_prob(x[:, None].float()).double()


def divergence(flow: Flow) -> float:
    """KL from the data to a model in nats: an integral over the boxes, by the trapezoidal rule.

    Example:
        >>> round(divergence(_step()), 4) > 0
        True
    """
    inside = torch.linspace(0, 1, NODES, dtype=torch.float64)
    corners = [corner[0] for corner in DATA.corners]  # type: ignore[attr-defined]
    means = [torch.trapezoid(log_density(flow, corner + inside), inside) for corner in corners]

    return -math.log(2) - torch.stack(means).mean().item()


def _mass(flow: Flow) -> float:
    """Integral of the model's density, which should be 1."""
    x = torch.linspace(-12, 12, 8 * NODES, dtype=torch.float64)

    return torch.trapezoid(log_density(flow, x).exp(), x).item()


def _draw(flows: dict[str, Flow], parts: dict[str, list[Numbers]]) -> Any:
    """Densities of the first seed, and the KL of every seed."""
    from matplotlib.figure import Figure

    from quarflow.report.style import DATA as BLUE
    from quarflow.report.style import MODEL, MUTED, house_style

    colours = {WITH: MODEL, WITHOUT: BLUE}
    titles = {v.name: v.title for v in VARIANTS}
    x = torch.linspace(*SHOWN, 4001, dtype=torch.float64)
    truth = DATA.log_prob(x[:, None]).exp().numpy()
    with house_style():
        figure = Figure(figsize=(9.2, 3.5), layout="constrained")
        density, seeds = figure.subplots(1, 2, width_ratios=[2.1, 1])
        density.fill_between(x, truth, color=MUTED, alpha=0.28, linewidth=0, label="data")
        for name, flow in flows.items():
            kl = parts[name][0]["kl"]
            density.plot(
                x,
                log_density(flow, x).exp(),
                color=colours[name],
                label=f"{titles[name]}: KL {kl:.3f}",
            )
        density.set(xlabel="x", ylabel="density", xlim=SHOWN, ylim=(0, None))
        density.set_title("One QuAR step between affine maps")
        density.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1)
        for i, variant in enumerate(VARIANTS):
            kl = np.array([part["kl"] for part in parts[variant.name]])
            colour = colours.get(variant.name, MUTED)
            seeds.plot(kl, np.full(len(kl), i), "o", color=colour, markersize=5, alpha=0.75)
        seeds.set_yticks(range(len(VARIANTS)), [v.name for v in VARIANTS])
        seeds.set(xlabel="KL to the data (nats)", ylim=(len(VARIANTS) - 0.5, -0.5))
        seeds.set_xlim(0, 1.08 * seeds.get_xlim()[1])
        seeds.set_title("Each seed")

    return figure
