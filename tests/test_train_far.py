"""Training that reaches far: deep models, activations computed again, what is said before it begins, the range test."""

import os
from itertools import chain, islice, repeat

import pytest
import torch

from clearhead.data import Batches, Examples, Tokenizer
from clearhead.nn import Seq2Seq
from clearhead.nn.dropout import drawing_from
from clearhead.train.forecast import forecast
from clearhead.train.optimizers import make_optimizer
from clearhead.train.range_test import find_learning_rate
from clearhead.train.task import summed_loss
from tiny_task import Tiny, small

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 400 if os.environ.get("CLEARHEAD_TRIALS") else 15
LETTERS = Tokenizer.characters(word for word, _ in Tiny().pairs("train"))
SYMBOLS = Tokenizer.symbols(text for _, text in Tiny().pairs("train"))


def examples():
    return Examples.read(Tiny(), "train", LETTERS, SYMBOLS)


def net(layers=2, dropout=0.2, width=16):
    torch.manual_seed(0)
    return Seq2Seq(
        len(LETTERS), len(SYMBOLS), width, 2, 2 * width, layers, layers, dropout=dropout, attention_dropout=dropout / 2
    )


def kept_and_gradients(model, batch, checkpoint, half=False, own=False):
    model.encoder.checkpoint = model.decoder.checkpoint = checkpoint
    kept = []
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2) if own else None
    model.zero_grad()
    with (
        drawing_from(generator),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x),
    ):
        loss = summed_loss(model, batch, 0.1)
    loss.backward()
    return sum(kept), [float(loss.detach()), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize(("half", "own"), [(False, False), (True, False), (False, True)])
def test_computing_activations_again_gives_the_same_gradients_in_less_memory(half, own):
    model = net(layers=4, dropout=0.2)
    if own:  # weights of attention are dropped by torch's generator alone
        for module in model.modules():
            if hasattr(module, "mechanism"):
                module.dropout = 0.0
    batch = next(iter(Batches(examples(), 400)))
    plain, wanted = kept_and_gradients(model, batch, False, half, own)
    less, found = kept_and_gradients(model, batch, True, half, own)
    assert wanted[0] == found[0]
    assert all(a.equal(b) for a, b in zip(wanted[1:], found[1:], strict=True))
    assert less < 0.4 * plain


@pytest.mark.trial
@pytest.mark.parametrize("optimizer", ["adamw", "muon"] if STEPS > 100 else ["adamw"])
def test_a_model_of_24_and_24_layers_learns(optimizer):
    model = net(layers=24, dropout=0.0).train()
    model.encoder.checkpoint = True
    config = small(f"train.optimizer={optimizer}", "train.learning_rate=3e-3", "train.parts=1")
    moved, losses = make_optimizer(model, config.train), []
    batches = Batches(examples(), 400)
    for batch in islice(chain.from_iterable(repeat(batches)), STEPS):
        moved.zero_grad()
        tokens = int((batch.target[:, 1:] != 0).sum())
        with torch.autocast("cpu", torch.bfloat16, enabled=optimizer == "adamw"):
            loss = summed_loss(model, batch) / tokens
        loss.backward()
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite()
        moved.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < (0.4 if STEPS > 100 else 0.85) * losses[0]


def test_what_a_training_will_hold_and_take_is_said_before_it_begins():
    config = small("train.precision=float32", "train.parts=1", "train.duration=5 epochs", "train.optimizer=adamw")
    model, batches = net(layers=1), Batches(examples(), 256)
    state, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    found = forecast(model, batches, config)
    assert torch.get_rng_state().equal(state)
    assert all(a.equal(b) for a, b in zip(weights, model.parameters(), strict=True))
    numbers = sum(p.numel() for p in model.parameters())
    assert found.parameters == numbers
    assert 16 * numbers <= found.held <= 16 * numbers + 1000  # weights, gradients and two moments, four bytes each
    model.train()
    plain, _ = kept_and_gradients(model, batches.largest(), False)
    assert 0.3 * plain < found.activations <= plain
    assert max(b.source.numel() + b.target.numel() for b in batches) == sum(x.numel() for x in batches.largest()[::2])
    assert f"{numbers:,} parameters" in found.line(config)
    assert "5 epochs take about" in found.line(config)
    assert "are about" in found.line(small("train.duration=1 minutes"))


def test_a_range_test_finds_where_the_loss_falls_and_leaves_no_trace():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = find_learning_rate(small("train.optimizer=adamw", "model.dropout=0"), steps=40, lowest=1e-4, highest=100.0)
    assert torch.get_rng_state().equal(state)
    assert list(found.rates) == sorted(found.rates)
    assert found.rates[0] == pytest.approx(1e-4)
    assert len(found.rates) < 40  # it ends where the loss has risen
    assert 1e-4 < found.suggestion < 1
    assert min(found.losses) < found.losses[0]
    assert found.lines()[-1].endswith(f"--set train.learning_rate={found.suggestion:.2g}")
    again = find_learning_rate(small("train.optimizer=adamw", "model.dropout=0"), steps=40, lowest=1e-4, highest=100.0)
    assert again == found
