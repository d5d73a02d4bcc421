"""Questions of a table, compared with formulas: the model is one in closed form."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from closed_form import ClosedForm, gaussian, mixed
from quarflow.data.columns import Column
from quarflow.density.questions import Questions

NAN = float("nan")


class Asked(Questions):
    """A density with an answering model."""

    def __init__(self, model):
        self.model, self.columns_ = model, model.columns

    def table_model(self):
        return self.model

    def _given_context(self, context, rows):
        return None


COVARIANCE = np.array([[4.0, 1.0, -0.5], [1.0, 1.0, 0.4], [-0.5, 0.4, 2.0]])
MEAN = np.array([1.0, -2.0, 0.5])


@pytest.fixture(scope="module")
def normal():
    return Asked(gaussian(COVARIANCE, MEAN))


@pytest.fixture(scope="module")
def table():
    return Asked(mixed())


def rows_of(asked, count, seed=0):
    x = torch.full((count, len(asked.columns_)), NAN, dtype=torch.float64)
    none = torch.zeros_like(x, dtype=torch.bool)
    return asked.model.sample(x, none, ~none, None, torch.Generator().manual_seed(seed))


def frame_of(asked, count, seed=0):
    return asked.marginal().sample(count, random_state=seed)


def regression(known, j):
    """Mean as a function of the known columns, and spread, of column j of the Gaussian."""
    gain = np.linalg.solve(COVARIANCE[np.ix_(known, known)], COVARIANCE[known, j])
    spread = math.sqrt(COVARIANCE[j, j] - COVARIANCE[j, known] @ gain)
    return lambda x: MEAN[j] + (x - MEAN[known]) @ gain, spread


class TestNumbers:
    def test_each_figure_is_the_regression(self, normal):
        known = np.array([[0.0, 1.0], [3.0, -2.0], [-5.0, 9.0]])
        mean, spread = regression([0, 2], 1)
        law = stats.norm(mean(known), spread)
        asked = normal.given(pl.DataFrame(known, schema=["a", "c"]))
        assert asked.columns == ["b"]
        for found in (asked.mean(), asked.median(), asked.mode()):
            assert found["b"].to_numpy() == pytest.approx(law.mean(), abs=1e-3 * spread)
        assert asked.mean()["b"].to_numpy() == pytest.approx(law.mean(), abs=1e-8)
        found = asked.quantile([0.05, 0.5])
        assert found.columns == ["b_0.05", "b_0.5"]
        assert found["b_0.05"].to_numpy() == pytest.approx(law.ppf(0.05), abs=1e-8)
        ends = asked.interval(0.9)
        assert ends["b_low"].to_numpy() == pytest.approx(law.ppf(0.05), abs=1e-8)
        assert ends["b_high"].to_numpy() == pytest.approx(law.ppf(0.95), abs=1e-8)
        at = np.array([0.3, -1.0, 2.0])
        assert asked.cdf({"b": at})["b"].to_numpy() == pytest.approx(law.cdf(at), abs=1e-10)
        assert asked.log_prob({"b": at}) == pytest.approx(law.logpdf(at), abs=1e-10)
        one = normal.given({"a": 0.0, "c": 1.0})
        inside = one.prob((-3.0, -1.0))
        law = stats.norm(mean(np.array([[0.0, 1.0]])), spread)
        assert inside == pytest.approx(law.cdf(-1.0) - law.cdf(-3.0))

    def test_what_is_not_asked_is_integrated_out(self, normal):
        mean, spread = regression([0], 2)
        asked = normal.given({"a": [1.0, 4.0]}, of="c")
        x = np.array([[1.0], [4.0]])
        assert asked.mean()["c"].to_numpy() == pytest.approx(mean(x), abs=1e-8)
        law = stats.norm(mean(x), spread)
        assert asked.log_prob({"c": [0.0, 0.0]}) == pytest.approx(law.logpdf(0.0))
        alone = normal.marginal("b")
        assert alone.mean()["b"][0] == pytest.approx(MEAN[1])
        both = normal.marginal(["c", "a"])
        law = stats.multivariate_normal(MEAN[[0, 2]], COVARIANCE[np.ix_([0, 2], [0, 2])])
        at = {"a": [0.0, 1.0], "c": [2.0, -1.0]}
        assert both.log_prob(at) == pytest.approx(law.logpdf([[0.0, 2.0], [1.0, -1.0]]))

    def test_rows_may_know_different_cells(self, normal):
        rows = pl.DataFrame({"a": [1.0, None], "c": [None, 2.0]})
        found = normal.given(rows, of="b").mean()["b"].to_numpy()
        assert found[0] == pytest.approx(regression([0], 1)[0](np.array([1.0])))
        assert found[1] == pytest.approx(regression([2], 1)[0](np.array([2.0])))

    def test_means_over_samples_come_with_their_error(self, normal):
        asked = normal.given({"a": [0.0, 3.0]})
        told = asked.expect(lambda rows: (rows["b"] > -2) & (rows["c"] > 0), 2000)
        mean, covariance = conditional(0.0)
        law = stats.multivariate_normal(mean, covariance)
        # P(b > -2, c > 0) by symmetry of the Gaussian
        right = law.cdf([np.inf, np.inf], lower_limit=[-2, 0])
        assert abs(told["mean"][0] - right) < 4 * told["standard_error"][0]
        assert 0.002 < told["standard_error"][0] < 0.02
        draws = asked.sample(3, random_state=1)
        assert draws.columns == ["b", "c"]
        assert len(draws) == 6


def conditional(a):
    gain = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return MEAN[1:] + gain * (a - MEAN[0]), COVARIANCE[1:, 1:] - np.outer(gain, COVARIANCE[0, 1:])


class TestMixed:
    def test_probabilities_are_bayes(self, table):
        rows = frame_of(table, 20)
        asked = table.given(rows.drop("cut"))
        shares = asked.prob()
        assert shares.columns == ["fair", "good", "ideal"]
        assert shares.sum_horizontal().to_numpy() == pytest.approx(np.ones(20))
        logs = np.stack(
            [
                table.marginal().log_prob(rows.with_columns(cut=pl.lit(label)))
                for label in shares.columns
            ],
            1,
        )
        right = np.exp(logs - np.logaddexp.reduce(logs, 1)[:, None])
        assert shares.to_numpy() == pytest.approx(right)
        assert asked.prob("good") == pytest.approx(right[:, 1])
        assert asked.mode()["cut"].to_list() == [shares.columns[k] for k in right.argmax(1)]

    def test_probabilities_of_several_at_once(self, table):
        asked = table.given({"size": 1.0})
        total = sum(
            asked.prob({"cut": cut, "new": new})
            for cut in ("fair", "good", "ideal")
            for new in (False, True)
        )
        assert total == pytest.approx(1.0)
        assert table.marginal().prob({"paid": 0.0, "new": True}) == pytest.approx(
            weights(table.model)[:, 0, 1].sum()
        )

    def test_a_mixture_of_normals(self, table):
        rows = frame_of(table, 12)
        asked = table.given(rows.select("cut", "new"), of="size")
        x = rows_of(table, 12)
        given = np.zeros((12, 4), bool)
        given[:, [1, 3]] = True
        law = table.model.law(x.numpy(), given, 0)
        assert asked.mean()["size"].to_numpy() == pytest.approx(law.mean(), abs=3e-3)
        found = asked.quantile(0.2)["size"].to_numpy()
        assert law.cdf(found) == pytest.approx(np.full(12, 0.2))
        mode = asked.mode()["size"].to_numpy()
        grid = np.linspace(-12, 12, 4001)
        best = np.max([law.density(np.full(12, v)) for v in grid], 0)
        assert law.density(mode) == pytest.approx(best, rel=1e-3)

    def test_a_point_mass_has_its_probability(self, table):
        asked = table.given({"cut": "good", "new": True, "size": 1.0})
        mass = asked.prob(0.0)[0]
        w = weights(table.model)[1, :, 1]
        sizes = stats.norm.pdf(1.0, *size_laws(table.model, 1, 1))
        assert mass == pytest.approx(w[0] * sizes[0] / (w * sizes).sum())
        below = asked.cdf({"paid": [-1e-9, 0.0]})["paid"].to_numpy()
        assert below[1] - below[0] == pytest.approx(mass, abs=1e-6)
        q = np.linspace(0.01, 0.99, 23)
        found = asked.quantile(q).to_numpy()[0]
        assert (np.diff(found) >= 0).all()
        jump = (q > below[0]) & (q <= below[1])
        assert np.array_equal(found == 0, jump)
        back = asked.cdf({"paid": found})["paid"].to_numpy()
        assert back[~jump] == pytest.approx(q[~jump])
        draws = asked.sample(4000, random_state=0)["paid"].to_numpy()
        assert (draws == 0).mean() == pytest.approx(mass, abs=0.03)
        assert asked.mean()["paid"][0] == pytest.approx(draws.mean(), abs=0.15)


def weights(model):
    """(cut, paid's mass or not, new)."""
    return np.exp(model.log_weights).reshape(3, 2, 2)


def size_laws(model, cut, new):
    """Means and spreads of size, with paid's mass and without."""
    where = [np.flatnonzero((model.codes == [cut, mass, new]).all(1))[0] for mass in range(2)]
    return model.means[where, 0], np.sqrt(model.covariances[where, 0, 0])


class TestLevels:
    """Whole numbers: a Gaussian over their cells."""

    @pytest.fixture
    def visits(self):
        level = Column(
            name="visits", step=1.0, grid=1.0, levels=(0, 1, 2, 4), masses=(0.25,) * 4,
            seen=(0, 4), lower=None,
        )  # fmt: skip
        lattice = Column(name="items", step=1.0, grid=1.0, seen=(0, 90))
        return Asked(ClosedForm([level, lattice], [1.0], [2.0, 40.0], [[2.0, 3.0], [3.0, 100.0]]))

    def test_values_occur(self, visits):
        q = np.linspace(0.001, 0.999, 50)
        found = visits.marginal().quantile(q)
        assert set(found.to_numpy()[0]) <= {0.0, 1.0, 2.0, 4.0} | set(range(100))
        assert set(visits.marginal("visits").quantile(q).to_numpy()[0]) == {0.0, 1.0, 2.0, 4.0}
        items = visits.marginal("items").quantile(q).to_numpy()[0]
        assert np.array_equal(items, np.round(items))

    def test_the_mean_of_levels_is_a_sum(self, visits):
        cells = np.diff(stats.norm(2, math.sqrt(2)).cdf([-np.inf, 0.5, 1.5, 3, np.inf]))
        assert visits.marginal("visits").mean()["visits"][0] == pytest.approx(cells @ [0, 1, 2, 4])
        below = visits.marginal("visits").cdf({"visits": [-1.0, 0.0, 3.0, 4.0]})
        assert below["visits"].to_numpy() == pytest.approx([0, cells[0], cells[:3].sum(), 1.0])
        assert visits.marginal("visits").mode()["visits"][0] == 2.0

    def test_lattices_count_whole_cells(self, visits):
        below = visits.marginal("items").cdf({"items": [40.0, 40.4]})["items"].to_numpy()
        assert below == pytest.approx(stats.norm(40, 10).cdf([40.5, 40.5]))


class TestImpute:
    def test_means_given_what_is_there(self, normal):
        x = np.array([[NAN, -1.0, 2.0], [3.0, NAN, NAN], [NAN, NAN, NAN], [1.0, 2.0, 3.0]])
        found = normal.impute(x)
        assert np.array_equal(found[3], x[3])
        assert found[0, 0] == pytest.approx(regression([1, 2], 0)[0](x[0, 1:]))
        assert found[1, 1] == pytest.approx(regression([0], 1)[0](x[1, :1]))
        assert found[2] == pytest.approx(MEAN)
        assert found[~np.isnan(x)].tolist() == x[~np.isnan(x)].tolist()

    def test_draws_are_of_the_joint(self, normal):
        x = np.full((400, 3), NAN)
        x[:, 0] = 3.0
        draws = normal.impute(x, draws=3, random_state=0)
        assert len(draws) == 3
        assert not np.array_equal(draws[0], draws[1])
        mean, covariance = conditional(3.0)
        drawn = np.concatenate(draws)[:, 1:]
        assert drawn.mean(0) == pytest.approx(mean, abs=0.15)
        assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.25)
        again = normal.impute(x, draws=3, random_state=0)
        assert np.array_equal(draws[2], again[2])

    def test_labels_by_probability(self, table):
        rows = frame_of(table, 15).with_columns(cut=pl.lit(None, pl.String))
        filled = table.impute(rows)
        likeliest = table.given(rows.drop("cut")).mode()["cut"]
        assert filled["cut"].to_list() == likeliest.to_list()
        assert filled["new"].to_list() == rows["new"].to_list()

    def test_frames_keep_their_make_and_index(self, table):
        pd = pytest.importorskip("pandas")
        rows = frame_of(table, 5)
        frame = pd.DataFrame(rows.to_dict(as_series=False), index=[3, 1, 4, 1, 5])
        frame.loc[4, "size"] = NAN
        filled = table.impute(frame)
        assert isinstance(filled, pd.DataFrame)
        assert filled.index.tolist() == [3, 1, 4, 1, 5]
        assert not filled.isna().any().any()
        assert filled["cut"].tolist() == frame["cut"].tolist()


