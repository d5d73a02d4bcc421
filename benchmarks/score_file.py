"""`quarflow score` on a large file, against scoring the same rows in memory.

    python benchmarks/score_file.py --rows 5000000 -o score_file.json

Fits a small-data model of the default size (8 steps, 128 wide), writes Parquet files of seeded rows
to a temporary folder, and scores them in turn: some rows in memory, the file, in memory again. The
rate of the file is of the whole command, with starting Python. Its peak memory is also taken for a
file a tenth as long: memory is bounded if the two are alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from quarflow import QuARDensity
from quarflow.bench.machine import machine
from quarflow.bench.rows import correlated_rows

PIECE = 250_000
# Runs the command and tells its own peak, in KiB on Linux.
COMMAND = """
import resource, sys
from quarflow.cli import app
app(sys.argv[1:], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def write(path: Path, rows: int, features: int) -> None:
    """Rows piece after piece, so that writing needs no more memory than scoring."""
    from quarflow.data import TableWriter

    with TableWriter(path) as table:
        for start in range(0, rows, PIECE):
            x = correlated_rows(min(PIECE, rows - start), features).double().numpy()
            table.write({f"x{i}": x[:, i] for i in range(features)})


def score_file(model: Path, data: Path) -> tuple[float, int]:
    """Seconds of the command, and its peak in bytes."""
    import subprocess

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

    return seconds, 1024 * int(done.stderr.strip().splitlines()[-1])


def in_memory(model: QuARDensity, rows: np.ndarray) -> float:
    """Rows per second."""
    start = time.perf_counter()
    model.score_samples(rows)

    return len(rows) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--memory-rows", type=int, default=100_000, help="scored in memory")
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
    rates: list[float] = []
    files: list[float] = []
    peaks: list[int] = []
    with tempfile.TemporaryDirectory(prefix="quarflow-score-") as name:
        folder = Path(name)
        model.save(folder / "model")
        print(f"Writing {options.rows:,} rows", flush=True)
        write(folder / "short.parquet", max(options.rows // 10, 1), options.features)
        write(folder / "long.parquet", options.rows, options.features)
        short_seconds, short_peak = score_file(folder / "model", folder / "short.parquet")
        memory_rows = x[: options.memory_rows]
        rates.append(in_memory(model, memory_rows))
        for _ in range(options.rounds):
            print("Scoring the file", flush=True)
            seconds, peak = score_file(folder / "model", folder / "long.parquet")
            files.append(options.rows / seconds)
            peaks.append(peak)
            rates.append(in_memory(model, memory_rows))
    found: dict[str, Any] = {
        "machine": machine("cpu"),
        "rows": options.rows,
        "features": options.features,
        "in_memory_rows_per_second": rates,
        "file_rows_per_second": files,
        "file_over_memory": median(files) / median(rates),
        "peak_bytes": peaks,
        "peak_bytes_of_a_tenth": short_peak,
        "seconds_of_a_tenth": short_seconds,
    }
    print(
        f"in memory {median(rates):,.0f} rows/s; file {median(files):,.0f} rows/s: "
        f"{found['file_over_memory']:.2f} of it; peak {max(peaks) / 2**20:.0f} MiB "
        f"(a tenth of the rows: {short_peak / 2**20:.0f} MiB)"
    )
    if options.out is not None:
        partial = options.out.with_suffix(".tmp")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(options.out)


if __name__ == "__main__":
    main()
