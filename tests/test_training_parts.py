"""What makes a training step quick gives what the plain operations give: dropout, the loss of the last layer."""

import threading

import pytest
import torch
from torch.nn.functional import cross_entropy

from clearhead.nn.cross_entropy import linear_cross_entropy
from clearhead.nn.dropout import Dropout, drawing_from


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("room", [2**21, 100])  # one chunk; two rows at a time
def test_the_loss_and_its_gradients_are_those_of_cross_entropy(smoothing, room, monkeypatch):
    monkeypatch.setattr("clearhead.nn.cross_entropy._ROOM", room)
    vocabulary = 50
    torch.manual_seed(0)
    hidden = torch.randn(3, 2, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    labels = torch.randint(1, vocabulary, (3, 2))
    labels[1, 1] = 0
    found = linear_cross_entropy(hidden, weight, labels, 0, smoothing)
    gradients = torch.autograd.grad(3 * found, (hidden, weight))
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logits = (exact[0] @ exact[1].T).flatten(0, 1)
    wanted = cross_entropy(logits, labels.flatten(), ignore_index=0, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    for mine, right in zip(gradients, torch.autograd.grad(3 * wanted, exact), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels, 0, smoothing), found.detach())


def test_under_autocast_the_loss_is_as_right_as_torchs_own():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(64, 32), torch.randn(50, 32) / 6, torch.randint(0, 50, (64,))
    hidden.requires_grad_()
    exact = cross_entropy(hidden.detach().double() @ weight.double().T, labels, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        mine = linear_cross_entropy(hidden, weight, labels, -1)
        theirs = cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")
    assert abs(mine.double() - exact) <= 2 * abs(theirs.double() - exact) + 1e-3
    mine.backward()
    assert hidden.grad.dtype == torch.float32


@pytest.mark.parametrize("p", [0.1, 0.3, 1.0])
def test_dropout_drops_as_many_as_it_says_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.rand(301, 333) + 0.5
    x.requires_grad_()
    out = Dropout(p)(x)
    kept = out != 0
    assert float((~kept).double().mean()) == pytest.approx(p, abs=0.01)
    scale = 0 if p == 1 else 1 / (1 - p)
    torch.testing.assert_close(out, torch.where(kept, scale * x, 0.0), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, kept * torch.tensor(float(scale)), rtol=1e-4, atol=0)
    assert Dropout(p).eval()(x) is x


def test_dropout_is_drawn_from_the_generator_it_is_given_by_its_own_thread():
    x, drop, found = torch.ones(64, 64), Dropout(0.5), {}

    def draw(name, seed):
        with drawing_from(torch.Generator().manual_seed(seed)):
            found[name] = drop(x)

    threads = [threading.Thread(target=draw, args=(name, name)) for name in (1, 2)]
    state = torch.get_rng_state()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_rng_state().equal(state)
    again = dict(found)
    draw(1, 1)
    assert found[1].equal(again[1])
    assert not found[1].equal(found[2])
    torch.manual_seed(3)
    one = drop(x)
    torch.manual_seed(3)
    assert drop(x).equal(one)


def test_a_neighbour_of_a_dropped_entry_is_dropped_no_more_often():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(200_000)) != 0).double()
    for distance in range(1, 9):
        together = float((kept[:-distance] * kept[distance:]).mean())
        assert together == pytest.approx(0.25, abs=0.01), distance
