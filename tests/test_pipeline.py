"""Reading and writing beside the scoring: order, errors, bounds, and nothing half-written."""

import threading
import time

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from quarflow import QuARDensity
from quarflow.cli import app
from quarflow.data.pipeline import Ahead, Behind


def alive():
    return [t.name for t in threading.enumerate() if t.name in ("read ahead", "write behind")]


class TestAhead:
    def test_order_and_end(self):
        with Ahead(iter(range(100)), depth=3) as pieces:
            assert list(pieces) == list(range(100))
        assert not alive()

    def test_error_comes_in_its_place(self):
        def pieces():
            yield 1
            yield 2
            raise ValueError("row 3")

        taken = []
        with Ahead(pieces()) as ahead, pytest.raises(ValueError, match="row 3"):
            taken.extend(ahead)
        assert taken == [1, 2]

    def test_runs_ahead_but_not_far(self):
        made = []

        def pieces():
            for number in range(1000):
                made.append(number)
                yield number

        with Ahead(pieces(), depth=2) as ahead:
            first = iter(ahead)
            assert next(first) == 0
            deadline = time.monotonic() + 30
            while len(made) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            assert len(made) == 4  # one taken, two waiting, one in hand
        assert not alive()


class TestBehind:
    def test_all_is_dealt_with_in_order(self):
        found = []
        with Behind(lambda n: (time.sleep(0.001), found.append(n)), depth=2) as out:
            for number in range(50):
                out.put(number)
        assert found == list(range(50))

    @pytest.mark.parametrize("last", [0, 20])
    def test_its_error_is_raised_here(self, last):
        def deal(number):
            if number == last:
                raise OSError("disk full")

        def work():
            with Behind(deal) as out:
                for number in range(21):
                    out.put(number)

        with pytest.raises(OSError, match="disk full"):
            work()
        assert not alive()

    def test_our_error_drops_what_waits(self):
        found, hold = [], threading.Event()

        def deal(number):
            hold.wait(30)
            found.append(number)

        def work():
            with Behind(deal, depth=2) as out:
                for number in range(3):
                    out.put(number)
                threading.Timer(1.0, hold.set).start()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work()
        assert found == [0]
        assert not alive()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Give a folder with a table and a model of it."""
    folder = tmp_path_factory.mktemp("score")
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({name: rng.normal(size=1000) for name in "ab"})
    frame.write_parquet(folder / "data.parquet")
    model = QuARDensity(max_epochs=1, transforms=1, hidden_features=(4,), random_state=0)
    model.fit(frame).save(folder / "model")
    return folder


class TestScore:
    def score(self, place, data, output, monkeypatch):
        monkeypatch.setattr("quarflow.density.table_files.CHUNK", 64)
        arguments = ["score", str(place / "model"), str(data), "-o", str(output)]
        return CliRunner().invoke(app, arguments)

    def test_many_chunks_keep_their_order(self, place, tmp_path, monkeypatch):
        data, output = place / "data.parquet", tmp_path / "scores.parquet"
        assert self.score(place, data, output, monkeypatch).exit_code == 0
        expected = QuARDensity.load(place / "model").score_samples(pl.read_parquet(data))
        np.testing.assert_allclose(pl.read_parquet(output)["log_prob"], expected, rtol=1e-12)

    def test_bad_value_names_its_row(self, place, tmp_path, monkeypatch):
        frame = pl.read_parquet(place / "data.parquet").to_dict(as_series=False)
        frame["b"][776] = None
        pl.DataFrame(frame).write_parquet(tmp_path / "gap.parquet")
        result = self.score(place, tmp_path / "gap.parquet", tmp_path / "out.csv", monkeypatch)
        assert result.exit_code == 2
        assert "'b'" in result.stderr
        assert "row 777" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["gap.parquet"]
        assert not alive()

    def test_interrupt_leaves_nothing(self, place, tmp_path, monkeypatch):
        real, calls = QuARDensity.score_samples, []

        def interrupted(self, *arguments, **options):
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return real(self, *arguments, **options)

        monkeypatch.setattr(QuARDensity, "score_samples", interrupted)
        data, output = place / "data.parquet", tmp_path / "out.csv"
        assert self.score(place, data, output, monkeypatch).exit_code == 130
        assert not list(tmp_path.iterdir())
        assert not alive()

    def test_disk_full_is_told(self, place, tmp_path, monkeypatch):
        from quarflow.data import TableWriter

        def full(self, columns):
            raise OSError(28, "No space left on device", str(self.path))

        monkeypatch.setattr(TableWriter, "write", full)
        data, output = place / "data.parquet", tmp_path / "out.csv"
        result = self.score(place, data, output, monkeypatch)
        assert result.exit_code == 2
        assert "No space left" in result.stderr
        assert not list(tmp_path.iterdir())
