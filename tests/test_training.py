"""The training loop: schedule, early stopping, resuming, recovering, signals, processes."""

import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributions import Independent, Normal

from quarflow.seeds import seeded
from quarflow.training import (
    CheckpointError,
    LockedError,
    Plan,
    StopSignals,
    TrainingError,
    TrainingProgress,
    TrainingSettings,
    checkpoint,
    events,
    has_checkpoint,
    keeper,
    loop,
    remove_checkpoint,
    train,
)
from quarflow.training import clock as clock_module
from quarflow.training.checkpoint import FILE, PARTIAL
from quarflow.training.device import accelerator_on, choose_device
from quarflow.training.ema import Average
from quarflow.training.rows import Sampler


class Toy(nn.Module):
    """A Gaussian whose mean and scale come from a small network: the contract of a flow."""

    def __init__(self, features=2, hidden=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, hidden), nn.Tanh(), nn.Linear(hidden, 2 * features))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def initialize(self, x, c=None):
        self.calls += 1

    def forward(self, c=None):
        c = self.net[0].weight.new_ones(1) if c is None else c
        mean, scale = self.net(c).chunk(2, -1)
        return Independent(Normal(mean, scale.exp(), validate_args=False), 1, validate_args=False)


class Noisy:
    """Rows with noise; `spoil` turns the batches of some calls into NaN, `act` is called first."""

    def __init__(self, n=400, seed=0, spoil=(), act=None):
        self.x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        self.spoil, self.act, self.calls = spoil, act, 0

    def __len__(self):
        return len(self.x)

    def batch(self, index, generator):
        self.calls += 1
        if self.act:
            self.act(self.calls)
        x = self.x[index] + 0.01 * torch.randn(len(index), 2, generator=generator)
        return (x * math.nan if self.calls in self.spoil else x), None


BASE = {
    "batch_size": 40,
    "learning_rate": 0.02,
    "max_epochs": 12,
    "warmup_steps": 10,
    "ema": 0.9,
    "checkpoint_seconds": 0.0,
}


def settings(**changes):
    return TrainingSettings(**{**BASE, **changes})


def toy():
    torch.manual_seed(3)
    return Toy()


def fit(flow=None, rows=None, **given):
    names = {"device", "checkpoint", "resume", "on_event"}
    options = {"device": "cpu", **{k: v for k, v in given.items() if k in names}}
    chosen = settings(**{k: v for k, v in given.items() if k not in names})
    flow = toy() if flow is None else flow
    rows = Noisy() if rows is None else rows
    return flow, train(flow, rows, Noisy(100, seed=1), chosen, **options)


def without_times(history):
    return [
        {k: v for k, v in record.items() if k != "seconds" and v is not None} for record in history
    ]


def assert_same(a, b):
    """Same weights and same history, apart from the clock."""
    (flow_a, result_a), (flow_b, result_b) = a, b
    for (name, p), q in zip(
        flow_a.state_dict().items(), flow_b.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6, msg=name)
    one, two = without_times(result_a.history), without_times(result_b.history)
    assert len(one) == len(two)
    for x, y in zip(one, two, strict=True):
        assert x == pytest.approx(y, rel=1e-6)
    assert result_a.best == pytest.approx(result_b.best, rel=1e-6)
    assert result_a.best_step == result_b.best_step
    assert result_a.stopped == result_b.stopped


@pytest.fixture(scope="module")
def uninterrupted():
    return fit()


# -- the loop


def test_learns_and_reports(uninterrupted):
    flow, result = uninterrupted
    exact = Independent(Normal(torch.ones(2), 2 * torch.ones(2)), 1)
    x = Noisy(100, seed=1).x
    assert result.history[0]["valid_nats"] > result.best + 0.05
    assert -flow().log_prob(x).mean() < -exact.log_prob(x).mean() + 0.05
    assert result.best == min(record["valid_nats"] for record in result.history)
    assert -flow().log_prob(x).mean().item() == pytest.approx(result.best, abs=0.01)
    assert result.steps == 120
    assert result.epochs == 12
    assert [record["step"] for record in result.history] == [20, 40, 60, 80, 100, 120]
    assert result.stopped == "Reached max_epochs = 12."
    assert result.history[-1]["learning_rate"] < 1e-4
    assert flow.calls == 1
    assert not result.interrupted
    assert result.recoveries == []
    json.dumps(result.history)


