"""Speed side by side with zuko, nflows and normflows, and the distance from the limit.

One process per library, all models measured in turn, medians; see docs/performance.md. Needs the
development extra (`make bench`):

    python benchmarks/speed.py --quick                # within two minutes
    python benchmarks/speed.py -o docs/results/speed.json
    python benchmarks/speed.py --figures docs/results/speed.json --page docs/performance.md \
        --plots docs/images
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import speed_peers
from quarflow.experiments.speed.page import refresh, show
from quarflow.experiments.speed.pictures import draw
from quarflow.experiments.speed.plan import QUANTITIES, QUICK, Plan, chosen
from quarflow.experiments.speed.run import compare


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part.replace("_", "")) for part in text.split(","))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a part of it, within two minutes")
    parser.add_argument("--features", type=numbers, help="such as 2,8,32,128,512")
    parser.add_argument("--batches", type=numbers, help="such as 1,256,16384")
    parser.add_argument(
        "--quantities", type=lambda text: tuple(text.split(",")), help=", ".join(QUANTITIES)
    )
    parser.add_argument("--models", help="names with semicolons between; QuAR is always there")
    parser.add_argument("--compile", action="store_true", help="QuAR through torch.compile, too")
    parser.add_argument("--rounds", type=int, help="measurements of each case (5)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (0.2)")
    parser.add_argument("--limit", type=float, help="seconds for one case of one model (60)")
    parser.add_argument("--fit-steps", type=int, help="steps of fitting before (300)")
    parser.add_argument("--start-rounds", type=int, help="measurements of imports (5), 0: none")
    parser.add_argument("--threads", type=int, help="threads of each process (all cores)")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--figures", type=Path, help="show these instead of measuring")
    parser.add_argument("--page", type=Path, help="Markdown page to put the tables into")
    parser.add_argument("--plots", type=Path, help="folder for the two pictures")

    return parser.parse_args()


def measured(given: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = dict(QUICK) if given.quick else {}
    for name in Plan.__dataclass_fields__:
        value = getattr(given, name, None)
        if value is not None:
            settings[name] = value
    names = [name.strip() for name in given.models.split(";")] if given.models else []
    contestants = chosen(
        speed_peers.CONTESTANTS, names, compiled=given.compile, scaling=not given.quick
    )

    return compare(
        contestants,
        Plan(**settings),
        module="speed_peers",
        path=str(Path(__file__).resolve().parent),
        starts=speed_peers.STARTS,
        output=given.out,
        say=lambda told: print(told, flush=True),
    )


def main() -> None:
    given = options()
    results = json.loads(given.figures.read_text()) if given.figures else measured(given)
    show(results)
    if given.page:
        refresh(given.page, results)
    if given.plots:
        draw(results, given.plots)


if __name__ == "__main__":
    main()
