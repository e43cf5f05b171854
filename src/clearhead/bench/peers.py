"""What attention is compared with: each arm makes one `Job` of a case, or says why it cannot.

Peers are imported when they are asked for. Where a peer's own layer contains projections they are left out, and it is
given the same q, k and v as everybody else, in its own layout: what is compared is attention.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from clearhead.bench.case import Case, Shape, shape_of
from clearhead.errors import ClearheadError
from clearhead.kernels import compiled_apart
from clearhead.maps import attend

OURS = "Clearhead"
SDPA, FULL, EAGER, FLEX = "SDPA", "SDPA, every pair", "eager", "FlexAttention"
LOCAL, XT = "local-attention", "x-transformers"
LONGFORMER, BIGBIRD = "transformers' Longformer", "transformers' BigBird"
MASKED = 1 << 27
"""Pairs up to which a dense mask is made for peers that know no other way."""

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
Convert = Callable[[Tensor], Tensor]


class NotRun(ClearheadError):
    """Why an arm does not run; what is printed in its place."""


@dataclass(frozen=True)
class Job:
    """`run` is what is timed; `read` names what it returned, as (1, H, N, …) tensors.

    `sees` is what a peer lets rows see that draws random keys of its own, (H or 1, N, N). `entropy` says that gradients
    are those of output and entropy.
    """

    run: Callable[[], Sequence[Tensor]]
    read: Callable[[Sequence[Tensor]], dict[str, Tensor]]
    sees: Callable[[], Tensor] | None = None
    explained: str | None = None
    entropy: bool = False


Prepare = Callable[[Case], Job]


def job(case: Case, forward: Forward, into: Convert = lambda x: x, back: Convert = lambda x: x, **more: Any) -> Job:
    """The job of a function of q, k and v: forward alone, or with the gradients in all three.

    `into` brings (1, H, N, D) into the function's layout before, and `back` its results after the clock is read.
    """
    *given, grad = (into(x).contiguous() for x in case.tensors())
    q, k, v = (x.requires_grad_(case.backward) for x in given)

    def run() -> Sequence[Tensor]:
        if not case.backward:
            with torch.no_grad():
                return [forward(q, k, v)]
        out = forward(q, k, v)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.view(out.shape))]

    def read(found: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(("output", "dq", "dk", "dv"), map(back, found), strict=False))

    return Job(run, read, **more)


def installed(module: str) -> Any:
    """A peer's module; NotRun, saying what to install, where it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the peers' own, about torch
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise NotRun("not installed: pip install 'clearhead[bench]'") from None


def plain_shape(case: Case, *kinds: str) -> Shape:
    """The shape of the case's pattern; NotRun where it is none of `kinds`."""
    shape = shape_of(case.mask, case.length)
    if shape.kind not in kinds or case.documents:
        raise NotRun(f"knows no such pattern; only {', '.join(kinds)}")
    return shape


def room(case: Case, matrices: int) -> None:
    """NotRun where n² weights, so many times over, would take more than half of the machine's memory."""
    held = matrices * case.heads * case.length**2 * torch.empty((), dtype=getattr(torch, case.dtype)).element_size()
    if held > memory_of(case.device) / 2:
        raise NotRun(f"not run: n² weights would hold {held / 1e9:,.1f} GB")


def memory_of(device: str) -> int:
    """The memory of the device, in bytes."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def ours(case: Case) -> Job:
    """`ch.attend`."""
    from clearhead.maps import explain

    pattern = case.mask
    q, k, *_ = case.tensors()
    kernel = explain(q, k, pattern).chosen
    return job(case, lambda q, k, v: attend(q, k, v, pattern), explained=f"kernel {kernel}")


def sdpa(case: Case) -> Job:
    """PyTorch's fused attention: with a dense mask where it has no other way to a pattern."""
    kind = shape_of(case.mask, case.length).kind
    if kind in ("everything", "causal"):
        return job(case, lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=kind == "causal"))
    mask = dense(case)
    return job(case, lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), explained="with a dense mask")


def full(case: Case) -> Job:
    """The same without the pattern: a yardstick that sees every pair."""
    if shape_of(case.mask, case.length).kind == "everything":
        raise NotRun("the same as SDPA")
    everywhere = torch.ones(1, 1, 1, dtype=torch.bool)

    def sees() -> Tensor:
        return everywhere.expand(1, case.length, case.length)

    return job(case, scaled_dot_product_attention, sees=sees)


