"""What a mask costs: a training step of some columns over one of all, with the same context.

Both sides take turns in one process, and the median of the rounds' ratios of CPU times is printed:
of the forward pass and of forward and backward together.

    python benchmarks/patterns.py --features 3,10,36
"""

from __future__ import annotations

import argparse

import torch

from quarflow import QuAR
from quarflow.experiments.timing import processor_ratio


def measured(features: int, options: argparse.Namespace) -> list[str]:
    """The ratios for a number of features."""
    flow = QuAR(features, 3 * features, transforms=6, hidden_features=(128, 128))
    x, c = torch.randn(options.rows, features), torch.randn(options.rows, 3 * features)
    modelled = torch.rand(options.rows, features) < 0.6

    def step(mask: torch.Tensor | None) -> None:
        flow.zero_grad()
        flow(c, mask).log_prob(x).mean().backward()

    def score(mask: torch.Tensor | None) -> None:
        with torch.no_grad():
            flow(c, mask).log_prob(x)

    return [
        f"{processor_ratio(lambda f=f: f(modelled), lambda f=f: f(None), options.rounds):.2f}"
        for f in (score, step)
    ]


def main() -> None:
    """Measure and print a line for each number of features."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="3,10,36", help="numbers of features (3,10,36)")
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch (256)")
    parser.add_argument("--rounds", type=int, default=60, help="rounds, of which the median (60)")
    options = parser.parse_args()

    print("| D | forward | forward and backward |\n| --- | --- | --- |")
    for features in map(int, options.features.split(",")):
        print(f"| {features} |", " | ".join(measured(features, options)), "|", flush=True)


if __name__ == "__main__":
    main()
