"""The paper's recipes: the frame, training that goes on, the figures' numbers, the commands."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from quarflow import Autoregressive, QuAR, ResidualFlow
from quarflow.cli import app
from quarflow.data.toys import toy
from quarflow.experiments.paper import ablation, ablation_data, eight, figure2, figure3, fit, modes
from quarflow.experiments.paper.document import document, take
from quarflow.experiments.paper.forecast import Progress, forecast
from quarflow.experiments.paper.run import RecipeError, Run, read_json
from quarflow.experiments.speed.matching import existing_weights
from quarflow.files import write_json
from quarflow.training import CheckpointError, Event, TrainingSettings, has_checkpoint
from quarflow.transforms import Affine


def paper(*arguments):
    return CliRunner().invoke(app, ["paper", *map(str, arguments)])


def refused(*arguments):
    result = paper(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr


# -- the frame


def test_a_finished_part_is_not_made_again(tmp_path):
    for _ in range(2):
        run = Run("r", tmp_path / "d", {"steps": 3}, quiet=True)
        made = run.part("a", lambda folder: {"bad": math.nan, "x": torch.ones(2)})
        assert made == {"bad": None, "x": [1.0, 1.0]}
        run = Run("r", tmp_path / "d", {"steps": 3}, quiet=True)
        assert run.part("a", lambda folder: pytest.fail("made twice")) == made


def test_a_part_that_was_stopped_is_not_finished(tmp_path):
    run = Run("r", tmp_path, {}, quiet=True)

    def stopped(folder):
        (folder / "checkpoint").write_text("so far")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.part("a", stopped)
    assert run.part("a", lambda f: {"found": (f / "checkpoint").read_text()})["found"] == "so far"


def test_other_settings_are_refused_but_free_ones_may_change(tmp_path):
    Run("r", tmp_path, {"steps": 3, "seeds": 1}, quiet=True)
    Run("r", tmp_path, {"steps": 3, "seeds": 5}, free=("seeds",), quiet=True)
    with pytest.raises(RecipeError, match="steps was 3 and is 4"):
        Run("r", tmp_path, {"steps": 4, "seeds": 5}, free=("seeds",), quiet=True)
    with pytest.raises(RecipeError, match="recipe was 'r'"):
        Run("q", tmp_path, {"steps": 3, "seeds": 5}, quiet=True)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RecipeError, match="not empty"):
        Run("r", tmp_path, {}, quiet=True)
    with pytest.raises(RecipeError, match="is a file"):
        Run("r", tmp_path / "mine.txt", {}, quiet=True)
    assert (tmp_path / "mine.txt").read_text() == "precious"


# -- training on fresh draws


def tiny(kind):
    torch.manual_seed(0)
    return {
        "quar": lambda: QuAR(2, transforms=2, hidden_features=(8,)),
        "residual": lambda: ResidualFlow(2, transforms=2, hidden_features=(8,)),
        "autoregressive": lambda: Autoregressive(2, transforms=2, hidden_features=(8,)),
    }[kind]()


def trained(kind, folder, stop=None, **options):
    """Train a tiny flow; stop: raise at that update, as Ctrl-C would."""
    folder.mkdir(exist_ok=True)
    flow = tiny(kind)
    how = fit.Fit(30, 1e-2, batch_size=64, looks=40, seed=3, warmup=5, **options)

    def measure(average):
        if stop is not None and measure.calls >= stop:
            raise KeyboardInterrupt
        measure.calls += 1
        return {"weight": next(average.parameters()).sum().item()}

    measure.calls = 0
    run = Run("r", folder.parent / "run", {}, quiet=True)
    curve = fit.fit(flow, toy("8gaussians").sample, how, measure, folder, run, kind)
    return flow, curve


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("quar", "adam"), ("residual", "adam"), ("autoregressive", "adamax")],
)
def test_training_goes_on_to_the_same_end(kind, optimizer, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(fit, "milestones", lambda steps, looks: [10, 20, 30])
    straight, curve = trained(kind, tmp_path / "a", optimizer=optimizer)
    with pytest.raises(KeyboardInterrupt):
        trained(kind, tmp_path / "b", stop=1, optimizer=optimizer)
    assert has_checkpoint(tmp_path / "b" / fit.CHECKPOINT)
    resumed, again = trained(kind, tmp_path / "b", optimizer=optimizer)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [(p["step"], p["weight"]) for p in curve] == [(p["step"], p["weight"]) for p in again]
    other = tiny(kind)
    fit.load_weights(other, tmp_path / "b")
    assert all(
        torch.equal(a, b) for a, b in zip(other.parameters(), resumed.parameters(), strict=True)
    )


def test_training_lowers_the_divergence(tmp_path):
    flow = QuAR(2, transforms=3, hidden_features=(32,))
    x, truth = eight.points(2000, "look")
    curve = fit.fit(
        flow,
        toy("8gaussians").sample,
        fit.Fit(120, 2e-2, batch_size=256, looks=4),
        lambda f: {"kl": eight.divergence(f, x, truth)[0]},
        tmp_path,
        Run("r", tmp_path / "run", {}, quiet=True),
        "quar",
    )
    assert curve[-1]["kl"] < 0.5 * curve[0]["kl"]
    assert [p["seconds"] for p in curve] == sorted(p["seconds"] for p in curve)


def test_checkpoints_of_other_settings_or_damaged_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(fit, "milestones", lambda steps, looks: [10, 20])
    with pytest.raises(KeyboardInterrupt):
        trained("quar", tmp_path / "a", stop=1)
    with pytest.raises(CheckpointError, match="clip"):
        trained("quar", tmp_path / "a", clip=3.0)
    for path in (tmp_path / "a" / fit.CHECKPOINT).iterdir():
        path.write_bytes(b"not much")
    with pytest.raises(CheckpointError, match="damaged"):
        trained("quar", tmp_path / "a")
    with pytest.raises(RecipeError, match="no weights"):
        fit.load_weights(tiny("quar"), tmp_path / "b")


class Spoken:
    """A run that only speaks."""

    def __init__(self):
        self.lines, self.quiet = [], False
        self.console = type("Console", (), {"is_terminal": False})

    def say(self, line):
        self.lines.append(line)


def moments(seconds, total=300_000):
    """The events of updates that end at these seconds."""
    for step, at in enumerate(seconds, start=1):
        yield Event("step", "", 1, step, total, 0.0, at, None, 1.0, 1e-3, None, None)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ([45.0], "about 156 days at this rate (45 s an update)"),  # told after the first
        ([3.0, 3.5, 4.0, 4.5], "about 1.7 days at this rate (0.5 s an update)"),
        ([0.5, 0.6], None),  # too early to tell
    ],
)
def test_how_long_it_takes_is_said_once(seconds, told):
    run = Spoken()
    with Progress(run, "quar", "300 epochs", minutes=5) as progress:
        for event in moments(seconds):
            progress(event)
    if told is None:
        assert run.lines == []
    else:
        (line,) = run.lines
        assert line == f"quar: 300 epochs take {told}; --minutes 5 will stop it."


def test_short_trainings_are_not_foretold():
    run = Spoken()
    with Progress(run, "quar", "all", part=0.5) as progress:
        for event in moments([0.5, 2.0, 3.0], total=100):
            progress(event)
    assert run.lines == ["quar: all take about 75 s at this rate (1.5 s an update)."]
    run.lines.clear()
    with Progress(run, "quar", "all") as progress:
        for event in moments([0.5, 2.0, 3.0], total=30):
            progress(event)
    assert run.lines == []
    assert "will stop it" not in forecast("all", 100, 1.0, minutes=60)


# -- what is measured


class Known(nn.Module):
    """A density that is the data's, but for a factor."""

    def __init__(self, log_factor=0.0):
        super().__init__()
        self.log_factor = log_factor

    def forward(self):
        return self

    def log_prob(self, x):
        return toy("8gaussians").log_prob(x.double()) + self.log_factor


