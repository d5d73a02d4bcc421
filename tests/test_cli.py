"""The command line: what works, what is refused, and what a killed run leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from quarflow.cli import app

TINY = ["--max-epochs", "2", "--set", "hidden_features=[8]", "--set", "transforms=2"]
QUARFLOW = [sys.executable, "-c", "from quarflow.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def works(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments):
    """Return the message: exit code 2, no traceback, and not more than a few sentences."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert not result.stdout or "missing values were left out" in result.stdout
    assert len(result.stderr) < 1200
    return result.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Give a folder with a table in every format and a model of it."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 3))
    X[:, 1] += X[:, 0] ** 2
    X[:, 2] = rng.poisson(4, 300)
    frame = pl.DataFrame({name: X[:, i] for i, name in enumerate("abc")})
    frame.write_csv(folder / "data.csv")
    frame.write_parquet(folder / "data.parquet")
    frame.select("c", "a", "b").write_csv(folder / "turned.csv")
    np.save(folder / "data.npy", X)
    works("fit", folder / "data.csv", "-o", folder / "model", *TINY)
    return folder


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestHelp:
    def test_light(self):
        code = (
            "import sys; from quarflow.cli import main; sys.argv = ['quarflow', '--help']\n"
            "try: main()\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'polars', 'sklearn', 'matplotlib', 'numpy'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)

    @pytest.mark.parametrize("command", ["fit", "score", "sample", "info", "report", "demo"])
    def test_example(self, command):
        assert f"Example:\n    quarflow {command}" in works(command, "--help")

    def test_version(self):
        from quarflow import __version__

        assert works("--version") == f"quarflow {__version__}\n"


class TestScore:
    def test_formats_orders_and_repeats_agree(self, place, inside):
        for name in ("data.csv", "data.parquet", "turned.csv", "data.npy"):
            works("score", place / "model", place / name, "-o", f"{name}.out.csv")
        first = (inside / "data.csv.out.csv").read_bytes()
        assert first == (inside / "data.parquet.out.csv").read_bytes()
        assert first == (inside / "turned.csv.out.csv").read_bytes()
        assert first == (inside / "data.npy.out.csv").read_bytes()
        works("score", place / "model", place / "data.csv", "-o", "again.csv")
        assert first == (inside / "again.csv").read_bytes()
        works("score", place / "model", place / "data.csv", "-o", "out.parquet", "--keep")
        kept, plain = pl.read_parquet("out.parquet"), pl.read_csv("again.csv")
        assert kept.columns == ["a", "b", "c", "log_prob"]
        assert kept["log_prob"].to_list() == plain["log_prob"].to_list()
        assert kept["a"].to_list() == pl.read_csv(place / "data.csv")["a"].to_list()

    def test_is_the_estimator(self, place, inside):
        from quarflow import QuARDensity

        output = works("score", place / "model", place / "data.csv", "-o", "out.csv")
        scores = QuARDensity.load(place / "model").score_samples(pl.read_csv(place / "data.csv"))
        np.testing.assert_array_equal(pl.read_csv("out.csv")["log_prob"].to_numpy(), scores)
        assert "300 rows, " in output
        assert f"Mean: {-scores.mean():.4f} nats per row (-log p, less is better)." in output

    def test_missing_values(self, place, inside):
        (inside / "gap.csv").write_text("a,b,c\n1,2,3\n1,,3\n0,1,2\n")
        message = refused("score", place / "model", "gap.csv", "-o", "out.csv")
        assert "'b'" in message
        assert "row 2" in message
        assert not (inside / "out.csv").exists()
        output = works("score", place / "model", "gap.csv", "-o", "out.pq", "--allow-missing")
        assert "1 rows with missing values have no log_prob" in output
        found = pl.read_parquet("out.pq")["log_prob"].to_list()
        assert [value is None for value in found] == [False, True, False]

    def test_refusals(self, place, inside):
        model, data = place / "model", place / "data.csv"
        (inside / "lacks.csv").write_text("a,c\n1,2\n3,4\n")
        assert "'b'" in refused("score", model, "lacks.csv", "-o", "out.csv")
        assert ".parquet" in refused("score", model, data, "-o", "out.txt")
        assert "no folder" in refused("score", model, data, "-o", "no/out.csv")
        assert "is the input" in refused("score", model, "lacks.csv", "-o", "lacks.csv")
        assert "no model folder" in refused("score", "nowhere", data, "-o", "out.csv")
        assert "nope.csv" in refused("score", model, "nope.csv", "-o", "out.csv")
        assert [path.name for path in inside.iterdir()] == ["lacks.csv"]


class TestSample:
    def test_seeds_and_formats(self, place, inside):
        from quarflow import QuARDensity

        for name in ("s.csv", "s.parquet", "s.npy"):
            works("sample", place / "model", "-n", "20", "-o", name, "--seed", "5")
        expected = QuARDensity.load(place / "model").sample(20, random_state=5)
        np.testing.assert_array_equal(np.load("s.npy"), expected)
        np.testing.assert_array_equal(pl.read_parquet("s.parquet").to_numpy(), expected)
        assert pl.read_csv("s.csv").columns == ["a", "b", "c"]
        assert (expected[:, 2] == expected[:, 2].round()).all()

    def test_context(self, place, inside):
        works("fit", place / "data.csv", "-o", "m", "--context", "c", *TINY)
        works("sample", "m", "-n", "5", "-o", "s.csv", "--context-row", "c=3")
        works("sample", "m", "-n", "5", "-o", "t.csv", "--context-row", '{"c": 3}')
        assert (inside / "s.csv").read_bytes() == (inside / "t.csv").read_bytes()
        assert pl.read_csv("s.csv").columns == ["a", "b"]
        works("score", "m", place / "turned.csv", "-o", "scores.csv")
        works("report", "m", place / "data.csv", "-o", "r.html")
        assert "context" in works("info", "m")
        for row in (None, "d=1", "c=x", "c", "c=inf", "{", '{"c": [1]}'):
            extra = [] if row is None else ["--context-row", row]
            assert "--context-row" in refused("sample", "m", "-o", "u.csv", *extra)
        message = refused("sample", place / "model", "-o", "u.csv", "--context-row", "c=1")
        assert "no context" in message
        assert not (inside / "u.csv").exists()


class TestFit:
    def test_chosen_columns_and_settings(self, place, inside):
        bounds = '--set=bounds={"c":[0,null]}'
        output = works("fit", place / "data.csv", "-o", "m", "--columns", "c,a", bounds, *TINY)
        assert "300 rows, 2 columns" in output
        assert "quarflow report m" in output
        config = json.loads((inside / "m" / "config.json").read_text())
        assert [column["name"] for column in config["columns"]] == ["c", "a"]
        assert not (inside / "m" / "checkpoint").exists()
        output = works("info", "m")
        assert "Certificate" in output
        assert "300" in output

    def test_same_seed_same_model(self, place, inside):
        for name in "xy":
            works("fit", place / "data.csv", "-o", name, *TINY)
        weights = [(inside / name / "weights.safetensors").read_bytes() for name in "xy"]
        assert weights[0] == weights[1]

    def test_folders(self, place, inside):
        data = place / "data.csv"
        (inside / "file").write_text("mine")
        (inside / "full").mkdir()
        (inside / "full" / "file").write_text("mine")
        assert "is a file" in refused("fit", data, "-o", "file", *TINY)
        for more in ([], ["--force"], ["--resume"]):
            assert "other files" in refused("fit", data, "-o", "full", *TINY, *more)
        (inside / "full" / "config.json").write_text("{}")
        assert "something else" in refused("fit", data, "-o", "full", "--force", *TINY)
        (inside / "half" / "checkpoint").mkdir(parents=True)
        message = refused("fit", data, "-o", "half", *TINY)
        assert "--resume" in message
        assert "--force" in message
        assert "unfinished" in refused("info", "half")
        result = run("fit", data, "-o", "new", "--resume", *TINY)
        assert result.exit_code == 0
        assert "No checkpoint to resume from: starting from step 0." in result.stderr
        assert "finished" in works("fit", data, "-o", "new", "--resume", *TINY)
        assert "already holds a model" in refused("fit", data, "-o", "new", *TINY)
        assert "Saved" in works("fit", data, "-o", "new", "--force", *TINY)
        assert (inside / "file").read_text() == (inside / "full" / "file").read_text() == "mine"

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--columns", "a,nope"], "'nope'"),
            (["--columns", "a,a"], "twice"),
            (["--columns", "a,,b"], "--columns takes names"),
            (["--columns", "a", "--context", "a"], "--columns and in --context"),
            (["--context", "a,b,c"], "leave at least one"),
            (["--set", "nope=1"], "The settings are: transforms, hidden_features"),
            (["--set", "sigma"], "key=value"),
            (["--set", "sigma=1.5"], "sigma"),
            (["--set", "checkpoint=x"], "use -o instead"),
            (["--set", "norm=frobenius"], "norm"),
            (["--set", 'bounds={"d":[0,1]}'], "'d'"),
            (["--set", 'bounds={"a":[0,1]}'], "'a'"),
            (["--minutes", "-1"], "minutes"),
            (["--device", "abacus"], "abacus"),
            (["--resume", "--force"], "one of them"),
        ],
    )
    def test_wrong_arguments(self, place, inside, more, message):
        assert message in refused("fit", place / "data.csv", "-o", "m", *TINY, *more)
        assert not list(inside.iterdir())


