"""Head importance: against gates that are really there, one backward pass for each sample, in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from calls_made import random
from clearhead.errors import InputError
from clearhead.observe.numbers.importance import Gates, Importance, head_importance
from clearhead.observe.watching.watch import Watch

WIDTH, HEADS = 12, 3


class Layer(nn.Module):
    """Attention written by hand; `gates` (H,) multiply the heads where they are given."""

    def __init__(self, width=WIDTH, heads=HEADS):
        super().__init__()
        self.project, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x, gates=None, add=None):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        out = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        if gates is not None:
            out = out * gates[:, None, None]
        if add is not None:
            add(out)
        return x + self.out(out.transpose(1, 2).flatten(2)).tanh()


class Stack(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, x, gates=None, add=None, order=(0, 1)):
        for i in order:
            told = None if add is None else (lambda out, i=i: add(f"layers.{i}", out))
            x = self.layers[i](x, None if gates is None else gates[i], told)
        return self.last(x.mean(1))[:, 0]


def stack(seed=0, layers=2):
    torch.manual_seed(seed)
    return Stack(layers)


def losses(model, x, **options):
    return model(x, **options).square() + model(x, **options).sin()


def by_hand(model, batches, **options):
    """E|∂L/∂ξ| by explicit gates, sample by sample, of ℓ2 norm 1 in each layer."""
    model = model.double()
    total = {i: torch.zeros(HEADS, dtype=torch.float64) for i in range(len(model.layers))}
    for x in batches:
        for sample in x.double().split(1):
            gates = [torch.ones(HEADS, dtype=torch.float64, requires_grad=True) for _ in total]
            loss = losses(model, sample, gates=gates, **options)
            for i, gradient in enumerate(torch.autograd.grad(loss.sum(), gates, allow_unused=True)):
                total[i] += 0 if gradient is None else gradient.abs()
    model.float()
    return {f"layers.{i}": x / x.norm() for i, x in total.items()}


def gathered(model, batches, averaged, **options):
    """The same from hooks, in float32 and one backward pass for each batch."""
    gates = Gates()
    for x in batches:
        loss = losses(model, x, add=gates.add, **options)
        (loss.mean() if averaged else loss.sum()).backward()
        gates.close(averaged)
    return gates.importance()


@given(seed=st.integers(0, 1000), averaged=st.booleans(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_importance_is_the_mean_size_of_the_derivative_by_a_gate(seed, averaged, sizes):
    model = stack(seed)
    batches = [random(b, 4 + b, WIDTH, seed=seed + i) for i, b in enumerate(sizes)]
    found, expected = gathered(model, batches, averaged), by_hand(model, batches)
    assert list(found.scores) == ["layers.0", "layers.1"]
    for name, scores in expected.items():
        torch.testing.assert_close(found[name].double(), scores, atol=2e-5, rtol=1e-3)
        assert float(found[name].norm()) == pytest.approx(1, rel=1e-5)


def test_a_layer_that_runs_twice_has_one_gate():
    model, x = stack(), random(3, 5, WIDTH)
    found, expected = gathered(model, [x], False, order=(0, 1, 0)), by_hand(model, [x], order=(0, 1, 0))
    for name, scores in expected.items():
        torch.testing.assert_close(found[name].double(), scores, atol=2e-5, rtol=1e-3)


def test_outputs_of_another_layout_are_shaped_by_their_caller():
    model, x = stack(), random(3, 5, WIDTH)
    plain, shaped = gathered(model, [x], False), Gates()

    class Merged(Layer):
        def forward(self, x, gates=None, add=None):
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
            out = ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)
            add(out)
            return x + self.out(out).tanh()

    for layer in model.layers:
        layer.__class__ = Merged
    split = lambda out: out.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
    losses(model, x, add=lambda name, out: shaped.add(name, out, split)).sum().backward()
    shaped.close()
    for name, scores in shaped.importance().scores.items():
        torch.testing.assert_close(scores, plain[name], atol=1e-5, rtol=1e-4)


def test_a_layer_that_the_loss_does_not_hang_on_is_of_no_importance():
    gates, x = Gates(), random(2, HEADS, 5, 4).requires_grad_()
    gates.add("used", used := x * 2)
    gates.add("unused", x * 3)
    (used.sum()).backward()
    gates.close()
    assert gates.importance()["unused"].tolist() == [0.0] * HEADS
    assert gates.importance()["used"].norm() == pytest.approx(1)


def test_what_a_model_computes_without_gradients_does_not_move_the_loss():
    """HRM thinks many times without gradients, and once with them."""
    model, x = stack(), random(3, 5, WIDTH)

    class Thinking(Stack):
        def forward(self, x):
            with torch.no_grad():
                x = self.layers[0](x) + self.layers[1](x)
            return self.last(self.layers[1](x).mean(1))[:, 0]

    model.__class__ = Thinking
    found = head_importance(model, [x], lambda model, x: model(x).square())
    assert found["layers.0"].tolist() == [0.0] * HEADS
    with torch.no_grad():
        y = model.layers[0](x) + model.layers[1](x)
    once = head_importance(model, [y], lambda model, y: model.last(model.layers[1](y).mean(1))[:, 0].square())
    torch.testing.assert_close(found["layers.1"], once["layers.1"], rtol=1e-4, atol=1e-6)


def test_outputs_in_half_precision_are_summed_in_float32():
    exact, rough = random(2, HEADS, 400, 16).requires_grad_(), Gates()
    rough.add("layer", out := exact.to(torch.bfloat16) * 1)
    (out.float() * random(2, HEADS, 400, 16, seed=5)).sum().backward()
    rough.close()
    value = out.detach().double() * random(2, HEADS, 400, 16, seed=5).to(torch.bfloat16).double()
    scores = value.sum((-1, -2)).abs().sum(0)
    torch.testing.assert_close(rough.importance()["layer"].double(), scores / scores.norm(), atol=1e-4, rtol=1e-3)


def test_wrong_use_is_one_line_that_says_what_to_write():
    gates = Gates()
    with pytest.raises(InputError, match=r"output of a\.b carries no gradient: model\.requires_grad_\(\)"):
        gates.add("a.b", random(2, 3, 4, 5))
    x = random(2, 3, 4, 5).requires_grad_()
    gates.add("a", x * 1)
    with pytest.raises(InputError, match="a ran on 2 and on 1 samples for one loss"):
        gates.add("a", x[:1] * 1)
    gates.add("b", changed := x * 1)
    changed.add_(1)
    with pytest.raises(InputError, match="output of b was changed in place"):
        changed.sum().backward()


# of a model


def test_a_model_is_scored_in_evaluation_mode_and_left_as_it_was():
    model, batches = stack(), [random(3, 5, WIDTH, seed=1), random(2, 7, WIDTH, seed=2)]
    model.layers[1].eval()
    found, expected = head_importance(model, batches, losses), by_hand(model, batches)
    for name, scores in expected.items():
        torch.testing.assert_close(found[name].double(), scores, atol=2e-5, rtol=1e-3)
    assert [model.training, model.layers[0].training, model.layers[1].training] == [True, True, False]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_of_each_sample_and_their_mean_say_the_same():
    model, batches = stack(3), [random(3, 5, WIDTH), random(1, 6, WIDTH, seed=4)]
    of_each = head_importance(model, batches, losses)
    of_mean = head_importance(model, batches, lambda model, x: losses(model, x).mean())
    for name, scores in of_each.scores.items():
        torch.testing.assert_close(scores, of_mean[name], atol=1e-5, rtol=1e-4)


def test_a_model_without_attention_and_a_loss_of_another_shape_are_refused():
    with pytest.raises(InputError, match="no head of Linear could be scored"):
        head_importance(nn.Linear(3, 1), [random(2, 3)], lambda model, x: model(x).mean())
    x = random(2, 5, WIDTH)
    with pytest.raises(InputError, match=r"the loss has shape \(2, 1\); return the loss of each sample"):
        head_importance(stack(), [x], lambda model, x: model(x)[:, None])
    with pytest.raises(InputError, match=r"the loss has shape \(\) and no gradient"):
        head_importance(stack(), [x], lambda model, x: model(x).mean().detach())
    with pytest.raises(InputError, match=r"layers\.0 carries no gradient"):
        head_importance(stack().requires_grad_(False), [x], losses)


def test_a_layer_that_is_seen_but_cannot_be_gated_is_named(monkeypatch):
    def give(watch, name, output, heads):
        if name != "layers.0":
            given(watch, name, output, heads)

    given = Watch.give
    monkeypatch.setattr(Watch, "give", give)
    found = head_importance(stack(), [random(2, 5, WIDTH)], losses)
    assert list(found.scores) == ["layers.1"]
    assert found.unseen == {"layers.0": "its heads are joined where no gate can stand"}
    assert "layers.0: its heads" in str(found)


# as a table


def scores(layers, heads, names="encoder.layer.{}.self"):
    rows = random(layers, heads, seed=3).abs()
    return Importance({names.format(i): row / row.norm() for i, row in enumerate(rows)}, {"a": "compiled"})


def test_importance_prints_as_layer_by_head():
    found = scores(3, 12)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.split()[:1] == ["1"])
    assert row.split() == ["1", *(f"{x:.2f}" for x in found["encoder.layer.1.self"].tolist())]
    assert "  a: compiled" in lines
    assert str(found).isascii()


def test_many_heads_are_a_range_and_the_least_of_them():
    found = scores(3, 40)
    assert max(map(len, str(found).splitlines())) <= 80
    first = found["encoder.layer.0.self"]
    assert f"{first.min():.2f}..{first.max():.2f}" in str(found)
    assert f"{int(first.argmin())} ({first.min():.2f}), " in str(found)


def test_the_least_important_heads_come_first():
    found = scores(3, 4)
    least = found.least(5)
    every = sorted(x for row in found.scores.values() for x in row.tolist())
    assert [x for _, _, x in least] == every[:5]
    for name, head, x in least:
        assert float(found[name][head]) == x
    with pytest.raises(InputError, match=r"no importance of 'encoder.layer.9.self'; did you mean"):
        found["encoder.layer.9.self"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_whose_heads_no_one_sees(batch_first):
    """Against gates on the columns of the out projection, which is the same as gates on the heads."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    x = torch.randn(4, 5, 12)

    def run(module, x):
        y = x if batch_first else x.transpose(0, 1)
        out = module(y, y, y)[0]
        return (out if batch_first else out.transpose(0, 1)).square().mean((1, 2))

    found = head_importance(layer, [x], run)["MultiheadAttention"]
    expected = torch.zeros(3)
    weight = layer.out_proj.weight
    for sample in x:
        (g,) = torch.autograd.grad(run(layer, sample[None]).sum(), weight)
        expected += (weight * g).unflatten(1, (3, 4)).sum((0, 2)).abs().detach()
    torch.testing.assert_close(found, expected / expected.norm(), rtol=1e-4, atol=1e-6)