class TestPredict:
    def test_interval_and_label(self, normal, table):
        x = np.array([[9.0, -1.0, 2.0], [3.0, 0.0, NAN]])
        found = normal.predict(x, "a")
        assert found[0] == pytest.approx(regression([1, 2], 0)[0](x[0, 1:]))
        assert found[1] == pytest.approx(regression([1], 0)[0](x[1, 1:2]))
        assert normal.predict(x).shape == (2,)
        ends = normal.predict(x, "a", interval=0.5)
        assert ends.shape == (2, 3)
        assert ends[0, 2] - ends[0, 1] == pytest.approx(
            2 * stats.norm.ppf(0.75) * regression([1, 2], 0)[1]
        )
        rows = frame_of(table, 6)
        told = table.predict(rows, ["cut", "size"], interval=0.9)
        assert told.columns == ["cut", "cut_prob", "size", "size_low", "size_high"]
        assert (told["cut_prob"] >= 1 / 3).all()


class TestExplain:
    def test_each_cell_given_the_rest(self, normal):
        x = np.array([[0.0, -1.0, 2.0], [3.0, 0.0, NAN], [NAN, NAN, 1.0]])
        found = normal.explain(x)
        assert np.array_equal(np.isnan(found), np.isnan(x))
        for j in range(3):
            others = [i for i in range(3) if i != j]
            mean, spread = regression(others, j)
            right = -stats.norm.logpdf(x[0, j], mean(x[0, others]), spread)
            assert found[0, j] == pytest.approx(right)
        assert found[2, 2] == pytest.approx(-stats.norm.logpdf(1.0, MEAN[2], math.sqrt(2)))

    def test_less_what_is_usual_units_do_not_matter(self, normal):
        x = np.array([[0.0, -1.0, 2.0]])
        _, spread = regression([1, 2], 0)
        entropy = stats.norm(0, spread).entropy()
        found = normal.explain(x, relative=True) - normal.explain(x)
        assert -found[0, 0] == pytest.approx(entropy, abs=0.15)

    def test_the_odd_cell_comes_first(self, table):
        rows = frame_of(table, 30)
        odd = rows.with_columns(size=pl.lit(60.0))
        found = table.reasons(odd, 2)
        assert found["row"].to_list() == [row for row in range(30) for _ in range(2)]
        first, second = found[::2], found[1::2]
        assert set(first["column"]) == {"size"}
        assert first["nats"].min() > 20
        assert (first["nats"] > second["nats"]).all()
        assert "size is 60, where " in first["reason"][0]
        assert first["reason"][0].endswith(" was to be expected")
        nats = table.explain(odd, relative=True)
        assert first["nats"].to_numpy() == pytest.approx(nats["size"].to_numpy())

    def test_labels_are_told_by_name(self, table):
        rows = frame_of(table, 3)
        [told] = table.reasons(rows.select("cut")[:1])["reason"]
        assert told.startswith(f"cut is {rows['cut'][0]}, where ")
        assert told.endswith("was likeliest")

    def test_categories_count_as_well(self, table):
        rows = frame_of(table, 8)
        found = table.explain(rows)
        shares = table.given(rows.drop("cut")).prob()
        right = [-math.log(shares[label][i]) for i, label in enumerate(rows["cut"])]
        assert found["cut"].to_numpy() == pytest.approx(right)


