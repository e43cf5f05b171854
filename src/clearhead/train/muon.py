"""Muon on many matrices at once: those of one shape are orthogonalised together."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, optim


class Muon(optim.Muon):
    """`torch.optim.Muon` (Jordan 2024), with its arguments and its state, in a fraction of the operations.

    It multiplies matrices one by one, and of small ones a product costs hardly more than its call: so matrices of one
    shape are stacked, and a step of Newton and Schulz is three products of all of them.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.device, torch.dtype], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape, p.device, p.dtype), []).append(p)
            for (shape, _, _), parameters in by_shape.items():
                self._move(group, parameters, group["lr"] * _scale(group["adjust_lr_fn"], shape))
        return loss

    def _move(self, group: dict[str, Any], parameters: list[Tensor], rate: float) -> None:
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        momenta = [self._momentum(p) for p in parameters]
        torch._foreach_lerp_(momenta, gradients.unbind(), 1 - group["momentum"])
        updates = torch.stack(momenta)
        if group["nesterov"]:
            updates = gradients.lerp_(updates, group["momentum"])
        updates = zeroth_power(updates, group["ns_coefficients"], group["ns_steps"], group["eps"]).to(gradients.dtype)
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates.unbind(), alpha=-rate)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        found: Tensor = state["momentum_buffer"]
        return found


def zeroth_power(x: Tensor, coefficients: Iterable[float], steps: int, eps: float) -> Tensor:
    """Matrices (…, m, n) with the singular vectors that they have, and singular values near 1, in bfloat16.

    By Newton and Schulz's iteration with a polynomial of degree 5, which goes up steeply at 0 (Jordan 2024).
    """
    a, b, c = coefficients
    if x.shape[-2] > x.shape[-1]:
        return zeroth_power(x.mT, coefficients, steps, eps).mT
    x = x.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _scale(kind: str | None, shape: torch.Size) -> float:
    """How much larger than a gradient's the step of an orthogonal matrix is."""
    m, n = shape
    return float(0.2 * max(m, n) ** 0.5 if kind == "match_rms_adamw" else max(1.0, m / n) ** 0.5)
