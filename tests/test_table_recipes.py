"""Tables 1 and 2 at toy sizes: what they write, resume, refuse; settings as in the paper."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from quarflow.cli import app
from quarflow.data import load_set
from quarflow.density.image import ImageDensity
from quarflow.density.image_fit import make_flow, parameter_counts
from quarflow.experiments.paper import budget, image_settings, measure
from quarflow.experiments.paper import table1 as one
from quarflow.experiments.paper import table2 as two
from quarflow.experiments.paper.image_settings import recipe_for
from quarflow.experiments.paper.run import RecipeError
from quarflow.experiments.timing import in_turn
from quarflow.report.image_grid import grid_array

TINY = {"scales": 2, "transforms": 1, "hidden_channels": 4}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(image_settings, "BEST_DIGITS", TINY)
    monkeypatch.setattr(one, "SAMPLES", 6)
    monkeypatch.setattr(one, "load_set", lambda *a: load_set(*a).pick(slice(300)))


def run(folder, **changes):
    arguments = {"models": ("quar", "residual"), "epochs": 1, "test_images": 40, "draws": 1}
    return one.table1(folder, "digits", quiet=True, device="cpu", **{**arguments, **changes})


def test_table1_writes_numbers_pictures_and_models(tiny, tmp_path):
    folder = tmp_path / "t"
    numbers = run(folder)
    written = json.loads((folder / "table1.json").read_text())
    assert written["numbers"]["models"]["quar"]["bits_per_dim"] == pytest.approx(
        numbers["models"]["quar"]["bits_per_dim"]
    )
    for name in ("quar", "residual"):
        found = numbers["models"][name]
        assert 1 < found["bits_per_dim"] < math.log2(17) + 1
        assert found["standard_error"] > 0
        assert found["steps"] == math.floor(found["train_images"] / 64)
        assert found["seconds"] > 0
        assert found["history"]
        model = ImageDensity.load(folder / "parts" / f"{name}-training" / "model")
        assert model.metrics_["parameters"] == found["parameters"]
        assert Image.open(folder / f"samples-{name}.png").size[0] > 100
    assert numbers["images"] == {"train": 300, "test": 40, "notes": []}
    assert (folder / "table1-curve.pdf").is_file()

    def refuse(*_, **__):
        raise AssertionError("it was trained again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDensity, "fit", refuse)
        assert run(folder)["models"] == numbers["models"]
        with pytest.raises(RecipeError, match="seed was 0 and is 1"):
            run(folder, seed=1)


def test_table1_goes_on_after_an_interruption(tiny, tmp_path, monkeypatch):
    fit = ImageDensity.fit

    def interrupted(*arguments, **options):
        found = fit(*arguments, **options)
        found.metrics_["interrupted"] = True
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ImageDensity, "fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "t", models=("quar",))
    assert not (tmp_path / "t" / "parts" / "quar-training.json").exists()
    seen = {}

    def watched(density, *arguments, **options):
        seen["resume"] = density.resume
        return fit(density, *arguments, **options)

    monkeypatch.setattr(ImageDensity, "fit", watched)
    run(tmp_path / "t", models=("quar",))
    assert seen["resume"]


class Spoken:
    """A run that only speaks."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_a_limit_leaves_fewer_and_says_so():
    run, limit = Spoken(), budget.Limit(None)
    assert limit.count(run, "images", 10**6, 1e3) == 10**6
    limit = budget.Limit(1)
    assert limit.count(run, "images", 50, 1.0) == 50
    assert run.lines == []
    assert limit.count(run, "images", 500, 1.0) == 59
    assert "images: 59 of 500, since all would take about 8.3 minutes" in run.lines[0]
    assert "--minutes 1 leaves 60 s" in run.lines[0]
    limit.used(45.0)  # in an earlier run
    assert limit.count(run, "images", 500, 1.0, part=0.5) == 7
    limit.begun -= 3600
    assert limit.left() == 0
    assert limit.count(run, "images", 500, 1.0, least=2) == 2
    assert run.lines[-1] == "images: 2 of 500, since --minutes 1 are used up"


def test_the_plan_of_a_training_is_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "seconds_per_image", lambda *_: 0.5)
    images, flow = load_set("digits", "train"), None
    path = tmp_path / "plan.json"
    plan = budget.plan_for(Spoken(), budget.Limit(1), flow, images, 1000, path)
    assert round(plan.validation_fraction * len(images)) == 5  # 3 s of 60
    assert plan.first == 5
    assert plan.minutes == pytest.approx((60 - 12 - 2.5) / 60, abs=0.01)
    monkeypatch.setattr(budget, "seconds_per_image", lambda *_: 5.0)
    again = budget.plan_for(Spoken(), budget.Limit(1), flow, images, 1000, path)
    assert again == plan
    assert (
        budget.plan_for(Spoken(), budget.Limit(None), None, images, 9, tmp_path) == budget.Plan()
    )


def test_table1_keeps_to_its_minutes(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "SWEEPS", 10**6)  # samples cost more than there is
    monkeypatch.setattr(one, "SWEEPS", 10**6)
    found = run(tmp_path / "t", models=("quar",), minutes=0.05, epochs=None)["models"]["quar"]
    assert 2 <= found["test_images"] <= 40
    assert found["samples"] == 0
    assert found["settings"]["minutes"] < 0.05
    assert found["steps"] >= 1


