"""The report: its numbers, its pictures, and a page that no column name can break."""

import re

import numpy as np
import pytest
from scipy import stats

from quarflow import QuARDensity
from quarflow.report import write_report
from quarflow.report.calibration import calibrate, gaussian_nats, ks_to_uniform, normal_scores
from quarflow.report.names import labels, readable
from quarflow.report.structure import most_structured, structure
from quarflow.report.words import number

HOSTILE = [
    "<script>alert(1)</script>",
    "$x^{2}$ $",
    "a,b \"quoted\" 'too'",
    "two\nlines\x07",
    "温度 😀 \u202eevil",
    "very_" * 60 + "long",
    "{{ 7 * 7 }}",
]


def fitted(X, names=None, context=None, **settings):
    import polars as pl

    frame = X if names is None else pl.DataFrame({n: X[:, i] for i, n in enumerate(names)})
    tiny = {"max_epochs": 1, "transforms": 2, "hidden_features": (8,), "random_state": 0}
    return QuARDensity(**{**tiny, **settings}).fit(frame, context=context)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, len(HOSTILE)))
    X[:, 1] += X[:, 0] ** 2
    X[:, 3] = rng.poisson(4, 400)
    return X


def pictures(page):
    return len(re.findall(r'<img [^>]*src="data:image/png;base64,', page))


class TestPage:
    def test_hostile_names_are_text(self, rows, tmp_path):
        path = tmp_path / "r.html"
        write_report(fitted(rows, HOSTILE), path, rows, title="<b>t</b>")
        page = path.read_text(encoding="utf-8")
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "<b>t" not in page
        assert "{{ 7 * 7 }}" in page
        assert "\x07" not in page
        assert "\u202e" not in page
        assert pictures(page) == 6
        assert list(tmp_path.iterdir()) == [path]

    def test_loads_nothing(self, rows, tmp_path):
        write_report(fitted(rows), tmp_path / "r.html", rows)
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(https?:)?//", page)
        assert "default-src 'none'" in page
        assert len(page) < 3_000_000

    def test_says_what_is_in_it(self, rows, tmp_path):
        model = fitted(rows)
        write_report(model, tmp_path / "r.html", rows)
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        for fact in model.info()[0].rows[:4]:  # the head: rows, columns, ..., validation
            assert all(f">{text}</td>" in page for text in fact)
        for part in ("training", "samples", "calibration", "extremes", "certificate", "settings"):
            assert f'id="{part}"' in page
        assert "whole numbers" in page  # the preprocessing of the Poisson column
        assert "set by the user" in page
        assert "chosen from the data" in page

    def test_without_rows(self, rows, tmp_path):
        write_report(fitted(rows), tmp_path / "r.html")
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert "No rows were given" in page
        assert 'id="calibration"' not in page
        assert pictures(page) == 2  # training, histograms of samples

    def test_same_twice(self, rows, tmp_path):
        model = fitted(rows)
        for name in "ab":
            write_report(model, tmp_path / name, rows, seed=3)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_one_column(self, rows, tmp_path):
        write_report(fitted(rows[:, :1], ["$"]), tmp_path / "r.html", rows[:, :1])
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert "1 column." in page
        assert pictures(page) == 5  # no pairs

    def test_many_columns(self, tmp_path):
        X = np.random.default_rng(0).normal(size=(300, 30))
        write_report(fitted(X), tmp_path / "r.html", X)
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert "24 of 30 columns" in page
        assert "12 worst latent coordinates" in page
        assert "<details>" in page

    def test_context_and_student_base(self, rows, tmp_path):
        model = fitted(rows[:, :2], context=rows[:, 4:6], base="student-t", start="none")
        write_report(model, tmp_path / "r.html", rows[:, :2], rows[:, 4:6])
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert "given 2 context columns" in page
        assert "independent Student-t" in page
        assert "Gaussian fitted" not in page
        write_report(model, tmp_path / "r.html")
        assert "sampled at the contexts" in (tmp_path / "r.html").read_text(encoding="utf-8")

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_few_rows(self, rows, tmp_path, count):
        write_report(fitted(rows[:, :2]), tmp_path / "r.html", rows[:count, :2])

    def test_rows_outside_the_bounds(self, rows, tmp_path):
        model = fitted(np.abs(rows[:, 4:6]), ["a", "b"], bounds={"a": (0, None)})
        write_report(model, tmp_path / "r.html", rows[:, 4:6])
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert "rows have no finite log-density" in page
        assert "-inf" in page

    def test_refusals(self, rows, tmp_path):
        model = fitted(rows, HOSTILE)
        cases = [
            (lambda: write_report(QuARDensity(), tmp_path / "r.html"), "not fitted"),
            (lambda: write_report(model, tmp_path), "is a folder"),
            (lambda: write_report(model, tmp_path / "no" / "r.html"), "There is no folder"),
            (lambda: write_report(model, tmp_path / "r.html", rows[:, :2]), "must have shape"),
            (lambda: write_report(model, tmp_path / "r.html", rows[:0]), "no rows"),
            (lambda: write_report(model, tmp_path / "r.html", rows, rows), "no context columns"),
            (
                lambda: write_report(model, tmp_path / "r.html", np.where(rows > 2, np.nan, rows)),
                "missing or infinite value",
            ),
        ]
        for call, message in cases:
            with pytest.raises(ValueError, match=message):
                call()
        assert not list(tmp_path.iterdir())


