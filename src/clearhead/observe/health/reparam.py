"""What keeps attention from collapsing by construction: changes of a module, to be made before it is trained.

Shapes: E model width, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clearhead.errors import InputError
from clearhead.observe.projections import Part, is_linear, is_transposed, layout, recognised

Plan = dict[tuple[nn.Module, str], list[Tensor]]
"""Which rows are reparametrised together, by module and the name of its weight."""


class SigmaReparam(nn.Module):
    """γ/σ(W) · W in place of a weight W, for each of several groups of its rows: σ their spectral norm, γ learned.

    σ is exact when this is made, and follows by one step of power iteration at each use in training (Miyato 2018).
    `sigma_reparam` makes it.
    """

    def __init__(self, weight: Tensor, groups: Sequence[Tensor], transposed: bool, keep: bool) -> None:
        super().__init__()
        self.transposed = transposed
        rows, factors = weight.detach(), []
        rows = rows.mT if transposed else rows
        owner = torch.full((len(rows),), len(groups), device=rows.device)
        for i, group in enumerate(groups):
            group = group.to(rows.device)
            u, s, v = torch.linalg.svd(rows[group].float(), full_matrices=False)
            owner[group] = i
            factors.append(s[0])
            self.register_buffer(f"rows{i}", group, persistent=False)
            self.register_buffer(f"u{i}", u[:, 0].to(rows.dtype).contiguous())
            self.register_buffer(f"v{i}", v[0].to(rows.dtype).contiguous())
        self.register_buffer("owner", owner, persistent=False)
        sigma = torch.stack(factors).to(rows.dtype)
        self.gamma = nn.Parameter(sigma if keep else torch.ones_like(sigma))

    def forward(self, weight: Tensor) -> Tensor:
        """γ/σ(W) · W; rows of no group stay as they are."""
        rows: Tensor = weight.mT if self.transposed else weight
        owner: Any = self.owner
        with torch.autocast(weight.device.type, enabled=False):  # σ of a rounded weight would jump about
            sigma = torch.stack([self._sigma(i, rows) for i in range(len(self.gamma))])
            factor = torch.cat([self.gamma / sigma, sigma.new_ones(1)])[owner]
            rows = rows * factor[:, None]
        return rows.mT if self.transposed else rows

    def _sigma(self, i: int, rows: Tensor) -> Tensor:
        """The spectral norm of a group of rows, as u · W v."""
        u, v = getattr(self, f"u{i}"), getattr(self, f"v{i}")
        rows = rows[getattr(self, f"rows{i}")]
        if self.training:
            with torch.no_grad():
                u.copy_(nn.functional.normalize(rows @ v, dim=0))
                v.copy_(nn.functional.normalize(rows.mT @ u, dim=0))
        return u.clone() @ (rows @ v.clone())


def sigma_reparam(module: nn.Module, layers: str = "query_key", keep: bool = False) -> list[str]:
    """σReparam (Zhai 2023): from now on each weight W is γ/σ(W) · W, with its spectral norm σ and a learned scalar γ.

    The entropy of a softmax has a lower bound that falls with the spectral norm of its logits, which this holds down.
    As in the paper γ begins at 1, which changes what the module computes: apply it before training. With `keep`, γ
    begins at σ, and nothing changes at first.

    Make the optimizer afterwards, or give it the new parameters, whose names end in `gamma`. Projections that are fused
    into one weight get a γ each. The weights themselves can no longer be scaled in place, by `QKClip` say.

    Args:
        module: a model, or an attention.
        layers: "query_key", the query and key projections of every attention found in it; or "all", every linear layer
            and every projection of torch's MultiheadAttention, as in the paper.

    Returns the paths of the weights changed. Raises InputError where there are none, or one is parametrised already.
    """
    if layers not in ("query_key", "all"):
        raise InputError(f"layers is {layers!r}; write 'query_key' or 'all'")
    plan = _query_key_rows(module) if layers == "query_key" else _all_rows(module)
    paths = {part: path for path, part in module.named_modules()}
    names = {key: ".".join(filter(None, (paths[key[0]], key[1]))) for key in plan}
    if not plan:
        raise InputError(f"{type(module).__name__} has no projections that σReparam knows")
    for owner, name in plan:
        if parametrize.is_parametrized(owner, name):
            raise InputError(f"{names[owner, name]} is parametrised already")
    for (owner, name), groups in plan.items():
        new = SigmaReparam(getattr(owner, name), groups, is_transposed(owner), keep)
        parametrize.register_parametrization(owner, name, new.train(owner.training))
    return list(names.values())


def _query_key_rows(module: nn.Module) -> Plan:
    plan: Plan = {}
    for child in filter(recognised, module.modules()):
        found = layout(child)
        for part in (found.query, found.key):
            plan.setdefault((part.owner, part.parameter), []).append(_rows(part))
    return plan


def _all_rows(module: nn.Module) -> Plan:
    plan: Plan = {}
    for child in module.modules():
        if isinstance(child, nn.MultiheadAttention):
            found = layout(child)
            for part in (found.query, found.key, found.value):
                if part is not None:
                    plan.setdefault((part.owner, part.parameter), []).append(_rows(part))
        elif is_linear(child):
            weight: Any = child.weight
            plan[child, "weight"] = [torch.arange(weight.shape[1 if is_transposed(child) else 0])]
    return plan


def _rows(part: Part) -> Tensor:
    """The rows of all heads of a projection."""
    return torch.cat([torch.arange(part.weight.shape[0])[part.rows(head)] for head in range(part.heads)])


def qk_norm(module: nn.Module) -> list[str]:
    """Normalise the queries and keys of every Clearhead attention in `module` by their root mean square (Henry 2020).

    Logits are then at most √D times the norms' gains. It changes what the module computes: apply it before training,
    and make the optimizer afterwards. Returns the paths of the attentions changed; those that have norms already stay.

    Raises InputError where no attention has places for norms (`query_norm`, `key_norm`, `head_dim`).
    """
    places = ("query_norm", "key_norm", "head_dim")
    found: dict[str, Any] = {
        p: part for p, part in module.named_modules() if all(hasattr(part, name) for name in places)
    }
    if not found:
        raise InputError(
            f"{type(module).__name__} has no attention with places for norms: apply nn.RMSNorm(head_dim) to q and k "
            "before their product, or use QKClip or sigma_reparam, which need no place"
        )
    changed = []
    for path, part in found.items():
        if isinstance(part.query_norm, nn.Identity) and isinstance(part.key_norm, nn.Identity):
            like = next(part.parameters())
            part.query_norm, part.key_norm = (
                nn.RMSNorm(part.head_dim, device=like.device, dtype=like.dtype) for _ in range(2)
            )
            changed.append(path)
    return changed


def _has_places(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("query_norm", "key_norm", "head_dim"))
