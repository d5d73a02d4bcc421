"""Causal convolutions: their order, diagonals, norms and hand-written gradients."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as fn

from quarflow.nn import (
    ConvBranch,
    LipschitzConvNet,
    TriangularLayer,
    convolution_bound,
)
from quarflow.ops import value_diagonal
from quarflow.ops.conv_paper import dense_kernels
from quarflow.ops.panels import FeatureMajor
from quarflow.ops.taps import causal_taps, gather_taps, opposite, sum_taps
from quarflow.transforms import QuARStep
from registry import ACTIVATIONS, conv_branch, shaken

SHAPES = [(1, 4, 4), (2, 3, 3), (3, 4, 4), (5, 2, 3)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def raster(shape, *batch):
    C, H, W = shape
    return torch.randn(*batch, H, W, C, dtype=torch.float64)


def jacobian(branch, x):
    """Of one image in raster order, pixels then channels."""
    J = torch.autograd.functional.jacobian(lambda x: branch(x[None])[0][0], x)

    return J.reshape(x.numel(), x.numel())


def dense_matrix(kernel, H, W):
    """The zero-padded convolution as a matrix."""
    C = kernel.shape[1]
    basis = torch.eye(C * H * W, dtype=kernel.dtype).view(-1, C, H, W)

    return fn.conv2d(basis, kernel, padding=kernel.shape[-1] // 2).flatten(1).mT


# Layers


def test_taps_come_before_the_center_in_raster_order():
    for size in (1, 3, 5):
        taps = causal_taps(size)
        assert len(taps) == (size * size + 1) // 2
        assert taps[-1] == (0, 0)
        assert all(t < (0, 0) for t in taps[:-1])
        assert set(causal_taps(size, reverse=True)) == set(opposite(taps))
    with pytest.raises(ValueError, match="odd"):
        causal_taps(4)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_gathering_and_summing_are_transposes_and_make_convolutions(size):
    taps = causal_taps(size)
    x, y = raster((2, 4, 5), 3), raster((2 * len(taps), 4, 5), 3)

    torch.testing.assert_close(
        (gather_taps(x, taps) * y).sum(), (x * sum_taps(y, opposite(taps))).sum()
    )
    weight = torch.randn(3, len(taps), 2, dtype=torch.float64)
    expected = fn.conv2d(x.permute(0, 3, 1, 2), dense_kernels(weight, taps), padding=size // 2)
    gathered = gather_taps(x, taps) @ weight.flatten(1).mT
    products = x @ weight.transpose(0, 1).flatten(0, 1).mT
    for found in (gathered, sum_taps(products, taps)):
        torch.testing.assert_close(found.permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_only_weights_that_exist_are_parameters(reverse):
    C, k_in, k_out = 3, 2, 4
    layer = TriangularLayer(C, k_in, k_out, [reverse], kernel_size=3)
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(1)
    weight = layer.weight()[0]
    centre = torch.ones(C, C).triu() if reverse else torch.ones(C, C).tril()
    expected = torch.kron(centre, torch.ones(k_out, k_in))

    assert torch.equal(weight[:, -1], expected)
    assert (weight[:, :-1] == 1).all()
    assert sum(p.numel() for p in layer.parameters()) == (weight != 0).sum() + C * k_out


@pytest.mark.parametrize("C", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("parts", [1, 4])
def test_panels_are_the_whole_product(C, reverse, parts):
    k_out, k_in = 3, 2
    mask = torch.kron(torch.ones(C, C).tril(), torch.ones(k_out, k_in)).double()
    mask = mask.flip(0, 1) if reverse else mask
    W = torch.randn(C * k_out, C * k_in).double() * mask
    h, g = torch.randn(5, C * k_in).double(), torch.randn(5, C * k_out).double()
    h, g, b = h.mT, g.mT, torch.randn(C * k_out, 1).double()
    for joined in (False, True):
        t = FeatureMajor(C, reverse, parts, joined)
        with torch.no_grad():
            torch.testing.assert_close(t.product(W, h, b), W @ h + b)
            torch.testing.assert_close(t.transposed(W, g), W.mT @ g)
            torch.testing.assert_close(t.gradient(g, h) * mask, (g @ h.mT) * mask)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_jets(name):
    phi = ACTIVATIONS[name]
    z = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    value, slope, curvature = phi.jet(z)
    (expected_slope,) = torch.autograd.grad(phi(z)[0].sum(), z, create_graph=True)
    (expected,) = torch.autograd.grad(phi(z)[1].sum(), z)

    torch.testing.assert_close(value, phi(z)[0])
    torch.testing.assert_close(slope, expected_slope)
    inside = z.detach().abs() > 0.1  # ELU has a kink
    torch.testing.assert_close(curvature[inside], expected[inside])


# Branches


@every_shape
@pytest.mark.parametrize("norm", ["dimension", "center", "operator"])
@pytest.mark.parametrize("reverse", [False, True])
def test_diagonal_and_order(shape, norm, reverse):
    branch = conv_branch(shape, 8, reverse, norm=norm)
    x = 3 * raster(shape)
    J = jacobian(branch, x)
    _, d = branch(x[None])

    torch.testing.assert_close(d.flatten(), J.diagonal(), rtol=0, atol=1e-12)
    assert (J.tril(-1) if reverse else J.triu(1)).abs().max() == 0
    assert (d.abs() <= branch.bound).all()
    if norm == "operator":
        assert torch.linalg.matrix_norm(J, 2) <= 0.97


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_within_reach_is_lost(reverse):
    """Two 3 x 3 layers read what two taps add up to: all channels there, and one's own so far."""
    C, H, W = 2, 5, 5
    J = jacobian(conv_branch((C, H, W), 8, reverse), raster((C, H, W)))
    J = J.view(H, W, C, H, W, C)[2, 2]  # of the centre pixel
    taps = causal_taps(3, reverse)
    expected = torch.zeros(H, W, dtype=torch.bool)
    for i, j in taps:
        for k, m in taps:
            expected[2 + i + k, 2 + j + m] = True

    for c in range(C):
        for other in range(C):
            expected[2, 2] = other >= c if reverse else other <= c
            assert torch.equal(J[c, :, :, other] != 0, expected)