def test_same_seed_same_result_other_seed_other(uninterrupted):
    assert_same(uninterrupted, fit())
    assert fit(seed=1)[1].best != uninterrupted[1].best


def test_callers_random_state_and_mode_are_left_alone():
    flow = toy().eval()
    before = torch.random.get_rng_state()
    fit(flow, max_epochs=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not flow.training
    assert all(p.requires_grad for p in flow.parameters())


def test_context_reaches_the_flow():
    class Pairs(Noisy):
        def batch(self, index, generator):
            x, _ = super().batch(index, generator)
            c = (index % 2).float()[:, None] * 2 - 1
            return x + 3 * c, c

    flow = toy()
    train(flow, Pairs(), Pairs(100, seed=1), settings(max_epochs=40), device="cpu")
    mean = flow(torch.tensor([[1.0], [-1.0]])).mean
    assert (mean[0] - mean[1]).min() > 4


def test_weight_decay_clip_and_bf16_run():
    for changes in ({"weight_decay": 0.1}, {"clip": None}, {"precision": "bf16"}, {"ema": 0.0}):
        assert math.isfinite(fit(max_epochs=2, **changes)[1].best)


# -- plan, sampler, average


def test_plan_spaces_evaluations():
    assert Plan.of(500, TrainingSettings(batch_size=64)).evaluate_every == 21  # whole epochs
    assert Plan.of(10**6, TrainingSettings(batch_size=256)).evaluate_every == 977  # within one
    assert Plan.of(10, TrainingSettings(batch_size=64)).batch_size == 10
    assert Plan.of(10**4, TrainingSettings(evaluate_every=7)).evaluate_every == 7


def test_each_epoch_takes_each_row_once_in_another_order():
    rows = Noisy(120)
    sampler = Sampler(rows, Plan.of(120, settings()), 0)
    epochs = [torch.cat([sampler.indices(3 * e + i) for i in range(3)]) for e in range(2)]
    assert all(sorted(e.tolist()) == list(range(120)) for e in epochs)
    assert not torch.equal(*epochs)
    shares = [Sampler(rows, Plan.of(120, settings()), 0, r, 2).indices(4) for r in range(2)]
    assert sorted(torch.cat(shares).tolist()) == sorted(sampler.indices(4).tolist())


def test_average_follows_the_weights():
    flow = toy()
    average = Average(flow)
    start = flow.net[0].weight.detach().clone()
    with torch.no_grad():
        flow.net[0].weight += 1.0
        flow.calls += 5
    average.update(0.9)
    torch.testing.assert_close(average.module.net[0].weight, start + 0.1)
    average.update(0.9)
    torch.testing.assert_close(average.module.net[0].weight, start + 0.19)
    assert average.module.calls == 5


# -- budgets and early stopping


def test_cuts_then_stops_early():
    kinds = []
    _, result = fit(
        max_epochs=400,
        patience=3,
        cuts=2,
        min_improvement=0.01,
        on_event=lambda event: kinds.append((event.kind, event.message)),
    )
    assert result.stopped == (
        "Stopped early: no improvement of the validation in 3 evaluations after 2 cuts of the "
        "learning rate."
    )
    assert result.steps < 4000
    assert [kind for kind, _ in kinds].count("cut") == 2
    rates = [record["learning_rate"] for record in result.history]
    assert rates[-1] < 0.1 * rates[1]


def test_a_cut_goes_back_to_the_best_weights():
    flow = toy()
    best, seen = {}, []

    def watch(event):
        if event.kind == "cut":
            seen.append((copy.deepcopy(flow.state_dict()), event.best))

    rows = Noisy()
    train(
        flow,
        rows,
        Noisy(100, seed=1),
        settings(max_epochs=60, patience=2, cuts=1, min_improvement=0.02, ema=0.0),
        device="cpu",
        on_event=watch,
    )
    assert len(seen) == 1
    best, nats = seen[0]
    other = toy()
    other.load_state_dict(best)
    x, _ = Noisy(100, seed=1).batch(torch.arange(100), seeded(0, "validation", 0))
    assert -other().log_prob(x).mean().item() == pytest.approx(nats, abs=1e-5)


def test_minutes_are_kept():
    fit(max_epochs=1)  # what is imported at the first fit of a process counts as well
    begun = time.perf_counter()
    _, result = fit(max_epochs=10**6, minutes=1 / 60, patience=0)
    assert time.perf_counter() - begun < 3
    assert 0.7 < result.seconds < 1.3
    assert result.stopped == "Used up its time budget (minutes=0.0167)."
    assert result.history[-1]["learning_rate"] < 2e-3  # the cosine went by the clock


class Clock:
    """Time that only passes where a test says so."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Timed(Noisy):
    """Rows whose batches take time: 2 s each, or what is given by the number of rows."""

    def __init__(self, clock, n=400, seed=0, seconds=2.0):
        super().__init__(n, seed)
        self.clock, self.seconds = clock, seconds

    def batch(self, index, generator):
        self.clock.now += self.seconds
        return super().batch(index, generator)


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    for module in (clock_module, loop, keeper, events):
        monkeypatch.setattr(module, "time", found)
    return found


def timed(clock, setting_up=0.0, step=2.0, validation=2.0, later=None, **changes):
    class Slow(Toy):
        def initialize(self, x, c=None):
            clock.now += setting_up

    flow = Slow()
    rows, valid = Timed(clock, seconds=step), Timed(clock, 1600, seed=1, seconds=validation)

    def watch(event):
        if later and event.kind == "evaluation":
            valid.seconds = later

    chosen = settings(max_epochs=100, patience=0, **changes)  # 1,600 rows: 10 batches
    result = train(flow, rows, valid, chosen, device="cpu", on_event=watch)
    return result, clock.now


def test_minutes_are_kept_by_slow_steps_and_evaluations(clock):
    """Setting up counts; no step and no evaluation is begun for which there is no time."""
    result, seconds = timed(clock, setting_up=30.0, minutes=2.0)
    # 2 + 30 for the start, 40 for 20 steps, 20 for an evaluation, 6 for 3 steps, 20 again
    assert [record["step"] for record in result.history] == [20, 23]
    assert seconds == 118.0

    clock.now = 0.0  # there is never time for one evaluation: as much of it as there is
    result, seconds = timed(clock, validation=10.0, minutes=1.0)
    assert [record["step"] for record in result.history] == [20]
    assert seconds == 62.0
    assert result.stopped == (
        "Used up its time budget (minutes=1). There was time to validate 320 of 1,600 rows only."
    )

    clock.now = 0.0  # the second took longer than expected: not compared with the first
    result, seconds = timed(clock, minutes=1.5, later=6.0)
    assert [record["step"] for record in result.history] == [20]
    assert seconds == 92.0
    assert result.stopped.endswith("There was no time for the last evaluation.")

    clock.now = 0.0
    result, seconds = timed(clock, step=100.0, minutes=1.0)  # one batch is longer than it all
    assert result.steps == 0
    assert seconds == 202.0
    assert math.isfinite(result.best)


# -- resuming


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [20, 60, 100])
def test_resumes_exactly_after_an_exception(tmp_path, uninterrupted, at):
    def stop(event):
        if event.kind == "evaluation" and event.step == at:
            raise Stop

    with pytest.raises(Stop):
        fit(checkpoint=tmp_path / "ck", on_event=stop)
    resumed = fit(checkpoint=tmp_path / "ck", resume=True)
    assert resumed[1].resumed_at == at
    assert_same(uninterrupted, resumed)


def test_resumes_exactly_through_cuts_and_recoveries(tmp_path):
    given = {"max_epochs": 60, "patience": 2, "cuts": 2, "min_improvement": 0.02}
    whole = fit(rows=Noisy(spoil={33}), **given)
    assert len(whole[1].recoveries) == 1

    class Cut(Stop):
        pass

    def stop(event):
        if event.kind == "cut":
            raise Cut

    folder = tmp_path / "ck"
    with pytest.raises(Cut):
        # with a checkpoint, the fingerprint takes one batch more
        fit(rows=Noisy(spoil={34}), checkpoint=folder, on_event=stop, **given)
    resumed = fit(checkpoint=folder, resume=True, **given)
    assert_same(whole, resumed)
    assert resumed[1].recoveries == whole[1].recoveries


def test_the_start_is_the_first_candidate():
    flow = fit()[0]
    before = copy.deepcopy(flow.state_dict())
    worse = {"learning_rate": 1.0, "max_epochs": 2, "evaluate_start": True}
    told = []
    flow, result = fit(flow, on_event=told.append, **worse)
    first = result.history[0]
    assert (first["step"], first["epoch"], first["train_nats"]) == (0, 0, None)
    assert [record["step"] for record in result.history] == [0, 20]
    assert (result.best, result.best_step) == (first["valid_nats"], 0)
    assert [event.record for event in told if event.kind == "evaluation"] == result.history
    for name in ("net.0.weight", "net.2.bias"):
        assert torch.equal(flow.state_dict()[name], before[name])
    assert [record["step"] for record in fit(max_epochs=2)[1].history] == [20]


def test_a_start_that_is_not_finite_is_no_candidate():
    valid = Noisy(100, seed=1, spoil={1})
    chosen = settings(max_epochs=2, evaluate_start=True)
    result = train(toy(), Noisy(), valid, chosen, device="cpu")
    assert [record["step"] for record in result.history] == [20]
    assert result.recoveries == []


@pytest.mark.parametrize("at", [20, 60])
def test_resumes_exactly_from_an_evaluated_start(tmp_path, at):
    def stop(event):
        if event.kind == "evaluation" and event.step == at:
            raise Stop

    whole = fit(evaluate_start=True)
    with pytest.raises(Stop):
        fit(checkpoint=tmp_path / "ck", on_event=stop, evaluate_start=True)
    resumed = fit(checkpoint=tmp_path / "ck", resume=True, evaluate_start=True)
    assert resumed[1].resumed_at == at
    assert_same(whole, resumed)


def test_a_finished_run_resumes_to_its_result(tmp_path, uninterrupted):
    fit(checkpoint=tmp_path / "ck")
    rows = Noisy()
    again = fit(rows=rows, checkpoint=tmp_path / "ck", resume=True)
    assert_same(uninterrupted, again)
    assert rows.calls == 1  # the fingerprint: nothing was trained


def test_without_resume_an_old_checkpoint_goes(tmp_path):
    fit(checkpoint=tmp_path / "ck", max_epochs=2)
    with pytest.raises(Stop):
        fit(checkpoint=tmp_path / "ck", on_event=_raise_at_start)
    assert not has_checkpoint(tmp_path / "ck")
    told = []
    fit(checkpoint=tmp_path / "ck", max_epochs=2, resume=True, on_event=told.append)
    assert told[0].message == "No checkpoint to resume from: starting from step 0."
    remove_checkpoint(tmp_path / "ck")
    assert not (tmp_path / "ck").exists()


def _raise_at_start(event):
    raise Stop


def test_a_full_disk_at_a_checkpoint(tmp_path, uninterrupted, monkeypatch):
    """It is said once, training goes on, and the checkpoint before can be resumed from."""
    from safetensors import SafetensorError
    from safetensors import torch as files

    save, calls, told = files.save_file, [], []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) in (3, 4):
            Path(path).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        if len(calls) in (6, 7):
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata)
        if len(calls) == 5:
            kept.append((folder / FILE).read_bytes())

    folder, kept = tmp_path / "ck", []
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        with pytest.raises(Stop):
            fit(checkpoint=folder, on_event=lambda e: told.append(e) or _stop_at(80)(e))
    assert [e.step for e in told if e.kind == "checkpoint"] == [20, 40]
    assert [e.message for e in told if e.kind == "unsaved"] == [
        f"The checkpoint of step 60 could not be written to {folder} (I/O error: No space left on "
        "device (os error 28)): training goes on, with that of step 40 to resume from."
    ]
    assert {path.name for path in folder.iterdir()} == {FILE}
    resumed = fit(checkpoint=folder, resume=True)
    assert resumed[1].resumed_at == 40
    assert_same(uninterrupted, resumed)

    calls[:] = [None] * 5
    told.clear()
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full)
        _, result = fit(checkpoint=tmp_path / "other", on_event=told.append)
    assert_same(uninterrupted, (uninterrupted[0], result))
    assert [e.step for e in told if e.kind == "unsaved"] == [20]
    assert "with none so far to resume from" in next(e.message for e in told if e.message)


def _stop_at(step):
    def stop(event):
        if event.kind == "evaluation" and event.step == step:
            raise Stop

    return stop


def test_two_runs_never_share_a_checkpoint(tmp_path):
    folder = tmp_path / "deep" / "ck"

    def second(event):
        if event.step == 40 and event.kind == "evaluation":
            with pytest.raises(LockedError, match=f"Another fit is writing to {folder}: wait"):
                fit(checkpoint=folder, resume=True)
            raise Stop

    with pytest.raises(Stop):
        fit(checkpoint=folder, on_event=second)
    assert fit(checkpoint=folder, resume=True)[1].resumed_at == 40

    def fail(event):
        raise Stop

    with pytest.raises(Stop):
        fit(checkpoint=tmp_path / "a" / "b", on_event=fail)
    assert not (tmp_path / "a").exists()  # nothing is left where nothing was written


def test_half_written_checkpoint_is_ignored(tmp_path, uninterrupted):
    folder = tmp_path / "ck"
    with pytest.raises(Stop):
        fit(checkpoint=folder, on_event=_stop_at_60)
    whole = (folder / FILE).read_bytes()
    (folder / PARTIAL).write_bytes(whole[: len(whole) // 2])
    assert_same(uninterrupted, fit(checkpoint=folder, resume=True))
    assert not (folder / PARTIAL).exists()


def _stop_at_60(event):
    if event.kind == "evaluation" and event.step == 60:
        raise Stop


def test_wrong_checkpoints_are_refused(tmp_path):
    folder = tmp_path / "ck"
    fit(checkpoint=folder, max_epochs=2)
    given = {"checkpoint": folder, "resume": True, "max_epochs": 2}

    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.02 and is 0\.5\. .*same arg"):
        fit(learning_rate=0.5, **given)
    with pytest.raises(CheckpointError, match=r"count of the training rows was 400 and is 399"):
        fit(rows=Noisy(399), **given)
    with pytest.raises(CheckpointError, match=r"values of the training rows has other values\."):
        fit(rows=Noisy(400, seed=7), **given)
    with pytest.raises(CheckpointError, match=r"of shape \(8, 1\), this flow of \(9, 1\)"):
        fit(Toy(hidden=9), **given)
    extra = toy()
    extra.more = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"has no 'weights/more\.weight'"):
        fit(extra, **given)
    fit(checkpoint_seconds=3.0, **given)  # changes nothing in the result: allowed

    whole = (folder / FILE).read_bytes()
    for broken in (b"", whole[:100], whole[: len(whole) // 2], b"\x00" * 200, b"junk" * 99):
        (folder / FILE).write_bytes(broken)
        with pytest.raises(CheckpointError, match="is damaged: delete it, or start again without"):
            fit(**given)
    _rewrite(folder, whole, lambda head: head["counters"].update(step="many"))
    with pytest.raises(CheckpointError, match="is damaged"):
        fit(**given)
    for version in (1, 99):
        _rewrite(folder, whole, lambda _: None, version=version)
        with pytest.raises(
            CheckpointError, match=f"has version {version}, this quarflow reads ver"
        ):
            fit(**given)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    folder = tmp_path / "ck"
    fit(checkpoint=folder, max_epochs=2)
    whole = (folder / FILE).read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(10, head, 97), *range(head, len(whole), 397)]:
        (folder / FILE).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            fit(checkpoint=folder, resume=True, max_epochs=2)


def _rewrite(folder, whole, change, **metadata):
    """Change the JSON inside the safetensors header, as a hand that knows the digest would."""
    from safetensors.torch import load, save_file

    length = int.from_bytes(whole[:8], "little")
    found = json.loads(json.loads(whole[8 : 8 + length])["__metadata__"]["quarflow"])
    head, tensors = json.loads(found["head"]), load(whole)
    change(head)
    text = json.dumps(head)
    found |= {"head": text, "digest": checkpoint._digest(text, tensors), **metadata}
    save_file(tensors, folder / FILE, metadata={"quarflow": json.dumps(found)})


# -- values that are not finite


def test_recovers_from_nan_at_half_the_rate():
    told = []
    flow, result = fit(rows=Noisy(spoil={50}), on_event=told.append)
    assert len(result.recoveries) == 1
    assert result.recoveries[0] == (
        "At step 49 the loss or its gradient was not finite: back to the state of step 40, going "
        "on at half the learning rate."
    )
    assert any(event.kind == "recovery" for event in told)
    assert math.isfinite(result.best)
    assert all(torch.isfinite(p).all() for p in flow.parameters())
    rates = [record["learning_rate"] for record in result.history]
    plain = [record["learning_rate"] for record in fit()[1].history]
    assert rates[0] == pytest.approx(plain[0])
    assert rates[-1] == pytest.approx(plain[-1] / 2)


def test_gives_up_after_three_steps_back():
    flow = toy()
    with pytest.raises(TrainingError, match=r"after 3 steps back.*Try a lower learning_rate"):
        fit(flow, rows=Noisy(spoil=range(50, 10**6)))
    assert all(torch.isfinite(p).all() for p in flow.parameters())  # the best so far


def test_validation_rows_that_are_not_finite():
    class Bad(Noisy):
        def batch(self, index, generator):
            x, c = super().batch(index, generator)
            return x.where(index[:, None] != 3, math.inf), c

    with pytest.raises(TrainingError, match="log-probability of 1 of 100 validation rows"):
        train(toy(), Noisy(), Bad(100), settings(), device="cpu")


# -- arguments


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"learning_rate": math.nan},
        {"minutes": -1},
        {"ema": 1.0},
        {"precision": "fp8"},
        {"seed": True},
        {"clip": 0},
    ],
)
def test_settings_name_the_wrong_value(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        settings(**wrong)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="device must be 'auto', 'cpu' or 'cuda', got 'tpu'"):
        fit(device="tpu")
    with pytest.raises(ValueError, match="resume needs checkpoint"):
        fit(resume=True)
    with pytest.raises(ValueError, match="train_rows is empty"):
        fit(rows=Noisy(0))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no CUDA device"):
            choose_device("cuda")


def test_accelerates_state_is_left_as_it_was():
    from accelerate.state import AcceleratorState, PartialState

    with accelerator_on("cpu", "bf16") as accelerator:
        before = dict(AcceleratorState._shared_state)
        fit(max_epochs=1)
        assert AcceleratorState._shared_state == before
        assert accelerator.mixed_precision == "bf16"
    assert PartialState._shared_state == {}


def test_progress_is_plain_without_a_terminal(uninterrupted):
    import io

    from rich.console import Console

    for terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120)
        with TrainingProgress(console=console) as progress:
            fit(on_event=progress)
        if not terminal:
            lines = out.getvalue().splitlines()
            assert len(lines) == len(uninterrupted[1].history) + 1
            assert "validation" in lines[0]
            assert "rows/s" in lines[0]
        assert "Reached max_epochs = 12." in out.getvalue()


# -- signals and processes, for real


def run_script(tmp_path, text, launch=()):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import json, os, signal, torch\nfrom test_training import *\n" + text
    )
    command = [sys.executable, *launch, str(script), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_kill_9_in_the_middle_then_resume(tmp_path, uninterrupted):
    done = run_script(
        tmp_path,
        "def act(call):\n"
        "    if call == 75: os.kill(os.getpid(), signal.SIGKILL)\n"
        "fit(rows=Noisy(act=act), checkpoint=sys.argv[1] + '/ck')\n",
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = fit(checkpoint=tmp_path / "ck", resume=True)
    assert resumed[1].resumed_at == 60
    assert_same(uninterrupted, resumed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_the_run_goes_on_exactly(tmp_path, uninterrupted, number):
    before = signal.getsignal(number)

    def act(call):
        if call == 75:
            signal.raise_signal(number)

    # the same process receives it: handlers are those of train, in the main thread
    with StopSignals(deliver=False) as signals:
        _, result = fit(rows=Noisy(act=act), checkpoint=tmp_path / "ck")
    assert signals.received == number.name
    assert result.interrupted
    assert signal.getsignal(number) is before
    assert result.stopped.startswith(f"Interrupted by {number.name} at step 73")
    assert result.history[-1]["step"] == 73
    resumed = fit(checkpoint=tmp_path / "ck", resume=True)
    assert resumed[1].resumed_at == 73
    assert_same(uninterrupted, resumed)


@pytest.mark.parametrize("seconds", [0.1, 2.0])
def test_after_a_signal_a_long_evaluation_is_left_out(tmp_path, clock, seconds):
    """Where the weights of an earlier one are kept, and the checkpoint has the rest."""
    rows = Timed(clock)
    valid = Timed(clock, 1600, seed=1, seconds=seconds)  # 10 batches: 1 or 20 seconds
    chosen = settings(max_epochs=4, evaluate_every=10)

    def run(call, **given):
        rows.calls, rows.act = 0, lambda n: n == call and signal.raise_signal(signal.SIGINT)
        flow = toy()
        with StopSignals(deliver=False):
            return flow, train(flow, rows, valid, chosen, device="cpu", **given)

    whole = run(None)
    flow, result = run(25, checkpoint=tmp_path / "ck")
    at = result.steps
    assert 20 < at < 30
    assert result.interrupted
    steps = [record["step"] for record in result.history]
    assert steps == ([10, 20, at] if seconds < 1 else [10, 20])
    assert torch.isfinite(flow(None).log_prob(rows.x)).all()
    assert_same(whole, run(None, checkpoint=tmp_path / "ck", resume=True))

    _, without = run(25)  # a checkpoint, and the steps would be lost
    assert without.history[-1]["step"] == without.steps
    _, early = run(5, checkpoint=tmp_path / "other")  # there is nothing to keep yet
    assert [record["step"] for record in early.history] == [early.steps]


def test_ctrl_c_from_outside_and_a_second_one_raises(tmp_path):
    done = run_script(
        tmp_path,
        "import threading, time\n"
        "class Slow(Noisy):\n"
        "    def batch(self, index, generator):\n"
        "        time.sleep(0.01); return super().batch(index, generator)\n"
        "def press(event):\n"
        "    if event.kind == 'start':\n"
        "        kill = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "        threading.Timer(0.3, kill).start()\n"
        "with StopSignals(deliver=False):\n"
        "    result = fit(rows=Slow(), max_epochs=1000, patience=0, on_event=press)[1]\n"
        "print(result.interrupted, result.steps > 5, len(result.history) > 0)\n"
        "def twice(call):\n"
        "    if call == 30: [signal.raise_signal(signal.SIGINT) for _ in range(2)]\n"
        "told = []\n"
        "try: fit(rows=Noisy(act=twice), on_event=lambda event: told.append(event.kind))\n"
        "except KeyboardInterrupt: print('raised', 'interrupt' not in told)\n",
    )
    assert done.stdout.split() == ["True", "True", "True", "raised", "True"], done.stderr


def test_a_signal_goes_on_to_where_it_would_have_gone(tmp_path):
    """Once the best weights are kept: KeyboardInterrupt, the end of the process, own handlers."""

    def press(*numbers):
        return Noisy(act=lambda call: call == 75 and [signal.raise_signal(n) for n in numbers])

    flow, told = toy(), []
    with pytest.raises(KeyboardInterrupt):
        fit(flow, rows=press(signal.SIGINT), checkpoint=tmp_path / "ck", on_event=told.append)
    assert told[-1].kind == "end"
    x, _ = Noisy(100, seed=1).batch(torch.arange(100), seeded(0, "validation", 0))
    assert -flow().log_prob(x).mean().item() == pytest.approx(told[-1].best, abs=1e-5)
    assert has_checkpoint(tmp_path / "ck")

    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        _, result = fit(rows=press(signal.SIGTERM))
        assert result.interrupted
        assert seen == [signal.SIGTERM]
        _, result = fit(rows=press(signal.SIGTERM, signal.SIGTERM))
        assert result.interrupted
        assert seen == [signal.SIGTERM] * 3  # the second at once, the first in the end
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _, result = fit(rows=press(signal.SIGTERM))
        assert not result.interrupted
    finally:
        signal.signal(signal.SIGTERM, previous)

    done = run_script(
        tmp_path,
        "def act(call):\n"
        "    if call == 75: signal.raise_signal(signal.SIGTERM)\n"
        "fit(rows=Noisy(act=act), checkpoint=sys.argv[1] + '/own')\n"
        "print('went on')\n",
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stdout == ""
    resumed = fit(checkpoint=tmp_path / "own", resume=True)
    assert resumed[1].resumed_at == 73


# Printed when all that the fits left to be done at the end of the process has been done.
AT_THE_END = """
import atexit
from torch import distributed
def threads():
    return [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]  # on Linux
def left():
    return distributed.is_initialized(), sum("gloo" in name for name in threads())
atexit.register(lambda: Path(f"{sys.argv[1]}/left{os.environ['RANK']}").write_text(str(left())))
"""


def test_two_processes_share_the_batches(tmp_path, uninterrupted):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = run_script(
        tmp_path,
        AT_THE_END + "fit(max_epochs=1)\n"  # leaves the group to the next one
        "told = []\n"
        "flow, result = fit(checkpoint=sys.argv[1] + '/ck', on_event=told.append)\n"
        "rank = os.environ['RANK']\n"
        "torch.save((flow.state_dict(), result.history, len(told)), f'{sys.argv[1]}/{rank}.pt')\n",
        launch=(
            # what `accelerate launch` starts, too, except that it does so for GPUs only
            *("-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-addr", "127.0.0.1", "--master-port", str(port)),
        ),
    )
    assert done.returncode == 0, done.stderr
    (a, history, told), (b, other, silent) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert told > 5
    assert silent == 0
    assert without_times(history) == without_times(other)
    for name in a:
        assert torch.equal(a[name], b[name])
    # other noise, same rows: nearly the run of one process
    assert history[-1]["valid_nats"] == pytest.approx(uninterrupted[1].best, abs=0.02)
    assert has_checkpoint(tmp_path / "ck")
    # A thread that is late with its last message would otherwise abort the end of the process.
    assert [(tmp_path / f"left{rank}").read_text() for rank in range(2)] == ["(False, 0)"] * 2


def alone_in_a_group(monkeypatch):
    """As torchrun starts a single process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


def test_a_fit_that_fails_ends_its_group_too(tmp_path, monkeypatch):
    alone_in_a_group(monkeypatch)
    done = run_script(
        tmp_path,
        AT_THE_END + "def act(call):\n"
        "    if call == 20: raise OSError('no more rows')\n"
        "fit(rows=Noisy(act=act))\n",
    )
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: no more rows\n")
    assert (tmp_path / "left0").read_text() == "(False, 0)"


def test_a_group_of_the_callers_is_left_alone(monkeypatch):
    alone_in_a_group(monkeypatch)
    registered = []
    monkeypatch.setattr("atexit.register", lambda *given: registered.append(given))
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mine = distributed.group.WORLD
    try:
        _, result = fit(max_epochs=1)
        assert distributed.group.WORLD is mine
        assert not registered
    finally:
        distributed.destroy_process_group()
    assert result.steps == 10

    fit(max_epochs=1)
    fit(max_epochs=1)
    ((end, *given),) = registered
    distributed.destroy_process_group()  # as a careful script does
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        end(*given)
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()
    end(*given)
