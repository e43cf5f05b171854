"""The attention function that Hugging Face's models call.

Shapes: B samples, H heads, Hkv key heads, Nq queries, Nk keys, D width, Dv value width.
"""

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, extra
from clearhead.kernels import FAR
from clearhead.maps import Softmax, attend
from clearhead.nn.hugging_face.masks import Mask, make_mask
from clearhead.patterns import causal, everything

NAME = __name__.partition(".")[0]


def register_with_transformers() -> None:
    """Make `attn_implementation="clearhead"` known to transformers, for every model that takes an attention function.

    >>> register_with_transformers()
    >>> model = AutoModel.from_pretrained(folder, attn_implementation="clearhead")
    >>> model.set_attn_implementation("clearhead")  # or afterwards

    Outputs are those of `eager`. Grouped heads, soft caps, position biases, learned sinks, dropout and every cache
    but a paged one are taken; causal, windowed, chunked and packed masks are never written out. Raises MissingExtra
    without transformers, InputError for one that is too old.
    """
    extra("transformers", "transformers")
    try:
        functions = importlib.import_module("transformers.modeling_utils").AttentionInterface
        makers = importlib.import_module("transformers.masking_utils")
        masks, asked = makers.AttentionMaskInterface, [*inspect.signature(makers.sdpa_mask).parameters]
    except (ImportError, AttributeError):
        asked = []
    if "q_length" not in asked:  # older ones ask for masks in other words
        why = f"this transformers is too old for attn_implementation={NAME!r}"
        raise InputError(f"{why}: pip install -U transformers")
    functions.register(NAME, _attention)
    masks.register(NAME, make_mask)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of query (B, H, Nq, D) to key (B, Hkv, Nk, D): (B, Nq, H, Dv), and its weights if they are asked for.

    `attention_mask` is a Mask, or boolean, or added to the logits, (B or 1, H or 1, Nq, at least Nk). Without one all
    keys are seen, as in `eager`: masks that models ask for are never left out here, whatever a module says of itself.
    `is_causal` with the call makes it causal, the beginnings of queries and keys lined up. `s_aux` (H,) are learned
    sinks.
    """
    _check(options)
    if attention_mask is None and query.shape[2] > 1 and is_causal:
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]  # a static cache that is still empty
        call: dict[str, Any] = {"pattern": causal()}
    else:
        call = _seen(attention_mask, key.shape[2])
    bias = _sum(call.pop("bias", None), None if position_bias is None else position_bias[..., : key.shape[2]])
    logits: dict[str, Any] = {"scale": scaling, "softcap": softcap, "bias": bias, "sinks": s_aux}
    out = attend(query, key, value, dropout=dropout, **logits, **call)
    weights = None
    if options.get("output_attentions"):
        mechanism = Softmax(call.pop("pattern"), **logits)
        weights = mechanism(query, key, **call).weights().to(query.dtype)
    return out.transpose(1, 2).contiguous(), weights


_REFUSED = {
    "sinks": "sinks that come with the queries",
    "indices": "keys chosen by an indexer",
    "block_indices": "blocks of keys chosen by an indexer",
    "cache": "a paged cache",
}


def _check(options: dict[str, Any]) -> None:
    for name, what in _REFUSED.items():
        if options.get(name) is not None:
            raise InputError(f"attn_implementation={NAME!r} does not take {what} ({name}); write 'eager'")


def _seen(given: Tensor | None, n_keys: int) -> dict[str, Any]:
    """Who sees whom, as a mechanism's call takes it."""
    if given is None:
        return {"pattern": everything()}
    if isinstance(given, Mask):
        if given.sight is not None and given.shape[-1] == n_keys:
            return dict(given.sight.options)
        given = given.written()
    mask = given[..., :n_keys] if given.dim() == 4 else given[:, None, None, :n_keys]
    if mask.dtype == torch.bool:
        return {"pattern": everything(), "mask": mask}
    # a row that sees nothing is zero, where the finite numbers that hide its keys would make it uniform
    top = mask.amax(-1, keepdim=True).clamp(min=0).float() if n_keys else 0.0
    seen = mask > top - FAR
    return {"pattern": everything(), "mask": seen, "bias": mask.masked_fill(~seen, 0)}


def _sum(*biases: Tensor | None) -> Tensor | None:
    given = [bias for bias in biases if bias is not None]
    return sum(given[1:], given[0]) if given else None
