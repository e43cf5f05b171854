"""Attention of Hugging Face models: their interface hands out the function that attends, and gets it back wrapped.

That is the level which knows the module, grouped keys before they are repeated, the scale, the soft cap and the mask,
for `sdpa`, `flex_attention` and `eager` alike. Clearhead's own (`clearhead`) reports its maps itself. Other
implementations are not wrapped, and are seen at a lower level.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from clearhead.maps import SoftmaxMap
from clearhead.observe.watching.attended import attention_map, four, last_visible, read_masks
from clearhead.observe.watching.frames import says_cross
from clearhead.observe.watching.replacing import replaced
from clearhead.observe.watching.trying import Unseen, check_values

_KNOWN = ("eager", "sdpa", "flex_attention")
_OURS = __name__.partition(".")[0]
_OPAQUE = "flash_attention"
_MOST_PAIRS = 1 << 28
"""Pairs of a mask that is only known as a function, up to which it is written out."""
_CHECKED_ROWS = 2
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.06, torch.float16: 0.01}


@contextmanager
def interface_of(watch: Any) -> Iterator[None]:
    """Within the block, what models get from their attention interface tells `watch`."""
    from transformers.modeling_utils import AttentionInterface

    def wrap(given: Callable[..., Any]) -> Callable[..., Any]:
        def get_interface(self: Any, attn_implementation: Any, default: Callable[..., Any]) -> Callable[..., Any]:
            attend = given(self, attn_implementation, default)
            name = attn_implementation or "eager"
            if _OPAQUE in name:
                return _Opaque(watch, attend, name)
            if name == _OURS:
                return _Own(watch, attend)
            return _Wrapped(watch, attend, name) if name in _KNOWN else attend

        return get_interface

    with replaced(AttentionInterface, "get_interface", wrap):
        yield


class _Opaque:
    """A kernel that hands out nothing."""

    def __init__(self, watch: Any, attend: Callable[..., Any], name: str) -> None:
        self._watch, self._attend, self._name = watch, attend, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        path = self._watch.path_of(_Asked.of(self._name, self._attend, args, kwargs).module)
        if path is not None:
            self._watch.cannot_see(path, f"{self._name}; load the model with attn_implementation='sdpa'")
        return self._attend(*args, **kwargs)


class _Own:
    """Clearhead's own function, whose maps tell their observers themselves; the interface adds what it alone knows."""

    def __init__(self, watch: Any, attend: Callable[..., Any]) -> None:
        self._watch, self._attend = watch, attend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watch = self._watch
        call = _Asked.of(_OURS, self._attend, args, kwargs)
        path = watch.path_of(call.module)
        if path is None:
            return self._attend(*args, **kwargs)
        known = {"sinks": not call.hides_the_first(), "given": (call.q, call.k)}
        with watch.asked(f"transformers {_OURS}", call.cross(path), known):
            result = self._attend(*args, **kwargs)
        if watch.frame is not None and watch.wants(path):
            watch.give(path, result[0], lambda x: x.transpose(1, 2))
        return result


class _Wrapped:
    """The function that attends, which tells the watch what it was called with."""

    def __init__(self, watch: Any, attend: Callable[..., Any], name: str) -> None:
        self._watch, self._attend, self._name = watch, attend, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watch = self._watch
        with watch.hidden():
            result = self._attend(*args, **kwargs)
        call = _Asked.of(self._name, self._attend, args, kwargs)
        path = watch.path_of(call.module)
        if watch.frame is None or path is None or not watch.wants(path):
            return result
        with watch.trying(path):
            call.check()
            cross = call.cross(path)
            A = call.map(cross)
            if not call.explains(A, call.kept(self._attend, result[0])):
                raise Unseen(f"{self._name} attention of its own kind: not softmax(q · k · scale + mask) v")
            known = {"sinks": not call.hides_the_first(), "given": (call.q, call.k)}
            watch.record(A, f"transformers {self._name}", cross, path, **known)
            watch.give(path, result[0], lambda x: x.transpose(1, 2))
        return result


_NAMES = ("module", "query", "key", "value", "attention_mask")
"""What every function of the interface takes, in this order; models pass any of them by position or by name."""


