"""Numbers and categories together: exact for every pattern of given, modelled and absent."""

import itertools

import pytest
import torch

from quarflow import MixedQuAR
from quarflow.density.patterns import draw_patterns, pack, unpack
from quarflow.nn import Categorical, OneHot

CATEGORIES, SWITCHES = (2, 3), (0, 2)  # the second says whether the second number is there
# Of two numbers and two codes: g given, m modelled, a absent.
PATTERNS = [
    "".join(p)
    for p in itertools.product("gma", repeat=4)
    if "m" in p and p[1] == p[3]  # a number and what switches it go together
]


def model(seed=0, **options):
    torch.manual_seed(seed)
    made = MixedQuAR(
        2,
        1,
        categories=CATEGORIES,
        switches=SWITCHES,
        patterns=True,
        transforms=2,
        hidden_features=(16, 16),
        context_features=(8,),
        categorical_features=(16,),
        **options,
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def masks(pattern, n):
    def of(kind):
        here = torch.tensor([p == kind for p in pattern])
        return here[:2].expand(n, 2), here[2:].expand(n, 2)

    return of("g"), of("m")


def row(seed=1):
    torch.manual_seed(seed)
    return torch.randn(1, 2).double(), torch.tensor([[1, 2]]), torch.randn(1, 1).double()


def grid(points=161, reach=9.0):
    return torch.linspace(-reach, reach, points).double()


def everything(pattern, numbers, codes):
    """All that the modelled cells can be: pairs, and the volume that each stands for."""
    t = grid()
    step = float(t[1] - t[0])
    values = [t if p == "m" else n[None] for p, n in zip(pattern[:2], numbers[0], strict=True)]
    labels = [
        torch.arange(k) if p == "m" else c[None]
        for p, c, k in zip(pattern[2:], codes[0], CATEGORIES, strict=True)
    ]
    for combination in itertools.product(*labels):
        off = pattern[3] != "a" and combination[1] != CATEGORIES[1] - 1
        here = [values[0], values[1][:1] if off else values[1]]
        x = torch.cartesian_prod(*here)
        volume = step ** sum(len(v) > 1 for v in here)
        yield (x, torch.stack(combination).expand(len(x), 2)), volume


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_modelled_sums_and_integrates_to_one(pattern):
    made = model()
    numbers, codes, c = row()
    total = 0.0
    for x, volume in everything(pattern, numbers, codes):
        n = len(x[0])
        log_prob = made.log_prob(x, *masks(pattern, n), c.expand(n, 1))
        total += float(log_prob.exp().sum()) * volume

    assert total == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if "a" in p])
def test_absent_cells_change_nothing(pattern):
    made = model()
    (numbers, codes, c), (others, _, _) = row(), row(2)
    given, modelled = masks(pattern, 1)
    n_absent = ~(given[0] | modelled[0])
    c_absent = ~(given[1] | modelled[1])
    other = torch.where(n_absent, others, numbers), torch.where(c_absent, 0, codes)
    empty = torch.where(n_absent, torch.nan, numbers), torch.where(c_absent, -1, codes)
    found = made.log_prob((numbers, codes), given, modelled, c)

    assert torch.equal(found, made.log_prob(other, given, modelled, c))
    assert torch.equal(found, made.log_prob(empty, given, modelled, c))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_noise_and_back(pattern):
    made = model()
    numbers, codes, c = row()
    asked = masks(pattern, 1)
    z = made.noise((numbers, codes), *asked, c)
    back = made.from_noise(z, (numbers, codes), *asked, c)
    there = asked[0][0] | asked[1][0]

    assert torch.equal(z[~asked[1][0]], torch.zeros_like(z[~asked[1][0]]))
    assert torch.allclose(back[there], numbers[there], atol=1e-6)
    assert back[~there].isnan().all()