def test_divergence_and_sparse_error_of_known_densities():
    x, truth = eight.points(3000, "look")
    assert eight.divergence(Known(), x, truth) == (0, 0)
    assert eight.divergence(Known(-0.25), x, truth)[0] == pytest.approx(0.25)
    assert set(eight.sparse_error(Known()).values()) == {0.0}
    shifted = eight.sparse_error(Known(-1.0))
    # Where both are below the floor there is no error: the lower the floor, the more is seen.
    assert 0 < shifted["-12"] < shifted["-20"] < shifted["-30"] < 1


def test_residual_flows_are_measured_with_exact_determinants():
    flow = tiny("residual").double()
    x = torch.randn(5, 2, dtype=torch.float64)
    p = flow()
    J = torch.stack([torch.autograd.functional.jacobian(p.transform._call, row) for row in x])
    exact = p.base.log_prob(p.transform._call(x)) + torch.linalg.slogdet(J)[1]
    wide = eight.for_evaluation(flow).double()
    assert torch.allclose(wide().log_prob(x), exact, atol=1e-10)


def test_all_models_have_as_many_parameters():
    counts = [existing_weights(model.make()) for model in eight.MODELS.values()]
    assert max(counts) < 1.1 * min(counts)
    # Masked weights never get a gradient, all others can.
    flow = Autoregressive(2, transforms=2, hidden_features=(8, 8))
    for p in flow.parameters():
        nn.init.normal_(p)
    (-flow().log_prob(torch.randn(50, 2)).mean()).backward()
    assert existing_weights(flow) == sum(int((p.grad != 0).sum()) for p in flow.parameters())


