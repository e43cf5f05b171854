"""Which optimizer moves which parameter, and several of them as one."""

import copy

import pytest
import torch

from clearhead.nn import Seq2Seq
from clearhead.train.config import Training
from clearhead.train.muon import Muon, zeroth_power
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


def moved(kind, dtype=torch.float32, **options):
    """Matrices of three shapes, two of one, after three steps; the last gets no gradient in the second."""
    torch.manual_seed(3)
    shapes = [(24, 16), (16, 24), (24, 16), (8, 8)]
    matrices = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    optimizer = kind(matrices, 0.1, 0.2, **options)
    for step in range(3):
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix) * 10.0**-step
        if step == 1:
            matrices[-1].grad = None
        optimizer.step()
    return [matrix.detach() for matrix in matrices], optimizer.state_dict()


@pytest.mark.parametrize("options", [{}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False, "momentum": 0.7}])
def test_many_matrices_at_once_move_as_one_by_one(options):
    (ours, state), (theirs, their_state) = moved(Muon, **options), moved(torch.optim.Muon, **options)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02 * float(b.abs().max()))  # bfloat16 has 8 digits
    torch.testing.assert_close(state["state"], their_state["state"])
    assert state["param_groups"] == their_state["param_groups"]


def test_what_is_orthogonalised_keeps_its_singular_vectors():
    torch.manual_seed(0)
    x = torch.randn(3, 20, 12, dtype=torch.float64)
    found = zeroth_power(x, (3.4445, -4.7750, 2.0315), 5, 1e-7).double()
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    values = (u.mT @ found @ vh.mT).diagonal(dim1=-2, dim2=-1)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3
    a, b, c = 3.4445, -4.7750, 2.0315
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    wanted = (u * s[:, None]) @ vh
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
