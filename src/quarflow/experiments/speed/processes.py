"""Worker processes, from outside: started, asked with a time limit, started again."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

__all__ = ["Failed", "TimeUp", "WorkerProcess"]


class Failed(RuntimeError):
    """A command went wrong in the worker, or the worker ended."""


class TimeUp(Failed):
    """A command took longer than its limit; the worker was stopped."""


class WorkerProcess:
    """One worker, kept alive between commands.

    Commands that make a model are remembered and given again when the process had to be
    replaced, so that one slow case costs no other its model.

    Arguments:
        module: Where the contestants are.
        threads: For torch.
        device: "cpu" or "cuda".
        folder: For fitted weights and what libraries print.
        gibibytes: Memory the worker may use.
        path: Folders to add to where modules are found.
    """

    def __init__(
        self,
        module: str,
        threads: int,
        device: str,
        folder: Path,
        gibibytes: float,
        path: str | None = None,
    ) -> None:
        self._arguments = [module, str(threads), device, str(folder), str(gibibytes)]
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if path is not None:
            known = os.environ.get("PYTHONPATH")
            self._environment["PYTHONPATH"] = path + (os.pathsep + known if known else "")
        self._log = folder / f"{module}-{id(self)}.log"
        self._made: list[dict[str, Any]] = []
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def ask(self, seconds: float, /, **command: Any) -> Any:
        """The answer to a command.

        Raises:
            TimeUp: if it takes longer than so many seconds.
            Failed: if it goes wrong, with what the worker says.
        """
        if self._process is None:
            self._start()
            for again in list(self._made):
                self._ask(600.0, again)
        answer = self._ask(seconds, command)
        if command["do"] == "fit":
            self._made.append(command)

        return answer

    def forget(self) -> None:
        """Let go of all models."""
        self._made.clear()
        if self._process is not None:
            self.ask(60.0, do="forget")

    def _ask(self, seconds: float, command: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.stop()
            raise TimeUp(f"over {seconds:g} s") from None
        except OSError:
            line = ""
        if not line:
            code = process.wait()
            self.stop()
            killed = "; it may have run out of memory" if code == -9 else ""
            raise Failed(f"the process ended with code {code}{killed}")
        told = json.loads(line)
        if "error" in told:
            raise Failed(told["error"])

        return told["answer"]

    def _start(self) -> None:
        with self._log.open("ab") as log:
            # A session of its own, so that Ctrl-C reaches us alone and we end it in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "quarflow.experiments.speed.worker", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,
            )
        self._answers = queue.SimpleQueue()
        threading.Thread(
            target=_read, args=(self._process.stdout, self._answers), daemon=True
        ).start()

    def stop(self) -> None:
        """End the process, if it runs."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what it still wanted to write has nobody to read it
                    continue


def _read(pipe: Any, answers: queue.SimpleQueue[str]) -> None:
    try:
        for line in pipe:
            answers.put(line)
    except ValueError:  # closed under our hands, by stop()
        return
    finally:
        answers.put("")
