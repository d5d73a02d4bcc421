"""Side by side on real tables: QuAR (defaults), QuAR as in the paper, zuko's MAF and NSF.

One run, same splits, batch size, steps and schedule for all. Needs the development extra
(`make bench`) and a folder with the tables, as `--data`:

    python benchmarks/tables.py --data DIR -o tables.json

Every table is standardised by its training part and gets normal noise of 0.01 standard
deviations against ties, so that no model can win by spikes. Nats are -log p per row: less is
better. The models kept are the averaged weights (EMA) that are best on the validation part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import speed_peers
from quarflow import InversionError, QuAR
from quarflow.files import write_json
from quarflow.training import TrainingSettings, train
from quarflow.transforms import QuARStep

TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "magic": ("adbench/22_magic.gamma.npz", ("X",)),
    "protein": ("uci_protein.npz", ("X",)),
    "house_16H": ("pmlb_house_16H.npz", ("X",)),
    "higgs": ("higgs_small_35k.npz", ("X_val", "X_test")),
}


PEERS = {c.name: c.build for c in speed_peers.CONTESTANTS}
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "QuAR": QuAR,
    "QuAR (paper)": partial(QuAR, norm="operator", activation="elu"),
    "MAF": partial(PEERS["zuko MAF"], width=128),
    "NSF": partial(PEERS["zuko NSF"], width=128),
}


def load(folder: Path, name: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training (80 %), validation (10 %) and test part (10 %), standardised, float32."""
    path, keys = TABLES[name]
    for place in (folder / path, folder / "tabular" / path):
        if place.exists():
            break
    else:
        raise SystemExit(f"{folder} holds no {path}; give the folder of the tables as --data.")
    arrays = np.load(place, allow_pickle=False)
    X = np.concatenate([arrays[k] for k in keys]).astype(np.float64)
    rng = np.random.default_rng(seed)
    X = X[rng.permutation(len(X))]
    a, b = int(0.8 * len(X)), int(0.9 * len(X))
    X = (X - X[:a].mean(0)) / X[:a].std(0) + 0.01 * rng.standard_normal(X.shape)
    parts = torch.from_numpy(X).float()

    return parts[:a], parts[a:b], parts[b:]


@torch.no_grad()
def nats(flow: nn.Module, x: Tensor) -> float:
    """Mean -log p over rows."""
    return -torch.cat([flow().log_prob(part).double() for part in x.split(4096)]).mean().item()


class Rows:
    """Rows of a table as they are."""

    first = 4096

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        """The rows, shape (n, D)."""
        return self.x[index], None


