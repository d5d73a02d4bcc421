"""A model folder is data: damaged and hostile ones are refused, and nothing in them is run."""

import ctypes
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from quarflow import QuARDensity
from quarflow.store import CONFIG, LOG, METRICS, WEIGHTS, StoreError, is_model, load_model
from quarflow.store import exchange as swapping
from quarflow.store import folder as store_module
from quarflow.store.schema import least_numbers

BOMB = "quarflow_was_here"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3)) + np.array([0, 5, 100])
    density = QuARDensity(
        transforms=2,
        hidden_features=(6,),
        max_epochs=1,
        random_state=0,
        start="none",
        bounds={"x1": (-50, None)},
    ).fit(X, context=rng.normal(size=(60, 1)))
    folder = tmp_path_factory.mktemp("store") / "model"
    density.save(folder)

    return density, folder, X


@pytest.fixture
def folder(original, tmp_path):
    """A copy of a good model, to be damaged."""
    return shutil.copytree(original[1], tmp_path / "model")


def edit(folder, change, file=CONFIG):
    data = json.loads((folder / file).read_text())
    change(data)
    (folder / file).write_text(json.dumps(data))


def edit_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def refused(folder, match):
    with pytest.raises(StoreError, match=match) as caught:
        QuARDensity.load(folder)
    message = str(caught.value)

    assert "\n" not in message
    assert len(message) < 600
    assert isinstance(caught.value, ValueError)


def test_what_is_saved_comes_back(original):
    density, folder, X = original
    context = np.zeros((len(X), 1))
    loaded = QuARDensity.load(folder)

    assert is_model(folder)
    assert {p.name for p in folder.iterdir()} == {CONFIG, WEIGHTS, METRICS, LOG}
    assert np.array_equal(
        loaded.score_samples(X, context=context), density.score_samples(X, context=context)
    )
    assert loaded.columns_ == density.columns_
    assert loaded.get_params()["transforms"] == 2
    assert loaded.metrics_["rows"] == 60
    assert not loaded.flow_.training


# Damaged files


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, METRICS])
def test_missing_files(folder, name):
    (folder / name).unlink()
    refused(folder, f"no complete model: {name} is missing")


def test_a_missing_log_is_no_harm(folder):
    (folder / LOG).unlink()

    assert QuARDensity.load(folder).history_ == []


def test_no_folder(tmp_path):
    refused(tmp_path / "nothing", "no such folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "missing")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, METRICS])
def test_truncated_files(folder, name, share):
    content = (folder / name).read_bytes().rstrip()
    (folder / name).write_bytes(content[: int(share * len(content))])
    refused(folder, "damaged|not the configuration")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, METRICS, LOG])
@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 100,
        b"\xff\xfe{}",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=["zeros", "bytes", "list", "text", "null", "deep lists", "deep objects"],
)
def test_nonsense(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, "damaged|not the configuration")


@pytest.mark.parametrize("name", [CONFIG, METRICS])
def test_a_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, "cannot be read")


@pytest.mark.parametrize("seed", range(25))
def test_flipped_bytes_in_weights_never_crash(folder, seed):
    rng = np.random.default_rng(seed)
    content = bytearray((folder / WEIGHTS).read_bytes())
    for at in rng.integers(0, 200 if seed % 2 else len(content), size=3):
        content[at] = rng.integers(256)
    (folder / WEIGHTS).write_bytes(content)
    try:
        density = QuARDensity.load(folder)
    except StoreError:
        return
    assert all(p.isfinite().all() for p in density.flow_.parameters())


# Hostile files


class Bomb:
    def __reduce__(self):
        return os.mkdir, (BOMB,)


@pytest.mark.parametrize("save", ["pickle", "torch"])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, METRICS, LOG])
def test_pickles_are_never_executed(folder, name, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if save == "pickle":
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"weights": Bomb()}, folder / name)
    refused(folder, "damaged|not the configuration")

    assert not (tmp_path / BOMB).exists()


def test_unknown_version(folder):
    edit(folder, lambda c: c.update(version=99))
    refused(folder, "version 99.*reads version 1")
    edit(folder, lambda c: c.pop("version"))
    refused(folder, "version None")
    edit(folder, lambda c: c.update(version=1, format="something else"))
    refused(folder, "not the configuration of a quarflow model")


