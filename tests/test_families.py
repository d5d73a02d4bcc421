"""What every flow family keeps to: one list, arguments alike, folders that are safe to count."""

import inspect
import json
import resource
from contextlib import suppress

import pytest
import torch

import page
import quarflow
from quarflow.flows import FAMILIES, families
from quarflow.flows.former import POSITIONS, former_names, present
from quarflow.nn import ACTIVATIONS, Branch
from quarflow.ops.activations import Activation
from quarflow.store.schema import FlowConfig, arguments_of, flow_config, least_numbers
from quarflow.transforms import LogDet
from registry import SMALL

LISTED = [name for name in vars(families) if not name.startswith("_")]
every = pytest.mark.parametrize("name", FAMILIES)


def test_every_family_is_listed_exported_and_tested():
    ours = {name for name, kind in FAMILIES.items() if kind.__module__.startswith("quarflow.")}

    assert ours == set(LISTED) < set(quarflow.__all__)
    assert all(getattr(quarflow, name) is kind for name, kind in FAMILIES.items() if name in ours)
    assert set(SMALL) == set(FAMILIES)
    with pytest.raises(AttributeError, match="no attribute 'NoFlow'"):
        _ = quarflow.NoFlow


@every
def test_a_family_is_saved_loaded_and_counted(name, tmp_path):
    flow = SMALL[name]()
    quarflow.save_flow(flow, tmp_path / "m")
    loaded = quarflow.load_flow(tmp_path / "m")
    state = flow.state_dict()

    assert type(loaded) is type(flow)
    assert loaded.arguments == flow.arguments
    assert all(torch.equal(t, state[k]) for k, t in loaded.state_dict().items())
    assert least_numbers(flow_config(flow)) == sum(t.numel() for t in state.values())


@every
def test_arguments_are_named_alike(name):
    parameters = inspect.signature(FAMILIES[name]).parameters
    by_position = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]

    assert by_position in (["features", "context"], ["shape"])
    assert "transforms" in parameters
    assert not parameters.keys() & former_names(name)
    assert parameters["base"].default == "normal"


MOST = {
    "features": 65_536,
    "context": 65_536,
    "shape": [65_536, 4096, 4096],
    "transforms": 1024,
    "hidden_features": [65_536] * 32,
    "hidden_channels": 65_536,
    "ridges": 65_536,
}


@every
def test_sizes_of_any_kind_are_counted_without_memory(name):
    known = arguments_of(name).model_fields
    least = {"features": 2, "shape": [1, 4, 4]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for sizes in (MOST, *({key: value} for key, value in MOST.items())):
        arguments = {k: v for k, v in (least | sizes).items() if k in known}
        config = FlowConfig.model_validate({"name": name, "arguments": arguments})
        with suppress(ValueError):  # of what cannot be, as so many scales or ridges
            assert least_numbers(config) > 0

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


FORMER = {
    "ResidualFlow": (
        {"features": 2, "coeff": 0.9, "logdet": "exact", "train_terms": 3, "rate": 1.0},
        {"sigma": 0.9, "logdet": LogDet("exact", 3, rate=1.0)},
    ),
    "ImageResidualFlow": (
        {"shape": (1, 4, 4), "scales": 1, "blocks": 2, "hidden_channels": 2, "coeff": 0.9},
        {"transforms": 2, "sigma": 0.9},
    ),
    "ImageQuAR": ({"shape": (1, 4, 4), "scales": 1, "blocks": 2}, {"transforms": 2}),
}


@pytest.mark.parametrize("name", FORMER)
def test_former_names_are_taken_and_told_of(name, tmp_path):
    old, new = FORMER[name]
    kind = FAMILIES[name]
    torch.manual_seed(0)
    with pytest.warns(DeprecationWarning, match=f"{name}, .* by ") as told:
        one = kind(**old)
    assert told[0].filename == __file__
    torch.manual_seed(0)
    kept = {k: v for k, v in old.items() if k not in former_names(name)}
    other = kind(**kept | new)

    assert one.arguments == other.arguments
    for old_name in old.keys() & former_names(name) - {"rate", "train_terms"}:
        twice = {present(name, {old_name: 1}).popitem()[0]: 1} | {old_name: 1}
        with pytest.raises(ValueError, match="now called"):
            kind(**kept | twice)

    # and in folders, without a word
    quarflow.save_flow(one, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    arguments = config["flow"]["arguments"]
    config["flow"]["arguments"] = {k: v for k, v in arguments.items() if k not in new} | {
        k: v for k, v in old.items() if k in former_names(name) or k == "logdet"
    }
    path.write_text(json.dumps(config))
    loaded = quarflow.load_flow(tmp_path / "m")
    assert loaded.arguments == one.arguments


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_taken_and_told_of(name):
    small = SMALL[name]()
    parameters = inspect.signature(type(small)).parameters
    first = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    names = POSITIONS[name].split()[:2]
    with pytest.warns(DeprecationWarning, match=names[1]) as told:
        flow = type(small)(*(small.arguments[n] for n in (*first, *names)))

    assert told[0].filename == __file__
    assert [flow.arguments[n] for n in names] == [small.arguments[n] for n in names]
    with pytest.raises(TypeError, match="by position and by name"):
        type(small)(*(small.arguments[n] for n in (*first, *names)), **{names[1]: 1})
    with pytest.raises(TypeError, match="by position"):
        type(small)(*range(40))


def test_the_page_on_extending(monkeypatch, capsys):
    """Its flow is in the registry; here what it says about use, and its activation."""
    for block in page.BLOCKS[1:]:
        exec(compile(block, page.PATH, "exec"), page.module.__dict__)
    softsign = ACTIVATIONS.pop("softsign")
    monkeypatch.setitem(ACTIVATIONS, "softsign", softsign)

    assert len(page.BLOCKS[0].splitlines()) < 60
    assert capsys.readouterr().out == "torch.Size([500]) torch.Size([3, 2])\n"
    assert isinstance(softsign, Activation)
    bound = Branch(2, (6, 4), [False], activation="softsign").double().bind()[0]
    x = torch.randn(3, 2).double().requires_grad_()
    J = torch.stack([torch.func.jacrev(lambda x: bound(x)[0])(row) for row in x])
    torch.testing.assert_close(bound(x)[1], J.diagonal(dim1=-2, dim2=-1))
    assert torch.autograd.gradcheck(bound, x)
    assert torch.autograd.gradgradcheck(bound, x)
    flow = quarflow.QuAR(2, transforms=2, activation="softsign").double()  # also with kernels
    x, ladj = flow().transform.inv.call_and_ladj(x)
    torch.testing.assert_close(flow().transform.call_and_ladj(x)[1], -ladj)