@pytest.mark.parametrize("pattern", ["mmmm", "gmgm", "mama", "amgm", "gmmm"])
def test_samples_follow_the_density(pattern):
    made = model()
    numbers, codes, c = row()
    n = 4000
    x = numbers.expand(n, 2), codes.expand(n, 2)
    given, modelled = masks(pattern, n)
    generator = torch.Generator().manual_seed(0)
    drawn = made.sample(x, given, modelled, c.expand(n, 1), generator)

    for i in range(2):
        if pattern[i] == "g":
            assert torch.equal(drawn[0][:, i], x[0][:, i])
        if pattern[2 + i] == "g":
            assert torch.equal(drawn[1][:, i], x[1][:, i])
        if pattern[2 + i] == "a":
            assert (drawn[1][:, i] == -1).all()
        if pattern[2 + i] == "m":
            assert drawn[1][:, i].min() >= 0
            assert drawn[1][:, i].max() < CATEGORIES[i]
    off = drawn[1][:, 1] != CATEGORIES[1] - 1
    if pattern[1] == "m":  # a number is there exactly where its switch says so
        assert torch.equal(drawn[0][:, 1].isnan(), off)
    if pattern[2] == "m":  # of the first discrete variable, whatever else is drawn
        share = drawn[1][:, 0].double().mean()
        p = made.probabilities((numbers, codes), masks(pattern, 1)[0], 0, c)[0, 1]
        assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5


def test_probabilities_are_those_of_the_density():
    made = model()
    numbers, codes, c = row()
    given, modelled = masks("gama", 1)
    found = made.probabilities((numbers, codes), given, 0, c)
    each = [
        made.log_prob((numbers, torch.tensor([[k, 2]])), given, modelled, c).exp()
        for k in range(CATEGORIES[0])
    ]

    assert torch.allclose(found[0], torch.cat(each))


def test_numbers_or_categories_alone():
    torch.manual_seed(0)
    numbers, codes = torch.randn(5, 3), torch.randint(0, 2, (5, 2))
    none = torch.empty(5, 0), torch.empty(5, 0, dtype=torch.long)
    only = MixedQuAR(3, patterns=True, transforms=2, hidden_features=(8,))
    assert only.log_prob((numbers, none[1])).shape == (5,)
    only = MixedQuAR(0, categories=(2, 2), patterns=True)
    assert only.log_prob((none[0], codes)).shape == (5,)
    assert only.certificate() == []


def test_whole_rows_alone_may_be_given_nothing():
    made = MixedQuAR(2, categories=(2,), transforms=2, hidden_features=(8,))
    x = torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.long)
    given = torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.bool)

    assert made.log_prob(x).shape == (3,)
    with pytest.raises(ValueError, match="fitted to whole rows"):
        made.log_prob(x, given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "a number, or a discrete variable"),
        ({"features": 1, "categories": (1,)}, "two values at least"),
        ({"features": 1, "categories": (2,), "switches": (2,)}, "places of different numbers"),
        ({"features": 1, "categories": (2,), "switches": (0, 0)}, "as many as the 1 categories"),
    ],
)
def test_arguments_that_do_not_suit(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixedQuAR(**arguments)


def test_softmaxes_start_from_the_frequencies():
    net = Categorical((2, 3), context=1, hidden_features=(8,))
    codes = torch.tensor([[0, 2], [0, 1], [1, 2], [-1, 2]])
    net.initialize(codes)
    for layer in net.layers[-1:]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.context)
    found = net.log_probs(codes[:1], torch.zeros(1, 2, dtype=torch.bool), torch.zeros(1, 1)).exp()

    assert torch.allclose(
        found[0], torch.tensor([2.5 / 4, 1.5 / 4, 0.5 / 5.5, 1.5 / 5.5, 3.5 / 5.5])
    )
    assert OneHot(()).forward(torch.empty(3, 0, dtype=torch.long)).shape == (3, 0)


def test_patterns_are_of_all_kinds():
    there = torch.rand(5000, 4, generator=torch.Generator().manual_seed(0)) < 0.8
    given, modelled = draw_patterns(there, torch.Generator().manual_seed(1))
    filled = there.any(1)

    assert not (given & modelled).any()
    assert not ((given | modelled) & ~there).any()
    assert modelled.any(1)[filled].all()
    absent = there & ~given & ~modelled
    whole = (modelled == there).all(1)
    assert 0.4 < whole.double().mean() < 0.6
    for kind in (given.any(1) & ~absent.any(1), absent.any(1) & ~given.any(1)):
        assert kind.double().mean() > 0.05
    assert (given.any(1) & absent.any(1)).double().mean() > 0.05
    again = unpack(pack(given, modelled, None), 4)
    assert torch.equal(again[0], given)
    assert again[2] is None
