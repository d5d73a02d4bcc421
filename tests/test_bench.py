"""The benchmark's machinery: counts, matching, processes, tables. No timing is asserted."""

import json
import time

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from quarflow import QuAR
from quarflow.cli import app
from quarflow.experiments.memory import Peak
from quarflow.experiments.speed.contestants import OURS, Contestant
from quarflow.experiments.speed.limit import matrix_rate, quar_operations
from quarflow.experiments.speed.matching import CannotMatch, existing_weights, match_width
from quarflow.experiments.speed.page import refresh
from quarflow.experiments.speed.pictures import draw
from quarflow.experiments.speed.plan import Plan, chosen
from quarflow.experiments.speed.processes import Failed, TimeUp, WorkerProcess
from quarflow.experiments.speed.rows import correlated_rows
from quarflow.experiments.speed.run import compare
from quarflow.experiments.speed.starts import start_seconds
from quarflow.experiments.speed.tables import all_tables, exponent, points

MODULE = "quarflow.experiments.speed.contestants"


def brute_force(features, units, transforms):
    """Multiply-adds of all pairs of units that are connected, twice."""
    count = 0
    layers = [1, *units, 1]
    for inputs, outputs, first in zip(
        layers, layers[1:], [True] + [False] * len(units), strict=False
    ):
        for i in range(features * outputs):
            for j in range(features * inputs):
                here, there = i // outputs, j // inputs
                count += there <= here  # the value
                count += there == here and not first  # the diagonal
    return 2 * transforms * count


class TestLimit:
    @pytest.mark.parametrize(("features", "units"), [(1, [4]), (3, [5, 2]), (6, [1, 3, 2])])
    def test_operations(self, features, units):
        counted = brute_force(features, units, transforms=3)
        assert quar_operations(features, units, transforms=3) == counted
        assert quar_operations(features, units, transforms=3, training=True) == 3 * counted

    def test_weights_agree_with_the_model(self):
        # A weight is one multiply-add of the value pass; biases and affine maps are none.
        flow = QuAR(5, transforms=2, hidden_features=(15, 10))
        weights = sum(
            layer.off_diagonal.numel() + layer.diagonal.numel() for layer in flow.branches.layers
        )
        diagonal = sum(layer.diagonal.numel() for layer in list(flow.branches.layers)[1:])
        assert quar_operations(5, (3, 2), transforms=2) == 2 * (weights + diagonal)

    def test_rate_is_a_rate(self):
        assert matrix_rate(seconds=0.01) > 1e8


class TestMatching:
    def test_masked_weights_do_not_exist(self):
        layer = nn.Linear(3, 2)
        layer.register_buffer("mask", torch.tensor([[1, 0, 1], [0, 0, 1]]))
        assert existing_weights(layer) == 3 + 2
        assert existing_weights(QuAR(3)) == sum(p.numel() for p in QuAR(3).parameters())

    def test_every_contestant_of_ours_matches(self):
        target = existing_weights(OURS[0].build(4, 16))
        for contestant in OURS:
            width, weights = match_width(lambda w, c=contestant: c.build(4, w), target)
            assert existing_weights(contestant.build(4, width)) == weights
            assert abs(weights / target - 1) <= 0.1

    def test_impossible(self):
        with pytest.raises(CannotMatch, match="1,000,003"):
            match_width(lambda w: nn.ParameterList([torch.ones(1_000_003)]), 100)


class TestRows:
    def test_seeded_correlated_and_finite(self):
        x = correlated_rows(2000, 9, seed=3)
        assert torch.equal(x, correlated_rows(2000, 9, seed=3))
        assert not torch.equal(x, correlated_rows(2000, 9, seed=4))
        assert x.isfinite().all()
        skewness = (x.double() ** 3).mean(0)
        assert skewness.abs().max() > 0.5
        assert torch.corrcoef(x.T).triu(1).abs().max() > 0.3


class TestMemory:
    def test_large_blocks_are_seen(self):
        def held(mebibytes):
            with Peak() as peak:
                block = torch.ones(mebibytes << 18)
            del block
            return peak.bytes

        if held(1) is None:
            pytest.skip("this system does not tell the peak")
        assert (180 << 20) < held(200) < (300 << 20)