def test_the_papers_setting_is_the_papers():
    cifar, mnist = (recipe_for(name, "quar", "paper") for name in ("cifar10", "mnist"))
    assert cifar.arguments["hidden_channels"] == 528
    assert mnist.arguments["hidden_channels"] == 512
    for recipe in (cifar, mnist):
        assert (recipe.arguments["scales"], recipe.arguments["transforms"]) == (3, 16)
        assert recipe.arguments["activation"] == "elu"
        assert recipe.arguments["norm"] == "center"
        assert recipe.training["batch_size"] == 64
        assert recipe.training["learning_rate"] == 1e-3
        assert recipe.training["schedule"] == "constant"
        assert recipe.training["ema"] == 0.999


@pytest.mark.parametrize("setting", ["paper", "best"])
@pytest.mark.parametrize("model", ["quar", "residual"])
@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_every_recipe_can_be_built(dataset, model, setting):
    import torch

    recipe = recipe_for(dataset, model, setting)
    from quarflow.training import TrainingSettings

    TrainingSettings(**recipe.training)
    with torch.device("meta"):
        flow = make_flow(recipe.flow, recipe.arguments, 0)
    counts = parameter_counts(flow)
    if (dataset, model, setting) == ("cifar10", "quar", "paper"):
        # 23.0 million as dense convolutions, 12.5 million that are not masked
        assert counts["total"] == pytest.approx(23.0e6, rel=0.01)
        assert counts["unmasked"] == pytest.approx(12.5e6, rel=0.02)
    assert (model == "residual") == (counts["total"] == counts["unmasked"])


def test_table1_refuses_on_the_command_line(tmp_path):
    def told(*arguments):
        result = CliRunner().invoke(app, ["paper", "table1", *arguments])
        assert result.exit_code == 2
        return result.output

    assert "dataset must be one of digits, mnist, cifar10" in told("--dataset", "imagenet")
    assert "setting must be one of paper, best" in told("--setting", "worst")
    assert "model must be one of quar, residual, not 'glow'" in told("--model", "glow")
    output = told("--dataset", "mnist", "--data", str(tmp_path), "-o", str(tmp_path / "t"))
    assert "does not hold mnist" in output
    assert not (tmp_path / "t").exists()


def test_table2_measures_every_column(tmp_path, monkeypatch):
    size = {"shape": [3, 4, 4], "scales": 1, "transforms": 1, "hidden_channels": 6}
    monkeypatch.setattr(two, "SIZES", {"small": size})
    asked = []

    def memory(**workload):
        asked.append(workload)
        return {"bytes": 10**6 * len(asked), "baseline_bytes": 5}

    monkeypatch.setattr(two, "peak_memory", memory)
    numbers = two.table2(tmp_path / "t", repeats=2, device="cpu", quiet=True)
    assert [w["batch_size"] for w in asked] == [96] * 3 + [256] * 3
    tested = next(w for w in asked[3:] if w["flow"] == "ImageResidualFlow")
    assert tested["arguments"]["eval_terms"] == 20
    for phase in ("train", "test"):
        for name in two.COLUMNS:
            found = numbers[phase][name]
            assert len(found["all_seconds"]) == 2
            assert found["seconds"] > 0
        ratio = numbers["ratios"][phase]["seconds"]
        assert ratio["residual / quar"] == pytest.approx(
            numbers[phase]["residual"]["seconds"] / numbers[phase]["quar"]["seconds"]
        )
    assert numbers["ratios"]["test"]["seconds"]["in the paper"] == pytest.approx(28.55, abs=0.01)
    assert numbers["ratios"]["train"]["GB"]["residual / quar"] == pytest.approx(1 / 2)
    assert numbers["parameters"]["quar"]["total"] > numbers["parameters"]["quar"]["unmasked"]


def test_columns_take_turns():
    order = []
    works = {name: (lambda name=name: order.append(name)) for name in "AB"}
    seconds = in_turn(works, 2)
    assert "".join(order) == "AB" * 3
    assert [len(s) for s in seconds.values()] == [2, 2]


WORKLOAD = {
    "flow": "ImageQuAR",
    "arguments": {"shape": [3, 8, 8], "scales": 1, "transforms": 1, "hidden_channels": 96},
    "phase": "train",
    "device": "cpu",
}


def test_memory_is_that_of_a_process_of_its_own():
    ballast = np.ones(60_000_000)  # 480 MB of this process are not the child's
    found = measure.peak_memory(**WORKLOAD, batch_size=64)
    assert ballast[0] == 1
    assert 1e6 < found["bytes"] < 300e6
    wrong = {**WORKLOAD["arguments"], "transforms": 0}
    with pytest.raises(RecipeError, match="transforms must be at least 1"):
        measure.peak_memory(**{**WORKLOAD, "arguments": wrong}, batch_size=2)


def test_grids_show_every_image_in_its_place():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None].repeat(2, 2).repeat(2, 3)
    grid = grid_array(images, levels=4)
    assert grid.shape == (7, 7, 3)
    assert [grid[i, j, 0] for i in (1, 4) for j in (1, 4)] == [0, 85, 170, 255]
    assert (grid[0] == 255).all()
