"""`quarflow fit` as real processes: signals, several processes, two fits at once, full disks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from quarflow import QuARDensity
from quarflow.training import loop
from test_cli import ENVIRONMENT, QUARFLOW, TINY, refused, run, wait_for, works

LONG = ["--max-epochs", "100000", "--set", "hidden_features=[8]", "--set", "transforms=1"]
LONG += ["--set", "patience=0"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs signals")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A small table, in a folder to be in."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pl.DataFrame(rng.normal(size=(300, 2)), schema=["a", "b"]).write_csv("data.csv")
    return tmp_path / "data.csv"


def started(*arguments):
    command = [*QUARFLOW, "fit", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sigterm_and_a_second_fit_into_the_same_folder(data, tmp_path):
    """One fit at a time; SIGTERM saves the best, and the code says that it was stopped."""
    model = tmp_path / "m"
    with started(data, "-o", model, *LONG) as first:
        wait_for(lambda: (model / "checkpoint" / "training.safetensors").exists(), first)
        for option in ([], ["--resume"], ["--force"]):
            message = refused("fit", data, "-o", "m", *LONG, *option)
            assert "Another fit is writing to m: wait for it to end, stop it" in message
        assert (model / "checkpoint" / "training.safetensors").exists()
        first.send_signal(signal.SIGTERM)
        said, progress = first.communicate(timeout=60)
    assert first.returncode == 143
    assert "Interrupted by SIGTERM" in progress
    assert "The best so far is saved" in said
    assert names(tmp_path) == ["data.csv", "m"]
    before = QuARDensity.load(model)
    assert before.metrics_["interrupted"]

    wrong = refused("fit", data, "-o", "m", *LONG, "--resume", "--set", "sigma=0.5")
    assert "sigma was 0.97 and is 0.5" in wrong


def test_a_script_of_several_fits_ends_at_sigterm(tmp_path):
    """As without us: the next fit does not start, and the process ends by the signal."""
    code = (
        "import numpy as np\n"
        "from quarflow import QuARDensity\n"
        "X = np.random.default_rng(0).normal(size=(2000, 2))\n"
        "for i in range(2):\n"
        "    print('fit', i, flush=True)\n"
        "    QuARDensity(minutes=1, random_state=i, checkpoint='ck').fit(X)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=ENVIRONMENT, text=True, cwd=tmp_path,
    ) as script:  # fmt: skip
        wait_for(lambda: (tmp_path / "ck" / "lock").exists(), script)
        time.sleep(0.2)
        script.send_signal(signal.SIGTERM)
        out, errors = script.communicate(timeout=60)
    assert script.returncode == -signal.SIGTERM, errors
    assert out == "fit 0\n"
    assert names(tmp_path / "ck") == ["training.safetensors"]


def test_ctrl_c_leaves_the_best_so_far_in_the_density(monkeypatch):
    step = loop._Run.step

    def pressed(self):
        step(self)
        if self.counters.step == 30:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop._Run, "step", pressed)
    X = np.random.default_rng(0).normal(size=(300, 2))
    density = QuARDensity(transforms=1, hidden_features=(8,), max_epochs=50, random_state=0)
    with pytest.raises(KeyboardInterrupt):
        density.fit(X)
    assert density.metrics_["interrupted"]
    assert density.metrics_["steps"] == 30
    assert density.metrics_["stopped"].startswith("Interrupted by SIGINT at step 30")
    assert -density.score(X) / 300 == pytest.approx(density.metrics_["valid_nats"], abs=0.5)


def test_two_processes_write_one_model(data, tmp_path):
    """Under torchrun only the first process looks after the folder, and says something."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "fit.py").write_text("from quarflow.cli import main; main()")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
    command = [sys.executable, *launch, "--master-port", str(port), "fit.py", "fit", "data.csv"]
    done = subprocess.run(
        [*command, "-o", "m", *TINY], env=ENVIRONMENT, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved in m") == 1
    assert done.stdout.count("300 rows, 2 columns") == 1
    assert names(tmp_path) == ["data.csv", "fit.py", "m"]
    assert names(tmp_path / "m") == [
        "config.json", "metrics.json", "training.jsonl", "weights.safetensors",
    ]  # fmt: skip
    assert QuARDensity.load("m").metrics_["steps"] > 0


def fill_up(monkeypatch, name):
    from safetensors import SafetensorError
    from safetensors import torch as files

    save = files.save_file

    def full(tensors, path, *arguments, **options):
        if name in str(path):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path, *arguments, **options)

    monkeypatch.setattr(files, "save_file", full)
    monkeypatch.setattr("quarflow.store.folder.save_file", full)


def test_a_full_disk_while_saving_the_model(data, tmp_path):
    """A sentence, the checkpoint is kept, and with room again the same model without training."""
    works("fit", data, "-o", "whole", *TINY)
    with pytest.MonkeyPatch.context() as patch:
        fill_up(patch, "weights.safetensors")
        message = refused_after_training("fit", data, "-o", "m", *TINY)
    assert "The model could not be saved in m: I/O error: No space left on device" in message
    assert "then --resume saves the model without training it again" in message
    assert names(tmp_path) == ["data.csv", "m", "whole"]
    assert names(tmp_path / "m") == ["checkpoint"]
    works("fit", data, "-o", "m", "--resume", *TINY)
    assert names(tmp_path / "m") == names(tmp_path / "whole")
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    with pytest.MonkeyPatch.context() as patch:  # at the checkpoint only: all is well in the end
        fill_up(patch, "training.safetensors")
        result = run("fit", data, "-o", "n", *TINY)
    assert result.exit_code == 0
    assert result.stderr.count("could not be written") == 1
    assert names(tmp_path / "n") == names(tmp_path / "whole")


def refused_after_training(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr


def test_a_save_cut_off_between_two_moves_is_finished_later(data, tmp_path):
    """By `--resume`, by whatever reads the model, and by the next fit."""
    works("fit", data, "-o", "m", *TINY)
    for command in (
        ("fit", data, "-o", "m", "--resume", *TINY),
        ("info", "m"),
        ("fit", data, "-o", "m", "--force", *TINY),
    ):
        old, new = tmp_path / ".m.1.tmp.old", tmp_path / ".m.1.tmp"
        os.rename("m", old)
        new.mkdir()
        for path in old.iterdir():
            (new / path.name).write_bytes(path.read_bytes())
        assert run(*command).exit_code == 0
        assert names(tmp_path) == ["data.csv", "m"]
        assert json.loads((tmp_path / "m" / "metrics.json").read_text())["rows"] == 300
