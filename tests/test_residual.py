"""Residual flows: unbiased log-dets and gradients, certified constants, true inverses."""

import math

import pytest
import torch

from quarflow import ResidualFlow
from quarflow.nn import LipschitzMLP
from quarflow.nn.lipschitz import LipschitzLinear
from quarflow.transforms import LogDet, ResidualStep
from quarflow.transforms.logdet import Draws, series_logdet, value_and_logdet
from registry import shaken

DRAWS = 20_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stiff(features=2, hidden=(12, 12), steps=1, context=0, size=3.0, activation="tanh", **options):
    """Branches in float64 that use up most of their Lipschitz budget, stretching and shrinking."""
    torch.manual_seed(0)
    made = LipschitzMLP(features, hidden, steps, context, activation, **options).double()
    with torch.no_grad():
        for layer in made.layers:
            layer.weight.mul_(0.3).add_(torch.eye(*layer.weight.shape[1:])).mul_(size)
            layer.bias.mul_(0.3)
        made.layers[-1].weight[:, ::2] *= -1

    return made


# The estimators


def estimates(made, x, method, groups=50):
    """log-dets, their gradients to x, and group means of the gradients to the weights."""
    values, by_x, by_weight = [], [], []
    generator = seeded()
    for _ in range(groups):
        rows = x.expand(DRAWS // groups, -1).clone().requires_grad_()
        logdet = value_and_logdet(made.bind()[0].network, rows, method, generator)[1]
        got, *weights = torch.autograd.grad(
            logdet.sum(), [rows, *made.parameters()], materialize_grads=True
        )
        values.append(logdet.detach())
        by_x.append(got)
        by_weight.append(torch.cat([w.flatten() for w in weights]) / len(rows))

    return torch.cat(values), torch.cat(by_x), torch.stack(by_weight)


def reference(made, x, terms=None):
    """Exact log-det, or the exact sum of so many terms, with gradients."""
    x = x.clone().requires_grad_()
    J = made.bind()[0].network.linearize(x)[1].dense()[0]
    if terms is None:
        value = torch.linalg.slogdet(torch.eye(len(J)).to(J) + J)[1]
    else:
        powers = [torch.linalg.matrix_power(J, k).trace() / k for k in range(1, terms + 1)]
        value = sum(-p if k % 2 else p for k, p in enumerate(powers))
    got, *weights = torch.autograd.grad(value, [x, *made.parameters()], materialize_grads=True)

    return value.detach(), got[0], torch.cat([w.flatten() for w in weights])


def assert_mean(samples, expected):
    """Within 4 standard errors, entry by entry; entries that never vary must agree."""
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected).abs() <= 4 * error + 1e-12).all()


def assert_averages_to(found, expected):
    values, by_x, by_weight = found
    assert len(values) == DRAWS
    assert_mean(values, expected[0])
    assert_mean(by_x, expected[1])
    # hundreds of weights: a few random directions of them
    directions = torch.randn(by_weight.shape[1], 4, generator=seeded(1), dtype=torch.float64)
    assert_mean(by_weight @ directions, expected[2] @ directions)


@pytest.mark.parametrize("neumann", [True, False])
@pytest.mark.parametrize("probe", ["gaussian", "rademacher"])
@pytest.mark.parametrize("distribution", ["poisson", "geometric"])
def test_unbiased_logdet_and_gradient_average_to_the_exact_ones(distribution, probe, neumann):
    made, x = stiff(), torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    method = LogDet("unbiased", 2, distribution, 2.0, probe, neumann)

    assert_averages_to(estimates(made, x, method), reference(made, x))


@pytest.mark.parametrize("options", [{"terms": 0}, {"terms": 20}, {"memory_saving": True}])
def test_unbiased_with_other_terms(options):
    made, x = stiff(3), torch.tensor([[0.4, -0.7, 0.2]], dtype=torch.float64)

    assert_averages_to(estimates(made, x, LogDet(**options)), reference(made, x))


@pytest.mark.parametrize("neumann", [True, False])
@pytest.mark.parametrize("terms", [1, 2, 5])
def test_truncated_averages_to_its_own_terms(terms, neumann):
    made, x = stiff(), torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    method = LogDet("truncated", terms, neumann_gradient=neumann)

    assert_averages_to(estimates(made, x, method), reference(made, x, terms))


def test_truncated_is_biased():
    made, x = stiff(), torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    biases = [abs(reference(made, x, n)[0] - reference(made, x)[0]) for n in (1, 2, 8, 100)]

    assert min(biases[:2]) > 1e-2
    assert biases[3] < 1e-8 < biases[2] < max(biases[:2])


