"""What must hold for every flow: a density, its samples, its gradients, its life as a module."""

import copy
import io
import math
import pickle
import shutil

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from quarflow import Autoregressive, ImageQuAR, InversionError, PlanarFlow, QuAR, ResidualFlow
from quarflow.flows.bases import Normal, StudentT
from quarflow.transforms import QuARStep
from registry import FLOWS, shaken

every = pytest.mark.parametrize("case", FLOWS.values(), ids=FLOWS)
NO_COLUMNS = {name: case for name, case in FLOWS.items() if not case.columns}
every_plain = pytest.mark.parametrize("case", NO_COLUMNS.values(), ids=NO_COLUMNS)
QUARS = {name: case for name, case in FLOWS.items() if name.startswith("quar")}
every_quar = pytest.mark.parametrize("case", QUARS.values(), ids=QUARS)
REPRESENTATIVES = [
    "quar 1 dimension none student-t alternate context",
    "quar 2 lipswish",
    "quar 2 dimension lu normal alternate context",
    "quar 5 dimension none normal alternate",
    "data units",
]


def density(flow, c=None):
    return flow() if c is None else flow(c)


@every
def test_log_prob_is_base_plus_logdet(case):
    flow = case.build()
    x, c = case.points(flow, 6)
    p = density(flow, c)
    z = p.transform(x)
    J = torch.autograd.functional.jacobian(lambda x: p.transform(x).sum(0), x).transpose(0, 1)

    torch.testing.assert_close(
        p.log_prob(x), p.base.log_prob(z) + torch.linalg.slogdet(J)[1], rtol=1e-9, atol=1e-9
    )
    assert torch.equal(p.log_prob(x), p.log_prob(x))


@every
def test_samples_come_back(case):
    flow = case.build()
    c = case.contexts(4)
    p = density(flow, c)
    x = p.sample((200,))
    shape = (200, 4) if case.context else (200,)

    assert x.shape == (*shape, case.features)
    assert not x.requires_grad
    torch.testing.assert_close(p.transform.inv(p.transform(x)), x, rtol=1e-8, atol=1e-8)
    y, log_prob = p.rsample_and_log_prob((3,))
    assert y.requires_grad
    torch.testing.assert_close(p.log_prob(y), log_prob, rtol=1e-8, atol=1e-8)


@every
def test_generators_make_samples_repeatable(case):
    p = density(case.build(), case.contexts())
    one, two, other = (p.sample((5,), torch.Generator().manual_seed(s)) for s in (3, 3, 4))

    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@every
def test_samples_follow_the_density(case):
    """Noise of samples: each coordinate has the base's distribution (mean, spread)."""
    p = density(case.build(), case.contexts())
    z = p.transform(p.sample((4000,)))
    u = p.base.cdf(z)

    assert (u.mean(0) - 0.5).abs().max() < 0.03
    assert (u.std(0) - 12**-0.5).abs().max() < 0.02


@every
def test_every_parameter_gets_a_gradient(case):
    flow = case.build()
    x, c = case.points(flow, 20)
    density(flow, c).log_prob(x).mean().backward()
    for name, p in flow.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.numel() == 0 or (p.grad != 0).any(), name


@every
def test_gradients_of_samples(case):
    """Of rsample, by the implicit function theorem, against finite differences."""
    flow = case.build()
    names = [name for name, p in flow.named_parameters() if p.numel()]
    parameters = [dict(flow.named_parameters())[name] for name in names]
    c = case.contexts(2)
    z = torch.randn(2, case.features, dtype=torch.float64, requires_grad=True)
    inputs = [z, *parameters] if c is None else [z, c.requires_grad_(), *parameters]

    def inverse(z, *rest):
        given, values = ((rest[0],), rest[1:]) if case.context else ((), rest)
        p = functional_call(flow, dict(zip(names, values, strict=True)), given)
        return p.transform.inv.call_and_ladj(z)

    assert gradcheck(inverse, inputs, fast_mode=True, atol=1e-5, rtol=1e-4)


