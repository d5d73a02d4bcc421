"""What densities of all kinds have in common: one protocol, one door, the same defaults."""

import inspect

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import quarflow
from quarflow import ImageDensity, QuARDensity, density_for, open_density
from quarflow.cli import app
from quarflow.data import load_set
from quarflow.density.base import Density, Section
from quarflow.density.defaults import IMAGE_TRAINING
from quarflow.density.kinds import KINDS

TABLE = {"transforms": 1, "hidden_features": [4], "max_epochs": 1, "random_state": 0}
IMAGE = {"scales": 1, "transforms": 1, "hidden_channels": 2, "max_epochs": 1, "random_state": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data of both kinds as files."""
    folder = tmp_path_factory.mktemp("density")
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.savetxt(folder / "table.csv", rows, delimiter=",", header="a,b", comments="")
    np.save(folder / "images.npy", load_set("digits").images[:60])
    return folder


@pytest.fixture(scope="module", params=["table", "image"])
def fitted(request, place):
    if request.param == "table":
        data = place / "table.csv"
        density = QuARDensity(**TABLE)
    else:
        data = place / "images.npy"
        density = ImageDensity(levels=17, **IMAGE)
    density.fit(**density.read(data))
    folder = place / f"{request.param}-model"
    density.save(folder)
    return density, data, folder


def test_all_answer_to_the_protocol(fitted):
    density, data, _ = fitted
    assert isinstance(density, Density)
    X = density.read(data)["X"]
    scores = density.score_samples(X)
    assert density.score(X) == pytest.approx(scores.sum())
    assert density.transform(X).shape[0] == len(scores) == 60
    assert np.array_equal(density.sample(3, random_state=1), density.sample(3, random_state=1))
    assert all(isinstance(section, Section) for section in density.info())
    assert [s.title for s in density.info()][-2:] == ["Settings", "Certificate"]


def test_scores_of_a_file_are_those_of_its_data(fitted):
    density, data, _ = fitted
    X = density.read(data)["X"]
    scores = density.score_file(data)
    found = np.concatenate([columns["log_prob"] for columns in scores])
    expected = density.score_samples(X, **({"draws": 4} if density.of == "images" else {}))
    assert np.array_equal(found, expected)
    assert scores.told


def test_samples_write_themselves(fitted, tmp_path):
    density, *_ = fitted
    for ending in density.draws_to:
        told = density.draw(5, seed=3).write(tmp_path / f"s{ending}")
        assert told.startswith("5 ")
    assert np.array_equal(np.load(tmp_path / "s.npy"), density.sample(5, random_state=3))


def test_the_folder_says_what_it_holds(fitted):
    density, data, folder = fitted
    opened = open_density(folder)
    assert type(opened) is type(density) is density_for(data)
    assert opened.metrics_ == density.metrics_
    assert opened.info()[0] == density.info()[0]


def test_a_flow_by_itself_is_no_density(tmp_path):
    quarflow.save_flow(quarflow.PlanarFlow(2, transforms=1), tmp_path / "m")
    with pytest.raises(ValueError, match=r"load it by quarflow\.load_flow"):
        open_density(tmp_path / "m")


def test_every_door_has_the_same_defaults(fitted, tmp_path):
    """The command line gives the model that Python gives."""
    density, data, folder = fitted
    own = ("max_epochs", "random_state")
    asked = {k: v for k, v in (TABLE if density.of == "tables" else IMAGE).items() if k not in own}
    if density.of == "images":
        asked["levels"] = 17
        assert {name: density.settings_[name] for name in IMAGE_TRAINING} == IMAGE_TRAINING
    sets = [part for k, v in asked.items() for part in ("--set", f"{k}={v}")]
    arguments = ["fit", data, "-o", tmp_path / "m", "--max-epochs", 1, *sets]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    opened = open_density(tmp_path / "m")
    assert opened.settings_ == open_density(folder).settings_
    ours, theirs = density.flow_.state_dict(), opened.flow_.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_options_of_other_kinds_are_refused(place, fitted, tmp_path):
    density, data, folder = fitted
    if density.of == "tables":
        return
    arguments = ["score", folder, data, "-o", tmp_path / "s.csv", "--allow-missing"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2
    assert "--allow-missing is for tables, not for images." in result.output


def test_settings_of_images_are_checked_when_it_is_made():
    with pytest.raises(ValueError, match=r"There is no setting 'block'.*transforms"):
        ImageDensity(block=3)
    with pytest.raises(ValueError, match="flow is one of ImageQuAR, ImageResidualFlow"):
        ImageDensity(flow="QuAR")
    with pytest.raises(ValueError, match="not fitted yet"):
        ImageDensity().sample(1)


def test_minutes_alone_are_the_only_limit():
    short = ImageDensity(minutes=1, random_state=0)
    assert short._training().max_epochs > 10_000
    assert ImageDensity(minutes=1, max_epochs=3, random_state=0)._training().max_epochs == 3


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_is_made_with_can_be_listed(kind):
    names = kind.setting_names()
    assert len(names) == len(set(names))
    assert not {"device", "verbose", "checkpoint", "resume"} & set(names)
    assert {"learning_rate", "minutes", "random_state"} <= set(names)
    assert "self" not in names
    assert inspect.signature(kind).parameters.keys() >= {"device", "resume"}
