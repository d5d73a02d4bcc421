"""The command line on tables as they come: ids and labels, no rows, folders, addresses, pipes."""

import ast
import csv
import inspect
import os
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.main import get_command

import quarflow
from quarflow import QuARDensity, data
from quarflow.cli import app
from quarflow.training import Event, TrainingProgress
from test_cli import TINY, refused, run, works

SOURCE = Path(quarflow.__file__).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Give a folder with a model of the columns b and a, and a table with others around them."""
    folder = tmp_path_factory.mktemp("inputs")
    X = np.random.default_rng(0).normal(size=(50, 2))
    frame = pl.DataFrame(
        {
            "id": [f"{i:03d}" for i in range(50)],
            "a": X[:, 0],
            "label": ["x", "", "NA", "5", 'é,"\n'] * 10,
            "b": X[:, 1],
            "": range(50),
        }
    )
    frame.write_csv(folder / "all.csv")
    frame.with_columns(
        day=pl.date_range(pl.date(2020, 1, 1), pl.date(2020, 2, 19)), pair=pl.lit([1, 2])
    ).write_parquet(folder / "all.parquet")
    works("fit", folder / "all.csv", "-o", folder / "model", "--columns", "b,a", *TINY)
    return folder


@pytest.fixture
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path):
    """Text of each cell of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


class TestKeep:
    def test_text_as_it_is_written(self, place, inside, monkeypatch):
        works("score", place / "model", place / "all.csv", "-o", "out.csv", "--keep")
        was, now = (rows_of(path) for path in (place / "all.csv", inside / "out.csv"))
        assert now[0] == ["id", "a", "label", "b", "", "log_prob"]
        assert [row[:-1] for row in now] == was
        scores = QuARDensity.load(place / "model").score_samples(
            pl.read_csv(place / "all.csv").select("b", "a")
        )
        assert [float(row[-1]) for row in now[1:]] == scores.tolist()

        monkeypatch.setattr("quarflow.data.csv_source.BLOCK", 200)  # bytes: many blocks
        works("score", place / "model", place / "all.csv", "-o", "blocks.csv", "--keep")
        assert (inside / "blocks.csv").read_bytes() == (inside / "out.csv").read_bytes()

    def test_types_of_parquet(self, place, inside):
        works("score", place / "model", place / "all.parquet", "-o", "out.parquet", "--keep")
        was, now = pl.read_parquet(place / "all.parquet"), pl.read_parquet("out.parquet")
        assert now.drop("log_prob").equals(was)
        message = refused("score", place / "model", place / "all.parquet", "-o", "o.csv", "--keep")
        assert "'pair' holds values of type List" in message
        assert ".parquet" in message

    def test_archives(self, place, inside):
        labels, days = (
            np.array(["p", "q"]),
            np.array(["2020-01-01", "2020-01-02"], "datetime64[s]"),
        )
        np.savez("t.npz", a=np.zeros(2), label=labels, b=np.ones(2), day=days)
        works("score", place / "model", "t.npz", "-o", "out.csv", "--keep")
        lines = (inside / "out.csv").read_text().splitlines()
        assert lines[0] == "a,label,b,day,log_prob"
        assert lines[2].startswith("0.0,q,1.0,2020-01-02T00:00")

    def test_blank_lines_and_gaps_stay_in_step(self, place, inside):
        (inside / "gap.csv").write_text("b,id,a\n1,NA,2\n\n,0x,\n3,,4\n\n")
        options = ("-o", "out.csv", "--keep", "--allow-missing")
        works("score", place / "model", "gap.csv", *options)
        rows = [line.split(",") for line in (inside / "out.csv").read_text().splitlines()]
        assert [row[:3] for row in rows[1:]] == [
            ["1.0", "NA", "2.0"],
            ["", "0x", ""],
            ["3.0", "", "4.0"],
        ]
        assert [bool(row[3]) for row in rows[1:]] == [True, False, True]

    def test_refusals(self, place, inside):
        model = place / "model"
        for header, match in (("a,b,log_prob", "'log_prob'"), ("a,b,c,c", "two columns .*'c'")):
            row = ",".join("1" * len(header.split(",")))
            (inside / "t.csv").write_text(f"{header}\n{row}\n")
            assert re.search(match, refused("score", model, "t.csv", "-o", "o.csv", "--keep"))
            works("score", model, "t.csv", "-o", "o.csv")
        (inside / "l.csv").write_bytes("a,b,c\n1,2,é\n".encode("latin-1"))
        assert "UTF-8" in refused("score", model, "l.csv", "-o", "o.csv", "--keep")


