"""A network that reads the context, and embeddings of a user's own."""

import pytest
import torch
from torch import nn

from quarflow import QuAR
from quarflow.store.folder import load_flow, save_flow

OPTIONS = {"transforms": 2, "hidden_features": (8,), "context_features": (6, 4)}


@pytest.fixture
def flow():
    torch.manual_seed(0)
    flow = QuAR(2, 3, **OPTIONS).double()
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.3)

    return flow


def test_an_embedding_makes_the_context(flow):
    embedding = nn.Linear(5, 3).double()
    other = QuAR(2, 3, **OPTIONS, embedding=embedding).double()
    other.load_state_dict(flow.state_dict(), strict=False)
    x, c = torch.randn(7, 2).double(), torch.randn(7, 5).double()

    assert torch.equal(other(c).log_prob(x), flow(embedding(c)).log_prob(x))
    other(c).log_prob(x).sum().backward()
    assert embedding.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="3"):
        QuAR(2, 3, embedding=nn.Identity())(c)


def test_no_folder_holds_an_embedding(tmp_path):
    with pytest.raises(ValueError, match="embedding of your own cannot be saved"):
        save_flow(QuAR(2, 3, embedding=nn.Linear(5, 3)), tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


def test_a_context_network_comes_back_from_its_folder(flow, tmp_path):
    save_flow(flow.float(), tmp_path / "flow")
    x, c = torch.randn(7, 2), torch.randn(7, 3)

    assert torch.equal(load_flow(tmp_path / "flow")(c).log_prob(x), flow(c).log_prob(x))


def test_far_out_the_context_moves_samples_along_a_straight_line():
    torch.manual_seed(0)
    c = torch.randn(500, 1).double()
    x = 3 * c + 0.1 * torch.randn(500, 1).double()
    flow = QuAR(1, 1, **OPTIONS).double()
    flow.initialize(x, c)

    for far in (6.0, 60.0):  # training ended at about 3
        middle = flow(torch.tensor([far]).double()).sample((200,)).mean()
        assert middle.item() == pytest.approx(3 * far, rel=0.05)


@pytest.mark.parametrize("wrong", [{"context": 0}, {"context_features": (4, 0)}])
def test_widths_of_a_context_network_are_checked(wrong):
    with pytest.raises(ValueError, match="context_features"):
        QuAR(2, **{"context": 3, **OPTIONS, **wrong})
