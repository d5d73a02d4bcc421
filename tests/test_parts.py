"""What a transform is made of: walking over it, inverting it with its solutions, changing it."""

import pytest
import torch

from quarflow import ImageQuAR, QuAR
from quarflow.flows.actnorm import ActNorms
from quarflow.transforms import Affine, Composed, Inverse, LinearLU, QuARStep
from registry import shaken


def vectors(**options):
    return shaken(QuAR(3, transforms=3, hidden_features=(6,), **options)), (5, 3)


def images():
    return shaken(ImageQuAR((2, 4, 4), scales=2, transforms=2, hidden_channels=4)), (3, 2, 4, 4)


@pytest.mark.parametrize("make", [vectors, lambda: vectors(mix="lu"), images])
def test_parts_in_their_order(make):
    flow, shape = make()
    transform, x = flow().transform, torch.rand(shape, dtype=torch.float64)
    seen = []

    def visit(part, x):
        seen.append(part)
        return part(x)

    z = transform.walk(x, visit)
    torch.testing.assert_close(z, transform(x))
    assert seen == transform.parts

    back, solutions = transform.invert(z)
    steps = [part for part in seen if isinstance(part, QuARStep)]
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    assert len(solutions) == len(steps)
    for solution in solutions:
        assert solution.iterations.shape == (shape[0],)
        assert solution.residual.max() < 1e-10


def test_changing_parts():
    twice = Affine(torch.zeros(2), torch.ones(2).log1p())
    turned = Composed([twice, Composed([twice])]).mapped(lambda part: Inverse(part))
    torch.testing.assert_close(turned(torch.full((2,), 8.0)), torch.full((2,), 2.0))
    linear = LinearLU(torch.eye(2), torch.eye(2), torch.zeros(2))
    assert linear.parts == [linear]
    assert linear.invert(torch.ones(2))[1] == []


@pytest.mark.parametrize("event_dim", [1, 3])
def test_an_affine_map_is_one_number_for_each_variable_or_channel(event_dim):
    norms = ActNorms(2, 4, event_dim)
    x = 3 * torch.randn(50, *((4,) if event_dim == 1 else (4, 3, 2))) + 1
    affine = norms.normalize(1, x)
    z, ladj = affine.call_and_ladj(x)
    rows = z.movedim(1, -1).reshape(-1, 4)
    torch.testing.assert_close(rows.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(4))
    torch.testing.assert_close(affine.inv(z), x)
    assert ladj.shape == (50,)
    pixels = x[0].numel() / 4
    torch.testing.assert_close(ladj[0], pixels * norms.log_scale[1].sum())
