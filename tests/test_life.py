"""The whole life of a model: fitted, killed, resumed, perhaps with changes, saved, moved, loaded.

Whatever comes, in whatever order: a number is that of the fit which was never cut off, to the
last bit, or there is a refusal that names what is another.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    rule,
)

import quarflow.density.table_fit as estimator_module
from quarflow import QuARDensity
from quarflow.training import CheckpointError, has_checkpoint, loop

ROWS = 200
ARGUMENTS = {
    "transforms": 1,
    "hidden_features": (8,),
    "batch_size": 60,
    "learning_rate": 1e-2,
    "max_epochs": 20,
    "patience": 0,
    "ema": 0.9,
    "weight_decay": 0.1,
    "random_state": 0,
}
LAST = 60  # steps of the whole fit: 3 an epoch; evaluations and checkpoints every 7


def table():
    """Three columns, whole numbers and a heavy tail among them, and one to condition on."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ROWS, 4))
    values[:, 1] = np.round(3 * values[:, 1])
    values[:, 2] = np.exp(3 * values[:, 2])
    return pl.DataFrame(values, schema=["a", "b", "c", "given"])


TABLE = table()
FRESH = TABLE[:20] + 1.0


def swapped(frame):
    return frame.select(pl.col("b").alias("a"), pl.col("a").alias("b"), "c", "given")


def with_value(row, column, by):
    def change(frame):
        values = frame[column].to_numpy().copy()
        values[row] += by
        return frame.with_columns(pl.Series(column, values))

    return change


# What is another fit: arguments, or the rows; and what the refusal has to name.
CHANGED_ARGUMENTS = {
    "transforms": (2, "transforms was 1 and is 2"),
    "hidden_features": ((12,), "hidden_features was .8. and is .12."),
    "norm": ("operator", "norm was 'dimension' and is 'operator'"),
    "order": ("fixed", "order was 'alternate' and is 'fixed'"),
    "activation": ("elu", "activation was 'sin' and is 'elu'"),
    "sigma": (0.5, "sigma was 0.97 and is 0.5"),
    "mix": ("lu", "mix was 'none' and is 'lu'"),
    "base": ("student-t", "base was 'normal' and is 'student-t'"),
    "bounds": ({"c": (-1.0, None)}, "bounds was None and is {'c': .-1.0, None.}"),
    "discrete": ("none", "discrete was 'auto' and is 'none'"),
    "tails": ("none", "tails was 'auto' and is 'none'"),
    "validation_fraction": (0.2, "validation_fraction was 0.1 and is 0.2"),
    "batch_size": (50, "batch_size was 60 and is 50"),
    "learning_rate": (2e-2, "learning_rate was 0.01 and is 0.02"),
    "max_epochs": (21, "max_epochs was 20 and is 21"),
    "minutes": (5.0, "minutes was None and is 5.0"),
    "patience": (3, "patience was 0 and is 3"),
    "ema": (0.5, "ema was 0.9 and is 0.5"),
    "clip": (1.0, "clip was 5.0 and is 1.0"),
    "weight_decay": (0.0, "weight_decay was 0.1 and is 0.0"),
    "random_state": (1, "seed was [0-9]+ and is [0-9]+"),
}
CHANGED_ROWS = {
    "columns in another order": (
        lambda frame: frame.select("c", "b", "a", "given"),
        r"columns was \['a', 'b', 'c'\] and is \['c', 'b', 'a'\]",
    ),
    "a column renamed": (lambda frame: frame.rename({"a": "z"}), r"columns was .* and is \['z'"),
    "values of two columns swapped": (swapped, "column 'a' of the training rows has other values"),
    "the context renamed": (lambda frame: frame.rename({"given": "x"}), "context columns was"),
    "rows in another order": (
        lambda frame: frame.reverse(),
        "column 'a' of the (training|validation) rows has other values",
    ),
    "one row less": (lambda frame: frame[:-1], "count of the training rows was 180 and is 179"),
    "one value, the least bit": (
        with_value(7, "a", 1e-15),
        "column 'a' of the (training|validation) rows has other values",
    ),
    "one value of the context": (
        with_value(7, "given", 1.0),
        "context column 'given' of the (training|validation) rows has other values",
    ),
}
CHANGES = [
    *((name, None) for name in CHANGED_ARGUMENTS),
    *((None, name) for name in CHANGED_ROWS),
]


class Killed(BaseException):
    """Stands for the end of the process at a step: nothing catches it."""


