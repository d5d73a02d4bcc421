"""Puts the numbers of finished recipes into a Markdown page, so that no table is typed by hand.

    python -m quarflow.experiments.paper.document docs/paper.md --take paper-figure3 --take ...

In the page, what stands between ``<!-- results NAME -->`` and ``<!-- end -->`` is replaced by the
command, settings and tables of ``results/paper/NAME.json`` beside the page. ``--take FOLDER``
copies a recipe's JSON there first, and its pictures to ``images/paper``; ``--take NAME=FOLDER``
does so under a name other than the recipe's, where one recipe has two runs on the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quarflow.experiments.page import fill, markdown_rows
from quarflow.experiments.paper.run import RecipeError, read_json
from quarflow.files import write_whole

__all__ = ["document", "take"]


def document(page: Path) -> list[str]:
    """Fill in all blocks of a page; returns their names.

    Raises:
        ValueError: if the page has no block, or a block's results are not there.
    """
    return fill(page, lambda name: _markdown(page.parent / "results" / "paper" / f"{name}.json"))


def take(folder: Path, page: Path, name: str | None = None) -> None:
    """Copy the numbers and pictures of a finished recipe to where the page finds them.

    Arguments:
        folder: Of the run.
        page: The page; results and images lie in folders beside it.
        name: What they are called there; the recipe's name by default.

    Raises:
        RecipeError: if the folder holds no finished recipe.
    """
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


def _markdown(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(f"The page asks for {path}, which is not there; see --take.")
    found = read_json(path)
    versions = found["versions"]
    lines = [
        "",
        f"`{found['command'] or 'quarflow paper ' + found['recipe']}`",
        f"(quarflow {versions['quarflow']}, torch {versions['torch']}, "
        f"{found['threads']} thread(s))",
        "",
    ]
    for table in found["tables"]:
        lines += [table["title"] + ":", "", markdown_rows(table["columns"], table["rows"]), ""]

    return "\n".join(lines) + "\n"


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
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