HUGE = {
    "features": lambda a: a.update(features=65_536),
    "width": lambda a: a.update(hidden_features=[65_536] * 32),
    "transforms": lambda a: a.update(transforms=1024, hidden_features=[65_536]),
    "context": lambda a: a.update(context=65_536),
    "beyond limits": lambda a: a.update(features=10**12),
    "infinite": lambda a: a.update(features=float("inf")),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_models_are_refused_before_they_are_built(folder, name):
    edit(folder, lambda c: HUGE[name](c["flow"]["arguments"]))
    tracemalloc.start()
    refused(folder, "inconsistent|does not fit|damaged")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 50e6


@pytest.mark.parametrize("mix", ["none", "lu"])
def test_many_columns_and_a_narrow_layer_are_refused_before_they_are_built(
    folder, mix, monkeypatch
):
    # Widths are rounded up to a multiple of the features: a width of 1 is no small layer.
    def widen(config):
        arguments = config["flow"]["arguments"]
        arguments.update(features=20_000, hidden_features=[1], mix=mix)
        column = config["columns"][0]
        config["columns"] = [{**column, "name": f"n{i}"} for i in range(20_000)]

    edit(folder, widen)
    edit_weights(folder, lambda w: w.update({"padding": torch.zeros(100_000)}))

    def build(*_, **__):
        raise AssertionError("it was built")

    monkeypatch.setattr(store_module, "build_flow", build)
    refused(folder, "at least")


def test_least_numbers_is_no_more_than_there_are(original):
    config = load_model(original[1]).config.flow
    numbers = sum(t.numel() for t in original[0].flow_.state_dict().values())

    assert least_numbers(config) == numbers


CHANGES = {
    "extra key": lambda c: c.update(surprise=1),
    "no columns": lambda c: c.update(columns=[]),
    "one column less": lambda c: c["columns"].pop(),
    "same name twice": lambda c: c["columns"][0].update(name="x1"),
    "no context": lambda c: c.update(context_columns=None),
    "scale 0": lambda c: c["columns"][0].update(scale=0.0),
    "negative spread": lambda c: c["columns"][0].update(spread=-1.0),
    "NaN mean": lambda c: c["columns"][0].update(mean=float("nan")),
    "infinite mean": lambda c: c["columns"][0].update(mean=float("inf")),
    "bounds crossed": lambda c: c["columns"][0].update(lower=2.0, upper=1.0),
    "text for number": lambda c: c["columns"][0].update(mean="2"),
    "other flow": lambda c: c["flow"].update(name="os.system"),
    "sigma 1": lambda c: c["flow"]["arguments"].update(sigma=1.0),
    "sigma 0.99999": lambda c: c["flow"]["arguments"].update(sigma=0.99999),
    "sigma NaN": lambda c: c["flow"]["arguments"].update(sigma=float("nan")),
    "unknown norm": lambda c: c["flow"]["arguments"].update(norm="__import__('os')"),
    "no arguments": lambda c: c["flow"].update(arguments={}),
    "no steps": lambda c: c["flow"]["arguments"].update(transforms=0),
    "more steps": lambda c: c["flow"]["arguments"].update(transforms=3),
    "fewer steps": lambda c: c["flow"]["arguments"].update(transforms=1),
    "wider": lambda c: c["flow"]["arguments"].update(hidden_features=[9]),
    "deeper": lambda c: c["flow"]["arguments"].update(hidden_features=[6, 6]),
    "no theta": lambda c: c["flow"]["arguments"].update(trick=False),
    "mix": lambda c: c["flow"]["arguments"].update(mix="lu"),
    "base": lambda c: c["flow"]["arguments"].update(base="student-t"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_configurations(folder, name):
    edit(folder, CHANGES[name])
    refused(folder, "inconsistent|does not fit|damaged|no valid flow")


def first(weights):
    return next(name for name in sorted(weights) if weights[name].numel() > 1)


WEIGHT_CHANGES = {
    "NaN": (lambda w: w[first(w)].fill_(float("nan")), "not finite"),
    "one infinity": (lambda w: w[first(w)].view(-1)[0].fill_(float("inf")), "not finite"),
    "too large for float32": (
        lambda w: w.update({first(w): torch.full_like(w[first(w)], 1e300, dtype=torch.float64)}),
        "not finite",
    ),
    "missing": (lambda w: w.pop(first(w)), "missing|at least"),
    "extra": (lambda w: w.update(extra=torch.zeros(1000)), "unknown"),
    "wrong shape": (lambda w: w.update({first(w): w[first(w)][..., None].clone()}), "has shape"),
    "whole numbers": (lambda w: w.update({first(w): w[first(w)].long()}), "wrong type"),
    "nothing": (lambda w: w.clear(), "at least"),
}


@pytest.mark.parametrize("name", WEIGHT_CHANGES)
def test_changed_weights(folder, name):
    change, match = WEIGHT_CHANGES[name]
    edit_weights(folder, change)
    refused(folder, match)


def test_unknown_parameters_of_a_later_release_are_left_out(folder):
    edit(folder, lambda c: c["parameters"].update(new_option=3))

    assert not hasattr(QuARDensity.load(folder), "new_option")


# Saving


def test_saving_replaces_a_model_as_a_whole(original, folder):
    density = original[0]
    (folder / "stale.txt").write_text("of the old model")
    density.save(folder)

    assert {p.name for p in folder.iterdir()} == {CONFIG, WEIGHTS, METRICS, LOG}
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def fail_at(monkeypatch, where, stop):
    """Let saving stop at a function, or at one of the renames where nothing can be exchanged."""
    rename, calls = os.rename, []

    def fail(*_, **__):
        raise stop("interrupted")

    def fail_on_rename(*arguments):
        calls.append(arguments)
        if len(calls) == ("first rename", "second rename").index(where) + 1:
            fail()
        rename(*arguments)

    if "rename" in where:
        monkeypatch.setattr(swapping, "_swap", lambda *_: False)
        monkeypatch.setattr(os, "rename", fail_on_rename)
    elif where in ("_swap", "_sync"):
        monkeypatch.setattr(swapping, where, fail)
    else:
        monkeypatch.setattr(store_module, where, fail)


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt, MemoryError, SafetensorError])
@pytest.mark.parametrize(
    "where", ["save_file", "_dump", "_sync", "_swap", "first rename", "second rename"]
)
def test_interrupted_saving_leaves_the_old_model_whole(original, folder, where, stop, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with monkeypatch.context() as patch:
        fail_at(patch, where, stop)
        with pytest.raises(OSError if stop is SafetensorError else stop):
            original[0].save(folder)

    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == ["model"]  # and no litter
    QuARDensity.load(folder)


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_killed_save_leaves_one_of_the_two_models(original, folder, exchanged, tmp_path):
    """Killed at each of the system's renames in turn: what is loaded then is a whole model."""
    density = original[0]
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\n"
        "from quarflow import QuARDensity\nfrom quarflow.store import exchange\n"
        "target, kill = sys.argv[1], int(sys.argv[2])\n"
        "density, calls, rename = QuARDensity.load(target), [], os.rename\n"
        "density.metrics_['mark'] = 'new'\n"
        "def counted(*arguments):\n"
        "    calls.append(arguments)\n"
        "    if len(calls) == kill: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    rename(*arguments)\n"
        "os.rename = counted\n"
        f"if not {exchanged}: exchange._swap = lambda *_: False\n"
        "density.save(target)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    marks = []
    for kill in (1, 2, 3):
        done = subprocess.run([sys.executable, script, folder, str(kill)], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        loaded = QuARDensity.load(folder)
        marks.append(loaded.metrics_.get("mark"))
        assert torch.equal(next(loaded.flow_.parameters()), next(density.flow_.parameters()))
        density.save(folder)
    # one move: the new model is there; two: the old one until the second has been begun
    assert marks == (["new"] * 3 if exchanged else [None, "new", "new"])


def test_where_folders_cannot_be_exchanged_they_are_renamed(original, folder, monkeypatch):
    class Refusing:
        def __init__(self, code):
            self.code = code

        def renameat2(self, *_):
            ctypes.set_errno(self.code)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing(errno.EINVAL))
    original[0].save(folder)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # an old C library
    original[0].save(folder)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        original[0].save(folder)
    QuARDensity.load(folder)


def test_saving_does_not_replace_what_is_no_model(original, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("thesis", "file"):
        with pytest.raises(StoreError, match="not a model"):
            original[0].save(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "precious"


def test_links_to_folders(original, folder, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(folder)

    QuARDensity.load(link)
    original[0].save(link)
    assert link.is_symlink()
    QuARDensity.load(folder)
    assert {p.name for p in tmp_path.iterdir()} == {"model", "latest"}


def test_new_places(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("model", "deep/er/model/", tmp_path / "a model, ü"):
        original[0].save(place)
        QuARDensity.load(place)


def test_weights_that_are_not_finite_are_not_saved(original, tmp_path):
    from copy import deepcopy

    density = deepcopy(original[0])
    with torch.no_grad():
        next(density.flow_.parameters()).fill_(float("nan"))
    with pytest.raises(StoreError, match="not finite"):
        density.save(tmp_path / "model")

    assert list(tmp_path.iterdir()) == []


def test_names_of_any_alphabet(tmp_path):
    import polars as pl

    rng = np.random.default_rng(0)
    names = ["größe", "質量", "a,b\n<script>", ""]
    X = pl.DataFrame(dict(zip(names, rng.normal(size=(4, 30)), strict=True)))
    QuARDensity(transforms=1, hidden_features=(4,), max_epochs=1).fit(X).save(tmp_path / "m")

    assert list(QuARDensity.load(tmp_path / "m").feature_names_in_) == names


def test_context_may_share_a_name_with_a_column(tmp_path):
    import polars as pl

    rng = np.random.default_rng(0)
    X = pl.DataFrame({"c0": rng.normal(size=30), "b": rng.normal(size=30)})
    density = QuARDensity(transforms=1, hidden_features=(4,), max_epochs=1)
    density.fit(X, context=rng.normal(size=(30, 1))).save(tmp_path / "m")

    assert QuARDensity.load(tmp_path / "m").context_columns_.names == ["c0"]


def test_settings_as_searches_give_them(tmp_path):
    """NumPy numbers, as from scipy's distributions in a RandomizedSearchCV."""
    X = np.random.default_rng(0).normal(size=(30, 2))
    density = QuARDensity(
        transforms=np.int64(1),
        hidden_features=np.array([4]),
        max_epochs=np.int64(1),
        learning_rate=np.float64(1e-3),
        sigma=np.float32(0.9),
        random_state=np.random.RandomState(0),
        bounds={"x0": (np.float64(-20), None)},
    ).fit(X)
    density.save(tmp_path / "m")

    assert np.array_equal(
        QuARDensity.load(tmp_path / "m").score_samples(X), density.score_samples(X)
    )
