"""The compiled kernels against torch, which computes the same in another way."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quarflow import QuAR
from quarflow.backends.shapes import ChainShape
from quarflow.nn import Branch, ConvBranch
from quarflow.nn.triangular import TriangularLayer
from quarflow.ops import bounds as norms
from quarflow.ops import chain as fused_chain
from quarflow.ops.backend import backend_for
from quarflow.ops.chain import Chain, residual_chain
from quarflow.ops.packing import assemble
from quarflow.solvers import InversionError, solve
from quarflow.transforms import QuARStep
from quarflow.transforms.substitution import substitute

ACTIVATIONS = ["sin", "elu", "lipswish", "tanh"]


@pytest.fixture(autouse=True)
def _kernels(kernels):
    pass


@pytest.fixture
def threads():
    """Sets how many; as they were afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def a_chain(features, hidden, activation, rows, context=0, dtype=torch.float64, steps=3):
    """A chain with a gradient to everything it is made of, and points."""
    flow = QuAR(
        features, context, transforms=steps, hidden_features=hidden, activation=activation
    ).to(dtype)
    x = torch.randn(rows, features, dtype=dtype)
    c = torch.randn(rows, context, dtype=dtype) if context else None
    if rows > 1:
        flow.initialize(2 * x + 1, c)
    f = flow.transform(c)
    b = f.branches
    phi = b.options[0].activation
    chain = Chain(f.scale, f.shift, b.weights, b.blocks, b.biases, phi, b.shape)
    tensors = [t.detach().clone().requires_grad_() for t in chain.tensors]

    return x.requires_grad_(), Chain.of(tensors, phi, b.shape)


def differentiated(x, chain, gz, gl, modelled=None):
    """Value, log-det and gradients; of weights where they are not zero."""
    z, ladj = residual_chain(x, chain, modelled)
    found = torch.autograd.grad([z, ladj], [x, *chain.tensors], [gz, gl])
    masks = [torch.ones(()), *(torch.ones(()) for _ in chain.tensors)]
    for i, weight in enumerate(chain.weights):
        masks[3 + i] = weight.detach() != 0

    return [z.detach(), ladj.detach(), *(g * m for g, m in zip(found, masks, strict=True))]


def by_torch(monkeypatch, compute):
    with monkeypatch.context() as patch:
        patch.setattr("quarflow.ops.backend.BACKENDS", ())
        return compute()