class TestInfluence:
    def test_of_a_gaussian(self, normal):
        found = normal.influence("b", n_samples=4000)
        correlation = COVARIANCE / np.sqrt(np.outer(*[np.diag(COVARIANCE)] * 2))
        right = -0.5 * np.log(1 - correlation[1, [0, 2]] ** 2)
        assert found["column"].to_list() == ["a", "c"]
        error = found["standard_error"].to_numpy()
        assert (np.abs(found["nats"].to_numpy() - right) < 4 * error).all()
        assert (error < 0.05).all()
        both, alone = regression([0, 2], 1)[1], [regression([k], 1)[1] for k in (2, 0)]
        right = np.log(np.array(alone) / both)
        gap = np.abs(found["given_rest"].to_numpy() - right)
        assert (gap < 4 * found["given_rest_error"].to_numpy()).all()

    def test_of_categories(self, table):
        joint = weights(table.model).sum(1)
        right = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
        found = table.influence("new", n_samples=3000).filter(pl.col("column") == "cut")
        assert abs(found["nats"][0] - right) < 4 * found["standard_error"][0]

    def test_over_rows_of_ones_own(self, table):
        found = table.influence("cut", frame_of(table, 50))
        assert found["nats"].is_finite().all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("ask", "told"),
        [
            (lambda t: t.given({"sise": 1.0}), "the column 'sise'.*Did you mean 'size'"),
            (lambda t: t.given({"size": 1.0}, of="size"), "'size' is both given and asked"),
            (lambda t: t.given({"size": 1.0, "cut": "good", "paid": 1, "new": True}), "Every"),
            (lambda t: t.given({"cut": "godo"}), "godo"),
            (lambda t: t.marginal("cut").mean(), "have no mean; ask for prob"),
            (lambda t: t.marginal("size").prob(1.0), "'size' is continuous"),
            (lambda t: t.marginal("size").prob(), "'size' is a number"),
            (lambda t: t.marginal().prob("good"), "there are 4: name them"),
            (lambda t: t.marginal("size").quantile(1.2), "between 0 and 1"),
            (lambda t: t.marginal("size").interval(90), "between 0 and 1"),
            (lambda t: t.marginal().log_prob({"size": 1.0}), "lacks a value of 'cut' in row 0"),
            (lambda t: t.given({"size": [1, 2]}, "cut").log_prob({"cut": ["good"] * 3}), "2 rows"),
            (lambda t: t.given({"size": [1, 2], "cut": ["good"]}), "different lengths"),
            (lambda t: t.marginal(["size", "size"]), "twice"),
            (lambda t: t.marginal([]), "names no column"),
            (lambda t: t.impute({"size": 1.0}, "mode"), "'mean' or 'median'"),
            (lambda t: t.impute({"size": 1.0}, draws=0), "at least 1"),
            (lambda t: t.influence("sizes"), "'sizes'"),
        ],
    )
    def test_in_plain_words(self, table, ask, told):
        with pytest.raises(ValueError, match=told):
            ask(table)

    def test_no_rows_are_no_trouble(self, table):
        none = pl.DataFrame({"size": []}, schema={"size": pl.Float64})
        asked = table.given(none, of=["cut", "paid"])
        assert asked.prob({"cut": "good"}).shape == (0,)
        assert len(asked.mean()) == len(asked.mode()) == len(asked.interval()) == 0
        assert len(table.impute(none)) == len(table.explain(none)) == 0


