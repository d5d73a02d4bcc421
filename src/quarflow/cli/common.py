"""What the commands share: plain errors with exit code 2, checks of paths, lists of names."""

from __future__ import annotations

import dis
import inspect
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

from quarflow.store.exchange import recover

PACKAGE = str(Path(__file__).resolve().parents[1])
FAILED, INTERRUPTED, TERMINATED = 2, 130, 143


class CommandError(ValueError):
    """A command that cannot be carried out as asked, said in a plain sentence or two."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the user's errors into a sentence and exit code 2; bugs keep their traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("Interrupted; nothing was written.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output has gone: `quarflow info m | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(0) from None
        except OSError as error:
            fail(_about_file(error))
        except Exception as error:
            if not on_purpose(error):
                raise
            fail(str(error))

    return run


@contextmanager
def stopped_by_signals(told: str) -> Iterator[None]:
    """Make SIGTERM, like Ctrl-C, an exception, so that all is put in order; then a sentence.

    The command ends with 130 or 143, as the shell has it for these signals.
    """
    ours = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, _terminate)
    code = INTERRUPTED
    try:
        yield
        return
    except KeyboardInterrupt:
        pass
    except SystemExit as ended:
        if ended.code != TERMINATED:
            raise
        code = TERMINATED
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    typer.echo(told, err=True)
    raise typer.Exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def fail(message: str) -> NoReturn:
    """End the command with a message on standard error."""
    typer.echo(f"quarflow: {message}", err=True)
    raise typer.Exit(FAILED)


def on_purpose(error: Exception) -> bool:
    """Whether an error is a message to the user: raised, by name, in a `raise` of ours.

    A ValueError that numpy or torch throws at our code is a bug, and so are all other kinds.
    """
    from quarflow.solvers import InversionError

    if not isinstance(error, ValueError | InversionError):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    raised = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    ours = code.co_filename.startswith(PACKAGE) or "sklearn" in Path(code.co_filename).parts
    return raised and ours


def _about_file(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}." if error.filename else f"{reason}."


def check_output(path: Path, endings: Sequence[str], inputs: Sequence[Path] = ()) -> None:
    """Refuse, before any work, a file that could not be written or that would eat an input."""
    if path.suffix.lower() not in endings:
        known = endings[0] if len(endings) == 1 else f"one of {', '.join(endings)}"
        raise CommandError(f"{path}: the name of the file to write must end in {known}.")
    if path.is_dir():
        raise CommandError(f"{path} is a folder, not a file.")
    if not path.parent.is_dir():
        raise CommandError(f"There is no folder {path.parent} to write {path.name} to.")
    if not os.access(path.parent, os.W_OK):
        raise CommandError(f"The folder {path.parent} cannot be written to.")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise CommandError(f"{path} is the input; give another file to write to.")


def names_of(text: str | None, option: str) -> list[str] | None:
    """Split `a,b` into names; names with commas in them come as JSON: `["a,b", "c"]`.

    Example:
        >>> names_of("a, b", "--columns")
        ['a', 'b']
        >>> names_of('["a,b"]', "--columns")
        ['a,b']
    """
    if text is None:
        return None
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except ValueError:
            names = None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return _distinct(names, option)
    return _distinct([name.strip() for name in text.split(",")], option)


def _distinct(names: list[str], option: str) -> list[str]:
    if not names or "" in names:
        raise CommandError(f"{option} takes names with commas between them, such as {option} a,b.")
    for name in names:
        if names.count(name) > 1:
            raise CommandError(f"{option} names the column {name!r} twice.")
    return names


def open_model(model: Path) -> Any:
    """The fitted density saved in a folder, of whatever data."""
    if model.is_file():
        raise CommandError(
            f"{model} is a file, not the folder of a model; the model comes first, then the data."
        )
    recover(model)
    if not model.is_dir():
        raise CommandError(f"There is no model folder {model}.")
    if not (model / "config.json").exists() and (model / "checkpoint").is_dir():
        raise CommandError(
            f"{model} holds an unfinished run and no model yet. "
            f"Finish it first: quarflow fit DATA -o {model} --resume"
        )
    from quarflow import open_density

    return open_density(model)


def options_of(density: Any, method: str, **options: Any) -> dict[str, Any]:
    """The options that were given; refuse those that the density's method does not have.

    What a kind of data has no use for, the methods of its density do not have as arguments.
    """
    given = {name: value for name, value in options.items() if value not in (None, False)}
    for name in given:
        if name not in inspect.signature(getattr(density, method)).parameters:
            from quarflow.density.kinds import KINDS

            others = [
                kind.of
                for kind in KINDS
                if name in inspect.signature(getattr(kind, method)).parameters
            ]
            option = name.replace("_", "-")
            raise CommandError(f"--{option} is for {', '.join(others)}, not for {density.of}.")
    return given


def quoted(path: Path | str) -> str:
    """Write a path as one would type it in a shell."""
    import shlex

    return shlex.quote(str(path))