def test_neumann_gradient_is_the_series_gradient_in_expectation():
    """With the same draws: the difference of the two has mean 0, the values are equal."""
    made, x = stiff(), torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    series = estimates(made, x, LogDet(neumann_gradient=False))
    neumann = estimates(made, x, LogDet(neumann_gradient=True))

    torch.testing.assert_close(neumann[0], series[0])
    assert_mean(neumann[1] - series[1], 0.0)
    directions = torch.randn(series[2].shape[1], 4, generator=seeded(1), dtype=torch.float64)
    assert_mean((neumann[2] - series[2]) @ directions, 0.0)


def test_rows_take_their_own_number_of_terms():
    network = stiff(3).bind()[0].network
    x = torch.randn(6, 3, dtype=torch.float64)
    derivative = network.linearize(x)[1]
    draws = Draws(
        torch.randn_like(x), torch.tensor([0, 3, 1, 5, 3, 2]), torch.rand(5, dtype=torch.float64)
    )
    J = derivative.dense()
    for i, v in enumerate(draws.v):
        expected, power = 0.0, v
        for k in range(1, int(draws.counts[i]) + 1):
            power = power @ J[i]
            expected += (-1) ** (k + 1) / k * draws.weights[k - 1] * power @ v
        torch.testing.assert_close(
            series_logdet(derivative, draws)[i], torch.as_tensor(expected).to(v)
        )


@pytest.mark.parametrize("distribution", ["poisson", "geometric"])
@pytest.mark.parametrize("rate", [0.5, 2.0, 40.0])
def test_roulette_has_the_chances_that_it_divides_by(distribution, rate):
    method = LogDet("unbiased", 3, distribution, rate)
    draws = method.draw(torch.zeros(DRAWS, 1, dtype=torch.float64), seeded())
    further = draws.counts - 3

    assert further.min() >= 0
    assert (draws.weights[:3] == 1).all()
    assert abs(further.double().mean() - rate) < 4 * further.double().std() / DRAWS**0.5
    variance = rate if distribution == "poisson" else rate * (1 + rate)
    assert further.double().var() == pytest.approx(variance, rel=0.1)
    for k in range(1, int(rate) + 3):
        chance = float(1 / draws.weights[2 + k])
        taken = float((further >= k).double().mean())
        assert abs(taken - chance) <= 4 * math.sqrt(chance * (1 - chance) / DRAWS)


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_memory_saving_changes_nothing(context, weighted):
    flows = [
        ResidualFlow(
            3, context, transforms=3, hidden_features=(8, 8), logdet={"memory_saving": saving}
        ).double()
        for saving in (False, True)
    ]
    flows[1].load_state_dict(flows[0].state_dict())
    x = torch.randn(10, 3, dtype=torch.float64)
    given = (torch.randn(10, context, dtype=torch.float64),) if context else ()
    weight = torch.rand(10, dtype=torch.float64) if weighted else 1.0
    found = []
    for flow in flows:
        x = x.detach().requires_grad_()
        log_prob = flow(*given).log_prob(x, seeded(3))
        (weight * log_prob).sum().backward()
        found.append([log_prob.detach(), x.grad, *(p.grad for p in flow.parameters())])

    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# The branch


@pytest.mark.parametrize("hidden", [(7,), (8, 5), (6, 6, 6)])
def test_products_with_the_derivative(hidden):
    network = stiff(3, hidden, activation="sin").bind()[0].network
    x, v = torch.randn(2, 5, 3, dtype=torch.float64)
    value, derivative = network.linearize(x)
    J = torch.func.vmap(torch.func.jacrev(network))(x)

    torch.testing.assert_close(value, network(x))
    torch.testing.assert_close(derivative.dense(), J)
    torch.testing.assert_close(derivative.jvp(v), (J @ v[..., None])[..., 0])
    torch.testing.assert_close(derivative.vjp(v), (v[:, None] @ J)[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-20, 0.1, 1.0, 30.0, 1e20])
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (64, 2), (48, 48)])
def test_layers_have_norm_at_most_coeff(shape, size, dtype):
    torch.manual_seed(0)
    layer = LipschitzLinear(4, *shape, coeff=0.97).to(dtype)
    with torch.no_grad():
        layer.weight.mul_(size)
        raw = layer.weight.clone()
        weight, bound = layer.effective()
    norm = torch.linalg.matrix_norm(weight.double(), 2)

    assert (norm <= bound.double() * (1 + 1e-6)).all()
    assert (norm <= 0.97 * (1 + 1e-7)).all()
    before = torch.linalg.matrix_norm(raw.double(), 2)
    small = before < 0.9
    assert torch.equal(weight[small], raw[small])  # soft: what is small enough stays
    assert (norm[before > 0.97] > 0.94).all()  # and what is not, is used in full