def test_a_conditional_says_what_it_is(table):
    assert repr(table.given({"cut": "good"}, of="size")) == "p(size | cut)"
    assert repr(table.given({"cut": ["good", "fair"]})) == "p(size, paid, new | cut, 2 rows)"


class TestFindings:
    def test_dependence_is_mutual_information(self, normal):
        x = rows_of(normal, 800)
        found = normal.findings(x.numpy())
        correlation = COVARIANCE / np.sqrt(np.outer(*[np.diag(COVARIANCE)] * 2))
        with np.errstate(divide="ignore"):
            right = -0.5 * np.log(1 - correlation**2)
        away = ~np.eye(3, dtype=bool)
        assert found.alone[away] == pytest.approx(right[away], abs=0.12)
        # two ways to the same number
        assert found.alone[away] == pytest.approx(found.alone.T[away], abs=1e-8)
        assert (found.said > np.nanmax(found.alone, 1) - 0.02).all()

    def test_hidden_cells_are_filled_as_well_as_can_be(self, normal):
        check = normal.findings(rows_of(normal, 1000).numpy()).check
        assert (check.error < check.regressions + 0.01).all()  # which suit a Gaussian
        assert check.error == pytest.approx(check.regressions, abs=0.06)
        assert (check.error < check.simple).all()
        assert check.coverage[0.9] == pytest.approx(0.9, abs=0.07)
        assert check.coverage[0.5] == pytest.approx(0.5, abs=0.12)
        assert 0.15 * 1000 < check.cells.min() < check.cells.max() < 0.25 * 1000

    def test_categories_are_counted(self, table):
        check = table.findings(rows_of(table, 300).numpy()).check
        assert check.error[1] <= check.simple[1] + 0.05
        assert np.isnan(check.coverage[0.9][1])
        assert np.isnan(check.regressions[[1, 3]]).all()

    def test_intervals_of_missing_cells_only(self, normal):
        x = np.array([[NAN, -1.0, 2.0]])
        low, high = normal.impute_interval(x)
        assert np.isnan(low[0, 1:]).all()
        mean, spread = regression([1, 2], 0)
        assert [low[0, 0], high[0, 0]] == pytest.approx(
            stats.norm(mean(x[0, 1:]), spread).ppf([0.05, 0.95])
        )
