"""Files of a model folder that are damaged or made to do harm: refused, at once, by a sentence."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import quarflow
from quarflow import QuARDensity
from quarflow.store import CONFIG, LOG, METRICS, WEIGHTS, StoreError, holds_images
from quarflow.store import read as store_read


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    X = np.random.default_rng(0).normal(size=(40, 2))
    folder = tmp_path_factory.mktemp("store") / "model"
    QuARDensity(transforms=1, hidden_features=(4,), max_epochs=1, random_state=0).fit(X).save(
        folder
    )
    return folder


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "model")
    return tmp_path / "model"


def refused(folder, *words):
    with pytest.raises(StoreError) as caught:
        QuARDensity.load(folder)
    message = str(caught.value)
    assert len(message) < 500 + len(str(folder))
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, METRICS, LOG])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to nothing", "socket"])
def test_what_is_no_plain_file(folder, name, kind, monkeypatch):
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        monkeypatch.chdir(folder)  # the name of a socket must be short
        socket.socket(socket.AF_UNIX).bind(name)
    else:
        path.symlink_to("nowhere")

    refused(folder, name)
    assert not holds_images(folder)


@pytest.mark.parametrize("name", [CONFIG, METRICS, LOG])
def test_files_of_terabytes(folder, name):
    with (folder / name).open("ab") as file:
        file.truncate(1 << 42)  # takes no room on the disk
    refused(folder, name, "bytes")


def test_weights_with_terabytes_that_no_flow_needs(folder):
    data = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, held = json.loads(data[8 : 8 + size]), len(data) - 8 - size
    end = held + (1 << 40)
    header["extra"] = {"dtype": "F32", "shape": [1 << 38], "data_offsets": [held, end]}
    text = json.dumps(header).encode()
    with (folder / WEIGHTS).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data[8 + size :])
        file.truncate(8 + len(text) + end)
    refused(folder, WEIGHTS, "bytes")


METRIC_CHANGES = {
    "a list": ("[1]", "JSON object"),
    "cut off": ('{"rows": 4', "not valid JSON"),
    "bytes": (b"\xff\xfe{}", "UTF-8"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "digits": ('{"rows": ' + "9" * 5000 + "}", "not valid JSON"),
    "text for a number": ('{"rows": "many"}', "'rows'"),
    "a list for a number": ('{"valid_nats": [1]}', "'valid_nats'"),
    "true for a number": ('{"steps": true}', "'steps'"),
    "negative": ('{"rows": -1}', "'rows'"),
    "infinite": ('{"seconds": 1e999}', "'seconds'"),
    "number for text": ('{"stopped": 5}', "'stopped'"),
    "a page of text": ('{"stopped": "' + "x" * 20_000 + '"}', "'stopped'"),
}


@pytest.mark.parametrize("name", METRIC_CHANGES)
def test_damaged_metrics(folder, name):
    text, word = METRIC_CHANGES[name]
    (folder / METRICS).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, METRICS, word)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("5", "line 2"),
        ("{", "not valid JSON"),
        ('{"step": "x"}', "'step'"),
        ('{"valid_nats": "low"}', "'valid_nats'"),
        ('{"epoch": [1]}', "'epoch'"),
    ],
)
def test_damaged_log(folder, line, word):
    (folder / LOG).write_text('{"step": 1, "valid_nats": null}\n' + line + "\n")
    refused(folder, LOG, word)


def test_what_a_fit_writes_is_read_and_more_is_kept(folder):
    metrics = json.loads((folder / METRICS).read_text()) | {"mine": {"a": [1, "b"]}}
    (folder / METRICS).write_text(json.dumps(metrics))
    (folder / LOG).unlink()
    density = QuARDensity.load(folder)
    assert density.metrics_ == metrics
    assert density.history_ == []


@pytest.mark.parametrize("version", [True, 1.0, "1", [1], None])
def test_versions_that_only_look_like_one(folder, version):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"version": version}))
    refused(folder, "version")


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["flow"]["arguments"].update(transforms=True),
        lambda c: c["flow"]["arguments"].update(features="2"),
        lambda c: c["flow"]["arguments"].update(features=2.0),
        lambda c: c["flow"]["arguments"].update(trick="yes"),
        lambda c: c.update(named="yes"),
        lambda c: c["settings"].update(a=[[[[[[[[[[[1]]]]]]]]]]]),
        lambda c: c["parameters"].update(a={"b": [[[[[[[[[[1]]]]]]]]]]}),
    ],
)
def test_values_that_only_look_right(folder, change):
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    refused(folder, CONFIG, "damaged at")


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "complex64", "bool"])
def test_weights_of_other_kinds(folder, kind):
    weights = load_file(folder / WEIGHTS)
    name = next(key for key in sorted(weights) if weights[key].is_floating_point())
    weights[name] = weights[name].to(getattr(torch, kind))
    save_file(weights, folder / WEIGHTS)
    refused(folder, repr(name), "wrong type")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_of_other_precision_are_read(folder, kind):
    weights = load_file(folder / WEIGHTS)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            weights[name] = tensor.to(getattr(torch, kind))
    save_file(weights, folder / WEIGHTS)
    assert np.isfinite(QuARDensity.load(folder).score_samples([[0.0, 1.0]])).all()


def test_nothing_is_read_before_it_fits(folder, monkeypatch):
    def read(*_):
        raise AssertionError("it was read")

    weights = load_file(folder / WEIGHTS)
    name = next(key for key in weights if weights[key].numel() > 1)
    save_file(weights | {name: torch.zeros(5, 5)}, folder / WEIGHTS)
    monkeypatch.setattr(store_read, "check_finite", read)
    refused(folder, repr(name), "has shape (5, 5)")


def test_arguments_as_numpy_gives_them(tmp_path):
    flow = quarflow.QuAR(2, transforms=1, hidden_features=(4,), sigma=np.float64(0.9))
    quarflow.store.save_flow(flow, tmp_path / "m")
    assert quarflow.store.load_flow(tmp_path / "m").arguments["sigma"] == 0.9
