"""What a small call costs beyond PyTorch's: microseconds, since no share of so little says much."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from clearhead.bench.case import Case, synchronize
from clearhead.bench.comparison import Comparison, Say, compare, quantile
from clearhead.maps import Softmax, attend
from clearhead.nn import SelfAttention
from clearhead.patterns import causal, window

OURS, PEER = "Clearhead", "SDPA"
LENGTHS = (8, 64)


@dataclass(frozen=True)
class Beyond:
    """Paired times of small calls; `beyond` is what ours takes longer."""

    title: str
    calls: dict[str, Comparison]

    def beyond(self, call: str) -> tuple[float, float, float]:
        """Seconds: the median over rounds, and the quartiles."""
        seconds = self.calls[call].seconds
        more = [own - other for own, other in zip(seconds[OURS], seconds[PEER], strict=True)]
        return quantile(more, 0.5), quantile(more, 0.25), quantile(more, 0.75)

    def lines(self) -> list[str]:
        """As a table, in microseconds."""
        width = max(map(len, self.calls))
        head = f"  {'':<{width}}  {OURS:>9}  {PEER:>7}  {'beyond':>8}  {'quartiles':>14}"
        return [self.title, head, *(self._line(call, width) for call in self.calls), ""]

    def _line(self, call: str, width: int) -> str:
        own, peer = (1e6 * self.calls[call].median(arm) for arm in (OURS, PEER))
        middle, low, high = (1e6 * x for x in self.beyond(call))
        spread = f"{low:.1f}–{high:.1f}"
        return f"  {call:<{width}}  {own:>6.1f} µs  {peer:>4.0f} µs  {middle:>5.1f} µs  {spread:>14}"

    def record(self) -> dict[str, Any]:
        """For JSON, in seconds."""
        calls = {
            call: {**asdict(one), "beyond": dict(zip(("median", "low", "high"), self.beyond(call), strict=True))}
            for call, one in self.calls.items()
        }
        return {"title": self.title, "calls": calls}


def bench_small(case: Case, rounds: int = 15, repeat: int = 200, say: Say | None = None) -> list[Beyond]:
    """Calls of 8 and of 64 tokens, plain and otherwise, each beside the call of SDPA that gives the same output.

    The case's heads, width, dtype and device are measured; its length and pattern are not read.
    """
    found = {}
    for n in LENGTHS:
        for name, (own, peer) in calls_of(case, n).items():
            wait = (lambda: synchronize(case.device)) if case.device != "cpu" else None
            pair: dict[str, Callable[[], object]] = {OURS: own, PEER: peer}
            with torch.no_grad():
                found[f"{name}, {n} tokens"] = compare(f"{name}, {n}", pair, PEER, rounds, say, repeat, wait)
    return [Beyond(f"small calls, {case.heads} heads of {case.dim}, {case.dtype}, forward", found)]


def calls_of(case: Case, n: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    q, k, v, _ = Case(n, case.heads, case.dim, case.dtype, case.device).tensors()
    at = torch.arange(n, device=case.device)
    near, lengths = (at[:, None] - at).abs() <= 3, torch.tensor([n - 1], device=case.device)
    real = ((at < n - 1)[:, None] & (at < n - 1)).expand(1, 1, n, n)
    past, local = causal(), window(3)
    mask = near.expand(1, 1, n, n)
    fused, mechanism = scaled_dot_product_attention, Softmax(past)
    layer = SelfAttention(case.heads * case.dim, case.heads, Softmax(past)).to(q.device, q.dtype)
    x = torch.randn(1, n, case.heads * case.dim, device=q.device, dtype=q.dtype)
    return {
        "plain": (lambda: attend(q, k, v), lambda: fused(q, k, v)),
        "causal": (lambda: attend(q, k, v, past), lambda: fused(q, k, v, is_causal=True)),
        "window": (lambda: attend(q, k, v, local), lambda: fused(q, k, v, near)),
        "lengths": (lambda: attend(q, k, v, lengths=lengths), lambda: fused(q, k, v, real)),
        "mask": (lambda: attend(q, k, v, mask=mask), lambda: fused(q, k, v, mask)),
        "statistics": (lambda: attend(q, k, v, past, statistics=True), lambda: fused(q, k, v, is_causal=True)),
        "mechanism": (lambda: mechanism(q, k) @ v, lambda: fused(q, k, v, is_causal=True)),
        "layer": (lambda: layer(x), lambda: _bare(layer, x)),
    }


def _bare(layer: SelfAttention, x: torch.Tensor) -> torch.Tensor:
    """What a causal layer computes, from its projections and the fused call alone."""
    samples, tokens, width = x.shape
    into = samples, tokens, layer.num_heads, layer.head_dim
    q, k, v = (project(x).view(into).transpose(1, 2) for project in (layer.query, layer.key, layer.value))
    out = scaled_dot_product_attention(q, k, v, is_causal=True)
    return layer.out(out.transpose(1, 2).reshape(samples, tokens, width))