def same(a, b, **tolerance):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@given(
    features=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    rows=st.sampled_from([1, 2, 15, 63, 64, 65, 130]),
    context=st.sampled_from([0, 0, 2]),
    activation=st.sampled_from(ACTIVATIONS),
    workers=st.integers(1, 3),
)
def test_chain_and_its_gradients(features, hidden, rows, context, activation, workers, threads):
    threads(workers)
    x, chain = a_chain(features, hidden, activation, rows, context)
    gz, gl = torch.randn(rows, features).double(), torch.randn(rows).double()
    with pytest.MonkeyPatch.context() as patch:
        expected = by_torch(patch, lambda: differentiated(x, chain, gz, gl))
    assert backend_for("chain", chain.shape, (x, *chain.tensors))
    same(differentiated(x, chain, gz, gl), expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        same(residual_chain(x, chain), expected[:2], rtol=1e-10, atol=1e-10)


@given(
    features=st.integers(1, 40),
    hidden=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    rows=st.sampled_from([1, 2, 15, 64, 130]),
    context=st.sampled_from([0, 2]),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    workers=st.integers(1, 3),
)
def test_chain_of_some_columns(features, hidden, rows, context, share, workers, threads):
    threads(workers)
    x, chain = a_chain(features, hidden, "sin", rows, context)
    modelled = torch.rand(rows, features) < share
    x = (x.detach() * modelled).requires_grad_()
    gz, gl = torch.randn(rows, features).double(), torch.randn(rows).double()
    with pytest.MonkeyPatch.context() as patch:
        expected = by_torch(patch, lambda: differentiated(x, chain, gz, gl, modelled))
    found = differentiated(x, chain, gz, gl, modelled)
    same(found, expected, rtol=1e-9, atol=1e-9)
    assert (found[0][~modelled] == 0).all()
    assert (found[2][~modelled] == 0).all()
    if share == 1:
        same(found, differentiated(x, chain, gz, gl), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_float32_is_as_good_as_torch(activation, monkeypatch):
    x, chain = a_chain(8, (64, 64), activation, 300, dtype=torch.float32)
    exact = Chain.of([t.double() for t in chain.tensors], chain.activation, chain.shape)
    with torch.no_grad():
        expected = residual_chain(x.double(), exact)
        ours = residual_chain(x, chain)
        theirs = by_torch(monkeypatch, lambda: residual_chain(x, chain))
    for e, o, t in zip(expected, ours, theirs, strict=True):
        assert (o - e).abs().max() < 2 * (t - e).abs().max() + 1e-6


def test_the_same_each_time_and_for_any_number_of_threads(threads):
    x, chain = a_chain(5, (32, 32), "sin", 500, dtype=torch.float32)
    gz, gl = torch.randn(500, 5), torch.randn(500)
    threads(2)
    same(differentiated(x, chain, gz, gl), differentiated(x, chain, gz, gl), rtol=0, atol=0)
    with torch.no_grad():
        z, ladj = residual_chain(x, chain)
        threads(1)
        same(residual_chain(x, chain), (z, ladj), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1.0, 1e3, 9e4, 1.1e5, 1e8, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sines_of_large_numbers(size, dtype):
    """Where z = x exactly: one unit with weight 1, and x = 0 gives sin(b)."""
    _x, chain = a_chain(1, (40,), "sin", 3, dtype=dtype, steps=1)
    z = (size * torch.randn(40, dtype=dtype))[None]
    with torch.no_grad():
        first, last = (torch.ones_like(t) for t in chain.weights)
        parts = (torch.ones(2, 1, dtype=dtype), torch.zeros(2, 1, dtype=dtype))
        zero = torch.zeros(1, 1, dtype=dtype)
        for unit in (0, 17):
            out = torch.zeros_like(last)
            out[..., unit] = 1
            one = Chain(
                *parts, (first, out), (first[:, None], out[:, None]), (z, zero),
                chain.activation, chain.shape,
            )  # fmt: skip
            F, ladj = residual_chain(torch.zeros(2, 1, dtype=dtype), one)
            eps = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(F[0, 0], z[0, unit].sin(), rtol=0, atol=eps)
            cosine = z[0, unit].cos()
            torch.testing.assert_close(ladj[0].expm1(), cosine, rtol=0, atol=10 * eps)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so_and_spoils_nothing_else(bad):
    x, chain = a_chain(3, (12, 12), "elu", 70)
    with torch.no_grad():
        clean = residual_chain(x, chain)
        x[5, 1] = bad
        z, ladj = residual_chain(x, chain)
    assert not torch.isfinite(ladj[5]) or not torch.isfinite(z[5]).all()
    others = torch.arange(70) != 5
    same((z[others], ladj[others]), (clean[0][others], clean[1][others]), rtol=0, atol=0)


def test_factors_below_zero_never_make_a_wrong_number():
    """Two of d below -1 would multiply to something positive."""
    one = torch.ones(1, 2, 1)
    blocks = (one.view(1, 2, 1, 1), one.view(1, 2, 1, 1) * -2)
    weights = tuple(torch.diag_embed(b.flatten(1)) for b in blocks)
    none = torch.zeros(1, 2)
    chain = Chain(
        torch.ones(2, 2), torch.zeros(2, 2), weights, blocks, (none, none),
        Branch(2, (2,), [False])._activation, ChainShape.of(blocks, "sin", (False,)),
    )  # fmt: skip
    with torch.no_grad():
        assert residual_chain(torch.zeros(1, 2), chain)[1].isnan().all()


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("features", "hidden"), [(1, (8,)), (7, (20, 30)), (40, (64, 64, 64))])
def test_substitution_solves(features, hidden, dtype, order):
    branch = Branch(features, hidden, [order]).to(dtype)
    with torch.no_grad():
        for p in branch.parameters():
            p += 0.1 * torch.randn_like(p)
    bound = branch.bind()[0]
    step = QuARStep(bound)
    x = 2 * torch.randn(100, features, dtype=dtype)
    with torch.no_grad():
        y = step(x)
        found = substitute(bound, y)
        assert found is not None
        assert found.residual.max() <= (1e-6 if dtype == torch.float32 else 2e-13)
        newton = step.solve(y, method="newton")
        z, d = step.call_and_diagonal(found.x)
    torch.testing.assert_close(found.slope, 1 + d, rtol=1e-5, atol=1e-6)
    assert ((z - y).abs() / (1 + y.abs())).max() <= (2e-6 if dtype == torch.float32 else 3e-13)
    assert newton.residual.max() <= (1e-6 if dtype == torch.float32 else 2e-13)
    assert (found.iterations > 0).all()


def test_substitution_with_a_context_of_its_own_for_each_row():
    flow = QuAR(3, 2, transforms=2, hidden_features=(12,)).double()
    c = torch.randn(80, 2).double()
    x = torch.randn(80, 3).double()
    with torch.no_grad():
        z = flow(c).transform(x)
        torch.testing.assert_close(flow(c).transform.inv(z), x, rtol=0, atol=1e-9)


def test_rows_that_substitution_leaves_go_on_with_a_solver(monkeypatch):
    """Only these, from where they are, with their own context."""
    flow = QuAR(3, 2, transforms=1, hidden_features=(12,)).double()
    c, x = torch.randn(30, 2).double(), torch.randn(30, 3).double()
    step = next(t for t in flow.transforms(c) if isinstance(t, QuARStep))
    some = torch.tensor([3, 4, 29])
    with torch.no_grad():
        y = step(x)
        good = step.solve(y)

        def spoiled(*arguments):
            found = substitute(*arguments)
            found.x[some] += 0.1
            found.residual[some] = torch.tensor([0.1, float("nan"), 0.1]).double()
            return found

        monkeypatch.setattr("quarflow.transforms.quar.substitute", spoiled)
        found = step.solve(y)
    torch.testing.assert_close(found.x, good.x, rtol=0, atol=1e-11)
    assert found.residual.max() <= 2e-13
    others = [i for i in range(30) if i not in some]
    assert (found.iterations[some] > good.iterations[some]).all()
    assert torch.equal(found.iterations[others], good.iterations[others])


def test_steep_steps_are_bracketed():
    """Slopes from almost 0 to almost 2, and a start far away."""
    branch = Branch(2, (64, 64), [False], sigma=0.999).double()
    with torch.no_grad():
        branch.layers[0].diagonal *= 30
        branch.layers[0].bias *= 10
    bound = branch.bind()[0]
    y = torch.linspace(-4, 4, 201, dtype=torch.float64)[:, None].expand(-1, 2)
    found = substitute(bound, y, start=y + 100)
    assert found is not None
    x, _ = QuARStep(bound).call_and_diagonal(found.x)
    assert (x - y).abs().max() < 1e-10


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "hidden"), [((1, 5, 4), 8), ((3, 4, 4), 10), ((6, 3, 9), 60)])
@pytest.mark.parametrize("workers", [1, 2])
def test_convolutions_and_their_gradients(activation, shape, hidden, workers, threads):
    threads(workers)
    kinds = [False, True, False], [True, True, False]  # reversed, with an activation first
    branch = ConvBranch(shape, hidden, *kinds, activation=activation).double()
    x = torch.randn(5, *shape[1:], shape[0]).double().requires_grad_()
    given = torch.randn(2, *x.shape).double()

    def compute():
        found = []
        for step in branch.bind():
            F, d = step(x)
            needed = [x, *branch.parameters()]
            gradients = torch.autograd.grad([F, d], needed, list(given), retain_graph=True)
            found += [F, d, *gradients]
            with torch.no_grad():
                found += step(x)
        return found

    with pytest.MonkeyPatch.context() as patch:
        expected = by_torch(patch, compute)
    same(compute(), expected)


