"""How many scores a sample costs: n rows drawn over n rows scored, in the same process.

Both sides take turns, and the median of the rounds' ratios is printed: for the estimator, which
computes in float64, and for its flow in float32 and float64; briefly fitted, so that steps bend.

    python benchmarks/sampling.py --features 3,8,43 --rows 16384
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from quarflow import QuARDensity
from quarflow.experiments.timing import processor_ratio


def table(features: int, rows: int) -> np.ndarray:
    """A bent, correlated table: a mixture whose columns depend on each other."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(features, features)) / features**0.5
    z = rng.normal(size=(rows, features)) + 2 * rng.integers(0, 2, (rows, 1))

    return np.sin(z @ mix) + 0.3 * z + 0.1 * z**2


def main() -> None:
    """Fit, measure and print a line for each number of features."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="3,8,43", help="numbers of features (3,8,43)")
    parser.add_argument("--rows", type=int, default=16384, help="rows drawn and scored (16384)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median (5)")
    parser.add_argument("--epochs", type=int, default=3, help="of the fits (3)")
    options = parser.parse_args()

    print("| D | estimator | flow, float64 | flow, float32 |\n| --- | --- | --- | --- |")
    for features in map(int, options.features.split(",")):
        density = QuARDensity(start="none", max_epochs=options.epochs, random_state=0)
        density.fit(table(features, 6000))
        X = density.sample(options.rows, random_state=0)
        found = [
            processor_ratio(
                lambda d=density: d.sample(options.rows, random_state=0),
                lambda d=density, X=X: d.score_samples(X),
                options.rounds,
            )
        ]
        for dtype in (torch.float64, torch.float32):
            flow = density.flow_.to(dtype)
            with torch.no_grad():
                p = flow()
                x = p.sample((options.rows,))
                found.append(
                    processor_ratio(
                        lambda p=p: p.sample((options.rows,)),
                        lambda p=p, x=x: p.log_prob(x),
                        options.rounds,
                    )
                )
        density.flow_.float()
        print(f"| {features} |", " | ".join(f"{value:.1f}" for value in found), "|", flush=True)


if __name__ == "__main__":
    main()