class TestCalibration:
    def test_right_and_wrong(self):
        z = np.random.default_rng(0).normal(size=(4000, 3))
        good = calibrate(z)
        assert good.ks.max() < 1.3 * good.chance
        assert good.joint_ks < 1.3 * good.chance
        assert np.all((good.pit >= 0) & (good.pit <= 1))
        bad = calibrate(z * [1, 1, 1.3])
        assert bad.worst[0] == 2
        assert bad.joint_ks > 3 * bad.chance

    def test_ks_is_scipys(self):
        u = np.random.default_rng(1).random(500) ** 1.2
        assert ks_to_uniform(u) == pytest.approx(stats.kstest(u, "uniform").statistic)

    def test_student_scores_are_normal(self):
        df = np.array([3.0, 12.0])
        z = stats.t.rvs(df, size=(5000, 2), random_state=0)
        found = calibrate(normal_scores(z, df))
        assert found.ks.max() < 1.5 * found.chance
        far = normal_scores(np.array([[-1e8, 1e8]]), df)
        assert np.isfinite(far).all()
        assert far[0, 0] < -5

    def test_gaussian_nats(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) * [1, 100, 0.01]
        law = stats.multivariate_normal(x.mean(0), np.cov(x.T), allow_singular=False)
        assert gaussian_nats(x) == pytest.approx(-law.logpdf(x).mean())
        assert gaussian_nats(np.ones((10, 2))) is None


class TestStructure:
    def test_finds_what_correlation_misses(self):
        X = np.random.default_rng(0).normal(size=(3000, 12))
        X[:, 7] = X[:, 2] ** 2 + 0.1 * X[:, 7]
        X[:, 9] = X[:, 4] + 0.1 * X[:, 9]  # as Gaussian as can be
        gaps = structure(X)
        assert np.allclose(gaps, gaps.T)
        assert gaps[2, 7] > 0.5
        assert gaps[4, 9] < 0.05
        assert set(most_structured(X, 2)) == {2, 7}
        assert len(set(most_structured(X, 5))) == 5

    def test_constant_and_tied_columns(self):
        X = np.random.default_rng(0).integers(0, 2, size=(200, 7)).astype(float)
        X[:, 3] = 1.0
        assert len(most_structured(X)) == 5


class TestNames:
    def test_labels_are_short_distinct_and_drawable(self):
        found = labels([*HOSTILE, "very_" * 60 + "long"])
        assert len(set(found)) == len(found)
        assert max(map(len, found)) <= 30
        assert found[4] == "column 5"
        assert "\n" not in "".join(found)

    def test_readable_survives_anything(self):
        for name in ("", "\ud800", "\x00", "a\u2028b", "ok"):
            readable(name).encode("utf-8")

    def test_numbers(self):
        assert number(float("nan")) == "not a number"
        assert number(-0.5) == "-0.5"
        assert number(2_000_000_000.0) == "2e+09"
