"""One update, or one evaluation, of an image flow, and its peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

import torch

from quarflow.density.image_fit import make_flow
from quarflow.experiments.memory import Peak
from quarflow.experiments.paper.run import Numbers, RecipeError
from quarflow.experiments.step import Step
from quarflow.flows import Flow

__all__ = ["PRECISIONS", "Workload", "peak_memory"]

PRECISIONS = ("float32", "tf32", "bf16")


class Workload:
    """One flow at work on one batch: an update of Adam, or a log-density.

    Arguments:
        flow: Class of the flow.
        arguments: Of the flow.
        phase: ``train`` or ``test``.
        batch_size: Images in the batch.
        precision: ``tf32`` and ``bf16`` matter on CUDA; a test never runs under autocast.
        device: ``cpu`` or ``cuda``.
        seed: Of weights and images.
        compile: Whether the loss goes through ``torch.compile``.

    The images are noise: neither time nor memory depends on what is in them.
    """

    def __init__(
        self,
        flow: str,
        arguments: Mapping[str, Any],
        phase: Literal["train", "test"],
        batch_size: int,
        precision: str = "float32",
        device: str = "cpu",
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        self.flow: Flow = make_flow(flow, arguments, seed).to(device)
        generator = torch.Generator().manual_seed(seed)
        shape = (batch_size, *arguments["shape"])
        self.x = torch.rand(shape, generator=generator).to(device)
        self.flow.initialize(self.x[:16])
        self.flow.train(phase == "train")
        self.step: Step | None = None
        if phase == "train":
            half = precision == "bf16"
            self.step = Step(self.flow, 1e-4, clip=1.0, half=half, compile=compile)

    def __call__(self) -> None:
        """Do the work once."""
        if self.step is not None:
            self.step(self.x)
        else:
            with torch.no_grad():
                self.flow().log_prob(self.x)
        if self.x.is_cuda:
            torch.cuda.synchronize()


def peak_memory(**workload: Any) -> Numbers:
    """Peak memory of doing the work twice, in a fresh process of its own.

    Arguments:
        workload: Arguments of :class:`Workload`.

    Returns:
        ``bytes``: the most beyond what the libraries alone take, which is ``baseline_bytes`` (0
        on CUDA); see :class:`quarflow.experiments.memory.Peak`.

    Raises:
        RecipeError: if the process failed, such as for want of memory.
    """
    called = [sys.executable, "-m", "quarflow.experiments.paper.measure", json.dumps(workload)]
    done = subprocess.run(called, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message: perhaps out of memory"])[-1]
        raise RecipeError(f"Measuring memory failed (exit code {done.returncode}): {last[:300]}")
    found: Numbers = json.loads(done.stdout.strip().splitlines()[-1])

    return found


def _measure(workload: Mapping[str, Any]) -> Numbers:
    torch.rand(64, 64) @ torch.rand(64, 64)  # threads and buffers of the libraries
    with Peak(workload["device"], fresh=True) as peak:
        work = Workload(**workload)
        for _ in range(2):  # Adam's state exists after the first
            work()

    return {"bytes": peak.bytes, "baseline_bytes": peak.before}


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
