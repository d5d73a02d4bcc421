"""Pages: where they may be written, and templates filled; every value is escaped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quarflow._version import __version__
from quarflow.report.names import readable
from quarflow.report.words import number

__all__ = ["ReportError", "filled", "page_path"]


class ReportError(ValueError):
    """A report that cannot be written as asked."""


def page_path(path: str | os.PathLike[str]) -> Path:
    """The path of a page to write.

    Raises:
        ReportError: if it is a folder, or lies in none.
    """
    path = Path(path)
    if path.is_dir():
        raise ReportError(f"{path} is a folder; give the report a file name, such as report.html.")
    if not path.parent.is_dir():
        raise ReportError(f"There is no folder {path.parent} to write {path.name} to.")

    return path


def filled(name: str, density: Any, content: dict[str, Any]) -> str:
    """A template with its values, and with what the density's own ``info`` says first."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, short=readable)
    facts = density.info()[0].rows

    return environment.get_template(name).render(version=__version__, facts=facts, **content)