def test_what_cannot_be_solved_is_left_to_the_solvers():
    branch = Branch(2, (8,), [False]).bind()[0]
    y = torch.tensor([[0.0, float("nan")]])
    assert substitute(branch, y).residual.isnan().all()
    with pytest.raises(ValueError, match="NaN"):
        QuARStep(branch).solve(y)
    y = torch.randn(20, 2)
    found = QuARStep(branch).solve(y, tolerance=0.0)  # as far as float32 resolves
    assert found.residual.max() <= 1e-6
    with pytest.raises(InversionError):
        QuARStep(branch).solve(y + 9, tolerance=0.0, max_iterations=1)
    assert solve(lambda x, rows: (x, torch.ones_like(x)), y).residual.max() == 0


@given(
    features=st.integers(1, 9),
    units=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    reverse=st.lists(st.booleans(), min_size=1, max_size=3),
)
def test_weights_are_put_where_they_belong(features, units, reverse):
    layer = TriangularLayer(features, *units, reverse).double()
    g = torch.randn(len(reverse), features * units[1], features * units[0]).double()
    parameters = [layer.off_diagonal, layer.diagonal]

    def compute():
        weight = layer.weight()
        return [weight, *torch.autograd.grad(weight, parameters, g)]

    with pytest.MonkeyPatch.context() as patch:
        expected = by_torch(patch, compute)
    same(compute(), expected, rtol=0, atol=0)
    if features < 4:
        assert torch.autograd.gradgradcheck(
            lambda a, b: assemble([a], [b], layer.packing)[0].pow(2), parameters
        )


