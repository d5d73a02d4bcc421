"""Every operation on every backend, against the reference in torch in float64."""

from dataclasses import replace

import pytest
import torch

from quarflow import QuAR
from quarflow.backends.shapes import Packing
from quarflow.nn import Branch, ConvBranch
from quarflow.ops import backend as asked
from quarflow.ops.bounds import product_bound
from quarflow.ops.chain import Chain, residual_chain
from quarflow.ops.packing import assemble
from quarflow.ops.recurrence import Layers
from quarflow.ops.substitution import substituted
from quarflow.ops.value_diagonal import value_and_diagonal

# Each gives a function of tensors, the tensors, and which of its gradients are compared where.
OPS = {}


def op(make):
    OPS[make.__name__] = make
    return make


def normal(*sizes):
    return [torch.randn(size, dtype=torch.float64) for size in sizes]


@op
def packing():
    where = Packing(3, (1, 4, 2), (False, True))
    tensors = normal((2, 12), (2, 24), (2, 3, 4, 1), (2, 3, 2, 4))
    return lambda *t: assemble(t[:2], t[2:], where), tensors


@op
def bounds():
    return lambda *t: (product_bound(t),), normal((2, 5, 6, 1), (2, 5, 3, 6), (2, 5, 1, 3))


@op
def chain():
    f = QuAR(3, transforms=3, hidden_features=(12, 9)).double().transform(None)
    b = f.branches
    how = b.options[0].activation, b.shape
    tensors = [f.scale, f.shift, *b.weights, *b.blocks, *b.biases]
    return lambda x, *t: residual_chain(x, Chain.of(t, *how)), [*normal((70, 3)), *tensors]


@op
def masked_chain():
    f = QuAR(3, transforms=3, hidden_features=(12, 9)).double().transform(None)
    b = f.branches
    how = b.options[0].activation, b.shape
    tensors = [*normal((70, 3)), f.scale, f.shift, *b.weights, *b.blocks, *b.biases]
    modelled = torch.rand(70, 3) < 0.6
    tensors[0] = tensors[0] * modelled
    return lambda x, *t: residual_chain(x, Chain.of(t, *how), modelled), tensors


@op
def branch():
    b = Branch(4, (8, 12), [True]).double().bind()[0]
    L, tensors = len(b.weights), [*b.weights, *b.blocks, *b.biases]

    def run(x, *t):
        return value_and_diagonal(x, t[:L], t[L : 2 * L], t[2 * L :], b.options)

    return run, [*normal((70, 4)), *tensors]


@op
def pixels():
    b = ConvBranch((2, 5, 4), 8, [False], [True]).double().bind()[0]
    tensors = [*b.weights, *b.blocks, *b.biases]

    def run(x, *t):
        return replace(b, weights=t[:3], blocks=t[3:6], biases=t[6:])(x)

    return run, [*normal((3, 5, 4, 2)), *tensors]


# of the branch by itself there is no gradient: it is the chain's
WITHOUT_GRADIENT = ("branch",)
KERNELS = {"branch": "chain", "masked_chain": "chain"}


def computed(run, tensors, dtype, gradient):
    """Results, and gradients where weights are not zero, in float64."""
    tensors = [t.detach().to(dtype).requires_grad_(gradient) for t in tensors]
    found = run(*tensors)
    if not gradient:
        return [f.double() for f in found]
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(f.shape, generator=generator).to(f.dtype) for f in found]
    gradients = torch.autograd.grad(found, tensors, given)
    masked = [g * (t != 0) for g, t in zip(gradients, tensors, strict=True)]
    return [f.detach().double() for f in (*found, *masked)]


class Spy:
    """A backend that notes what it took and what of it was asked for."""

    def __init__(self, backend):
        self.backend, self.took = backend, []

    def takes(self, op, shape, tensors):
        taken = self.backend.takes(op, shape, tensors)
        self.took += [op] if taken else []
        return taken

    def __getattr__(self, name):
        return getattr(self.backend, name)


