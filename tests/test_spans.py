"""From which key to which each row sees, the rectangles made of it, and what `stream` makes of these."""

from dataclasses import replace

import pytest
import torch

import clearhead as ch
from clearhead.kernels import Score, Task, Visible, stream, tiles
from clearhead.kernels.spans import rectangles, spans
from clearhead.kernels.tiles import COMPILED, Size
from test_laws import close

LENGTHS = [1, 130, 64, 0, 2, 77, 700, 3, 1, 30]
N = sum(LENGTHS) + 5


def ids(*lengths, n=N):
    """Documents of these lengths, and padding behind."""
    found = torch.cat([torch.full((length,), i) for i, length in enumerate(lengths)])
    return torch.cat([found, torch.full((n - len(found),), -1)])


SCATTERED = torch.randint(0, 5, (N,), generator=torch.Generator().manual_seed(0))
PATTERNS = {
    "documents": ch.documents(ids(*LENGTHS)),
    "documents that are not contiguous": ch.documents(SCATTERED),
    "documents, causal, window": ch.documents(ids(*LENGTHS)) & ch.causal() & ch.window(50),
    "documents of each sample": ch.documents(torch.stack([ids(*LENGTHS), ids(*LENGTHS[::-1]), SCATTERED])),
    "window": ch.window(70),
    "causal": ch.causal(),
    "global tokens": ch.window(10) | ch.first(3),
    "stride": ch.stride(7),
    "nothing": ~ch.everything(),
}


def seen(pattern, samples=3, lengths=None):
    """A call of `samples`, and its pairs, (samples, N, N)."""
    visible = Visible(pattern, N, N, torch.device("cpu"), q_lengths=lengths, k_lengths=lengths)
    return visible, visible.dense(samples, 1).expand(samples, 1, N, N)[:, 0]


@pytest.mark.parametrize("lengths", [None, torch.tensor([N, 700, 0])], ids=["whole", "padded"])
@pytest.mark.parametrize("name", PATTERNS)
def test_bounds_are_those_of_the_pairs(name, lengths):
    visible, pairs = seen(PATTERNS[name], lengths=lengths)
    found = spans(visible)
    first, behind, gaps = (x.expand(3, N) for x in (found.first, found.behind, found.gaps))
    at = torch.arange(N)
    within = (at >= first[..., None]) & (at < behind[..., None])
    assert not (pairs & ~within).any()
    exact = ~gaps
    assert torch.equal(pairs[exact], within[exact])
    if name not in ("global tokens", "stride", "documents that are not contiguous", "documents of each sample"):
        assert exact.all()


@pytest.mark.parametrize("size", [COMPILED, Size(), Size(16, 1 << 10, 0)], ids=["compiled", "twin", "small"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([N, 700, 0])], ids=["whole", "padded"])
@pytest.mark.parametrize("name", PATTERNS)
def test_tiles_hold_each_pair_once_and_say_the_truth(name, lengths, size):
    visible, pairs = seen(PATTERNS[name], lengths=lengths)
    times = torch.zeros(3, 4, N, N, dtype=torch.int8)
    for tile in tiles(visible, 3, 4, 2, size):
        for b in range(tile.b.start, tile.b.stop):
            times[b, tile.h, tile.rows, tile.keys] += 1
            inside = pairs[b, tile.rows, tile.keys]
            if tile.free:
                assert inside.all()
            if not tile.gaps:
                first, behind = tile.spans[b if len(tile.spans) > 1 else 0, 0, tile.rows].unbind(-1)
                at = torch.arange(tile.keys.start, tile.keys.stop)
                assert torch.equal(inside, (at >= first[:, None]) & (at < behind[:, None]))
    assert int(times.max()) <= 1
    assert (times.bool() | ~pairs[:, None]).all()


def test_long_documents_are_rectangles_of_their_own():
    lengths = [300, 200, 1, 500]
    visible = Visible(ch.documents(ids(*lengths, n=1001)), 1001, 1001, torch.device("cpu"))
    found = rectangles(spans(visible), 0, 1, 1024, 0)
    assert [(each.row, each.rows, each.key, each.keys) for each in found] == [
        (0, 300, 0, 300),
        (300, 200, 300, 200),
        (500, 1, 500, 1),
        (501, 500, 501, 500),
    ]
    assert all(each.free for each in found)
    joined = rectangles(spans(visible), 0, 1, 1024, 2048)
    assert [each.rows for each in joined] == [300, 201, 500]
    assert not joined[1].free


def test_what_a_window_visits_grows_with_the_length():
    def walked(n):
        found = rectangles(spans(Visible(ch.window(255, 0), n, n, torch.device("cpu"))), 0, 1, 512, 2048)
        return sum(each.pairs for each in found)

    assert 1.9 < walked(16384) / walked(8192) < 2.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["documents of each sample", "documents, causal, window", "global tokens"])
def test_output_and_gradients_are_those_of_dense_weights(name, dtype):
    """Grouped heads, padding with anything in it, and spans, masks and documents that differ between samples."""
    torch.manual_seed(0)
    lengths = torch.tensor([N, 700, 0])
    visible, pairs = seen(PATTERNS[name], lengths=lengths)
    q, k, v, g = (torch.randn(3, h, N, 16).to(dtype) for h in (4, 2, 2, 4))
    pairs = pairs[:, None]
    given = [x.double().requires_grad_() for x in (q, k, v)]
    wide = [given[0], *(x.repeat_interleave(2, 1) for x in given[1:])]
    logits = (wide[0] @ wide[1].mT * 0.25).masked_fill(~pairs, -1e9)
    want = logits.softmax(-1).masked_fill(~pairs, 0) @ wide[2]
    grads = torch.autograd.grad(want, given, g.double())
    task = Task(visible, Score(0.25))
    out, raw, _ = stream.forward(q, k, v, task)
    close(out, want, dtype, factor=8)
    nothing = torch.zeros_like(raw), raw.new_empty(3, 4, 0)
    found = stream.backward(g, *nothing, q, k, v, raw[0], task)
    for x, y in zip(found, grads, strict=False):
        close(x, y, dtype, factor=48)
    masked = replace(task, visible=replace(visible, mask=torch.rand(1, 1, N, N) < 0.5))
    both = pairs & masked.visible.mask
    again = logits.masked_fill(~both, -1e9).softmax(-1).masked_fill(~both, 0) @ wide[2]
    close(stream.forward(q, k, v, masked)[0], again, dtype, factor=8)
