"""`quarflow score` on a large file, against scoring the same rows in memory.

    python benchmarks/score_file.py --rows 5000000 -o score_file.json

Fits a model of the default size (8 steps, 128 wide), writes Parquet files of seeded rows to a
temporary folder, and scores in turn: some rows in memory, the file, in memory again. The rate of
the file is of the whole command, with starting Python; the steady one is from the difference to a
file a tenth as long. Memory is bounded if the peaks of the two are alike. Processor seconds are
told too, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from quarflow import QuARDensity
from quarflow.data import TableWriter
from quarflow.experiments.machine import machine
from quarflow.experiments.speed.rows import correlated_rows
from quarflow.files import write_json

PIECE = 250_000
# Runs the command and tells its own peak, in KiB on Linux, and processor seconds.
COMMAND = """
import resource, sys
from quarflow.cli import app
app(sys.argv[1:], standalone_mode=False)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss, used.ru_utime + used.ru_stime, file=sys.stderr)
"""


@dataclass
class Scored:
    """Seconds by the clock and of the processor; peak memory in bytes (0: not told)."""

    rows: int
    clock: float
    processor: float
    peak: int = 0


def write(path: Path, rows: int, features: int) -> None:
    """Rows piece after piece, so that writing needs no more memory than scoring."""
    with TableWriter(path) as table:
        for start in range(0, rows, PIECE):
            x = correlated_rows(min(PIECE, rows - start), features).double().numpy()
            table.write({f"x{i}": x[:, i] for i in range(features)})


def score_file(model: Path, data: Path) -> Scored:
    """The command in a process of its own."""
    output = data.with_name("scores.parquet")
    arguments = [sys.executable, "-c", COMMAND, "score", str(model), str(data), "-o", str(output)]
    start = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    scored = pl.scan_parquet(output).select(pl.len()).collect().item()
    expected = pl.scan_parquet(data).select(pl.len()).collect().item()
    if scored != expected:
        raise SystemExit(f"{scored} of {expected} rows were scored.")
    output.unlink()
    peak, processor = done.stderr.strip().splitlines()[-1].split()

    return Scored(scored, seconds, float(processor), 1024 * int(peak))


def in_memory(model: QuARDensity, rows: np.ndarray) -> Scored:
    """The same by the estimator."""
    start, used = time.perf_counter(), time.process_time()
    model.score_samples(rows)

    return Scored(len(rows), time.perf_counter() - start, time.process_time() - used)


def rate(scored: list[Scored], by: str) -> float:
    """Median rows per second, by "clock" or "processor"."""
    return median(one.rows / getattr(one, by) for one in scored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--memory-rows", type=int, default=500_000, help="scored in memory")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()

    x = correlated_rows(max(options.memory_rows, 5000), options.features).double().numpy()
    model = QuARDensity(
        transforms=8, hidden_features=(128, 128), max_epochs=20, batch_size=256, random_state=0
    )
    frame = pl.DataFrame({f"x{i}": x[:5000, i] for i in range(options.features)})
    print("Fitting", flush=True)
    model.fit(frame.to_numpy())
    memory: list[Scored] = []
    files: list[Scored] = []
    short: list[Scored] = []
    with tempfile.TemporaryDirectory(prefix="quarflow-score-") as name:
        folder = Path(name)
        model.save(folder / "model")
        print(f"Writing {options.rows:,} rows", flush=True)
        write(folder / "short.parquet", max(options.rows // 10, 1), options.features)
        write(folder / "long.parquet", options.rows, options.features)
        rows = x[: options.memory_rows]
        for _ in range(options.rounds):
            memory.append(in_memory(model, rows))
            print("Scoring the files", flush=True)
            short.append(score_file(folder / "model", folder / "short.parquet"))
            files.append(score_file(folder / "model", folder / "long.parquet"))
            memory.append(in_memory(model, rows))
    steady = [
        Scored(a.rows - b.rows, a.clock - b.clock, a.processor - b.processor)
        for a, b in zip(files, short, strict=True)
    ]
    found: dict[str, Any] = {
        "machine": machine("cpu"),
        "features": options.features,
        **{
            kind: [asdict(one) for one in scored]
            for kind, scored in (("in_memory", memory), ("file", files), ("tenth", short))
        },
        "ratios": {
            f"{kind} / in memory, by {by}": rate(scored, by) / rate(memory, by)
            for by in ("clock", "processor")
            for kind, scored in (("file", files), ("steady", steady))
        },
    }
    print(
        f"In memory {rate(memory, 'clock'):,.0f} rows/s, the file {rate(files, 'clock'):,.0f}; "
        f"peak {max(one.peak for one in files) / 2**20:.0f} MiB, for a tenth of the rows "
        f"{max(one.peak for one in short) / 2**20:.0f} MiB."
    )
    for told, ratio in found["ratios"].items():
        print(f"{told}: {ratio:.2f}")
    if options.out is not None:
        write_json(options.out, found)


if __name__ == "__main__":
    main()