def test_races_compare_at_what_both_reach():
    def curve(*points):
        return {"curve": [{"seconds": s, "cpu_seconds": 2 * s, "kl": k} for s, k in points]}

    slow, fast = curve((10, 0.5), (40, 0.1), (90, 0.02)), curve((1, 0.3), (2, 0.05), (3, 0.04))
    (row,) = figure3._races({"quar": [fast], "residual": [slow]})["quar"]["seeds"]
    assert (row["kl"], row["seconds"], row["residual_seconds"]) == (0.04, 3, 90)
    assert row["ratio"] == row["cpu_ratio"] == 30
    assert figure3._races({"quar": [fast]}) == {}


def test_the_divergence_of_figure_2_is_an_integral():
    class Normal(nn.Module):
        def forward(self):
            return self

        def log_prob(self, x):
            return -(x[:, 0] ** 2) / 2 - math.log(2 * math.pi) / 2

    # The mean of x^2 over both boxes is 7/3.
    exact = -math.log(2) + math.log(2 * math.pi) / 2 + 7 / 6
    assert figure2.divergence(Normal()) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("variant", figure2.VARIANTS, ids=lambda v: v.name)
def test_every_variant_of_figure_2_keeps_its_slope(variant):
    flow = variant.make()
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(3.0).add_(0.1 * torch.randn_like(p))
    chain = flow().transform.transforms
    x = torch.linspace(-5, 5, 400)[:, None]
    _, ladj = chain[1].call_and_ladj(x)
    slope = ladj.exp() - 1
    assert slope.abs().max() <= figure2.SIGMA + 1e-4
    if variant.name == "hard":
        for layer in flow.branches.layers:
            assert torch.linalg.matrix_norm(layer.diagonal, 2).max() <= 1 + 1e-5


def test_motion_sees_bends_but_no_affine_maps():
    x = torch.randn(500, 2)
    bent = x + 0.5 * x.square()
    found = modes._motion([x, 2 * x + 1, bent], [torch.zeros(500), x[:, 0]])
    assert found["moves"][0] == pytest.approx(0, abs=1e-5)
    assert found["bends"][0] == pytest.approx(0, abs=1e-5)
    assert found["bends"][1] > 0.1
    assert found["volume"] == pytest.approx([0.0, 1.0], abs=0.1)