def fit(checkpoint, resume=False, kill_at=None, changes=None, frame=TABLE):
    """Fit with checkpoints at each evaluation; die at the start of a step if so asked."""
    step, build = loop._Run.step, estimator_module.build_settings

    def dying(self):
        if self.counters.step == kill_at:
            raise Killed
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "step", dying)
        patch.setattr(
            estimator_module,
            "build_settings",
            lambda *given: replace(build(*given), checkpoint_seconds=0.0, evaluate_every=7),
        )
        density = QuARDensity(
            **{**ARGUMENTS, **(changes or {})}, checkpoint=checkpoint, resume=resume
        )
        context = frame.select(frame.columns[3:])
        return density.fit(frame.select(frame.columns[:3]), context=context)


def scores(density, frame=FRESH):
    context = frame.select("given")
    return density.score_samples(frame.select("a", "b", "c"), context=context).tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The fit that is never cut off, and one that was, after two checkpoints."""
    folder = tmp_path_factory.mktemp("life")
    density = fit(folder / "whole")
    with pytest.raises(Killed):
        fit(folder / "cut", kill_at=20)
    return density, folder / "cut"


def resume_changed(checkpoint, argument, rows):
    """Resume with one change: there must be a refusal that names it, and nothing else changes."""
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    value, told = CHANGED_ARGUMENTS[argument] if argument else (None, CHANGED_ROWS[rows][1])
    frame = TABLE if argument else CHANGED_ROWS[rows][0](TABLE)
    with pytest.raises(CheckpointError, match=told) as caught:
        fit(checkpoint, True, changes={argument: value} if argument else None, frame=frame)
    assert "or start again without resume" in str(caught.value)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


@pytest.mark.parametrize(("argument", "rows"), CHANGES)
def test_each_change_is_refused_by_name(whole, argument, rows):
    resume_changed(whole[1], argument, rows)


def test_the_same_fit_goes_on(whole, tmp_path):
    checkpoint = shutil.copytree(whole[1], tmp_path / "ck")
    density = fit(checkpoint, resume=True)
    assert scores(density) == scores(whole[0])
    assert density.metrics_["valid_nats"] == whole[0].metrics_["valid_nats"]


@pytest.fixture(scope="module")
def expected(whole):
    return scores(whole[0]), whole[0].metrics_["valid_nats"]


def test_life(expected):
    """Checkpoints, fitted densities and saved models, put through everything in any order."""

    class Life(RuleBasedStateMachine):
        runs = Bundle("runs")  # folders of checkpoints
        densities = Bundle("densities")
        models = Bundle("models")

        @initialize()
        def begin(self):
            self.home = Path(tempfile.mkdtemp())
            self.made = 0

        def teardown(self):
            shutil.rmtree(self.home)

        def place(self):
            self.made += 1
            return self.home / str(self.made)

        @rule(target=runs, step=st.sampled_from([0, 3, 7, 8, 30, LAST - 1]))
        def start_and_kill(self, step):
            place = self.place()
            with pytest.raises(Killed):
                fit(place, kill_at=step)
            assert has_checkpoint(place) == (step >= 7)
            return place

        @rule(run=runs, step=st.sampled_from([7, 15, 31, LAST - 1]))
        def resume_and_kill(self, run, step):
            try:
                density = fit(run, resume=True, kill_at=step)
            except Killed:
                return
            self.check(density)

        @rule(target=densities, run=runs)
        def resume(self, run):
            return self.check(fit(run, resume=True))

        @rule(run=runs, change=st.sampled_from(CHANGES))
        def resume_with_a_change(self, run, change):
            if has_checkpoint(run):
                resume_changed(run, *change)

        @rule(target=models, density=densities)
        def save(self, density):
            place = self.place()
            density.save(place)
            return place

        @rule(model=models, density=densities)
        def save_over(self, model, density):
            density.save(model)

        @rule(target=models, model=consumes(models))
        def move_model(self, model):
            return model.rename(self.place())

        @rule(target=runs, run=consumes(runs))
        def move_run(self, run):
            place = self.place()
            return run.rename(place) if run.exists() else place

        @rule(target=densities, model=models)
        def load(self, model):
            return self.check(QuARDensity.load(model))

        def check(self, density):
            assert (scores(density), density.metrics_["valid_nats"]) == expected
            return density

    Life.TestCase.settings = settings(max_examples=6, stateful_step_count=12)
    Life.TestCase().runTest()
