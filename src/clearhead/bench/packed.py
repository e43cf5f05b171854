"""Many sequences of widely varying length: packed in one row, padded to the longest, or one call each."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from clearhead.bench.case import Case
from clearhead.bench.peers import OURS, Job, NotRun, Prepare, job, room
from clearhead.maps import attend, explain
from clearhead.patterns import documents

PADDED, LOOP = "SDPA, padded", "a loop of SDPA calls"


def _ids(case: Case) -> Tensor:
    return torch.repeat_interleave(torch.tensor(case.document_lengths())).to(case.device)


def _packed(case: Case) -> Job:
    own = documents(_ids(case))
    pattern = own if case.pattern == "everything()" else case.mask & own
    q, k, *_ = case.tensors()
    chosen = f"kernel {explain(q, k, pattern).chosen}"
    return job(case, lambda q, k, v: attend(q, k, v, pattern), explained=chosen)


def _padded(case: Case) -> Job:
    """(documents, H, longest, D), padded before the clock runs."""
    _everything(case)
    lengths = case.document_lengths()
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    room(Case(max(lengths), case.heads * len(lengths), case.dim), 1)
    mask = real[:, None, None, :].to(case.device)

    def into(x: Tensor) -> Tensor:
        padded = torch.nn.utils.rnn.pad_sequence([each[0].transpose(0, 1) for each in x.split(lengths, 2)], True)
        return padded.transpose(1, 2)

    def back(x: Tensor) -> Tensor:
        return x.transpose(1, 2)[real.to(x.device)].transpose(0, 1)[None]

    return job(case, lambda q, k, v: scaled_dot_product_attention(q, k, v, mask), into, back)


def _loop(case: Case) -> Job:
    _everything(case)
    lengths = case.document_lengths()

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        each = zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)
        return torch.cat([scaled_dot_product_attention(*one) for one in each], 2)

    return job(case, forward)


def _everything(case: Case) -> None:
    if case.pattern != "everything()":
        raise NotRun("measured where documents see all of themselves")


ARMS: Mapping[str, Prepare] = {OURS: _packed, PADDED: _padded, LOOP: _loop}


def title(case: Case) -> str:
    """Of the table."""
    lengths = case.document_lengths()
    passes = "forward and backward" if case.backward else "forward"
    return (
        f"{len(lengths)} documents of {min(lengths)} to {max(lengths)} tokens, mean {case.length // len(lengths)}, "
        f"{case.heads} heads of {case.dim}, {case.dtype}, {passes}"
    )
