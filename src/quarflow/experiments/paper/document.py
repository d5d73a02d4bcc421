"""Puts the numbers of finished recipes into a Markdown page, so that no table is typed by hand.

    python -m quarflow.experiments.paper.document docs/paper.md --take paper-figure3 --take ...

In the page, what stands between ``<!-- results NAME -->`` and ``<!-- end -->`` is replaced by the
command, settings and tables of ``results/paper/NAME.json`` beside the page. ``--take FOLDER``
copies a recipe's JSON there first, and its pictures to ``images/paper``; ``--take NAME=FOLDER``
does so under a name other than the recipe's, where one recipe has two runs on the page.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quarflow.experiments.paper.run import RecipeError, read_json

__all__ = ["document", "take"]

BLOCK = re.compile(r"(<!-- results ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def document(page: Path) -> list[str]:
    """Fill in all blocks of a page; returns their names.

    Raises:
        RecipeError: if the page has no block, or a block's results are not there.
    """
    from quarflow.report.style import write_whole

    names: list[str] = []

    def filled(block: re.Match[str]) -> str:
        names.append(block[2])
        path = page.parent / "results" / "paper" / f"{block[2]}.json"
        if not path.is_file():
            raise RecipeError(f"{page} asks for {path}, which is not there; see --take.")
        return block[1] + _markdown(read_json(path)) + block[3]

    text = BLOCK.sub(filled, page.read_text(encoding="utf-8"))
    if not names:
        raise RecipeError(f"{page} has no block <!-- results NAME --> ... <!-- end -->.")
    write_whole(page, text.encode("utf-8"))

    return names


def take(folder: Path, page: Path, name: str | None = None) -> None:
    """Copy the numbers and pictures of a finished recipe to where the page finds them.

    They go by the recipe's name, unless another name is given.

    Raises:
        RecipeError: if the folder holds no finished recipe.
    """
    from quarflow.report.style import write_whole

    start = folder / "run.json"
    recipe = read_json(start).get("recipe") if start.is_file() else None
    if recipe is None or not (folder / f"{recipe}.json").is_file():
        raise RecipeError(f"{folder} holds no finished recipe.")
    for kind, ending in (("results", "json"), ("images", "png")):
        target = page.parent / kind / "paper"
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob(f"{recipe}*.{ending}")):
            write_whole(
                target / ((name or recipe) + path.name.removeprefix(recipe)), path.read_bytes()
            )


def _markdown(found: Mapping[str, Any]) -> str:
    versions = found["versions"]
    lines = [
        "",
        f"`{found['command'] or 'quarflow paper ' + found['recipe']}`",
        f"(quarflow {versions['quarflow']}, torch {versions['torch']}, "
        f"{found['threads']} thread(s))",
        "",
    ]
    for table in found["tables"]:
        lines += [table["title"] + ":", "", *_rows(table["columns"], table["rows"]), ""]

    return "\n".join(lines) + "\n"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table, names to the left and numbers to the right.

    Example:
        >>> _rows(["", "KL"], [["QuAR", 0.01]])
        ['|  | KL |', '| --- | ---: |', '| QuAR | 0.01 |']
    """
    ruler = ["---", *["---:"] * (len(columns) - 1)]

    return ["| " + " | ".join(map(str, row)) + " |" for row in (columns, ruler, *rows)]


def main() -> None:
    """Copy what is asked for and fill in the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--take", action="append", default=[], metavar="[NAME=]FOLDER")
    options = parser.parse_args()
    try:
        for wanted in options.take:
            name, _, folder = wanted.rpartition("=")
            take(Path(folder), options.page, name or None)
        print("filled in:", ", ".join(document(options.page)))
    except (RecipeError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