@pytest.mark.parametrize("units", [(1, 4, 4, 1), (1, 16, 16, 1), (1, 5, 3, 7, 1), (1, 1, 1)])
def test_bounds_and_their_gradients(units):
    blocks = [
        (torch.rand(2, 9, 1, 1) * torch.randn(2, 9, b, a)).double().requires_grad_()
        for a, b in itertools.pairwise(units)
    ]
    with torch.no_grad():
        blocks[0][0, 0] = 0
    g = torch.randn(2, 9).double()
    ours, theirs = norms.product_bound(blocks), norms.product_bound_reference(blocks)
    torch.testing.assert_close(ours, theirs)
    same(torch.autograd.grad(ours, blocks, g), torch.autograd.grad(theirs, blocks, g))
    assert torch.autograd.gradgradcheck(
        lambda *b: norms.product_bound(b), [b[:, :1].detach()[1:].requires_grad_() for b in blocks]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_are_above_the_norms(dtype):
    blocks = [10 ** (4 * torch.randn(500, 1, 1)).to(dtype) for _ in range(3)]
    blocks = [
        b * torch.randn(500, *s) for b, s in zip(blocks, [(6, 1), (6, 6), (1, 6)], strict=True)
    ]
    blocks = [b.to(dtype) for b in blocks]
    bound = norms.product_bound(blocks).double()
    # Signs of slopes at their worst: 2^12 of them would be exact; the product of matrices is less.
    exact = (blocks[2].double() @ blocks[1].double() @ blocks[0].double()).abs().flatten()
    finite = bound.isfinite()
    assert (exact[finite] <= bound[finite]).all()


def test_transforms_of_functions_are_left_to_torch():
    flow = QuAR(3, transforms=2, hidden_features=(9,)).double()
    x = torch.randn(4, 3).double()
    jacobian = torch.func.vmap(torch.func.jacrev(flow().transform.call_and_ladj))(x)[0]
    (forward,) = (torch.func.vmap(torch.func.jacfwd(lambda v: v * 2))(x),)
    assert forward.shape == (4, 3, 3)
    expected = torch.autograd.functional.jacobian(lambda v: flow().transform(v), x)
    torch.testing.assert_close(jacobian, expected[range(4), :, range(4)])


def test_forward_mode_is_not_lost():
    """A dual tensor has a tangent, which a kernel would drop."""
    flow = QuAR(3, transforms=2, hidden_features=(9,)).double().requires_grad_(False)
    x, v = torch.randn(2, 4, 3).double()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        out = torch.autograd.forward_ad.unpack_dual(flow().log_prob(dual))
    (g,) = torch.autograd.functional.vjp(lambda x: flow().log_prob(x).sum(), x)[1:]
    torch.testing.assert_close(out.tangent, (g * v).sum(-1))


def test_views_that_only_say_they_are_negative():
    flow = QuAR(3, transforms=2, hidden_features=(9,))
    x = torch.complex(torch.zeros(4, 3), torch.randn(4, 3)).conj().imag
    assert x.is_neg()
    with torch.no_grad():
        torch.testing.assert_close(flow().log_prob(x), flow().log_prob(x.resolve_neg().clone()))


def test_no_memory_for_what_is_computed_anew():
    held = 0

    def pack(tensor):
        nonlocal held
        held += tensor.numel() if tensor.numel() >= 500 * 8 else 0
        return tensor

    flow = QuAR(8, transforms=3, hidden_features=(64, 64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        flow().log_prob(torch.randn(500, 8))
    weights = 2 * 3 * (64 * 8 + 64 * 64 + 8 * 64)
    assert held < weights + 4 * 500 * 8
    assert 4 * held < fused_chain.KEEP_BYTES  # where torch does it, hidden layers are kept
