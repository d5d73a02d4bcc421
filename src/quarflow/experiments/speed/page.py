"""A page of documentation whose tables come from the figures, between marks in the text."""

from __future__ import annotations

import re
from pathlib import Path

from quarflow.experiments.speed.tables import Results, all_tables, markdown

__all__ = ["machine_sentence", "refresh", "report"]

BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"


def machine_sentence(results: Results) -> str:
    """What was run, on what."""
    here, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    device = "" if here["device"] == "cpu" else f" and {here['device']}"
    threads = settings["threads"]

    load = "" if here.get("load") is None else f"load {here['load']:g} before it began, "
    kernels = f"kernels {here['kernels']}, " if "kernels" in here else ""

    return (
        f"{here['processor']}{device}, {here['cores']} cores, {here['memory_gib']:g} GiB, "
        f"{here['system']}, Python {here['python']}; {versions}; "
        f"{threads} thread{'s' if threads > 1 else ''} in each process, {kernels}medians of "
        f"{settings['rounds']} rounds, {load}{results['seconds'] / 60:.0f} minutes in all. "
        f"Command: `{results['command']}`."
    )


def report(results: Results) -> str:
    """All tables as Markdown, with the machine and what was left out."""
    parts = [machine_sentence(results), *(markdown(table) for table in all_tables(results))]
    if results["left_out"]:
        left = "\n".join(f"* {told}" for told in results["left_out"])
        parts.append(f"### Left out\n\n{left}")

    return "\n\n".join(parts)


def refresh(path: Path, results: Results) -> None:
    """Put the tables between the marks of a page, atomically.

    Raises:
        ValueError: if the page does not have both marks, once.
    """
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} must have the lines {BEGIN} and {END}, once each.")
    body = f"{BEGIN}\n{report(results)}\n{END}"
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(re.sub(pattern, lambda _: body, text, flags=re.DOTALL))
    partial.replace(path)