SECOND = [
    *REPRESENTATIVES[1:4],
    "residual",
    "autoregressive newton",
    "image quar",
    "planar context",
]


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("frozen", [False, True])
def test_second_derivatives_of_samples(name, frozen):
    """Of the inverse and its ladj, to noise and parameters: by gradgradcheck."""
    case = FLOWS[name]
    flow = case.build()
    named = {n: p.detach() for n, p in flow.named_parameters() if p.numel()}
    free = {} if frozen else {n: p.requires_grad_() for n, p in named.items()}
    c = case.contexts(2)
    z = torch.randn(2, case.features, dtype=torch.float64, requires_grad=True)

    def inverse(z, *values):
        given = named | dict(zip(free, values, strict=True))
        p = functional_call(flow, given, () if c is None else (c,))
        x, ladj = p.transform.inv.call_and_ladj(z)
        return (x * x).sum() + ladj.sum()

    assert torch.autograd.gradgradcheck(
        inverse, (z, *free.values()), fast_mode=True, atol=1e-4, rtol=1e-3
    )


def test_penalties_on_gradients_of_samples_train():
    flow = QuAR(2, transforms=2, hidden_features=(8,)).double()
    z = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(flow().transform.inv(z).sum(), z, create_graph=True)
    (grad**2).sum().backward()

    assert (flow.branches.layers[0].diagonal.grad != 0).all()
    assert (z.grad != 0).all()


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_what_torch_func_cannot_follow_is_refused_in_words():
    p = QuAR(2, transforms=2, hidden_features=(8,)).double()()
    z = torch.randn(2, dtype=torch.float64)
    for transform in (torch.func.jacrev, torch.func.vmap, torch.func.jacfwd):
        with pytest.raises(NotImplementedError, match="batch instead of vmap"):
            transform(p.transform.inv)(z if transform is not torch.func.vmap else z[None])
    flow = QuAR(2, transforms=2, hidden_features=(8,)).double().requires_grad_(False)
    for record in RECORDED.values():
        with pytest.raises(NotImplementedError, match="cannot be recorded"):
            record(lambda z: flow().transform.inv(z), z[None])


@pytest.mark.parametrize("name", [*REPRESENTATIVES, "image quar", "quar 2 elu", "residual"])
def test_forward_mode(name):
    """hessian, jacfwd and jvp agree with backward mode; of x, and of every parameter."""
    case = FLOWS[name]
    flow = case.build()
    x, c = case.points(flow, 1)
    x, given = x[0], () if c is None else (c[0],)
    values = {n: p.detach() for n, p in flow.named_parameters()}
    tangents = {n: torch.randn_like(p) for n, p in values.items()}

    def score(x, values=values):
        return functional_call(flow, values, given).log_prob(x)

    expected = torch.autograd.functional.hessian(score, x)
    torch.testing.assert_close(torch.func.hessian(score)(x), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.func.jacfwd(score)(x), torch.func.grad(score)(x))
    tangent = torch.func.jvp(lambda v: score(x, v), (values,), (tangents,))[1]
    grads = torch.func.grad(lambda v: score(x, v))(values)
    torch.testing.assert_close(tangent, sum((grads[n] * tangents[n]).sum() for n in values))
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        found = torch.autograd.forward_ad.unpack_dual(score(dual)).tangent
    torch.testing.assert_close(found, torch.func.grad(score)(x).sum())


