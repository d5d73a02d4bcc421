"""Inverses come back, or raise: a small residual alone is no promise about x."""

import pytest
import torch

from quarflow import InversionError, QuAR

PROMISED = {torch.float32: 1e-5, torch.float64: 1e-10}


def steep(gain: float, dtype: torch.dtype, seed: int = 0) -> QuAR:
    """A flow whose inverse amplifies the more, the larger the off-diagonal weights."""
    torch.manual_seed(seed)
    flow = QuAR(8, transforms=3, hidden_features=(24,)).to(dtype)
    with torch.no_grad():
        for layer in flow.branches.layers:
            layer.off_diagonal.mul_(gain)

    return flow


@pytest.mark.parametrize("dtype", PROMISED)
@pytest.mark.parametrize("gain", [1.0, 5.0, 12.0, 25.0])
def test_inverses_that_are_returned_are_right(dtype, gain):
    p = steep(gain, dtype)()
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    wrong = 0
    with torch.no_grad():
        z = p.transform(x)
        for row, image in zip(x, z, strict=True):
            try:
                back = p.transform.inv(image)
            except InversionError:
                continue
            error = ((back - row).abs() / (1 + row.abs())).max()
            wrong += bool(error > PROMISED[dtype])
            assert error <= 10 * PROMISED[dtype]

    assert wrong <= 1  # the check is a probe in two directions


@pytest.mark.parametrize("dtype", PROMISED)
def test_gentle_inverses_never_raise(dtype):
    p = steep(0.3, dtype)()
    x = torch.randn(2000, 8, dtype=dtype)
    with torch.no_grad():
        p.transform.inv(p.transform(x))
        p.transform.inv.call_and_ladj(p.transform(x))


def test_what_a_steep_inverse_says_and_how_to_have_it_nevertheless():
    p = steep(25.0, torch.float32)()
    with torch.no_grad():
        z = p.transform(torch.randn(200, 8))
        with pytest.raises(InversionError, match=r"of 200 samples .* Use float64") as caught:
            p.transform.inv(z)
        assert 0 < caught.value.failed <= 200
        assert caught.value.residual > 1e-5
        assert p.transform.unchecked.inv(z).isfinite().all()
        # samples need not come back from their noise
        assert p.sample((200,)).isfinite().all()


def test_spiky_columns_are_told_from_smooth_ones():
    torch.manual_seed(0)
    spiky = torch.randint(3, (2000, 1)) + 0.01 * torch.randn(2000, 1)
    x = torch.cat((spiky, torch.randn(2000, 1)), dim=1)
    flow = QuAR(2, hidden_features=(16,), transforms=2)
    before = flow.branches.layers[0].diagonal.clone()
    flow.initialize(x)
    ratio = (flow.branches.layers[0].diagonal / before).squeeze(-1)

    assert ratio[:, 0].amax() > 10
    torch.testing.assert_close(ratio[:, 1], torch.ones_like(ratio[:, 1]))
    assert max(step.bound for step in flow.certificate()) <= 0.97