def fit(flow: nn.Module, rows: Tensor, valid: Tensor, options: argparse.Namespace) -> None:
    """Warm-up, cosine, clipping at 5, averaged weights; the best of 20 evaluations are kept."""
    per_epoch = max(len(rows) // options.batch, 1)
    settings = TrainingSettings(
        batch_size=options.batch,
        learning_rate=options.lr,
        max_epochs=-(-options.steps // per_epoch),
        patience=0,
        ema=0.995,
        clip=5.0,
        # on the weights of the networks only: without it all of them learn the rows by heart
        weight_decay=options.decay,
        seed=options.seed,
        evaluate_every=max(options.steps // 20, 1),
    )
    train(flow, Rows(rows), Rows(valid), settings, device="cpu")


def copy_of(flow: QuAR, dtype: torch.dtype) -> QuAR:
    """The same weights in another precision."""
    copy = QuAR(**flow.arguments).to(dtype)
    copy.load_state_dict(flow.state_dict())

    return copy


def inversion(flow: QuAR) -> dict[str, float]:
    """Round trip of 10,000 samples, relative to 1 + abs(x), and Newton sweeps per step."""
    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.float64):
        sweeps = []
        with torch.no_grad():
            p = copy_of(flow, dtype)()
            x = p.sample((10_000,), generator=torch.Generator().manual_seed(0))
            z = p.transform(x)
            back = p.transform.inv(z)
            name = str(dtype)[6:]
            found[name] = ((back - x).abs() / (1 + x.abs())).max().item()
            try:
                p.transform.checked.inv(z)
                found[f"refused, {name}"] = 0
            except InversionError as error:
                found[f"refused, {name}"] = error.failed
            # float32 points are mapped in float64 and rounded: these are the steps that do it
            chain = p.transform.to(torch.float64)
            z = p.base.sample((10_000,), generator=torch.Generator().manual_seed(1)).double()
            for step in reversed(chain.transforms):
                if isinstance(step, QuARStep):
                    sweeps.append(step.solve(z).iterations)
                z = step.inv(z)
        found[f"median sweeps, {str(dtype)[6:]}"] = float(torch.cat(sweeps).double().median())
        found[f"largest sweeps, {str(dtype)[6:]}"] = float(torch.cat(sweeps).max())

    return found


def worst_diagonal(flow: QuAR, factor: float = 1.0) -> float:
    """Largest abs(d) found by 200 steps of ascent from 1,000 starts, weights times factor."""
    copy = copy_of(flow, torch.float64)
    with torch.no_grad():
        for p in copy.branches.parameters():
            p.mul_(factor)
    worst = 0.0
    steps = [t for t in copy().transform.transforms if isinstance(t, QuARStep)]
    generator = torch.Generator().manual_seed(0)
    for step in steps:
        branch = step.branch
        x = 3 * torch.randn(1000, copy.features, generator=generator, dtype=torch.float64)
        x.requires_grad_()
        ascent = torch.optim.Adam([x], 0.05 / factor)
        for _ in range(200):
            d = branch(x)[1].abs()
            worst = max(worst, d.max().item())
            (gradient,) = torch.autograd.grad(-d.sum(), x)
            x.grad = gradient
            ascent.step()

    return worst


def batches(flow: QuAR, x: Tensor, dtype: torch.dtype) -> float:
    """Largest change of log p when rows come in batches of 1, 7 and 256 instead of all."""
    with torch.no_grad():
        p, x = copy_of(flow, dtype)(), x.to(dtype)
        whole = p.log_prob(x)
        assert torch.equal(whole, p.log_prob(x)), "repeated scoring must be bit-identical"
        return max(
            (torch.cat([p.log_prob(b) for b in x.split(n)]) - whole).abs().max().item()
            for n in (1, 7, 256)
        )


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The figures so far, atomically."""
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("out", "data")}
    write_json(options.out, {"settings": settings, "rows": rows}, indent=2)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the tables")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--steps", type=int, default=3000, help="up to whole epochs")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--decay", type=float, default=0.3, help="weight decay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()

    results: list[dict[str, Any]] = []
    print(
        f"{'table':10} {'model':13} {'test nats':>9} {'params':>8} {'train s':>8} {'sample s':>8}"
    )
    for table in options.tables.split(","):
        parts = load(options.data, table, options.seed)
        for name in options.models.split(","):
            row = {"table": table, "model": name, **measure(name, parts, options)}
            print(
                f"{table:10} {name:13} {row['test_nats']:9.3f} {row['parameters']:8,} "
                f"{row['train_seconds']:8.1f} {row['sample_seconds']:8.2f}",
                flush=True,
            )
            for key in ("inversion", "worst_diagonal", "batch_size_change"):
                if key in row:
                    print(f"{'':24} {key.replace('_', ' ')} {row[key]}", flush=True)
            results.append(row)
            if options.out is not None:
                write(options, results)


def measure(name: str, parts: tuple[Tensor, ...], options: argparse.Namespace) -> dict[str, Any]:
    """Fit one model to one table; everything that is told of it."""
    rows, valid, test = parts
    torch.manual_seed(options.seed)
    flow = MODELS[name](rows.shape[1])
    start = time.perf_counter()
    fit(flow, rows, valid, options)
    middle = time.perf_counter()
    with torch.no_grad():
        flow().sample((10_000,))
    end = time.perf_counter()
    found: dict[str, Any] = {
        "test_nats": nats(flow, test),
        "valid_nats": nats(flow, valid),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "train_seconds": middle - start,
        "sample_seconds": end - middle,
    }
    if isinstance(flow, QuAR):
        found["inversion"] = inversion(flow)
        diagonals = {"trained": 1.0, "times 100": 100.0}
        found["worst_diagonal"] = {k: worst_diagonal(flow, by) for k, by in diagonals.items()}
        # float64 is what QuARDensity and `quarflow score` compute in
        found["batch_size_change"] = {
            str(dtype)[6:]: batches(flow, test[:2000], dtype)
            for dtype in (torch.float64, torch.float32)
        }

    return found


if __name__ == "__main__":
    main()