class Score(torch.nn.Module):
    """What is recorded: a module, as torch.jit.trace takes no parameters from a closure."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow().log_prob(x)


RECORDED = {
    "trace": lambda f, x: torch.jit.trace(f, (x,), check_trace=False),
    "make_fx": lambda f, x: make_fx(f)(x),
}


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning"
)
@pytest.mark.parametrize("record", RECORDED)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "name",
    ["quar 2 lipswish", "quar 2 dimension lu student-t alternate", "autoregressive", "image quar"],
)
def test_what_is_recorded_is_the_density(name, frozen, record):
    """Kernels are not seen by a recorder: torch runs instead."""
    case = FLOWS[name]
    flow = case.build().requires_grad_(not frozen)
    x, _ = case.points(flow, 8)
    with torch.no_grad():
        other = x * 0.9
        program = RECORDED[record](Score(flow), x)
        torch.testing.assert_close(program(other), flow().log_prob(other))


@pytest.mark.parametrize(
    "make",
    [
        lambda: QuAR(3, 2, transforms=2, hidden_features=(16,)),
        lambda: QuAR(3, 2, transforms=2, hidden_features=(16,), mix="lu", base="student-t"),
        lambda: Autoregressive(3, 2, transforms=2, hidden_features=(16,)),
        lambda: ResidualFlow(3, 2, transforms=2, hidden_features=(16,), logdet="exact"),
        lambda: PlanarFlow(3, 2, transforms=2),
        lambda: ImageQuAR((2, 8, 8), scales=1, transforms=1, hidden_channels=16),
    ],
)
def test_built_without_memory_or_under_another_default_dtype(make):
    torch.manual_seed(0)
    flow = make()
    image = isinstance(flow, ImageQuAR)
    x = torch.rand(4, 2, 8, 8) if image else torch.randn(4, 3)
    c = None if image else torch.randn(4, 2)
    flow.initialize(x, c)
    state, expected = copy.deepcopy(flow.state_dict()), flow(c).log_prob(x)
    with torch.device("meta"):
        empty = make()
    assert {t.device.type for t in [*empty.parameters(), *empty.buffers()]} == {"meta"}
    for module in (empty, flow):
        module.to_empty(device="cpu").load_state_dict(state)
        assert torch.equal(module(c).log_prob(x), expected)

    torch.manual_seed(0)
    single = make()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        double = make()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, two in zip(single.parameters(), double.parameters(), strict=True):
        assert two.dtype == torch.float64
        torch.testing.assert_close(one.double(), two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["dimension", "operator"])
def test_gradients_of_samples_entry_by_entry(norm):
    flow = shaken(QuAR(2, 1, transforms=2, hidden_features=(2,), norm=norm), 0.3)
    names, parameters = zip(*flow.named_parameters(), strict=True)
    z = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    c = torch.randn(1, dtype=torch.float64, requires_grad=True)  # one context for three samples

    def inverse(z, c, *values):
        return functional_call(flow, dict(zip(names, values, strict=True)), (c,)).transform.inv(z)

    assert gradcheck(inverse, (z, c, *parameters), atol=1e-6)


def test_gradients_of_hard_samples():
    # The transposed system needs the safeguard as well.
    flow = QuAR(20, transforms=1, hidden_features=(40,)).double()
    with torch.no_grad():
        for layer in flow.branches.layers:
            layer.off_diagonal.mul_(15)
    p = flow()
    x = torch.randn(20, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(p.transform, x)
    z = p.transform(x).detach().requires_grad_()
    with pytest.raises(InversionError, match=r"1 of 1 samples are not determined by z to within"):
        p.transform.checked.inv(z)
    back = p.transform.inv(z)
    v = torch.randn(20, dtype=torch.float64)
    (found,) = torch.autograd.grad(back, z, v)
    expected = torch.linalg.solve(J.mT, v)

    assert torch.linalg.norm(expected) > 1000  # it is hard
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_no_gradients_where_none_are_wanted():
    flow = shaken(QuAR(2, transforms=2, hidden_features=(4,)))
    with torch.no_grad():
        assert not flow().rsample((3,)).requires_grad
    with torch.inference_mode():
        assert flow().sample((3,)).shape == (3, 2)


@every
def test_training_and_evaluation_agree(case):
    flow = case.build()
    x, c = case.points(flow, 5)
    training = density(flow.train(), c).log_prob(x)

    assert torch.equal(density(flow.eval(), c).log_prob(x), training)


@every
def test_repr(case):
    flow = case.build()
    for text in (repr(flow), repr(density(flow, case.contexts()))):
        assert "tensor(" not in text
        assert "object at" not in text
        assert type(flow).__name__ in text or "FlowDistribution" in text


@every
def test_copies(case):
    flow = case.build()
    x, c = case.points(flow, 5)
    expected = density(flow, c).log_prob(x)
    density(flow, c).log_prob(x).sum().backward()  # a used module copies as well as a new one
    file = io.BytesIO()
    torch.save(flow, file)
    file.seek(0)
    torch.manual_seed(77)
    fresh = case.make()
    fresh.load_state_dict(flow.state_dict())

    for other in (
        copy.deepcopy(flow),
        pickle.loads(pickle.dumps(flow)),
        torch.load(file, weights_only=False),
        fresh,
    ):
        assert torch.equal(density(other, c).log_prob(x), expected)


@every_plain
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(case, dtype):
    flow = case.build().to(dtype)
    x, c = (None if t is None else t.to(dtype) for t in case.points(flow, 5))
    p = density(flow, c)

    assert p.log_prob(x).dtype == p.sample((2,)).dtype == p.transform(x).dtype == dtype
    double = density(flow.double(), None if c is None else c.double()).log_prob(x.double())
    torch.testing.assert_close(p.log_prob(x).double(), double, rtol=1e-4, atol=1e-4)


@every_plain
def test_vmap_of_gradient(case):
    flow = case.build()
    x, c = case.points(flow, 5)
    if c is None:
        p = flow()
        by_row = vmap(grad(p.log_prob))(x)
    else:
        by_row = vmap(grad(lambda x, c: flow(c).log_prob(x)))(x, c)
    x.requires_grad_()
    (at_once,) = torch.autograd.grad(density(flow, c).log_prob(x).sum(), x)

    torch.testing.assert_close(by_row, at_once)


@every_plain
def test_per_sample_parameter_gradients(case):
    flow = case.build()
    x, c = case.points(flow, 3)
    parameters = {n: p.detach() for n, p in flow.named_parameters()}

    def loss(parameters, x, *c):
        return functional_call(flow, parameters, c).log_prob(x)

    given = () if c is None else (c,)
    by_row = vmap(grad(loss), in_dims=(None, 0, *(0 for _ in given)))(parameters, x, *given)
    density(flow, c).log_prob(x).sum().backward()
    for name, p in flow.named_parameters():
        torch.testing.assert_close(by_row[name].sum(0), p.grad)


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("c++") is None,
    reason="torch.compile needs a C++ compiler, and there is none here",
)
@pytest.mark.timeout(400)
def test_compiled_log_prob_equals_eager():
    flow = shaken(QuAR(2, 1, transforms=2, hidden_features=(6,), base="student-t"), 0.1)
    x, c = torch.randn(7, 2).double(), torch.randn(7, 1).double()
    compiled = torch.compile(lambda x, c: flow(c).log_prob(x), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, c), flow(c).log_prob(x))


@pytest.mark.parametrize("name", REPRESENTATIVES[:3:2])
def test_log_prob_and_its_gradient_are_one_graph(name):
    """Traced whole, forward and backward, without a compiler of its own."""
    case = FLOWS[name]
    flow = case.build()
    x, c = case.points(flow, 4)
    given = () if c is None else (c,)
    traced = torch.compile(lambda x, *c: flow(*c).log_prob(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(x, *given), density(flow, c).log_prob(x))
    traced(x, *given).sum().backward()
    found = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    density(flow, c).log_prob(x).sum().backward()
    for p, gradient in zip(flow.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, p.grad)


# Densities integrate to one


def integral(p, D):
    """In one and two dimensions, on a grid that covers the base's mass and follows it."""
    reach = 9.0 if isinstance(p.base, Normal) else 4000.0
    if D == 1:
        u = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
        z = torch.sinh(u * math.asinh(reach))[:, None]  # dense in the middle, far in the tails
        x = p.transform.inv(z).squeeze(-1)
        return torch.trapezoid(p.log_prob(x[:, None]).exp(), x)
    reach = 6.0 if isinstance(p.base, Normal) else 60.0
    edge = torch.linspace(-reach, reach, 101, dtype=torch.float64)
    side = torch.full_like(edge, reach)
    z = torch.cat(
        [torch.stack(s, -1) for s in ((edge, side), (edge, -side), (side, edge), (-side, edge))]
    )
    bounds = p.transform.inv(z)
    low, high = bounds.amin(0), bounds.amax(0)
    n = 900
    u = torch.linspace(-1, 1, n, dtype=torch.float64)
    bend = 0.0 if isinstance(p.base, Normal) else 4.0
    s = torch.sinh(bend * u) / math.sinh(bend) if bend else u
    x, y = ((low[i] + high[i]) / 2 + (high[i] - low[i]) / 2 * s for i in range(2))
    grid = torch.stack(torch.meshgrid(x, y, indexing="ij"), -1)
    values = torch.cat([p.log_prob(part).exp() for part in grid.split(100)])
    return torch.trapezoid(torch.trapezoid(values, y), x)