@pytest.mark.parametrize("activation", ["lipswish", "elu", "sin", "tanh"])
@pytest.mark.parametrize("size", [1.0, 10.0])
def test_measured_lipschitz_constant_never_exceeds_the_bound(activation, size):
    made = stiff(3, (16, 16), 4, size=size, activation=activation)
    with torch.no_grad():
        made.gain_raw.normal_(std=2.0)
    for branch in made.bind():
        F = branch.network
        far = [s * torch.randn(500, 3, dtype=torch.float64) for s in (0.1, 1, 10, 100)]
        pairs = torch.cat(far), torch.cat(far).roll(1, 0)
        ratio = (F(pairs[0]) - F(pairs[1])).norm(dim=-1) / (pairs[0] - pairs[1]).norm(dim=-1)
        assert ratio.max() <= branch.bound

        # gradient ascent on the ratio, from the steepest pairs and from short ones
        best = ratio.argsort(descending=True)[:50]
        near = pairs[0][:50] + 1e-3 * torch.randn(50, 3, dtype=torch.float64)
        a = torch.cat((pairs[0][best], pairs[0][:50])).detach().requires_grad_()
        b = torch.cat((pairs[1][best], near)).detach().requires_grad_()
        adam = torch.optim.Adam([a, b], lr=0.03)
        for _ in range(100):
            adam.zero_grad()
            ratio = (F(a) - F(b)).norm(dim=-1) / (a - b).norm(dim=-1).clamp_min(1e-9)
            (-ratio.sum()).backward(retain_graph=True)
            adam.step()
        assert ratio.max() <= branch.bound <= 0.97**3
        assert ratio.max() > 0.3 * branch.bound  # the search has found something


def test_bound_holds_whatever_is_done_to_the_weights():
    """Nothing to refresh: after steps, after loading, after averaging."""
    torch.manual_seed(0)
    flow = ResidualFlow(3, transforms=2, hidden_features=(16, 16))
    x = torch.randn(200, 3)
    flow.initialize(x)
    for _ in range(3):
        with torch.no_grad():
            for p in flow.parameters():
                p.add_(torch.randn_like(p))
        other = ResidualFlow(3, transforms=2, hidden_features=(16, 16))
        other.load_state_dict(flow.state_dict())
        for found in (flow.certificate(x), other.certificate(x)):
            for s in found:
                assert 0 < s.measured <= s.bound * (1 + 1e-6)
                assert s.bound <= s.sigma == pytest.approx(0.97**3)