def eager(case: Case) -> Job:
    """Attention as the literature writes it, with its matrix."""
    room(case, 4 if case.backward else 2)
    kind = shape_of(case.mask, case.length).kind
    hidden = None if kind == "everything" else ~dense(case)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = q @ k.mT * case.dim**-0.5
        return (logits if hidden is None else logits.masked_fill(hidden, -torch.inf)).softmax(-1) @ v

    return job(case, forward)


def dense(case: Case) -> Tensor:
    """The pattern as a boolean tensor, (H or 1, N, N)."""
    if case.length**2 > MASKED:
        raise NotRun(f"not run: it needs a dense mask of {case.length**2:,} pairs")
    return case.sees(torch.arange(case.length)).to(case.device)


def flex(case: Case) -> Job:
    """PyTorch's FlexAttention, compiled. Making its BlockMask, and compiling, are not timed."""
    import shutil

    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    cpu = torch.device(case.device).type == "cpu"
    if cpu and case.backward:
        raise NotRun("has no backward pass on a CPU")
    if case.documents:
        raise NotRun("not measured with documents")
    if cpu and not (shutil.which("g++") or shutil.which("clang++")):
        raise NotRun("needs a C++ compiler, and finds none: install g++")
    # about 10 bytes a pair: 10 GB at 32,768 tokens
    if case.length > (1 << 13 if cpu else math.isqrt(memory_of(case.device) // 20)):
        raise NotRun("not run: create_block_mask would hold n² pairs")
    mask, pattern = None, case.mask
    sizes = (case.length, case.length, case.device)
    if shape_of(pattern, case.length).kind != "everything":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mask = create_block_mask(lambda b, h, q, k: pattern.allows(b, h, q, k), None, None, *sizes)
    made = job(case, compiled_apart(lambda q, k, v: flex_attention(q, k, v, block_mask=mask), dynamic=False))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own
            made.run()
    except Exception as error:  # whatever a compiler may raise
        raise NotRun(f"does not compile: {str(error).strip().splitlines()[0][:90]}") from None
    return made


def local_attention(case: Case) -> Job:
    """lucidrains' local-attention with its exact window, without rotary positions."""
    shape = plain_shape(case, "window")
    module = installed("local_attention")
    causal = shape.after == 0
    if not causal and shape.before != shape.after:
        raise NotRun("knows windows of one width to both sides, or to the past alone")
    layer = module.LocalAttention(shape.before, causal=causal, exact_windowsize=True, autopad=True)
    # to one side, autopad appends keys that no query may see; to both it needs a mask, or they are attended to
    short = case.length % shape.before and not causal
    mask = torch.ones(1, case.length, dtype=torch.bool, device=case.device) if short else None
    return job(case, lambda q, k, v: layer(q, k, v, mask=mask))


def x_transformers(case: Case) -> Job:
    """x-transformers' Attend in its flash mode."""
    shape = plain_shape(case, "everything", "causal")
    module = installed("x_transformers.attend")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = module.Attend(causal=shape.kind == "causal", flash=True, heads=case.heads)
    return job(case, lambda q, k, v: layer(q, k, v)[0])


class _Given(nn.Module):
    """In the place of a projection: what it would have returned, for as many tokens as it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.value[: x.shape[0]] * 1  # a copy, since the layer scales queries in place


def longformer(case: Case) -> Job:
    """transformers' LongformerSelfAttention on given q, k and v, whose global tokens have no projections of their own.

    (N, 1, H · D) is its layout.
    """
    shape = plain_shape(case, "window", "window and global")
    transformers = installed("transformers")
    module = installed("transformers.models.longformer.modeling_longformer")
    if shape.before != shape.after:
        raise NotRun("knows windows of one width to both sides")
    if case.length % (2 * shape.before):
        raise NotRun(f"needs a length that is a multiple of its window, {2 * shape.before}")
    width = case.heads * case.dim
    config = transformers.LongformerConfig(
        hidden_size=width,
        num_attention_heads=case.heads,
        attention_window=[2 * shape.before],
        attention_probs_dropout_prob=0.0,
    )
    layer = module.LongformerSelfAttention(config, 0)
    given = {name: _Given() for name in ("query", "key", "value")}
    for name, projection in given.items():
        setattr(layer, name, projection)
        setattr(layer, f"{name}_global", projection)
    chosen = (torch.arange(case.length, device=case.device) < shape.first)[None]
    x = torch.zeros(1, case.length, width, device=case.device, dtype=getattr(torch, case.dtype))
    call = {
        "attention_mask": chosen.to(x.dtype) * 10000,
        "is_index_masked": torch.zeros_like(chosen),
        "is_index_global_attn": chosen,
        "is_global_attn": bool(shape.first),
    }

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given["query"].value, given["key"].value, given["value"].value = q, k, v
        return layer(x, **call)[0].transpose(0, 1)

    def into(x: Tensor) -> Tensor:
        return x.permute(2, 0, 1, 3).flatten(2)

    return job(case, forward, into, lambda x: x.unflatten(-1, (case.heads, case.dim)).permute(1, 2, 0, 3))


def big_bird(case: Case) -> Job:
    """transformers' BigBirdBlockSparseAttention on given q, k and v, which draws random blocks of its own.

    In training mode: in the other it takes the first block again and again in place of random ones.
    """
    if not case.pattern.startswith("bigbird"):
        raise NotRun("knows no such pattern; only bigbird")
    transformers = installed("transformers")
    module = installed("transformers.models.big_bird.modeling_big_bird")
    config = transformers.BigBirdConfig(
        hidden_size=case.heads * case.dim,
        num_attention_heads=case.heads,
        block_size=BLOCK_OF_BIGBIRD,
        num_random_blocks=3,
        max_position_embeddings=max(4096, case.length),
    )
    if case.length % BLOCK_OF_BIGBIRD or case.length < 12 * BLOCK_OF_BIGBIRD:
        raise NotRun(f"needs a length that is a multiple of {BLOCK_OF_BIGBIRD}, and at least {12 * BLOCK_OF_BIGBIRD}")
    layer = module.BigBirdBlockSparseAttention(config, seed=0).train()
    ones = torch.ones(1, case.length, device=case.device, dtype=getattr(torch, case.dtype))
    blocked, band, rows, columns = module.BigBirdModel.create_masks_for_block_sparse_attn(ones, BLOCK_OF_BIGBIRD)
    drawn: list[Tensor] = []
    gather = layer.torch_gather_b2

    def noted(x: Tensor, indices: Tensor) -> Tensor:
        drawn[:] = [indices]
        return gather(x, indices)

    layer.torch_gather_b2 = noted
    sizes = (case.heads, 3, case.dim, BLOCK_OF_BIGBIRD, BLOCK_OF_BIGBIRD, 1, case.length, case.length)
    plan = {"seed": 0, "plan_from_length": None, "plan_num_rand_blocks": None}

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        masks = (band, rows, columns, blocked, blocked)
        out = layer.bigbird_block_sparse_attention(q, k, v, *masks, *sizes, **plan)[0]
        return out.transpose(1, 2)

    made = job(case, forward)
    return Job(made.run, made.read, lambda: _blocks_of_big_bird(drawn[0][0].cpu(), case.length))


BLOCK_OF_BIGBIRD = 64


def _blocks_of_big_bird(drawn: Tensor, length: int) -> Tensor:
    """What its blocks see, (H, N, N): themselves and their neighbours, the first, the last, and those drawn."""
    count = length // BLOCK_OF_BIGBIRD
    at = torch.arange(count)
    seen = (at[:, None] - at).abs() <= 1
    seen[:, [0, -1]] = True
    seen[[0, -1]] = True
    each = seen.expand(drawn.shape[0], -1, -1).clone()
    each[:, 1:-1] = each[:, 1:-1].scatter(-1, drawn, True)
    return each.repeat_interleave(BLOCK_OF_BIGBIRD, 1).repeat_interleave(BLOCK_OF_BIGBIRD, 2)


PEERS: Mapping[str, Prepare] = {
    OURS: ours,
    LOCAL: local_attention,
    LONGFORMER: longformer,
    BIGBIRD: big_bird,
    SDPA: sdpa,
    FULL: full,
    EAGER: eager,
    FLEX: flex,
    XT: x_transformers,
}
"""In the order in which they are shown; the first peer that runs is the one that ratios are to."""
