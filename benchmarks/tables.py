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
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from quarflow import InversionError, QuAR

TABLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "magic": ("adbench/22_magic.gamma.npz", ("X",)),
    "protein": ("uci_protein.npz", ("X",)),
    "house_16H": ("pmlb_house_16H.npz", ("X",)),
    "higgs": ("higgs_small_35k.npz", ("X_val", "X_test")),
}


def models() -> dict[str, Callable[[int], nn.Module]]:
    """The four that are compared; zuko is imported here."""
    import zuko

    return {
        "QuAR": lambda D: QuAR(D),
        "QuAR (paper)": lambda D: QuAR(D, norm="operator", activation="elu"),
        "MAF": lambda D: zuko.flows.MAF(D, transforms=8, hidden_features=(128, 128)),
        "NSF": lambda D: zuko.flows.NSF(D, transforms=5, hidden_features=(128, 128)),
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


def fit(flow: nn.Module, train: Tensor, valid: Tensor, options: argparse.Namespace) -> nn.Module:
    """AdamW, warm-up, cosine, clipping at 5, EMA; best of 20 evaluations on validation."""
    if isinstance(flow, QuAR):
        flow.initialize(train[:4096])
    # Decay on the weights of the networks only: without it all of them learn the rows by heart.
    kinds = ("weight", "off_diagonal")
    decayed = [p for n, p in flow.named_parameters() if n.endswith(kinds)]
    others = [p for n, p in flow.named_parameters() if not n.endswith(kinds)]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": options.decay},
            {"params": others, "weight_decay": 0},
        ],
        options.lr,
    )
    average = AveragedModel(flow, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    generator = torch.Generator().manual_seed(options.seed)
    best, kept = math.inf, None
    for step in range(options.steps):
        rate = min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * rate
        x = train[torch.randint(len(train), (options.batch,), generator=generator)]
        loss = -flow().log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(flow)
        if (step + 1) % max(options.steps // 20, 1) == 0:
            now = nats(average.module, valid)
            if now < best:
                best, kept = now, {k: v.clone() for k, v in average.module.state_dict().items()}
    if kept is None:
        raise SystemExit("The validation nats were never finite; lower --lr.")
    flow.load_state_dict(kept)

    return flow


def inversion(flow: QuAR) -> dict[str, float]:
    """Round trip of 10,000 samples, relative to 1 + abs(x), and Newton sweeps per step."""
    from quarflow.transforms import QuARStep

    found: dict[str, float] = {}
    for dtype in (torch.float32, torch.float64):
        sweeps = []
        with torch.no_grad():
            copy = QuAR(**flow.arguments).to(dtype)
            copy.load_state_dict(flow.state_dict())
            p = copy()
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
    from quarflow.transforms import QuARStep

    copy = QuAR(**flow.arguments).double()
    copy.load_state_dict(flow.state_dict())
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
        copy = QuAR(**flow.arguments).to(dtype)
        copy.load_state_dict(flow.state_dict())
        p, x = copy(), x.to(dtype)
        whole = p.log_prob(x)
        assert torch.equal(whole, p.log_prob(x)), "repeated scoring must be bit-identical"
        return max(
            (torch.cat([p.log_prob(b) for b in x.split(n)]) - whole).abs().max().item()
            for n in (1, 7, 256)
        )


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The figures so far, atomically."""
    settings = {k: str(v) for k, v in vars(options).items() if k not in ("out", "data")}
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")
    temporary.replace(options.out)


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the tables")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--models", default="QuAR,QuAR (paper),MAF,NSF")
    parser.add_argument("--steps", type=int, default=3000)
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
        train, valid, test = load(options.data, table, options.seed)
        for name in options.models.split(","):
            torch.manual_seed(options.seed)
            flow = models()[name](train.shape[1])
            start = time.perf_counter()
            fit(flow, train, valid, options)
            middle = time.perf_counter()
            with torch.no_grad():
                flow().sample((10_000,))
            row: dict[str, Any] = {
                "table": table,
                "model": name,
                "test_nats": nats(flow, test),
                "valid_nats": nats(flow, valid),
                "parameters": sum(p.numel() for p in flow.parameters()),
                "train_seconds": middle - start,
                "sample_seconds": time.perf_counter() - middle,
            }
            print(
                f"{table:10} {name:13} {row['test_nats']:9.3f} {row['parameters']:8,} "
                f"{row['train_seconds']:8.1f} {row['sample_seconds']:8.2f}",
                flush=True,
            )
            if isinstance(flow, QuAR):
                row["inversion"] = inversion(flow)
                row["worst_diagonal"] = {
                    "trained": worst_diagonal(flow),
                    "times 100": worst_diagonal(flow, 100.0),
                }
                # float64 is what QuARDensity and `quarflow score` compute in
                row["batch_size_change"] = {
                    str(dtype)[6:]: batches(flow, test[:2000], dtype)
                    for dtype in (torch.float64, torch.float32)
                }
                print(f"{'':24} {row['inversion']}", flush=True)
                print(f"{'':24} abs(d) {row['worst_diagonal']}", flush=True)
                print(f"{'':24} change with batch size {row['batch_size_change']}", flush=True)
            results.append(row)
            if options.out is not None:
                write(options, results)


if __name__ == "__main__":
    main()