def _read_call(attend: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by name, as the signature of `attend` binds them, its defaults too."""
    parameters = inspect.signature(attend).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = names if len(names) >= len(_NAMES) else list(_NAMES)
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    given |= dict(zip(names, args, strict=False)) | kwargs
    for ours, theirs in zip(_NAMES, names, strict=False):
        given[ours] = given.pop(theirs, None)
    return given


@dataclass(frozen=True, eq=False)
class _Asked:
    """One call of the function that attends, q (B, H, Nq, D), k and v (B, Hkv, Nk, D)."""

    how: str
    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    given: Any
    options: dict[str, Any]

    @classmethod
    def of(cls, how: str, attend: Callable[..., Any], args: Any, kwargs: Any) -> Self:
        """The call `attend(*args, **kwargs)`."""
        given = _read_call(attend, args, kwargs)
        module, q, k, v, mask = (given.pop(name) for name in _NAMES)
        return cls(how, module, q, k, v, mask, given)

    def cross(self, path: str) -> bool:
        """Does the module at `path` attend to another sequence?"""
        return bool(getattr(self.module, "is_cross_attention", False)) or says_cross(path)

    def check(self) -> None:
        """Raise Unseen where this call cannot be described."""
        check_values(self.q, self.k, self.v)
        if self.options.get("cache") is not None:
            raise Unseen("a paged cache")
        if not isinstance(self.given, Tensor | None) and self._pairs() > _MOST_PAIRS:
            raise Unseen(f"a mask known as a function, of {self._pairs():,} pairs")

    def hides_the_first(self) -> bool:
        """Is this a step of decoding with a sliding window, in which nothing tells where the sample's first key is?"""
        return bool(self.options.get("sliding_window")) and self.q.shape[2] != self.k.shape[2]

    def _pairs(self) -> int:
        b, h = self.given.shape[:2]
        return b * h * self.q.shape[2] * self.k.shape[2]

    def map(self, cross: bool) -> SoftmaxMap:
        mask, n_queries, n_keys = self._mask(), self.q.shape[2], self.k.shape[2]
        bias = self.options.get("position_bias")
        causal = self.options.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if causal is None else causal
        flagged = self.how == "sdpa" and mask is None and n_queries > 1 and causal
        at = None
        if n_queries != n_keys and not cross and not flagged:
            shown = read_masks(mask).shown
            if shown is not None and causal:
                at = last_visible(shown)
            elif shown is None and n_queries == 1:
                at = torch.full((1, 1, 1), n_keys - 1, device=self.q.device)
        return attention_map(
            self.q,
            self.k,
            scale=self.options.get("scaling"),
            softcap=self.options.get("softcap"),
            mask=mask,
            bias=None if bias is None else four(bias)[..., :n_keys],
            sinks=self.options.get("s_aux"),
            causal_from="beginnings" if flagged else None,
            q_positions=at,
            cross=cross,
        )

    def _mask(self) -> Tensor | None:
        if self.given is None:
            return None
        if isinstance(self.given, Tensor):
            return four(self.given)[..., : self.k.shape[2]]
        b, h = (torch.arange(n, device=self.q.device) for n in self.given.shape[:2])
        q, k = (torch.arange(x.shape[2], device=self.q.device) for x in (self.q, self.k))
        seen = self.given.mask_mod(b[:, None, None, None], h[:, None, None], q[:, None], k)
        return seen.expand(len(b), len(h), len(q), len(k))

    def kept(self, attend: Callable[..., Any], output: Tensor) -> Tensor:
        """The output with no weight dropped: in training the function attends once more, and draws nothing."""
        if not self.options.get("dropout"):
            return output
        with torch.random.fork_rng([self.q.device] if self.q.is_cuda else []):
            whole = {**self.options, "dropout": 0.0}
            return attend(self.module, self.q, self.k, self.v, self.given, **whole)[0]

    def explains(self, A: SoftmaxMap, output: Tensor) -> bool:
        """Does the map give the output (B, Nq, H, Dv), in its last rows that see anything?

        Some architectures do more between logits and output than the interface says; numbers of another attention
        than the one that ran would be worse than none.
        """
        rows = torch.arange(self.q.shape[2])[-_CHECKED_ROWS:]
        A = A.detach()
        weights = A.weights(rows)
        v = self.v.repeat_interleave(self.q.shape[1] // self.v.shape[1], 1).to(weights.dtype)
        expected, got = weights @ v, output.detach().transpose(1, 2)[:, :, rows].to(weights.dtype)
        seen = (weights.sum(-1, keepdim=True) > 0).expand_as(expected) & got.isfinite() & expected.isfinite()
        wide = _TOLERANCE[self.q.dtype] * (1 + expected[seen].abs().amax()) if bool(seen.any()) else 0.0
        return expected.shape == got.shape and bool(((expected - got)[seen].abs() <= wide).all())