SMALL = {name: case for name, case in NO_COLUMNS.items() if case.features <= 2}


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_density_integrates_to_one(case):
    with torch.no_grad():
        p = density(case.build(), case.contexts())
        assert abs(float(integral(p, case.features)) - 1) < 1e-3


@pytest.mark.parametrize("norm", ["dimension", "operator"])
@pytest.mark.parametrize("D", [1, 2])
def test_trained_density_integrates_to_one_and_fits(D, norm):
    torch.manual_seed(0)
    n = 800
    first = torch.where(torch.rand(n) < 0.4, -2.0, 1.0) + 0.4 * torch.randn(n)
    data = first[:, None] if D == 1 else torch.stack((first, 0.5 * first**2), 1)
    data = data + 0.2 * torch.randn_like(data)
    flow = QuAR(D, transforms=3, hidden_features=(16, 16), norm=norm)
    flow.initialize(data)
    before = flow().log_prob(data).mean()
    adam = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(200):
        adam.zero_grad()
        (-flow().log_prob(data).mean()).backward()
        adam.step()
    with torch.no_grad():
        p = flow.double()()
        assert abs(float(integral(p, D)) - 1) < 1e-3
        assert p.log_prob(data.double()).mean() > before + 0.05


# Data-dependent initialisation


def test_initialization_standardises_is_done_once_and_is_saved():
    flow = QuAR(3, transforms=2, hidden_features=(6,))
    x = torch.tensor([5.0, -200.0, 0.01]) + torch.tensor([2.0, 30.0, 1e-3]) * torch.randn(4000, 3)

    assert flow.initialize(x) is True
    z = flow().transform(x)
    assert z.mean(0).abs().max() < 1e-2
    assert (z.std(0) - 1).abs().max() < 1e-2
    before = copy.deepcopy(flow.state_dict())
    assert flow.initialize(100 * x) is False

    other = QuAR(3, transforms=2, hidden_features=(6,))
    other.load_state_dict(before)
    assert other.initialize(100 * x) is False
    for flow_ in (flow, other, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert flow_.initialize(x + 1) is False
        for name, value in flow_.state_dict().items():
            assert torch.equal(value, before[name]), name


@every
def test_initialization_of_every_flow(case):
    torch.manual_seed(1)
    flow = case.build()
    x, c = case.points(flow, 300)

    assert flow.initialize(x, c) in (True, False)
    assert flow.initialize(x, c) is False
    assert density(flow, c).log_prob(x).isfinite().all()


@pytest.mark.parametrize("rows", [1, 2])
def test_initialization_on_few_rows_stays_finite(rows):
    flow = QuAR(2, transforms=2, hidden_features=(6,))
    flow.initialize(torch.ones(rows, 2))

    assert flow().log_prob(torch.ones(2)).isfinite()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_initialization_refuses_what_is_not_finite(bad):
    flow = QuAR(2, transforms=2, hidden_features=(6,))
    x = torch.randn(10, 2)
    x[3, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        flow.initialize(x)

    assert flow().log_prob(torch.ones(2)).isfinite()
    assert flow.initialize(torch.randn(10, 2)) is True


# Shapes, contexts, messages


@pytest.mark.parametrize(
    ("x_shape", "c_shape"),
    [
        ((), (4,)),
        ((5, 4), (4,)),
        ((4,), ()),
        ((), ()),
        ((5, 1), (4,)),
        ((2, 3, 4), (3, 1)),
        ((0,), ()),
    ],
)
@pytest.mark.parametrize("mix", ["none", "lu"])
def test_context_broadcasts(mix, x_shape, c_shape):
    flow = shaken(QuAR(3, 2, transforms=2, hidden_features=(6,), mix=mix), 0.2)
    x, c = torch.randn(*x_shape, 3).double(), torch.randn(*c_shape, 2).double()
    p = flow(c)
    shape = torch.broadcast_shapes(x_shape, c_shape)
    log_prob = p.log_prob(x)

    assert log_prob.shape == shape
    assert p.batch_shape == c_shape
    assert p.event_shape == (3,)
    assert p.sample().shape == (*c_shape, 3)
    assert p.sample((2, 5)).shape == (2, 5, *c_shape, 3)
    y, y_log_prob = p.rsample_and_log_prob((2,))
    assert y_log_prob.shape == (2, *c_shape) == y.shape[:-1]
    rows = zip(x.expand(*shape, 3).reshape(-1, 3), c.expand(*shape, 2).reshape(-1, 2), strict=True)
    for (row, one), value in zip(rows, log_prob.flatten(), strict=True):
        torch.testing.assert_close(flow(one).log_prob(row), value)


def test_messages():
    with pytest.raises(ValueError, match="needs a context of 2"):
        QuAR(3, 2)()
    with pytest.raises(ValueError, match="without context"):
        QuAR(3)(torch.zeros(2))
    with pytest.raises(ValueError, match="context must have shape"):
        QuAR(3, 2)(torch.zeros(3))
    for bad in (torch.zeros(2), torch.zeros(4, 2), torch.tensor(1.0)):
        with pytest.raises(ValueError, match="must have shape"):
            QuAR(3)().log_prob(bad)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"features": 0}, "features"),
        ({"transforms": 0}, "transforms"),
        ({"order": "random"}, "order"),
        ({"mix": "qr"}, "mix"),
        ({"base": "cauchy"}, "base"),
        ({"norm": "none"}, "norm"),
        ({"sigma": 1.0}, "sigma"),
        ({"activation": "relu"}, "activation"),
        ({"hidden_features": ()}, "hidden_features"),
        ({"context": -1}, "context"),
    ],
)
def test_bad_arguments(options, word):
    with pytest.raises(ValueError, match=word):
        QuAR(**{"features": 2} | options)


