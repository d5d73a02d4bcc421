"""Finding anomalies on the sets of ADBench: quarflow, IsolationForest, LOF, GMM and ECOD.

Fitted to all rows, anomalies included, and to normal rows only; area under ROC and average
precision. It goes on where it was cut off, and fills in the page with `--page`:

    python benchmarks/anomaly.py --data DIR -o anomaly.json
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from quarflow.experiments.anomaly import compare, show, text_of
from quarflow.experiments.page import fill


def main() -> None:
    """Measure what is not measured yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the .npz files")
    parser.add_argument("-o", "--out", type=Path, default=Path("anomaly.json"), help="JSON file")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--sets", default="", help="names of those to measure, a,b; default all")
    parser.add_argument("--page", type=Path, help="a Markdown page whose tables to fill in")
    options = parser.parse_args()
    results = compare(
        options.data,
        options.out,
        seeds=range(options.seeds),
        sets=[name for name in options.sets.split(",") if name],
        say=partial(print, flush=True),
    )
    show(results)
    if options.page is not None:
        fill(options.page, partial(text_of, results))


if __name__ == "__main__":
    main()
