"""How exact the density is near bounds: log-densities of QuARDensity's defaults against the truth.

For each distribution and seed a fit to 5,000 values with the bounds given; the error is the
greatest abs(log p - truth) from a distance of 1e-12 to a lower bound to the 99.9 % quantile.
Beside it that of the best anyone can do who knows the family, and estimates its scale:

    python benchmarks/bounds.py -o bounds.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from quarflow import QuARDensity
from quarflow.experiments.machine import machine
from quarflow.files import write_json

DISTRIBUTIONS: dict[str, tuple[Any, tuple[float, float | None], float | None]] = {
    # with bounds, and the shape of the family whose scale is to be estimated
    "exponential": (stats.expon(), (0.0, None), 1.0),
    "gamma(2)": (stats.gamma(2), (0.0, None), 2.0),
    "uniform": (stats.uniform(), (0.0, 1.0), None),
    "beta(0.5, 0.5)": (stats.beta(0.5, 0.5), (0.0, 1.0), None),
}


def places(truth: Any) -> np.ndarray:
    """Where densities are compared, close together near the bound and at the far end."""
    far = truth.ppf(0.999)
    near = np.logspace(-12, 0, 200)

    return np.unique(np.r_[near[near < far], truth.ppf(np.linspace(0.01, 0.999, 300))])


def worst(found: np.ndarray, truth: Any, at: np.ndarray) -> float:
    """The greatest error of log-densities."""
    return float(np.abs(found - truth.logpdf(at)).max())


def fit(name: str, seed: int, rows: int) -> dict[str, Any]:
    """One fit, and its errors."""
    truth, bounds, shape = DISTRIBUTIONS[name]
    x = truth.rvs(rows, random_state=np.random.default_rng(seed))
    at = places(truth)
    density = QuARDensity(bounds={"x0": bounds}, random_state=seed).fit(x[:, None])
    known = truth if shape is None else stats.gamma(shape, scale=x.mean() / shape)

    return {
        "distribution": name,
        "seed": seed,
        "error": worst(density.score_samples(at[:, None]), truth, at),
        "error of the family": worst(known.logpdf(at), truth, at),
        "kept": density.metrics_["kept"],
        "gaussian nats": density.metrics_["gaussian_nats"],
        "flow nats": min(record["valid_nats"] for record in density.history_),
    }


def main() -> None:
    """Fit, print a line for each, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    results = []
    print(f"{'distribution':16} seed  error  of the family  kept")
    for name in DISTRIBUTIONS:
        for seed in range(options.seeds):
            results.append(fit(name, seed, options.rows))
            r = results[-1]
            numbers = f"{r['error']:6.3f} {r['error of the family']:14.3f}"
            print(f"{name:16} {seed:4} {numbers}  {r['kept']}", flush=True)
        errors = [r["error"] for r in results if r["distribution"] == name]
        print(f"{name:16} mean {np.mean(errors):6.3f}, greatest {np.max(errors):.3f}", flush=True)
    if options.output:
        write_json(
            options.output, {"rows": options.rows, "machine": machine("cpu"), "fits": results}
        )


if __name__ == "__main__":
    main()
