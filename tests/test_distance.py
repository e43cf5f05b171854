"""The statistic `distance`, wherever on the axis of positions attention takes place."""

import pytest
import torch

import clearhead as ch

N = 9


def expected(A, at):
    return (A.weights().double() * (at[..., :, None] - at[..., None, :]).abs()).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0, -5, 1 << 24, (1 << 31) - 5, 1 << 31, 3 << 31, 1 << 52])
def test_positions_may_begin_anywhere(start, dtype):
    torch.manual_seed(0)
    q, k = (torch.randn(2, 2, N, 8, dtype=dtype).requires_grad_() for _ in range(2))
    at = torch.arange(N)[None, None] + start
    A = ch.Softmax(ch.causal())(q, k, q_positions=at, k_positions=at)
    found, want = A.statistics().distance, expected(A, at)
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
    for got, grad in zip(*(torch.autograd.grad(x.sum(), (q, k)) for x in (found, want)), strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [N, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_may_lie_far_apart(dtype, n):
    """What is near stays near: each half is a chunk of its own, 2⁴⁰ from the other."""
    torch.manual_seed(0)
    q, k = (torch.randn(1, 2, n, 8, dtype=dtype).requires_grad_() for _ in range(2))
    at = torch.arange(n)[None, None] + (1 << 40) * (torch.arange(n) >= n // 2)
    A = ch.Softmax(ch.causal() & ch.chunks(1 << 39))(q, k, q_positions=at, k_positions=at)
    found, want = A.statistics().distance, expected(A, at)
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
    for got, grad in zip(*(torch.autograd.grad(x.sum(), (q, k)) for x in (found, want)), strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-4, atol=1e-4)