def test_context_is_not_constrained():
    made = stiff(2, (16,), context=3)
    with torch.no_grad():
        for layer in made.layers:
            layer.context.mul_(50)
    x, c = torch.randn(2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    by_context = torch.func.jacrev(lambda c: made.bind(c)[0].network(x))(c)

    assert torch.linalg.matrix_norm(by_context, 2) > 5
    assert made.bind(c)[0].bound <= 0.97**2


# The step and the flow


@pytest.mark.parametrize(
    ("x_shape", "c_shape"),
    [((), (4,)), ((4,), ()), ((5, 4), (4,)), ((5, 1), (4,)), ((1,), (5, 4)), ((0,), ())],
)
@pytest.mark.parametrize("mode", ["exact", "unbiased", "truncated"])
def test_context_broadcasts(mode, x_shape, c_shape):
    made = stiff(3, (7, 7), context=2)
    c = torch.randn(*c_shape, 2, dtype=torch.float64)
    x = torch.randn(*x_shape, 3, dtype=torch.float64)
    step = ResidualStep(made.bind(c)[0], LogDet(mode))
    z, ladj = step.call_and_ladj(x)
    shape = torch.broadcast_shapes(x_shape, c_shape)

    assert z.shape == (*shape, 3)
    assert ladj.shape == shape
    torch.testing.assert_close(step.inv(z), x.expand(*shape, 3))
    torch.testing.assert_close(step(x), z)
    assert step.inv(torch.zeros(3).double()).shape == (*c_shape, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stiff_steps_are_inverted_to_the_tolerance(dtype):
    branch = stiff(8, (32,), size=50.0).to(dtype).bind()[0]
    step = ResidualStep(branch, LogDet("exact"))
    x = 5 * torch.randn(500, 8, dtype=dtype)
    z = step(x).detach()
    solution = step.solve(z)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12

    assert solution.residual.max() <= tolerance
    # Lip(f^-1) <= 1 / (1 - Lip(F))
    limit = tolerance * (1 + z.abs()).max() * 8**0.5 / (1 - float(branch.bound.detach()))
    assert (solution.x - x).abs().max() <= 2 * limit


def trained():
    torch.manual_seed(0)
    flow = shaken(ResidualFlow(2, transforms=3, hidden_features=(8, 8)), 0.3)
    exact = ResidualFlow(**flow.arguments | {"logdet": "exact"}).double()
    exact.load_state_dict(flow.state_dict())

    return flow.eval(), exact.eval(), torch.randn(40, 2, dtype=torch.float64)


def test_log_prob_is_repeatable_with_a_generator():
    flow, _, x = trained()
    one, two, other = (flow().log_prob(x, seeded(s)) for s in (3, 3, 4))

    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_log_prob_and_error_is_honest():
    flow, exact, x = trained()
    with torch.no_grad():
        mean, error = flow().log_prob_and_error(x, 200, seeded())
        wrong = (mean - exact().log_prob(x)).abs() / error
        few = flow().log_prob_and_error(x, 25, seeded())[1]

    assert mean.shape == error.shape == (40,)
    assert (wrong < 4).all()
    assert 0.5 < (wrong.square().mean()) ** 0.5 < 1.5
    assert few.mean() / error.mean() == pytest.approx(8**0.5, rel=0.15)
    assert (exact().log_prob_and_error(x, 2)[1] == 0).all()
    with pytest.raises(ValueError, match="at least 2"):
        flow().log_prob_and_error(x, 1)


def test_training_and_evaluation_take_different_numbers_of_terms():
    flow = ResidualFlow(2, transforms=1, logdet=LogDet(terms=3), eval_terms=15)

    assert flow.train().logdet.terms == 3
    assert flow.eval().logdet.terms == 15
    assert ResidualFlow(2).train().logdet == LogDet("unbiased", 2, "poisson", 2.0)
    assert ResidualFlow(2).eval().logdet.terms == 20


def test_estimates_work_without_gradients():
    flow, _, x = trained()
    with torch.no_grad():
        off = flow().log_prob(x, seeded(1))
    with torch.inference_mode():
        inferred = flow().log_prob(x, seeded(1))
    on = flow().log_prob(x, seeded(1))

    assert on.requires_grad
    assert not off.requires_grad
    torch.testing.assert_close(off, on)
    torch.testing.assert_close(inferred, on)


def test_sampling_draws_no_probe():
    flow, exact, _ = trained()

    torch.testing.assert_close(flow().sample((5,), seeded()), exact().sample((5,), seeded()))
    state = torch.get_rng_state()
    flow().sample((5,), seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_training_on_estimates_lowers_the_exact_loss():
    torch.manual_seed(0)
    x = torch.randn(512, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]])
    flow = ResidualFlow(2, transforms=3, hidden_features=(16, 16))
    exact = ResidualFlow(**flow.arguments | {"logdet": "exact"})

    def nats():
        exact.load_state_dict(flow.state_dict())
        with torch.no_grad():
            return -float(exact().log_prob(x).mean())

    flow.initialize(x)
    adam = torch.optim.Adam(flow.parameters(), lr=3e-3)
    before = nats()
    for _ in range(100):
        adam.zero_grad()
        (-flow().log_prob(x).mean()).backward()
        adam.step()

    assert nats() < before - 0.3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"features": 0}, "features"),
        ({"context": -1}, "context"),
        ({"transforms": 0}, "transforms"),
        ({"hidden_features": ()}, "hidden_features"),
        ({"activation": "relu"}, "activation"),
        ({"sigma": 1.0}, "sigma"),
        ({"sigma": 0.0}, "sigma"),
        ({"logdet": "brute"}, "logdet"),
        ({"logdet": LogDet}, "logdet"),
        ({"logdet": {"mode": "truncated", "terms": 0}}, "terms"),
        ({"eval_terms": -1}, "terms"),
        ({"logdet": {"distribution": "binomial"}}, "distribution"),
        ({"logdet": {"rate": 0.0}}, "rate"),
        ({"logdet": {"probe": "uniform"}}, "probe"),
        ({"logdet": {"memory_saving": True, "neumann_gradient": False}}, "memory_saving"),
        ({"logdet": {"powers": 3}}, "powers"),
        ({"base": "cauchy"}, "base"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        ResidualFlow(**{"features": 2} | options)
