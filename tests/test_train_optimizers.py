"""Which optimizer moves which parameter, and several of them as one."""

import copy

import torch

from clearhead.nn import Seq2Seq
from clearhead.train.config import Training
from clearhead.train.optimizers import make_optimizer


def model():
    torch.manual_seed(0)
    return Seq2Seq(9, 8, 16, 2, encoder_layers=1, decoder_layers=1, dropout=0.0)


def steps(net, optimizer, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        source, target = (torch.randint(0, 8, (4, 5), generator=generator) for _ in range(2))
        net(source, target).logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in net.parameters()]


def test_muon_moves_the_hidden_matrices_and_adamw_the_rest():
    net = model()
    *muons, adamw = make_optimizer(net, Training(parts=2)).parts
    assert len(muons) == 2
    names = {parameter: name for name, parameter in net.named_parameters()}
    by_muon = {names[p] for muon in muons for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[p] for group in adamw.param_groups for p in group["params"]}
    assert by_muon == {name for name in names.values() if name.endswith("weight") and "norm" not in name} - by_adamw
    assert {name for name in by_adamw if name.endswith("weight") and "norm" not in name} == {
        "source_embedding.weight",
        "target_embedding.weight",
    }
    assert not by_muon & by_adamw
    assert by_muon | by_adamw == set(names.values())
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.01, 0.0]


def test_one_rate_reaches_all_parts():
    net = model()
    both = make_optimizer(net, Training())
    before = [p.detach().clone() for p in net.parameters()]
    for group in both.param_groups:
        group["lr"] = 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, steps(net, both, 1), strict=True))


def test_state_goes_on_where_it_was():
    net = model()
    whole = steps(net, make_optimizer(net, Training()), 4)
    for optimizer in ("muon", "adamw"):
        settings = Training(optimizer=optimizer)
        net = model()
        first = make_optimizer(net, settings)
        steps(net, first, 2)
        weights, state = copy.deepcopy((net.state_dict(), first.state_dict()))
        again = model()
        again.load_state_dict(weights)
        second = make_optimizer(again, settings)
        second.load_state_dict(state)
        for group in second.param_groups:
            assert group["lr"] == settings.learning_rate
        a, b = steps(net, first, 2, seed=1), steps(again, second, 2, seed=1)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(whole, a, strict=True))  # adamw is something else