def test_no_rows(place, inside):
    (inside / "t.csv").write_text("a,id,b\n")
    pl.DataFrame({"a": [], "b": []}, schema={"a": float, "b": float}).write_parquet("t.parquet")
    np.save("t.npy", np.empty((0, 2)))
    for name in ("t.csv", "t.parquet", "t.npy"):
        output = works("score", place / "model", name, "-o", "out.csv")
        assert output.startswith("0 rows")
        assert "nan" not in output
        assert (inside / "out.csv").read_text() == "log_prob\n"
        assert "no rows" in refused("fit", name, "-o", "m")
        assert "no rows" in refused("report", place / "model", name, "-o", "r.html")
    works("score", place / "model", "t.csv", "-o", "out.csv", "--keep")
    assert (inside / "out.csv").read_text() == "a,id,b,log_prob\n"
    works("score", place / "model", "t.csv", "-o", "out.parquet")
    assert pl.read_parquet("out.parquet").shape == (0, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://example.org/t.csv", "https://example.org/t.csv is an address"),
        ("s3://bucket/t", "s3://bucket/t is an address"),
        ("tables", "tables is a folder, .*tables/t.csv"),
        ("model", "folder of a model"),
        ("pipe.csv", "pipe or a device"),
        ("null.csv", "pipe or a device"),
    ],
)
def test_what_is_no_table(place, inside, name, words):
    (inside / "tables").mkdir()
    (inside / "tables" / "t.csv").write_text("a,b\n1,2\n")
    os.mkfifo("pipe.csv")
    (inside / "null.csv").symlink_to("/dev/null")
    (inside / "model").symlink_to(place / "model")
    for command in (
        ("score", "model", name, "-o", "o.csv"),
        ("fit", name, "-o", "m"),
        ("report", "model", name, "-o", "r.html"),
    ):
        assert re.search(words, refused(*command))


def test_a_table_where_the_model_goes(place, inside):
    message = refused("score", place / "all.csv", place / "model", "-o", "o.csv")
    assert "the model comes first" in message


def test_advice_of_score_is_an_option_of_score(place, inside):
    (inside / "t.csv").write_text("a,b\n1,\n")
    message = refused("score", place / "model", "t.csv", "-o", "o.csv")
    assert "--allow-missing" in message
    assert "--drop-missing" not in message


def test_each_notice_is_printed_once(place, inside):
    result = run("fit", place / "all.csv", "-o", "m", "--columns", "b,a", *TINY)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == len(set(lines))
    assert sum("max_epochs" in line for line in lines) == 1
    assert sum("less is better" in line for line in lines) == 1


@pytest.mark.parametrize("evaluations", [1, 7, 5000])
def test_at_most_twenty_lines_where_there_is_no_bar(evaluations, capsys):
    def event(kind, message, progress):
        record = {"valid_nats": 1.0} if kind == "evaluation" else None
        return Event(kind, message, 1, 1, 1, progress, 1.0, 0.0, 1.0, 0.1, 1.0, 1.0, record)

    with TrainingProgress() as show:
        show(event("start", "Begun.", 0.0))
        for number in range(evaluations):
            show(event("step", "", number / evaluations))
            show(event("evaluation", "", (number + 1) / evaluations))
            show(event("cut", f"Cut {number}.", (number + 1) / evaluations))
        show(event("interrupt", "Stopped.", 1.0))
        show(event("end", "Done.", 1.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 20
    assert lines[0] == "Begun."
    assert lines[-1] == "Done."
    assert sum(line.startswith("epoch") for line in lines) == min(evaluations, 12)


def texts(tree):
    """Text in a module but docstrings, with the fields of f-strings left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def test_messages_name_options_and_arguments_that_exist():
    commands = get_command(app).commands
    options = {"--help", "--version"}
    groups = [commands, commands["paper"].commands]
    for command in (command for group in groups for command in group.values()):
        options |= {name for parameter in command.params for name in parameter.opts}
    arguments = {"columns": data.read_table, "drop_missing": data.read_table}
    arguments |= {"missing": data.iter_table}
    for name, function in arguments.items():
        assert name in inspect.signature(function).parameters
    for path in SOURCE.rglob("*.py"):
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            if {"bench", "paper", "backends"} & set(path.parts):
                continue  # options of other programs
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
                assert option in options, (path.name, option)
            for name in re.findall(r"(\w+)=[^ ]* (?:in Python|of quarflow)", text):
                assert name in arguments, (path.name, text)
