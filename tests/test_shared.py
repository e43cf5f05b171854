"""What calls share is right for each of them: masks of patterns that are values, numbers, and padding cut off."""

import warnings
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import clearhead as ch
from clearhead.kernels import Visible
from clearhead.patterns import Pattern, is_value

CPU = torch.device("cpu")


def tensors(n_queries, n_keys, dtype=torch.float32, samples=2):
    generator = torch.Generator().manual_seed(n_queries * 100 + n_keys)
    shapes = ((samples, 2, n, 4) for n in (n_queries, n_keys, n_keys))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def expected(q, k, v, seen):
    """Attention from dense weights, in float64."""
    logits = (q.double() @ k.double().mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return logits.softmax(-1).nan_to_num(0) @ v.double()


def near(n_queries, n_keys, before):
    at = torch.arange(n_queries)[:, None] + n_keys - n_queries - torch.arange(n_keys)
    return (at <= before) & (at >= 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_pattern_serves_calls_of_all_sizes_and_dtypes(dtype):
    pattern, tolerance = ch.window(2, 0), {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    for n_queries, n_keys in ((5, 5), (7, 7), (5, 7), (5, 5), (1, 7), (7, 5)):
        q, k, v = tensors(n_queries, n_keys, dtype)
        for statistics in (False, True):
            out = ch.attend(q, k, v, pattern, statistics=statistics)
            wanted = expected(q, k, v, near(n_queries, n_keys, 2)).to(dtype)
            torch.testing.assert_close(out[0] if statistics else out, wanted, **tolerance)


def test_equal_patterns_share_a_mask_which_no_call_changes():
    one, two = (Visible(ch.causal() & ch.window(2), 6, 6, CPU).dense(1, 1) for _ in range(2))
    assert one is two
    before, (q, k, v) = one.clone(), (x.requires_grad_() for x in tensors(6, 6))
    mask, lengths, bias = torch.rand(6, 6) > 0.3, torch.tensor([4, 6]), torch.randn(6, 6, requires_grad=True)
    for more in ({}, {"mask": mask}, {"lengths": lengths}, {"mask": mask, "lengths": lengths}, {"bias": bias}):
        for statistics in (False, True):
            out = ch.attend(q, k, v, ch.causal() & ch.window(2), statistics=statistics, **more)
            (out[0] if statistics else out).sum().backward()
    assert torch.equal(one, before)


def test_lengths_that_line_up_otherwise_do_not_share_a_mask():
    """Queries and keys of one lengths tensor, but unequal numbers, both begin at 0; unpadded, their ends line up."""
    q, k, v = tensors(4, 6)
    lengths = torch.tensor([4, 4])
    padded = ch.attend(q, k, v, ch.window(1, 0), lengths=(lengths, lengths))
    torch.testing.assert_close(ch.attend(q, k, v, ch.window(1, 0)), expected(q, k, v, near(4, 6, 1)).float())
    alone = expected(q, k[:, :, :4], v[:, :, :4], near(4, 4, 1)).float()
    torch.testing.assert_close(padded, alone)


@dataclass(frozen=True, repr=False)
class Table(Pattern):
    """One that holds a tensor and does not say so."""

    seen: Tensor

    def allows(self, b, h, q, k):
        return self.seen[q, k]


class Step(Pattern):
    """One that may be changed, and is compared by what it is."""

    def __init__(self, step):
        self.step = step

    def allows(self, b, h, q, k):
        return (q - k) % self.step == 0


@dataclass(frozen=True, repr=False)
class Listed(Pattern):
    """One that cannot be hashed."""

    steps: list[int] = field(default_factory=lambda: [2])

    def allows(self, b, h, q, k):
        return (q - k) % self.steps[0] == 0


@pytest.mark.parametrize("joined", [False, True])
def test_patterns_that_are_no_values_are_asked_anew(joined):
    q, k, v = tensors(6, 6)
    table, step, listed = Table(torch.ones(6, 6, dtype=torch.bool)), Step(2), Listed()
    at = torch.arange(6)[:, None] - torch.arange(6)
    for size in (2, 3):
        table.seen.copy_(at % size == 0)
        step.step = listed.steps[0] = size
        for pattern in (table, step, listed):
            pattern = pattern & ch.causal() if joined else pattern
            seen = (at % size == 0) & ((at >= 0) | torch.tensor(not joined))
            torch.testing.assert_close(ch.attend(q, k, v, pattern), expected(q, k, v, seen).float())


def test_values_are_told_from_the_rest():
    values = (ch.causal(), ch.window(3), ~ch.first(2) | ch.stride(2), ch.global_tokens([1, 3]), ch.scattered(1))
    assert all(is_value(x) for x in values)
    holding = (ch.documents(torch.tensor([0, 0, 1])), ch.graph(torch.tensor([[0], [1]])), Table(torch.ones(1)), Step(2))
    assert not any(is_value(y) for x in holding for y in (x, x & ch.causal(), ~x))


def test_what_one_mode_of_computing_leaves_serves_the_others():
    pattern, ((q, k, v), wanted) = ch.window(17, 3), (tensors(21, 21), None)
    calls = ({}, {"statistics": True}, {"lengths": torch.tensor([21, 18])})
    with FakeTensorMode(allow_non_fake_inputs=True):
        ch.attend(*(torch.empty(2, 2, 21, 4) for _ in range(3)), pattern)
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own: its fused attention is batched by a loop
        torch.func.vmap(lambda x: ch.attend(x, x, x, pattern))(q[None])
    with torch.inference_mode():
        first = [ch.attend(q, k, v, pattern, **more) for more in calls]
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    at = torch.arange(21)[:, None] - torch.arange(21)
    wanted = expected(q, k, v, (at <= 17) & (at >= -3))
    torch.testing.assert_close(first[0], wanted.float())
    for more in calls:
        out = ch.attend(q, k, v, pattern, **more)
        (out[0] if more.get("statistics") else out).sum().backward()


@pytest.mark.parametrize("pattern", [None, ch.causal(), ch.window(1), ch.causal() & ch.window(2)])
@pytest.mark.parametrize("sizes", [[4, 4], [4, 2], [6, 1], [0, 0], [3, 0], [6, 6]])
def test_a_padded_sample_is_what_it_is_alone(pattern, sizes):
    q, k, v = tensors(6, 6)
    for x in (q, k, v):
        for sample, size in enumerate(sizes):
            x[sample, :, size:] = torch.nan
        x.requires_grad_()
    mask = torch.rand(1, 1, 1, 6, generator=torch.Generator().manual_seed(0)) > 0.3
    for more in ({}, {"mask": mask}):
        out = ch.attend(q, k, v, pattern, lengths=torch.tensor(sizes), **more)
        out.square().sum().backward()
        for sample, size in enumerate(sizes):
            alone = [x.detach()[sample, None, :, :size].requires_grad_() for x in (q, k, v)]
            cut = {name: x[..., :size] for name, x in more.items()}
            wanted = ch.attend(*alone, pattern, **cut)
            wanted.square().sum().backward()
            torch.testing.assert_close(out[sample, None, :, :size], wanted)
            assert not out[sample, :, size:].any()
            for x, y in zip((q, k, v), alone, strict=True):
                torch.testing.assert_close(x.grad[sample, None, :, :size], y.grad)
                assert not x.grad[sample, :, size:].any()
        for x in (q, k, v):
            x.grad = None
