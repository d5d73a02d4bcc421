"""What learns: the flow, its objective under Accelerate, Adam, and the averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quarflow.seeds import mix
from quarflow.training.adam import adam_tensors, fill_adam, make_adam
from quarflow.training.ema import Average
from quarflow.training.rows import Rows, validation_batch, validation_rows, weights_of
from quarflow.training.settings import TrainingSettings
from quarflow.training.state import assign, copied, module_tensors

__all__ = ["Learner", "NegativeLogLikelihood"]


class NegativeLogLikelihood(nn.Module):
    """Mean nats of a batch as a module's forward, which is what DDP and autocast wrap."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, c: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Map x (n, features), and c (n, context) and weights (n) or None, to a scalar.

        Weights have a mean of 1 over all rows, not over these: then the expected loss of a batch
        is the weighted mean over all, exactly.
        """
        log_prob = self.flow(c).log_prob(x)
        if weights is not None:
            log_prob = log_prob * weights.to(log_prob.dtype)

        return -log_prob.mean()


class Learner:
    """The tensors of a run and what is done to them, step by step.

    Arguments:
        flow: Module with ``flow(c).log_prob(x)``; moved to the accelerator's device.
        settings: Clipping, Adam, precision, seed.
        accelerator: An ``accelerate.Accelerator``.
        first: Gives a first batch for ``flow.initialize(x, c)``; None to leave the flow as it is.

    Attributes:
        total, steps: Sum and count of the losses since the last ``forget``.
        best: Averaged weights to keep; empty until ``note_best``.
        good: Everything, as it was at the last ``note_good``.
    """

    def __init__(
        self,
        flow: nn.Module,
        settings: TrainingSettings,
        accelerator: Any,
        first: Callable[[], tuple[Tensor, Tensor | None]] | None,
    ) -> None:
        self.flow, self.settings, self.accelerator = flow, settings, accelerator
        self.device: torch.device = accelerator.device
        flow.to(self.device).train()
        initialize: Any = getattr(flow, "initialize", None)
        if first is not None and initialize is not None:
            self.seed("initialize", 0)
            with torch.no_grad():
                initialize(*self.moved(first()))
        objective: Any = NegativeLogLikelihood(flow)
        if settings.compile:
            objective = torch.compile(objective)
        adam = make_adam(flow, settings)
        self.objective, self.optimizer = accelerator.prepare(objective, adam)
        fill_adam(self.optimizer)
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        self.averaged = Average(flow)
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.steps = 0
        self.best: dict[str, Tensor] = {}
        self.good = copied(self.tensors())

    def tensors(self) -> dict[str, Tensor]:
        """Live references to all tensors that change from step to step."""
        return {
            **module_tensors(self.flow, "weights/"),
            **module_tensors(self.averaged.module, "ema/"),
            **adam_tensors(self.flow, self.optimizer),
        }

    def moved(self, batch: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """Bring a batch to the training device."""
        x, c = batch
        x = x.to(self.device, non_blocking=True)
        return x, None if c is None else c.to(self.device, non_blocking=True)

    def seed(self, kind: str, number: int) -> None:
        """Seed the global generators, for flows which draw random numbers themselves."""
        seed = mix(self.settings.seed, kind, number)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def step(
        self,
        number: int,
        batch: tuple[Tensor, Tensor | None],
        rate: float,
        decay: float,
        late: Callable[[], bool] = bool,
        weights: Tensor | None = None,
    ) -> bool:
        """Take one step of Adam and of the average.

        Arguments:
            number: Of the step; seeds what the flow draws itself.
            batch: x (n, features), and c (n, context) or None.
            rate: Adam's learning rate.
            decay: That of the average.
            late: Asked once the loss is known; if so, nothing is changed.
            weights: Of the rows, (n), None if all count the same.

        Returns:
            Whether the step was taken.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, c = self.moved(batch)
        self.seed("step", number)
        if weights is None:
            loss = self.objective(x, c)
        else:
            loss = self.objective(x, c, weights.to(self.device, non_blocking=True))
        if late():
            return False
        self.steps += 1
        self.accelerator.backward(loss)
        limit = math.inf if self.settings.clip is None else self.settings.clip
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        # Accelerate's own step() is for loss scaling and XLA, neither of which can be asked for
        # here, and costs a tenth of a millisecond.
        self.optimizer.optimizer.step()
        self.optimizer.optimizer.zero_grad()
        self.averaged.update(decay)
        self.total += loss.detach() + 0.0 * norm  # the norm only to notice inf and nan
        return True

    def healthy(self) -> bool:
        """Whether all losses and gradients since the last ``forget`` were finite."""
        if self.accelerator.num_processes > 1:
            self.total = self.accelerator.reduce(self.total, "mean")
        return math.isfinite(float(self.total))

    def mean(self) -> float | None:
        """The mean loss since the last ``forget``, None without a step."""
        return float(self.total) / self.steps if self.steps else None

    def forget(self) -> None:
        """Start the mean loss anew."""
        self.total.zero_()
        self.steps = 0

    @torch.no_grad()
    def validate(
        self, rows: Rows, size: int, late: Callable[[], bool] = bool
    ) -> tuple[float, int, int]:
        """Score the average on the validation rows.

        Arguments:
            rows: The validation rows.
            size: Rows scored at a time.
            late: Asked before each batch but the first; if so, the rest is left out.

        Returns:
            The mean nats, by weight if rows have weights, the number of rows whose nats are not
            finite, and of rows seen.
        """
        flow = self.averaged.module
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for number in range(-(-len(rows) // size)):
            if number % self.accelerator.num_processes != self.accelerator.process_index:
                continue
            if number and late():
                break
            x, c = self.moved(validation_batch(rows, number, size, self.settings.seed))
            self.seed("evaluation", number)
            nats = -flow(c).log_prob(x).double()
            bad = (~torch.isfinite(nats)).sum()
            seen = torch.full_like(nats[0], len(nats))
            weights = weights_of(rows, validation_rows(rows, number, size))
            share = seen
            if weights is not None:
                weights = weights.to(nats)
                nats, share = nats * weights, weights.sum()
            sums += torch.stack([nats.sum(), share, bad, seen])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, "sum")
        total, share, unsound, looked_at = sums.tolist()
        return total / share if share else math.nan, int(unsound), int(looked_at)

    def note_good(self) -> None:
        """Remember everything, to go back to."""
        assign(self.good, self.tensors())

    def go_back(self) -> None:
        """Restore what ``note_good`` remembered."""
        assign(self.tensors(), self.good)
        self.forget()

    def note_best(self) -> None:
        """Remember the averaged weights."""
        self.best = copied(module_tensors(self.averaged.module, ""))

    def go_to_best(self) -> None:
        """Put the best weights into flow and average; Adam keeps its scales, not its direction."""
        self.keep_best()
        assign(module_tensors(self.averaged.module, ""), self.best)
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()

    def keep_best(self) -> None:
        """Put the best averaged weights, if there are any yet, into the flow."""
        if self.best:
            assign(module_tensors(self.flow, ""), self.best)

    def load(self, found: dict[str, Tensor]) -> None:
        """Restore everything from the tensors of a checkpoint."""
        live = self.tensors()
        assign(live, found)
        assign(self.good, {name: found.get(f"good/{name}", found[name]) for name in live})
        for name, tensor in found.items():
            if name.startswith("best/"):
                self.best[name.removeprefix("best/")] = tensor.to(self.device)

    def saved(self, with_good: bool) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        tensors = self.tensors() | {f"best/{name}": t for name, t in self.best.items()}
        if with_good:
            tensors |= {f"good/{name}": t for name, t in self.good.items()}
        return tensors
