"""Inputs at the edges: watched code does what unwatched code does, and what cannot be measured is listed."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import clearhead as ch
from clearhead.errors import InputError, ShapeError
from clearhead.observe import watch

E, H, D, N = 24, 4, 6, 5
sdpa = F.scaled_dot_product_attention


def by_hand(q, k, v):
    return F.dropout((q @ k.transpose(-1, -2)).softmax(-1), 0.2) @ v


class Calls(nn.Module):
    """Runs a function."""

    def __init__(self, function):
        super().__init__()
        self.function = [function]

    def forward(self, *args):
        return self.function[0](*args)


def watched(function, *args):
    """What was seen; the result must be the unwatched one."""
    model = Calls(function)
    torch.manual_seed(0)
    expected = model(*args)
    torch.manual_seed(0)
    with watch(model) as seen:
        got = model(*args)
    str(seen)
    assert (got.shape, got.device, got.dtype) == (expected.shape, expected.device, expected.dtype)
    if not got.is_meta and type(got) is torch.Tensor:
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    return seen


def entropy(q, k, mask=None):
    s = q.double() @ k.double().mT * q.shape[-1] ** -0.5
    s = s if mask is None else s.masked_fill(~mask, -torch.inf)
    return torch.special.entr(s.softmax(-1)).sum(-1)


@pytest.mark.parametrize(
    ("q", "k", "shape"),
    [
        ((1, 1, N, D), (1, 4, N, D), (1, 4, N, N)),  # one head of queries and four of keys
        ((1, 4, N, D), (1, 1, N, D), (1, 4, N, N)),
        ((2, 3, 4, N, D), (2, 1, 4, N, D), (6, 4, N, N)),
        ((2, 3, 4, N, D), (3, 4, 7, D), (6, 4, N, 7)),
        ((3, N, D), (2, 3, N, D), (2, 3, N, N)),
        ((3, N, D), (3, N, D), (3, 1, N, N)),
        ((N, D), (N, D), (1, 1, N, N)),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_samples_and_heads_that_are_broadcast(q, k, shape, masked):
    torch.manual_seed(0)
    q, k = torch.randn(q), torch.randn(k)
    mask = torch.rand(*q.shape[:-2], N, k.shape[-2]) < 0.7 if masked else None
    if masked:
        mask[..., 0] = True
        widest = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        mask = mask.expand(*widest, *mask.shape[-2:])
    (call,) = watched(sdpa, q, k, k, mask)
    assert call.shape == shape
    expected = entropy(q, k, mask).reshape(shape[:3])
    torch.testing.assert_close(call.statistics.entropy.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [sdpa, by_hand])
@pytest.mark.parametrize("q", [(0, H, N, D), (2, H, N, D), (2, H, 0, D), (2, H, N, 0), (2, 0, N, D)])
@pytest.mark.parametrize("keys", [None, 0, 3])
def test_nothing_of_anything(function, q, keys):
    q = torch.randn(q)
    k = q if keys is None else torch.randn(*q.shape[:2], keys, q.shape[3])
    seen = watched(function, q, k, k)
    if q.shape[1]:
        assert [call.shape for call in seen] == [(*q.shape[:3], k.shape[2])]
    else:
        assert seen.unseen == {"Calls": "an attention of no heads"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, N, E), (2, 0, E)])
def test_an_empty_batch_in_the_modules(training, shape):
    x = torch.randn(shape)
    attention, own = nn.MultiheadAttention(E, H, batch_first=True), ch.nn.SelfAttention(E, H)
    layer = nn.TransformerEncoderLayer(E, H, 32, batch_first=True, dropout=0.0)
    for module in (attention, own, layer):
        module.train(training)
    with torch.set_grad_enabled(training):
        for run in (lambda x: attention(x, x, x)[0], own, layer):
            assert watched(run, x).unseen == {}


@pytest.mark.parametrize("function", [sdpa, by_hand, ch.attend])
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_tensors_without_values(function, kind):
    if kind == "meta":
        q = torch.empty(2, H, N, D, device="meta")
        seen = watched(function, q, q, q)
    else:
        with FakeTensorMode():
            q = torch.empty(2, H, N, D)
            seen = watched(function, q, q, q)
    assert len(seen) == 0
    assert "without values" in seen.unseen["Calls"]


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("training", [True, False])
def test_modules_without_values(kind, training):
    with torch.device("meta") if kind == "meta" else FakeTensorMode():
        attention = nn.MultiheadAttention(E, H, batch_first=True).train(training)
        layer = nn.TransformerEncoderLayer(E, H, 32, batch_first=True).train(training)
        x, padding = torch.empty(2, N, E), torch.zeros(2, N, dtype=torch.bool)
        with torch.set_grad_enabled(training):
            for run in (lambda x: attention(x, x, x, key_padding_mask=padding)[0], layer):
                seen = watched(run, x)
                assert (len(seen), len(seen.unseen)) == (0, 1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("function", [sdpa, by_hand])
def test_transforms(function):
    q = torch.randn(3, 2, H, N, D)
    plain = (lambda q, k, v: (q @ k.mT).softmax(-1) @ v) if function is by_hand else sdpa
    seen = watched(lambda q: torch.vmap(lambda q: plain(q, q, q))(q), q)
    assert (len(seen), "vmap" in seen.unseen["Calls"]) == (0, True)
    seen = watched(lambda q: torch.func.grad(lambda q: plain(q, q, q).sum())(q), q[0])
    assert seen[0].shape == (2, H, N, N)
    params = {"weight": torch.randn(E, E)}
    linear = nn.Linear(E, E, bias=False)

    def loss(params):
        x = torch.func.functional_call(linear, params, (torch.ones(2, N, E),)).unflatten(-1, (H, D)).transpose(1, 2)
        return plain(x, x, x).sum()

    assert len(watched(lambda: torch.func.grad(loss)(params)["weight"])) == 1


@pytest.mark.filterwarnings("ignore")  # PyTorch warns of tracing at all, and of each module that asks for a shape
@pytest.mark.parametrize("kind", ["sdpa", "by hand", "torch", "ours"])
def test_a_trace_holds_what_the_program_does_and_nothing_of_the_watch(kind):
    torch.manual_seed(0)
    model = {
        "sdpa": Calls(lambda x: sdpa(x, x, x)),
        "by hand": Calls(lambda x: (x @ x.mT).softmax(-1) @ x),
        "torch": nn.TransformerEncoderLayer(E, H, 32, batch_first=True),
        "ours": ch.nn.SelfAttention(E, H),
    }[kind].eval()
    x = torch.randn(2, N, E)
    with torch.no_grad():
        expected = torch.jit.trace(model, x, check_trace=False)
        with watch(model) as seen:
            got = torch.jit.trace(model, x, check_trace=False)
        got_kinds, kinds = ([node.kind() for node in one.inlined_graph.nodes()] for one in (got, expected))
        assert got_kinds == kinds
        assert torch.equal(got(x), expected(x))
    if kind == "ours":
        assert "jit.trace" in seen.unseen["SelfAttention"]
    else:
        assert len(seen) == 1


def test_counts_and_graphs_of_operations_are_those_of_the_program():
    model = Calls(lambda q: by_hand(q, q, q) + sdpa(q, q, q))
    q = torch.randn(2, H, N, D)

    def flops():
        with FlopCounterMode(display=False) as counter:
            model(q)
        return counter.get_total_flops()

    def nodes():
        return [(node.op, str(node.target)) for node in make_fx(model)(q).graph.nodes]

    expected = flops(), nodes()
    with watch(model) as seen:
        assert (flops(), nodes()) == expected
    assert len(seen) == 4


def test_our_own_attention_at_the_edges():
    """Right, or one clear error."""
    q, k = torch.randn(1, 1, N, D), torch.randn(1, 4, N, D)
    for attend in (lambda: ch.attend(q, k, k), lambda: ch.Softmax()(q, k)):
        with pytest.raises(ShapeError, match="1 heads of q, must be a multiple of k's 4"):
            attend()
    for shape, keys in (((0, 2, N, D), N), ((2, 2, N, D), 0), ((2, 2, 0, D), N), ((2, 2, N, 0), N)):
        q, k = torch.randn(shape), torch.randn(*shape[:2], keys, shape[3])
        v = torch.randn(*shape[:2], keys, 3)
        out, statistics = ch.attend(q, k, v, ch.window(3), statistics=True)
        assert out.shape == (*shape[:3], 3)
        assert statistics.entropy.shape == shape[:3]
        if not keys:
            assert out.eq(0).all()
        A = ch.Softmax(ch.window(3))(q, k)
        assert A.weights().shape == (*shape[:3], keys)
        assert A.statistics(received=True).received.shape == (*shape[:2], keys)


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("n", [N, 1024])
def test_our_own_attention_of_tensors_without_values_has_its_shape(kind, n):
    with torch.device("meta") if kind == "meta" else FakeTensorMode():
        q = torch.empty(2, H, n, 16, requires_grad=True)
        for pattern in (None, ch.causal(), ch.window(9)):
            out = ch.attend(q, q, q, pattern)
            assert (out.shape, out.device) == (q.shape, q.device)
        layer = ch.nn.SelfAttention(E, H)
        assert layer(torch.empty(2, n, E)).shape == (2, n, E)


def test_messages_are_the_same_on_the_meta_device():
    q, k = torch.empty(1, 2, 8, 4, device="meta"), torch.empty(1, 2, 8, 4, device="meta", dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"q is torch\.float32 and k is torch\.bfloat16"):
        ch.attend(q, k, k)