def bad_tables():
    good = [f"{i / 7},{i * i % 11 + i / 3},{i % 5}" for i in range(60)]
    yield "empty.csv", "", ["empty.csv"]
    yield "header.csv", "a,b,c\n", ["header.csv", "no rows"]
    yield "constant.csv", "a,b\n" + "".join(f"{i},3\n" for i in range(50)), ["'b'", "3"]
    yield "nan.csv", "\n".join(["a,b,c", *good[:9], "1,nan,2", *good]), ["'b'", "row 10"]
    yield "inf.csv", "\n".join(["a,b,c", *good[:4], "1,2,inf", *good]), ["'c'", "row 5"]
    yield "gap.csv", "\n".join(["a,b,c", *good[:2], ",2,3", *good]), ["'a'", "row 3"]
    yield "text.csv", "\n".join(["a,b,c", *good, "1,2,red"]), ["'c'", "red"]
    yield "few.csv", "a,b\n1,2\n2,3\n", ["row"]
    yield "ragged.csv", "\n".join(["a,b,c", *good[:6], "1,2", *good]), ["line 8", "2 values"]
    yield "twice.csv", "\n".join(["a,b,a", *good]), ["'a'"]


class TestBadTables:
    @pytest.mark.parametrize(("name", "content", "said"), [*bad_tables()])
    def test_csv(self, inside, name, content, said):
        (inside / name).write_text(content)
        message = refused("fit", name, "-o", "m", *TINY)
        for part in said:
            assert part in message
        assert [path.name for path in inside.iterdir()] == [name]

    def test_truncated_parquet(self, place, inside):
        whole = (place / "data.parquet").read_bytes()
        (inside / "cut.parquet").write_bytes(whole[: len(whole) // 2])
        assert "cut.parquet" in refused("fit", "cut.parquet", "-o", "m", *TINY)
        assert "cut.parquet" in refused("score", place / "model", "cut.parquet", "-o", "s.csv")
        assert [path.name for path in inside.iterdir()] == ["cut.parquet"]

    def test_pickled_array(self, inside):
        np.save("p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        assert "p.npy" in refused("fit", "p.npy", "-o", "m", *TINY)

    def test_unknown_kind_and_none(self, inside):
        (inside / "data.xlsx").write_text("x")
        assert ".csv" in refused("fit", "data.xlsx", "-o", "m", *TINY)
        assert "nope.csv" in refused("fit", "nope.csv", "-o", "m", *TINY)

    def test_drop_missing(self, inside):
        lines = [f"{i / 7},{i * i % 11 + i / 3}" for i in range(60)]
        (inside / "gap.csv").write_text("\n".join(["a,b", *lines[:30], "1,", *lines[30:]]))
        output = works("fit", "gap.csv", "-o", "m", "--drop-missing", *TINY)
        assert "1 rows with missing values were left out" in output
        assert "60 rows, 2 columns" in output


HOSTILE = ["<script>alert(1)</script>", "$x$", 'a,b "q"', "new\nline", "温度\u202e", "long" * 80]


def test_hostile_names(inside):
    from quarflow.data import column_names

    X = np.random.default_rng(0).normal(size=(200, len(HOSTILE)))
    pl.DataFrame({name: X[:, i] for i, name in enumerate(HOSTILE)}).write_csv("data.csv")
    works("fit", "data.csv", "-o", "m", *TINY)
    assert "<script>" in works("info", "m")
    works("report", "m", "data.csv", "-o", "r.html")
    assert "<script" not in (inside / "r.html").read_text(encoding="utf-8")
    works("score", "m", "data.csv", "-o", "s.csv", "--keep")
    assert column_names("s.csv") == [*HOSTILE, "log_prob"]
    works("sample", "m", "-n", "3", "-o", "t.parquet")
    assert pl.read_parquet("t.parquet").columns == HOSTILE
    chosen = json.dumps(HOSTILE[1:4])
    assert "2 columns given 1" in works(
        "fit", "data.csv", "-o", "n", "--columns", json.dumps(HOSTILE[1:3]),
        "--context", json.dumps(["new\nline"]), *TINY,
    )  # fmt: skip
    assert "3 columns" in works("fit", "data.csv", "-o", "k", "--columns", chosen, *TINY)


class TestReport:
    def test_with_and_without_rows(self, place, inside):
        works("report", place / "model", place / "turned.csv", "-o", "with.html")
        works("report", place / "model", "-o", "without.html")
        assert 'id="calibration"' in (inside / "with.html").read_text(encoding="utf-8")
        assert "No rows were given" in (inside / "without.html").read_text(encoding="utf-8")

    def test_refusals(self, place, inside):
        assert ".html" in refused("report", place / "model", "-o", "r.pdf")
        assert "--drop-missing" in refused("report", place / "model", "--drop-missing")
        (inside / "m").mkdir()
        assert "config.json" in refused("report", "m", "-o", "r.html")
        assert [path.name for path in inside.iterdir()] == ["m"]


class TestErrors:
    def test_bugs_keep_their_traceback(self, place, inside, monkeypatch):
        from quarflow import QuARDensity

        def slip(self, *args, **kwargs):
            return np.zeros(2) + np.zeros(3)

        monkeypatch.setattr(QuARDensity, "score_samples", slip)
        result = run("score", place / "model", place / "data.csv", "-o", "out.csv")
        assert isinstance(result.exception, ValueError)
        assert not list(inside.iterdir())

    def test_interrupted(self, place, inside, monkeypatch):
        from quarflow import QuARDensity

        def stop(self, *args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(QuARDensity, "score_samples", stop)
        result = run("score", place / "model", place / "data.csv", "-o", "out.csv")
        assert result.exit_code == 130
        assert not list(inside.iterdir())
        monkeypatch.setattr(QuARDensity, "fit", stop)
        result = run("fit", place / "data.csv", "-o", "m", *TINY)
        assert result.exit_code == 130
        assert "before there was anything to keep" in result.stderr
        assert not list(inside.iterdir())


def test_real_process(place, inside):
    """The messages and codes of a process are those of the runner."""
    command = [*QUARFLOW, "score", place / "model", "nope.csv", "-o", "out.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr == "quarflow: There is no file nope.csv.\n"
    assert done.stdout == ""


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_killed_resumed_and_interrupted(place, inside):
    """Killed by -9 it goes on with --resume; Ctrl-C then keeps the best, and the checkpoint."""
    data, model = place / "data.csv", inside / "m"
    long = ["--set", "hidden_features=[8]", "--set", "transforms=1", "--set", "patience=0"]
    command = [*QUARFLOW, "fit", data, "-o", model, "--max-epochs", "100000", *long]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as first:
        wait_for(lambda: (model / "checkpoint" / "training.safetensors").exists(), first)
        first.kill()
    assert not (model / "config.json").exists()
    assert "--resume" in refused("fit", data, "-o", model)

    with (
        open("errors", "wb") as errors,
        subprocess.Popen(
            [*command, "--resume"], stdout=subprocess.PIPE, stderr=errors, env=ENVIRONMENT
        ) as second,
    ):
        wait_for(lambda: b"validation" in (inside / "errors").read_bytes(), second)
        second.send_signal(signal.SIGINT)
        output = second.communicate(timeout=60)[0].decode()
    assert second.returncode == 130, (output, (inside / "errors").read_text())
    assert "Resumed at step" in (inside / "errors").read_text()
    assert "The best so far is saved" in output
    works("score", model, data, "-o", "scores.csv")
    assert (model / "checkpoint").is_dir()
    assert "--resume" in refused("fit", data, "-o", model)
    assert sorted(path.name for path in inside.iterdir()) == ["errors", "m", "scores.csv"]


def test_demo(inside):
    """A demo of a few seconds: everything is written, and may be written again."""
    from quarflow.experiments.demo import run_demo

    (inside / "mine").mkdir()
    (inside / "mine" / "file").touch()
    assert "not empty" in refused("demo", "-o", "mine")
    said = []
    figures = run_demo("demo", say=said.append, minutes=(0.05, 0.02), samples=300)
    names = {".quarflow-demo", "model", "samples.csv", "report.html", "figures.json", "demo.png"}
    assert {path.name for path in (inside / "demo").iterdir()} == names
    assert json.loads((inside / "demo" / "figures.json").read_text()) == figures
    assert figures["inversion_error"] < 1e-9
    assert figures["certified_bound"] < 1
    assert 9 < figures["gaussian_test_nats"] < 13
    assert any("ROC AUC" in line for line in said)
