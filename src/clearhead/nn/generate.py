"""Generating a target from a source, token by token: greedy, beam search, sampling.

Shapes: B samples, K hypotheses each, V target vocabulary; B · K rows go through the decoder.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.errors import InputError
from clearhead.nn.seq2seq import Seq2Seq


@dataclass(frozen=True)
class Hypothesis:
    """One generated target: its tokens without the first and last special ones.

    `score` is the sum of log-probabilities over length ** length_penalty; `finished` is False where it ran into
    `max_length` before the end token.
    """

    tokens: list[int]
    score: float
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """Draw tokens at random: at `temperature`, from the `top_k` likeliest, or the fewest that hold probability `top_p`
    (Holtzman 2020); `generator` repeats a draw."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be positive (near 0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def draw(self, logits: Tensor) -> Tensor:
        """One token for each row of logits (R, V), (R, 1)."""
        best, tokens = (logits / self.temperature).sort(-1, descending=True)
        share = best.softmax(-1)
        if self.top_k is not None:
            share[:, self.top_k :] = 0
        if self.top_p is not None:  # keep what comes before the threshold is reached, and so at least one
            share = share.masked_fill(share.cumsum(-1) - share >= self.top_p, 0)
        return tokens.gather(-1, torch.multinomial(share, 1, generator=self.generator))


@torch.no_grad()
def generate(
    model: Seq2Seq,
    source: Int[Tensor, "b s"],
    source_lengths: Int[Tensor, " b"] | None = None,
    *,
    bos: int,
    eos: int,
    max_length: int,
    beam: int = 1,
    length_penalty: float = 1.0,
    n_best: int = 1,
    sampling: Sampling | None = None,
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each source (B, Ns), best first: greedy, or by beam search, or drawn with `sampling`.

    Args:
        bos, eos: the tokens that begin and end a target.
        max_length: at most so many tokens, the end token not counted.
        beam: hypotheses kept at each step; 1 is greedy.
        length_penalty: α in score / lengthᵅ: 0 favours short targets, above 1 long ones (Wu 2016).
    """
    if beam < 1 or n_best < 1 or max_length < 1:
        raise InputError(f"beam={beam}, n_best={n_best} and max_length={max_length} must be at least 1")
    if sampling is None and n_best > beam:
        raise InputError(f"n_best={n_best} is more than beam={beam} keeps; write beam={n_best}")
    kept = n_best if sampling is not None else beam
    was_training = model.training
    model.eval()
    try:
        search = _Search(model, source, source_lengths, bos, eos, kept, length_penalty, sampling)
        for _ in range(max_length):
            search.step()
            if search.done:
                break
        return search.results(n_best)
    finally:
        model.train(was_training)


class _Search:
    """Beam search over the samples that are not done yet; a sample is done when K hypotheses of it have ended."""

    def __init__(
        self,
        model: Seq2Seq,
        source: Tensor,
        source_lengths: Tensor | None,
        bos: int,
        eos: int,
        kept: int,
        length_penalty: float,
        sampling: Sampling | None,
    ) -> None:
        self.model, self.eos, self.kept, self.penalty, self.sampling = model, eos, kept, length_penalty, sampling
        self.memory: Tensor | None = model.encode(source, source_lengths)
        self.lengths = source_lengths
        self.cache = model.decoder.cache()
        b, device = len(source), source.device
        self.sample = torch.arange(b, device=device)  # which sample each live group of hypotheses belongs to
        self.tokens = torch.full((b, 1, 1), bos, device=device)  # (live, K, length), K = 1 before the first step
        self.scores = torch.zeros(b, 1, device=device)  # sums of log-probabilities, (live, K)
        self.ended: list[list[Hypothesis]] = [[] for _ in range(b)]

    @property
    def done(self) -> bool:
        return not len(self.sample)

    def step(self) -> None:
        """Extend every live hypothesis by one token."""
        live, k, _ = self.tokens.shape
        if not live:
            return
        last = self.tokens[:, :, -1].reshape(-1, 1)
        logits = self.model.decode(
            last, self.memory, None, self.lengths if self.memory is not None else None, self.cache
        )
        self.memory = None  # the cache holds its projections from now on
        log_p = logits[:, -1].float().log_softmax(-1)
        parent, token, score = self._drawn(log_p, k) if self.sampling else self._best(log_p, live, k)
        self._advance(parent, token, score)

    def _best(self, log_p: Tensor, live: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best 2 K continuations of each sample, (live, 2 K): at least K of them do not end."""
        total = (self.scores[..., None] + log_p.view(live, k, -1)).flatten(1)
        score, flat = total.topk(min(2 * self.kept, total.shape[1]), -1)
        return flat // log_p.shape[-1], flat % log_p.shape[-1], score

    def _drawn(self, log_p: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """One continuation of each hypothesis; the first step makes K of one."""
        assert self.sampling is not None
        if k < self.kept:
            log_p = log_p.repeat_interleave(self.kept, 0)
        token = self.sampling.draw(log_p)
        parent = torch.arange(self.kept, device=log_p.device).clamp(max=k - 1).expand(len(self.sample), -1)
        score = self.scores.gather(1, parent) + log_p.gather(-1, token).view(-1, self.kept)
        return parent, token.view(-1, self.kept), score

    def _advance(self, parent: Tensor, token: Tensor, score: Tensor) -> None:
        """End what ends among the best K candidates, keep the best K of the others, drop samples that are done."""
        ends = token == self.eos
        for i, j in (ends[:, : self.kept] & score[:, : self.kept].isfinite()).nonzero().tolist():
            self._end(i, int(parent[i, j]), float(score[i, j]), True)
        alive = score.masked_fill(ends, -math.inf)
        score, place = alive.topk(min(self.kept, alive.shape[1]), -1)
        parent, token = parent.gather(1, place), token.gather(1, place)
        rest = [
            i
            for i, s in enumerate(self.sample.tolist())
            if len(self.ended[s]) < self.kept and bool(score[i].isfinite().any())
        ]
        rows = torch.tensor(rest, dtype=torch.int64, device=token.device)
        width = self.tokens.shape[1]
        parent, token, self.scores = parent[rows], token[rows], score[rows]
        self.cache.reorder((rows[:, None] * width + parent).flatten())
        past = self.tokens[rows].gather(1, parent[..., None].expand(-1, -1, self.tokens.shape[2]))
        self.tokens = torch.cat([past, token[..., None]], -1)
        self.sample = self.sample[rows]

    def _end(self, i: int, k: int, score: float, finished: bool) -> None:
        tokens = self.tokens[i, k, 1:].tolist()
        length = len(tokens) + finished
        hypothesis = Hypothesis(tokens, score / max(1, length) ** self.penalty, finished)
        ended = self.ended[int(self.sample[i])]
        if len(ended) < self.kept:
            ended.append(hypothesis)

    def results(self, n_best: int) -> list[list[Hypothesis]]:
        """The best of each sample; what has not ended counts behind what has."""
        for i in range(len(self.sample)):
            for k, score in enumerate(self.scores[i].tolist()):
                if math.isfinite(score):
                    self._end(i, k, score, False)
        return [sorted(ended, key=lambda h: (not h.finished, -h.score))[:n_best] for ended in self.ended]