@pytest.mark.parametrize("norm", ["dimension", "center", "operator"])
@pytest.mark.parametrize("activation", ["lipswish", "elu"])
def test_no_weights_break_the_bound(norm, activation):
    """Gradient ascent on the largest abs(d), from wild weights."""
    torch.manual_seed(3)
    made = ConvBranch((2, 3, 3), 6, [False], [False], activation, norm).double()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(20 * torch.rand(()))
        made.theta_raw.fill_(-60)  # nothing is held back
    x = (3 * raster((2, 3, 3), 4)).requires_grad_()
    adam = torch.optim.Adam([x, *made.parameters()], lr=0.1)
    start = largest = 0.0
    for step in range(30):
        d = made.bind()[0](x)[1].abs()
        largest = max(largest, float(d.max().detach()))
        start = largest if step == 0 else start
        assert largest <= 0.97
        adam.zero_grad()
        (-d.max()).backward()
        adam.step()

    assert largest > start
    if norm != "operator":
        assert largest > 0.5  # the ascent comes somewhere


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_pass_has_true_gradients(activation, preactivation, recompute):
    bound = conv_branch((2, 2, 2), 4, True, preactivation, activation=activation)
    bound = replace(bound, options=replace(bound.options, recompute=recompute))
    # Entries of the middle weight that do not exist get no gradient: only the others are moved.
    mask = (bound.weights[1] != 0).double()
    tensors = (raster((2, 2, 2), 2), *bound.weights, *bound.blocks, *bound.biases)
    inputs = [t.detach().requires_grad_() for t in tensors]

    def run(x, *rest):
        W, B, b = (rest[i * 3 : (i + 1) * 3] for i in range(3))
        return replace(bound, weights=(W[0], W[1] * mask, W[2]), blocks=B, biases=b)(x)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    for output in (0, 1):  # with the gradient of the other missing
        assert torch.autograd.gradcheck(
            lambda *a, output=output: run(*a)[output], inputs, fast_mode=True
        )
    if activation in ("lipswish", "sin"):
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True, atol=1e-4)