@pytest.fixture(params=asked.BACKENDS, ids=lambda b: b.__name__.rpartition(".")[2])
def backend(request, monkeypatch):
    """Each of them alone, if it can be used here."""
    status = request.param.status()
    if status.startswith("not used"):
        pytest.skip(status)
    spy = Spy(request.param)
    monkeypatch.setattr(asked, "BACKENDS", (spy,))
    return spy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_operations_agree_with_the_reference(name, gradient, dtype, backend, monkeypatch):
    run, tensors = OPS[name]()
    if gradient and name in WITHOUT_GRADIENT:
        return
    backend.took.clear()
    with torch.set_grad_enabled(gradient):
        found = computed(run, tensors, dtype, gradient)
        assert set(backend.took) == {KERNELS.get(name, name)}
        calls = len(backend.took)
        monkeypatch.setattr(asked, "BACKENDS", ())
        expected = computed(run, tensors, torch.float64, gradient)
    assert len(backend.took) == calls
    close = 1e-4 if dtype == torch.float32 else 1e-9
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close * (1 + other.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_substitution_finds_what_the_reference_maps_back(dtype, backend, monkeypatch):
    b = Branch(4, (8, 12), [True]).to(dtype).bind()[0]
    layers = Layers(b.weights, b.blocks, b.biases, b.reverse)
    y = torch.randn(70, 4, dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    backend.took.clear()
    found = substituted(layers, b.activation, y, y, tolerance)
    assert backend.took == ["chain"]
    monkeypatch.setattr(asked, "BACKENDS", ())
    assert substituted(layers, b.activation, y, y, tolerance) is None
    exact = [t.double() for part in layers[:3] for t in part]
    F, d = value_and_diagonal(found.x.double(), exact[:3], exact[3:6], exact[6:], b.options)
    residual = (found.x + F - y).abs() / (1 + y.abs())
    assert residual.max() <= 3 * tolerance
    torch.testing.assert_close(found.slope.double(), 1 + d, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPS)
def test_a_backend_may_take_some_operations_only(name, monkeypatch):
    """To add one is to add it to the tuple; what it does not take is the reference's."""

    class Picky:
        def takes(self, op, shape, tensors):
            return op == "bounds"

        def product_bound(self, blocks):
            return blocks[0].new_full(blocks[0].shape[:-2], 7.0, dtype=torch.float64)

    run, tensors = OPS[name]()
    monkeypatch.setattr(asked, "BACKENDS", ())
    expected = computed(run, tensors, torch.float64, False)
    monkeypatch.setattr(asked, "BACKENDS", (Picky(),))
    found = computed(run, tensors, torch.float64, False)
    if name == "bounds":
        assert (found[0] == 7).all()
    else:
        torch.testing.assert_close(found, expected)


def watched_by():
    """What torch may be doing, by name: inside, kernels stand aside."""

    def traced(f, x):
        return torch.jit.trace(f, x, check_trace=False)(x)

    def forward(f, x):
        return torch.func.jvp(f, (x,), (torch.ones_like(x),))[0]

    def recorded(f, x):
        return torch.fx.experimental.proxy_tensor.make_fx(lambda x: f(x))(x)(x)

    return {
        "trace": traced, "jvp": forward, "make_fx": recorded,
        "vmap": lambda f, x: torch.func.vmap(f)(x),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", watched_by())
def test_backends_stand_aside_while_torch_looks_on(how, backend):
    flow = QuAR(3, transforms=2, hidden_features=(9,)).double().requires_grad_(False)
    distribution = flow()
    x = torch.randn(4, 3).double()
    expected = distribution.log_prob(x)
    backend.took.clear()
    found = watched_by()[how](distribution.log_prob, x)
    assert backend.took == []
    torch.testing.assert_close(found, expected)
