"""Time and peak memory of one update, or of one evaluation, of an image flow."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from quarflow.experiments.paper.run import Numbers, RecipeError
from quarflow.flows import Flow
from quarflow.image_fitting import make_flow

__all__ = ["Precision", "Workload", "interleaved", "peak_memory"]

Precision = Literal["float32", "tf32", "bf16"]
WARM_UP = 1


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
        precision: Precision = "float32",
        device: str = "cpu",
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        self.phase, self.precision, self.device = phase, precision, torch.device(device)
        torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
        torch.backends.cudnn.allow_tf32 = precision != "float32"
        self.flow: Flow = make_flow(flow, arguments, seed).to(self.device)
        generator = torch.Generator().manual_seed(seed)
        shape = (batch_size, *arguments["shape"])
        self.x = torch.rand(shape, generator=generator).to(self.device)
        self.flow.initialize(self.x[:16])
        self.flow.train(phase == "train")
        self.loss: Callable[[Tensor], Tensor] = self._loss
        if phase == "train":
            if compile:
                self.loss = torch.compile(self._loss)
            self.parameters = list(self.flow.parameters())
            self.adam = torch.optim.Adam(self.parameters, lr=1e-4, fused=True)

    def _loss(self, x: Tensor) -> Tensor:
        return -self.flow().log_prob(x).mean()

    def __call__(self) -> None:
        """Do the work once."""
        if self.phase == "test":
            with torch.no_grad():
                self.flow().log_prob(self.x)
        else:
            half = self.precision == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                loss = self.loss(self.x)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def interleaved(works: Mapping[str, Workload], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat, A B C A B C ..., after a round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + WARM_UP):
        for name, work in works.items():
            begun = time.perf_counter()
            work()
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - begun)

    return seconds


def peak_memory(**workload: Any) -> Numbers:
    """Peak memory of doing the work twice, in a fresh process of its own.

    Arguments:
        workload: Arguments of :class:`Workload`.

    Returns:
        ``bytes``: on CUDA what the allocator had handed out at most; on a CPU how far the peak of
        the resident memory rose above what the libraries alone take. ``baseline_bytes`` is that,
        0 on CUDA.

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


def _peak_resident() -> int:
    """Bytes this process held at most, so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: of this program alone, not of the one that started it
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows, where there is no such figure to be had

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    return peak if sys.platform == "darwin" else peak * 1024


def _measure(workload: Mapping[str, Any]) -> Numbers:
    cuda = workload["device"] == "cuda"
    torch.rand(64, 64) @ torch.rand(64, 64)  # threads and buffers of the libraries
    baseline = 0 if cuda else _peak_resident()
    work = Workload(**workload)
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # Adam's state exists after the first
        work()
    peak = torch.cuda.max_memory_allocated() if cuda else _peak_resident() - baseline

    return {"bytes": peak, "baseline_bytes": baseline}


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