@every_quar
def test_certificate(case):
    flow = case.build()
    x, c = case.points(flow, 50)
    for given in ((), (x, c)):
        found = flow.certificate(*given)
        steps = [
            t
            for t in density(flow, case.contexts()).transform.transforms
            if isinstance(t, QuARStep)
        ]
        assert [s.step for s in found] == list(range(len(steps)))
        for s in found:
            assert 0 < s.bound <= s.sigma < 1
            assert s.measured is None if not given else s.measured <= s.bound * (1 + 1e-12)


def test_order():
    reverse = [s.reverse for s in QuAR(2, transforms=4, hidden_features=(2,)).branches.bind()]
    fixed = QuAR(2, transforms=4, hidden_features=(2,), order="fixed").branches.bind()

    assert reverse == [False, True, False, True]
    assert [s.reverse for s in fixed] == [False] * 4


@pytest.mark.parametrize("D", [2, 10, 64, 256])
@pytest.mark.parametrize("norm", ["dimension", "operator"])
def test_starts_near_the_identity_and_trains(D, norm):
    torch.manual_seed(0)
    x = torch.randn(128, D)
    flow = QuAR(D, transforms=2, norm=norm)
    flow.initialize(x)
    adam = torch.optim.Adam(flow.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = -flow().log_prob(x).mean() / D
        losses.append(float(loss.detach()))
        adam.zero_grad()
        loss.backward()
        adam.step()

    assert losses[0] < 2.2  # the normal's own entropy is 1.42 per dimension
    assert losses[-1] < losses[0]
    assert losses[-1] == losses[-1]


# Bases


def test_bases_agree_with_torch():
    x = 3 * torch.randn(50, 2, dtype=torch.float64)
    df = torch.tensor([2.5, 30.0], dtype=torch.float64)
    normal = torch.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1.0)

    torch.testing.assert_close(Normal(x[0]).log_prob(x), normal.log_prob(x).sum(-1))
    torch.testing.assert_close(Normal(x[0]).cdf(x), normal.cdf(x))
    torch.testing.assert_close(
        StudentT(df).log_prob(x), torch.distributions.StudentT(df).log_prob(x).sum(-1)
    )
    u = StudentT(df).cdf(StudentT(df).sample((20_000,)))
    assert (u.mean(0) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_scoring_does_not_depend_on_the_batch(name):
    case = FLOWS[name]
    flow = case.build()
    x, c = case.points(flow, 64)
    with torch.no_grad():
        at_once = density(flow, c).log_prob(x)
        for size in (1, 7):
            parts = [
                density(flow, None if c is None else c[i : i + size]).log_prob(x[i : i + size])
                for i in range(0, 64, size)
            ]
            torch.testing.assert_close(torch.cat(parts), at_once, rtol=0, atol=1e-10)