class TestProcesses:
    @pytest.fixture
    def worker(self, tmp_path):
        worker = WorkerProcess(MODULE, 1, "cpu", tmp_path, 8.0)
        yield worker
        worker.stop()

    def test_errors_and_limits_leave_a_working_process(self, worker):
        told = {"model": "QuAR", "features": 2}
        with pytest.raises(Failed, match="KeyError"):
            worker.ask(60, do="match", **{**told, "model": "none"}, target=None)
        first = worker.ask(60, do="fit", **told, width=8, steps=2, seconds=60)
        with pytest.raises(TimeUp):
            worker.ask(0.01, do="time", model="QuAR", quantity="train", batch=4, calls=10_000)
        # A new process, which has the fitted model again.
        assert worker.ask(60, do="time", model="QuAR", quantity="train", batch=4, calls=1) > 0
        again = worker.ask(60, do="fit", **told, width=8, steps=2, seconds=60)
        assert again == first
        with pytest.raises(Failed, match="out of memory"):
            worker.ask(60, do="time", model="QuAR", quantity="train", batch=2**40, calls=1)
        worker._process.kill()
        with pytest.raises(Failed, match="ended with code"):
            worker.ask(60, do="hello")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Give the figures of a tiny comparison, with one library that is not there."""
    absent = Contestant("Nobody", "no_such_library", OURS[0].build)
    plan = Plan(
        features=(2, 3),
        batches=(1, 8),
        rounds=2,
        seconds=1e-4,
        fit_steps=2,
        start_rounds=0,
        threads=1,
    )
    path = tmp_path_factory.mktemp("bench") / "figures.json"
    found = compare([*chosen(OURS), absent], plan, module=MODULE, output=path, say=lambda _: None)
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    return json.loads(path.read_text())


class TestCompare:
    def test_fields(self, results):
        assert results["left_out"] == ["Nobody: no_such_library is not installed"]
        assert {"torch", "quarflow"} <= set(results["versions"])
        assert results["machine"]["cores"] >= 1
        assert results["settings"]["features"] == [2, 3]
        for entry in results["models"]:
            assert entry["fit"]["steps"] == 2
            assert entry["weights"] > 0
        for case in results["cases"]:
            assert case["calls"] >= 1
            assert len(case["values"]) == 2
        measured = {
            (c["model"], c["quantity"], c["features"], c["batch"]) for c in results["cases"]
        }
        for model in ("QuAR", "ResidualFlow", "QuAR (k = 2)"):
            for features in (2, 3):
                assert (model, "load", features, 0) in measured
                for quantity in ("train", "log_prob", "sample", "sample (default)", "memory"):
                    assert (model, quantity, features, 1) in measured
                    assert (model, quantity, features, 8) in measured

    def test_weights_are_matched(self, results):
        for features in (2, 3):
            weights = {
                e["model"]: e["weights"] for e in results["models"] if e["features"] == features
            }
            assert abs(weights["ResidualFlow"] / weights["QuAR"] - 1) <= 0.1

    def test_tables_and_page(self, results, tmp_path):
        for wide in (False, True):
            tables = all_tables(results, wide)
            assert all(len(row) == len(t.head) for t in tables for row in t.rows)
            titles = [table.title for table in tables]
            assert "Training step" in titles
            assert "How near the machine's limit" in titles
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- results speed -->\nold\n<!-- end -->\nafter\n")
        refresh(page, results)
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "no_such_library is not installed" in text
        refresh(page, results)
        assert page.read_text() == text
        page.write_text("no marks")
        with pytest.raises(ValueError, match=r"page\.md has no block"):
            refresh(page, results)

    def test_pictures(self, results, tmp_path):
        assert [path.name for path in draw(results, tmp_path)] == [
            "speed-features.png",
            "speed-batch.png",
        ]

    def test_exponent_of_points(self, results):
        line = points(results, "QuAR", "train", "batch", 2)
        assert sorted(line) == [1, 8]
        assert exponent({x: 3 * x**1.5 for x in line}) == pytest.approx(1.5)

    def test_what_is_too_slow_is_said(self, tmp_path):
        plan = Plan(
            features=(2,),
            batches=(1, 4),
            quantities=("log_prob",),
            limit=1e-4,
            fit_steps=1,
            start_rounds=0,
            threads=1,
        )
        found = compare(chosen(OURS, ["QuAR"]), plan, say=lambda _: None)
        assert found["left_out"] == [
            "QuAR, log_prob, D = 2, batch 1: over 0.0001 s",
            "QuAR, log_prob, D = 2, batch 4: it took too long at D = 2, batch 1 already",
        ]
        assert [case["values"] for case in found["cases"]] == [[]]
        assert all_tables(found)

    def test_budget(self):
        begun = time.perf_counter()
        plan = Plan(features=(2, 3), budget=0.0, start_rounds=0, threads=1)
        found = compare(chosen(OURS, ["QuAR"]), plan, say=lambda _: None)
        assert not found["cases"]
        assert len(found["left_out"]) == 2
        assert time.perf_counter() - begun < 120

    def test_refusals(self):
        with pytest.raises(ValueError, match="must include 'QuAR'"):
            compare([OURS[1]], Plan())
        with pytest.raises(ValueError, match="no model 'MAF'"):
            chosen(OURS, ["MAF"])
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            start_seconds({"wrong": "1 / 0"}, rounds=1)


class TestCommand:
    def test_writes_figures(self, tmp_path, monkeypatch):
        from quarflow.experiments.speed import plan

        monkeypatch.setattr(
            plan,
            "QUICK",
            {
                "features": (2,),
                "batches": (2,),
                "quantities": ("log_prob",),
                "rounds": 1,
                "fit_steps": 1,
                "start_rounds": 0,
                "seconds": 0.001,
            },
        )
        path = tmp_path / "bench.json"
        arguments = ["bench", "--quick", "--threads", "1", "-o", str(path)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "log_prob" in result.output
        assert len(json.loads(path.read_text())["cases"]) == 2

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["-o", "figures.txt"], ".json"),
            (["--features", "2,x"], "--features takes whole numbers"),
            (["--device", "abacus"], "--device"),
        ],
    )
    def test_refusals(self, arguments, told):
        result = CliRunner().invoke(app, ["bench", *arguments])
        assert result.exit_code == 2
        assert told in result.stderr
