"""A batch in parts, side by side: the gradient of the whole batch, the same every time."""

from itertools import islice

import torch

from clearhead.data import Batches, Examples, Tokenizer
from clearhead.nn import Seq2Seq
from clearhead.train.parts import Parts, cores, decide, threads
from clearhead.train.task import summed_loss
from tiny_task import Tiny, small


def gradients(net, batch, count):
    net.zero_grad()
    parts = Parts(count, net, lambda part: summed_loss(net, part, 0.1), half=False)
    loss = summed_loss(net, parts.start(batch), 0.1)
    loss.backward()
    return float(loss.detach()) + parts.add(), [p.grad.clone() for p in net.parameters()]


def test_parts_add_up_to_the_batch():
    source = Tiny()
    letters = Tokenizer.characters((word for word, _ in source.pairs("train")), True)
    symbols = Tokenizer.symbols(text for _, text in source.pairs("train"))
    examples = Examples.read(source, "train", letters, symbols)
    torch.manual_seed(0)
    net = Seq2Seq(len(letters), len(symbols), 16, 2, encoder_layers=1, decoder_layers=1, dropout=0.0).double()
    for batch in islice(Batches(examples, 200), 4):
        want, wanted = gradients(net, batch, 1)
        for count in (2, 3):
            loss, got = gradients(net, batch, count)
            again = gradients(net, batch, count)
            assert abs(loss - want) < 1e-5 * want  # the loss itself is taken in float32
            for g, w, same in zip(got, wanted, again[1], strict=True):
                assert torch.allclose(g, w, atol=1e-4)
                assert torch.equal(g, same)


def test_there_is_one_part_where_several_could_not_be_repeated():
    cpu = torch.device("cpu")
    assert decide(small("model.dropout=0"), cpu) == min(4, cores())
    assert decide(small("model.attention_dropout=0.1"), cpu) == 1
    assert decide(small("model.dropout=0", "model.attention_dropout=0.1"), cpu) == 1
    assert decide(small("model.dropout=0", "train.devices=2"), cpu) == 1
    assert decide(small("model.dropout=0"), torch.device("cuda")) == 1


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads(cores()):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
