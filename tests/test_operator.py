"""The stream kernel as an operator of torch: compiled, exported, batched by vmap, checkpointed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import clearhead as ch
from clearhead.kernels.operator import backward_op, forward_op

pytestmark = pytest.mark.usefixtures("unchecked")


def call(statistics, dtype=torch.float32, pattern=None, by=(None, False)):
    """The operator's arguments for a small random call."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, 9, d, dtype=dtype) for h, d in ((4, 8), (2, 8), (2, 5)))
    bias = torch.randn(1, 4, *((9, 9) if by[0] is None else (7,)), dtype=dtype)
    mask = torch.rand(2, 1, 9, 9) < 0.8
    mask[..., 0] = True  # or the sink of some row would be NaN, which is equal to nothing
    full = torch.tensor([9, 9])
    sinks = torch.zeros(1, 1, dtype=torch.int64) if statistics else None
    pattern = ch.causal() if pattern is None else pattern
    held = [*pattern.tensors(), *[None] * (8 - len(pattern.tensors()))]
    tensors = (q, k, v, bias, mask, full, full.clone(), None, None, *held, sinks, torch.tensor(7))
    return (*tensors, pattern.outline(), 0.3, 5.0, *by, True, 0.2, True, statistics, "stream")


IDS = torch.tensor([[0] * 4 + [2] * 5, [1] * 7 + [0] * 2])
GRAPHS = [torch.randint(9, (2, 20), generator=torch.Generator().manual_seed(s)) for s in (0, 1)]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("by", [(None, False), (-3, False), (-3, True)], ids=["tensor", "by distance", "linear"])
@pytest.mark.parametrize(
    "pattern", [ch.causal(), ch.documents(IDS) | ch.prefix(1) | ch.graph(GRAPHS, nodes=9)], ids=repr
)
def test_operators_hold_their_contracts(statistics, pattern, by):
    if pattern.tensors() and by[0] is not None:
        return  # the tensors of both are tried elsewhere
    arguments = call(statistics, pattern=pattern, by=by)
    torch.library.opcheck(forward_op, arguments)
    out, raw, received = forward_op(*arguments)
    torch.library.opcheck(
        backward_op,
        (torch.randn_like(out), torch.randn_like(raw), torch.randn_like(received), None, raw[0], *arguments),
    )


def attended(q, k, v, bias=None):
    """A call that only `stream` fits, with gradients through everything it returns."""
    out, stats = ch.attend(q, k, v, ch.causal() & ch.window(3), softcap=4.0, bias=bias, statistics=True)
    return out.square().sum() + stats.entropy.sum() + stats.logsumexp.sum()


def test_vmap_of_grad_is_a_loop_of_grads():
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, 2, 3, 7, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    every = (0, 1, 2, 3)
    got = vmap(grad(attended, every), (0, 0, 0, None))(q, k, v, bias)
    for i in range(5):
        for a, b in zip(got, grad(attended, every)(q[i], k[i], v[i], bias), strict=True):
            assert torch.allclose(a[i], b)
    shared = vmap(grad(attended, every), (0, None, 2, None))(q, k[0], v.movedim(0, 2), bias)
    for a, b in zip(shared, grad(attended, every)(q[3], k[0], v[3], bias), strict=True):
        assert torch.allclose(a[3], b)


@pytest.mark.parametrize("shared", [True, False])
def test_vmap_carries_the_tensors_of_a_pattern(shared):
    """Three tasks of two samples, whose documents and graphs are their own or all alike; the tasks share them."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    pattern = ch.causal() & ch.documents(IDS[:1] if shared else IDS) | ch.graph(
        GRAPHS[0] if shared else GRAPHS, nodes=9
    )

    def loss(q, k, v):
        out, stats = ch.attend(q, k, v, pattern, softcap=4.0, statistics=True)
        return out.square().sum() + stats.entropy.sum()

    got = vmap(grad(loss, (0, 1, 2)))(q, k, v)
    for i in range(3):
        for a, b in zip(got, grad(loss, (0, 1, 2))(q[i], k[i], v[i]), strict=True):
            assert torch.allclose(a[i], b)


def test_vmap_over_documents():
    """Each task brings ids of its own, of which a pattern is made within."""
    torch.manual_seed(0)
    q, ids = torch.randn(2, 1, 2, 9, 4, dtype=torch.float64), IDS

    def loss(q, ids):
        return ch.attend(q, q, q, ch.documents(ids), softcap=4.0).square().sum()

    got = vmap(grad(loss))(q, ids)
    for i in range(2):
        assert torch.allclose(got[i], grad(loss)(q[i], ids[i]))


def test_gradients_are_those_of_differences():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attended, (q, k, v, bias))


def test_gradients_of_documents_and_graphs_are_those_of_differences():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for pattern in (ch.documents(IDS), ch.graph(GRAPHS, nodes=9)):
        assert torch.autograd.gradcheck(lambda *x, p=pattern: ch.attend(*x, p, softcap=4.0), (q, k, v))


def test_checkpointing_a_module_that_holds_a_graph():
    torch.manual_seed(0)
    layer = ch.nn.SelfAttention(8, 2, ch.Softmax(ch.graph(GRAPHS, nodes=9), softcap=4.0))
    x = torch.randn(2, 9, 8)
    grads = [
        torch.autograd.grad(y.square().sum(), layer.query.weight)[0]
        for y in (layer(x), checkpoint(layer, x, use_reentrant=False))
    ]
    assert torch.equal(*grads)


def test_more_tensors_than_places_are_named():
    q = torch.randn(2, 1, 9, 4, requires_grad=True)
    graph = ch.graph(GRAPHS, nodes=9)
    with pytest.raises(ch.ClearheadError, match="pattern holds 12 tensors, at most 8; join"):
        ch.attend(q, q, q, graph | graph | graph, softcap=4.0)


def test_the_second_derivative_raises_rather_than_being_wrong():
    q = torch.randn(1, 1, 5, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(attended(q, q, q), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_checkpointing_repeats_the_dropped_weights():
    torch.manual_seed(0)
    q = torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True)

    def f(x):
        return ch.attend(x, x, x, ch.causal(), softcap=3.0, dropout=0.5).square().sum()

    grads = []
    for run in (lambda: f(q), lambda: checkpoint(f, q, use_reentrant=False)):
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(run(), q)[0])
    assert torch.equal(*grads)


def test_self_attention_compiles_and_exports():
    """In a process of its own: tracing does not get through the checks that pytest adds to every call."""
    path = Path(__file__).parent / "traced.py"
    done = subprocess.run([sys.executable, "-W", "ignore", str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["compiled", "packed"]


@pytest.mark.parametrize("inference", [False, True])
def test_tiles_side_by_side_give_what_one_thread_gives(inference):
    """Four samples of 300 keys are many tiles; with inference tensors, which only inference mode may write."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            with torch.inference_mode(inference):
                q, k, v = (torch.randn(4, 4, 300, 16) for _ in range(3))
                A = ch.Softmax(ch.causal() & ch.window(150))(q, k, lengths=torch.tensor([300, 1, 200, 0]))
                out, stats = A.apply(v, dropout=0.3, statistics=True)
                found.append([out, stats.entropy, stats.distance, A.statistics().received])
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own, in make_dual
@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_is_refused_and_not_forgotten(grad):
    q, k, v = (torch.randn(1, 2, 8, 4) for _ in range(3))
    with torch.set_grad_enabled(grad), forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        ch.attend(forward_ad.make_dual(q, torch.randn_like(q)), k, v, softcap=2.0)