def test_the_path_ends_in_the_base():
    flow = tiny("quar")
    x = torch.randn(10, 2)
    stages, ladjs = modes.path(flow, x)
    assert len(stages) == len(ladjs) + 1 == 3
    assert torch.allclose(stages[-1], flow().transform(x), atol=1e-5)
    assert isinstance(flow().transform.transforms[0], Affine)


def test_effects_are_paired_differences():
    worth = {"operator": 1.0, "elu": -0.5, "lipswish": 0.25, False: 2.0}
    for factorial in (False, True):
        found = {
            ("d", ablation.name_of(v)): [
                {"nats": sum(worth.get(level, 0.0) for level in v.values()) + 10 * seed}
                for seed in range(3)
            ]
            for v in ablation.variants(factorial)
        }
        effects = ablation._effects("d", found, factorial)
        assert effects["norm operator"]["nats"] == pytest.approx(1.0)
        assert effects["activation elu"]["nats"] == pytest.approx(-0.5)
        assert effects["no trick"]["nats"] == pytest.approx(2.0)
        assert effects["mix lu"]["nats_error"] == pytest.approx(0.0, abs=1e-9)
        assert effects["mix lu"]["n"] == (3 * 24 if factorial else 3)


def test_tables_are_split_once_and_standardised(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "\n".join(f"{i},{i % 7}" for i in range(200)) + "\n")
    data = ablation_data.data_set(str(path))
    assert (len(data.train), len(data.valid), len(data.test)) == (160, 20, 20)
    rows = data.train.rows
    assert torch.allclose(rows.mean(0), torch.zeros(2), atol=1e-5)
    seen = {tuple(r.tolist()) for part in (data.train, data.valid) for r in part.rows}
    assert len(seen) == 180
    with pytest.raises(RecipeError, match="no data set 'nothing'"):
        ablation_data.data_set("nothing")


# -- the commands, as small as they get


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(eight, "FLOWS", 2)
    for name in ("LOOK_POINTS", "TEST_POINTS", "SPARSE_POINTS"):
        monkeypatch.setattr(eight, name, 200)
    monkeypatch.setattr(figure2, "NODES", 301)
    monkeypatch.setattr(figure3, "GRID", 21)
    monkeypatch.setattr(ablation_data, "TEST", 200)
    monkeypatch.setattr(ablation_data, "VALID", 100)
    monkeypatch.setattr(ablation, "INVERTED", 20)


def test_figures_3_to_6(small, tmp_path):
    three = tmp_path / "three"
    result = paper("figure3", "--steps", 3, "--models", "residual,quar", "-o", three)
    assert result.exit_code == 0, (result.output, result.exception)
    found = read_json(three / "figure3.json")
    assert set(found["numbers"]["models"]) == {"residual", "quar"}
    assert found["settings"]["steps"] == 3
    assert found["numbers"]["versus residual"]["quar"]["ratio"] > 0
    for name in ("figure3", "figure3-time"):
        assert (three / f"{name}.png").stat().st_size > 10_000
        assert (three / f"{name}.pdf").read_bytes().startswith(b"%PDF")

    assert not list(three.rglob(fit.CHECKPOINT)) + list(three.rglob(fit.MARKS))
    before = (three / "parts" / "quar-0.json").read_text()
    result = paper("figure3", "--steps", 3, "--seeds", 2, "--models", "residual,quar", "-o", three)
    assert result.exit_code == 0, (result.output, result.exception)
    assert (three / "parts" / "quar-0.json").read_text() == before
    assert len(read_json(three / "figure3.json")["numbers"]["models"]["quar"]["seeds"]) == 2

    assert "steps was 3 and is 4" in refused("figure3", "--steps", 4, "-o", three)
    assert "models must be one of autoregressive," in refused(
        "figure3", "--models", "quar,glow", "-o", tmp_path / "no"
    )
    assert "one of them" in refused("figure3", "--steps", 4, "--full", "-o", tmp_path / "no")

    result = paper("figure5", "--from", three, "-o", tmp_path / "five")
    assert result.exit_code == 0, (result.output, result.exception)
    kl = found["numbers"]["models"]["quar"]["kl"]
    assert read_json(tmp_path / "five" / "figure5.json")["numbers"]["kl"] == kl
    assert "no autoregressive-0" in refused("figure4", "--from", three, "-o", tmp_path / "four")
    assert "updates" in refused("figure5", "--from", three, "--full", "-o", tmp_path / "no")
    result = paper("figure4", "--steps", 2, "-o", tmp_path / "four")
    assert result.exit_code == 0, (result.output, result.exception)
    assert (tmp_path / "four" / "figure4.png").is_file()


