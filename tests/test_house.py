"""The house rules: CONTRIBUTING's map is the tree, and files and functions stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "quarflow"
FILES = sorted(SOURCE.rglob("*.py"))
LINE = re.compile(r"^(\w+)\s+imports (?P<imports>nothing|\w+(?:, \w+)*)$")
FILE_LINES, FUNCTION_LINES = 400, 80

each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))


def rooms():
    """Each package or module of the map, from the top down, and what it imports."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.split("<!-- map -->")[1].split("```")[1]
    found = {}
    for line in block.strip().splitlines():
        match = LINE.match(line)
        assert match, f"not a line of the map: {line!r}"
        names = match["imports"]
        found[match[1]] = set() if names == "nothing" else set(names.split(", "))
    return found


def imported(path):
    """(module, name) of each import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                place = SOURCE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = place.is_dir() or place.with_suffix(".py").exists()
                yield (f"{node.module}.{alias.name}" if is_module else node.module), alias.name


def arrows():
    """What each room imports of the others; `__init__` is the package's own front."""
    found = {}
    for path in FILES:
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        others = found.setdefault(room, set())
        for module, _ in imported(path):
            first, *rest = module.split(".")
            if first == "quarflow":
                others.add(rest[0] if rest else "__init__")
        others.discard(room)
    return found


def as_it_is():
    """The lines of a map that is right: rooms in the order they have, new ones last."""
    found = arrows()
    order = [room for room in rooms() if room in found]
    order += [room for room in found if room not in order]
    width = max(map(len, order)) + 2
    for room in order:
        names = ", ".join(sorted(found[room], key=order.index)) or "nothing"
        yield f"{room:<{width}}imports {names}"


def test_the_map_is_the_tree():
    assert rooms() == arrows(), "the map is:\n" + "\n".join(as_it_is())


def test_each_room_imports_from_rooms_below_it_only():
    order = list(rooms())
    upwards = [
        f"{room} imports {other}"
        for number, (room, others) in enumerate(rooms().items())
        for other in others
        if order.index(other) <= number
    ]
    assert not upwards


@each_file
def test_private_names_stay_at_home(path):
    taken = [
        name
        for module, name in imported(path)
        if module.startswith("quarflow") and re.match(r"_(?!_)", name) and name != "_version"
    ]
    assert not taken


@each_file
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    long = {
        node.name: lines
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES
    }
    assert not long


@each_file
def test_docstrings_say_what_and_not_that_it_is_returned(path):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, kinds)]
    texts = [text for node in nodes if (text := ast.get_docstring(node))]
    assert not [text for text in texts if re.match(r"(Returns?|Gives?|Tells?|Yields?)\b", text)]