@every_shape
def test_all_ways_of_the_pass_agree(shape, monkeypatch):
    """Kept, recomputed, in chunks of pixels, and dense under autograd as in the paper."""
    made = shaken(ConvBranch(shape, 9, [False, True], [False, True]))
    x = raster(shape, 6).requires_grad_()
    results = []
    for way in ("kept", "recomputed", "chunks", "kept chunks", "paper"):
        made.recompute = way in ("recomputed", "chunks")
        made.implementation = "paper" if way == "paper" else "fused"
        if "chunks" in way:
            monkeypatch.setattr(value_diagonal, "_chunk", lambda hidden, device: 7)
        total = sum((F.sin() + d.exp()).sum() for F, d in (b(x) for b in made.bind()))
        results.append((total, *torch.autograd.grad(total, [x, *made.parameters()])))
        monkeypatch.undo()
    for found in results[1:]:
        torch.testing.assert_close(found, results[0])


@pytest.mark.parametrize("implementation", ["fused", "paper"])
def test_bfloat16_keeps_the_stream_and_the_log_det_in_float32(implementation):
    made = ConvBranch((3, 8, 8), 24, [False], [True], implementation=implementation)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    exact = QuARStep(made.bind()[0]).call_and_ladj(x)
    gradients = torch.autograd.grad(exact[0].mean() + exact[1].sum(), list(made.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = QuARStep(made.bind()[0])
        z, ladj = step.call_and_ladj(x)
        d = step.call_and_diagonal(x)[1]
    found = torch.autograd.grad(z.mean() + ladj.sum(), list(made.parameters()))

    assert z.dtype == ladj.dtype == torch.float32
    assert (d.abs() <= step.branch.bound[:, None, None]).all()
    assert not torch.equal(z, exact[0])  # it was done in bfloat16
    torch.testing.assert_close(z, exact[0], rtol=0, atol=0.03)
    torch.testing.assert_close(ladj, exact[1], rtol=0.02, atol=0.1)
    for one, other in zip(found, gradients, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 0.05 * other.norm() + 1e-3


def test_scores_do_not_depend_on_the_batch():
    step = QuARStep(shaken(ConvBranch((1, 8, 8), 40, [False], [True])).float().bind()[0])
    x = torch.randn(50, 1, 8, 8)
    at_once = step.call_and_ladj(x)[1]
    one_by_one = torch.stack([step.call_and_ladj(image)[1] for image in x])

    assert (at_once - one_by_one).abs().max() / 64 < 1e-5


def test_the_solver_stops_each_image_on_its_own():
    step = QuARStep(conv_branch((2, 4, 4), 8))
    x = torch.randn(6, 2, 4, 4).double() * torch.logspace(-2, 1.5, 6).view(-1, 1, 1, 1)
    z = step(x).detach()
    solution = step.solve(z)
    alone = [int(step.solve(image[None]).iterations) for image in z]

    torch.testing.assert_close(step.solved(solution, z), x, rtol=0, atol=1e-10)
    assert solution.iterations.tolist() == alone
    assert len(set(alone)) > 1
    assert (solution.residual <= 2e-13).all()
    for method in ("fixed_point", "gauss_seidel"):
        other = QuARStep(step.branch, method=method).solve(z)
        torch.testing.assert_close(other.x, solution.x, rtol=0, atol=1e-10)


def test_gauss_seidel_knows_the_reversed_raster_order():
    """With one variable per chunk only the right order ends at once."""
    branch = conv_branch((2, 2, 2), 6, reverse=True, norm="center")
    branch = replace(branch, weights=tuple(3 * w for w in branch.weights))  # harder off-diagonals
    branch = replace(branch, blocks=tuple(0.0 * b for b in branch.blocks))
    step = QuARStep(branch, method="gauss_seidel")
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64)

    torch.testing.assert_close(step.inv(step(x)), x, rtol=1e-8, atol=1e-8)


def test_log_prob_and_gradient_are_one_graph():
    made = shaken(ConvBranch((2, 2, 2), 4, [True], [True]))
    x = raster((2, 2, 2), 3)

    def run(x):
        F, d = made.bind()[0](x)
        return F.square().sum() + torch.log1p(d).sum()

    traced = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(x), run(x))
    found, expected = (torch.autograd.grad(f(x), list(made.parameters())) for f in (traced, run))
    torch.testing.assert_close(found, expected)


# Norms


@pytest.mark.parametrize(("C", "out"), [(1, 5), (3, 2), (2, 4)])
@pytest.mark.parametrize("size", [(1, 6), (4, 4), (5, 3), (2, 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_convolution_bound_is_above_the_dense_norm(C, out, size, causal):
    taps = causal_taps(3) if causal else [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    weight = torch.randn(4, out, len(taps), C, dtype=torch.float64)
    bounds = convolution_bound(weight, taps, size)
    for one, bound in zip(weight, bounds, strict=True):
        norm = torch.linalg.matrix_norm(dense_matrix(dense_kernels(one, taps), *size), 2)
        assert norm <= bound
        assert bound <= 2 * norm  # tight on images that are not tiny: the next test


def test_convolution_bound_is_tight_and_below_the_sum_of_taps():
    taps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    weight = torch.randn(1, 4, 9, 3, dtype=torch.float64)
    bound = convolution_bound(weight, taps, (16, 16))[0]
    norm = torch.linalg.matrix_norm(dense_matrix(dense_kernels(weight[0], taps), 16, 16), 2)
    by_taps = torch.linalg.matrix_norm(weight[0].transpose(0, 1), 2).sum()

    assert norm <= bound <= 1.05 * norm < by_taps
    single = convolution_bound(weight.float(), taps, (16, 16))[0]
    assert norm <= single.double() <= bound * (1 + 1e-5)
    mirrored = convolution_bound(weight, opposite(taps), (16, 16))[0]
    torch.testing.assert_close(mirrored, bound)


@pytest.mark.parametrize(("C", "out"), [(2, 3), (3, 2)])
def test_convolution_bound_has_a_true_gradient(C, out):
    weight = torch.randn(2, out, 5, C, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda w: convolution_bound(w, causal_taps(3), (4, 5)), weight)
    zero = torch.zeros(1, out, 5, C, requires_grad=True)
    convolution_bound(zero, causal_taps(3), (4, 4)).sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_residual_networks_are_lipschitz(scale):
    made = LipschitzConvNet((2, 4, 4), 6, [True]).double()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale)
    branch = made.bind()[0]
    network, bound = branch.network, branch.bound
    J = network.linearize(torch.randn(8, 32).double())[1]
    dense = J.dense()
    v = torch.randn(8, 32).double()

    assert bound <= 0.98**3
    assert torch.linalg.matrix_norm(dense, 2).max() <= bound
    torch.testing.assert_close(J.jvp(v), (dense @ v[..., None]).squeeze(-1))
    torch.testing.assert_close(J.vjp(v), (v[:, None] @ dense).squeeze(1))
    expected = torch.autograd.functional.jacobian(network, torch.zeros(1, 32).double())
    zero = network.linearize(torch.zeros(1, 32).double())[1].dense()
    torch.testing.assert_close(zero[0], expected[0, :, 0])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"hidden_channels": 0}, "hidden_channels"),
        ({"norm": "none"}, "norm"),
        ({"sigma": 1.0}, "sigma"),
        ({"activation": "relu"}, "activation"),
        ({"implementation": "fast"}, "implementation"),
    ],
)
def test_bad_arguments(options, word):
    given = {"shape": (1, 2, 2), "hidden_channels": 4, "reverse": [False], "preactivation": [True]}
    with pytest.raises(ValueError, match=word):
        ConvBranch(**given | options)