def test_figure_2(small, tmp_path):
    result = paper("figure2", "--steps", 2, "--seeds", 2, "-o", tmp_path / "two")
    assert result.exit_code == 0, (result.output, result.exception)
    numbers = read_json(tmp_path / "two" / "figure2.json")["numbers"]
    assert set(numbers["variants"]) == {v.name for v in figure2.VARIANTS}
    counts = {v["parameters"] for v in numbers["variants"].values()}
    assert max(counts) - min(counts) <= 3  # "only one additional parameter"
    for variant in numbers["variants"].values():
        assert all(part["mass"] == pytest.approx(1, abs=1e-3) for part in variant["seeds"])


def test_ablation_and_the_page(small, tmp_path):
    out = tmp_path / "ablation"
    result = paper("ablation", "--steps", 2, "--seeds", 1, "--data", "two_spirals", "-o", out)
    assert result.exit_code == 0, (result.output, result.exception)
    found = read_json(out / "ablation.json")
    assert len(found["numbers"]["results"]["two_spirals"]) == 7
    assert not [p for p in (out / "parts").iterdir() if p.is_dir()]  # no checkpoint is left

    page = tmp_path / "docs" / "paper.md"
    page.parent.mkdir()
    page.write_text("# Page\n<!-- results ablation -->\nold\n<!-- end -->\nafter\n")
    with pytest.raises(RecipeError, match="not there"):
        document(page)
    take(out, page)
    assert document(page) == ["ablation"]
    text = page.read_text()
    assert "old" not in text
    assert text.endswith("<!-- end -->\nafter\n")
    assert "| activation elu |" in text
    assert (page.parent / "images" / "paper" / "ablation.png").is_file()
    take(out, page, "second")  # another run of the same recipe
    assert (page.parent / "results" / "paper" / "second.json").is_file()
    with pytest.raises(RecipeError, match="no finished recipe"):
        take(tmp_path, page)


def test_json_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": math.inf, "b": torch.tensor(1.5)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": 1.5}
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RecipeError, match="damaged"):
        read_json(tmp_path / "a.json")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_recipe_with_what_is_done(number, code, tmp_path):
    command = "from quarflow.cli import main; main()"
    arguments = ["paper", "figure2", "--steps", "1000000", "-o", str(tmp_path / "two")]
    recipe = subprocess.Popen(
        [sys.executable, "-c", command, *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        assert "at this rate" in recipe.stderr.readline()
        recipe.send_signal(number)
        told = recipe.communicate(timeout=60)[1]
    finally:
        recipe.kill()
    assert recipe.returncode == code, told
    assert "the same command goes on" in told
    assert "Traceback" not in told
    part = tmp_path / "two" / "parts" / "trick-0"
    assert has_checkpoint(part / fit.CHECKPOINT)
    assert not part.with_suffix(".json").exists()


def test_writing_numbers_needs_no_pictures():
    code = "import sys, quarflow.experiments.paper.run; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_adamax_has_no_weight_decay():
    with pytest.raises(ValueError, match="set one of the two"):
        TrainingSettings(optimizer="adamax", weight_decay=0.1)
    with pytest.raises(ValueError, match="keep must be 'best' or 'last', got 'first'"):
        TrainingSettings(keep="first")
