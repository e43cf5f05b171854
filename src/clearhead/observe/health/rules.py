"""Health: rules that say which head of which layer is in trouble, and a sentence for each that they find.

    for finding in check(seen):
        print(finding)                      # encoder.layers.0.attention head 3: …

A rule is a threshold with a paper behind it. "alarm" is what breaks training or has broken it; "note" is what trained
models do too, and worth to know. Means are over rows that see at least 8 keys, without padding.

Shapes: B samples, H heads, N tokens, E width.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from clearhead.observe.calls import Call
from clearhead.observe.heads import Baseline, HeadSummary, Row, row_residual, summaries


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: the rule's name, "entropy collapse".
        layer: the path of the module that attends.
        head: its number, or None where the whole layer is meant.
        value: what was measured; `threshold` is what it was held against.
        row: (sample, row) where one is to blame.
        sentence: all of it in a line to read.
        severity: "alarm" or "note".
        turn: the layer's, where it runs several times in one pass.
    """

    rule: str
    layer: str
    head: int | None
    value: float
    threshold: float
    row: Row | None
    sentence: str
    severity: str
    turn: int = 0

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Rule:
    """When to speak up. `meaning` and `advice` are sentences for people, `paper` is where the rule comes from.

    `covers` names the rules that need not be heard about a head of which this one has spoken.
    """

    threshold: float

    name: ClassVar[str]
    paper: ClassVar[str]
    meaning: ClassVar[str]
    advice: ClassVar[str]
    severity: ClassVar[str] = "alarm"
    covers: ClassVar[tuple[str, ...]] = ()

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        """What this rule finds in a call."""
        raise NotImplementedError

    def _found(
        self,
        heads: HeadSummary,
        head: int | None,
        value: float,
        what: str,
        row: Row | None = None,
        threshold: float | None = None,
        noted: str | None = None,
    ) -> Finding:
        """A finding about a head, or about the layer; `noted`: it is but a note, with this meaning."""
        call = heads.call
        turn = f" (turn {call.turn})" if call.turn else ""
        where = f"{call.name}{turn}" + ("" if head is None else f" head {head}")
        sentence = f"{where}: {what}: {noted or self.meaning}"
        bar = self.threshold if threshold is None else threshold
        severity = "note" if noted else self.severity
        return Finding(self.name, call.name, head, value, bar, row, sentence, severity, call.turn)


@dataclass(frozen=True)
class NonFinite(Rule):
    """NaN or Inf in the logits of rows that see keys; `threshold` is how many such rows are borne."""

    threshold: float = 0.0
    name = "not finite"
    paper = "Micikevicius 2018, Mixed Precision Training (how half precision overflows)"
    meaning = "all that follows is spoiled; the first layer named is where it began"
    advice = "look at that input row; check the data for NaN, the learning rate, and half precision for overflow"

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        bad = [head for head, count in enumerate(heads.broken) if count > self.threshold]
        # one token's NaN is in every head: then the layer is named once
        together = len(bad) == len(heads.broken) > 1 and len({heads.first_broken[head] for head in bad}) == 1
        for head in bad[:1] if together else bad:
            sample, row = heads.first_broken[head]
            share = f"{heads.broken_here[head]} of {heads.rows_here[head]} rows of sample {sample}"
            what = f"NaN or Inf in {share}, first in row {row}"
            what += f", brought by {heads.brought[head]}" if heads.brought[head] else ""
            yield self._found(heads, None if together else head, float(heads.broken[head]), what, (sample, row))


@dataclass(frozen=True)
class EntropyCollapse(Rule):
    """Mean normalized entropy below `threshold`."""

    threshold: float = 0.02
    name = "entropy collapse"
    paper = "Zhai 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse"
    meaning = "each query attends to hardly more than one key, and the gradient of its logits vanishes"
    advice = "lower the learning rate, warm up longer, or use QK-norm, QK-clip, σReparam or an entropy floor"

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        for head, value in enumerate(heads.entropy):
            if value < self.threshold:
                sample, row = at = heads.sharpest[head]
                what = (
                    f"normalized entropy {value:.2g}, below {self.threshold:g}, least in row {row} of sample {sample}"
                )
                yield self._found(heads, head, value, what, at)


@dataclass(frozen=True)
class EntropyFall(Rule):
    """Mean normalized entropy below `threshold` times its own running mean, and farther from it than noise explains.

    Only where a Baseline is given that has seen the head at least `updates` times. With its decay of 0.9, a steady fall
    of up to 5 % an update is natural sharpening; half of it lost at once is a fall. It is an alarm below `level`, and
    above it a note: a head that learns where to look falls as fast, but not so far. Cross-attention that learns to
    pronounce falls from 0.8 to 0.2 within a hundred healthy steps; collapse (0.02) goes on.

    Args:
        level: of the mean normalized entropy.
        deviations: how many deviations of its noise the value must lie below the mean.
    """

    threshold: float = 0.5
    level: float = 0.05
    deviations: float = 4.0
    updates: int = 10
    name = "entropy fall"
    paper = "Zhai 2023, whose runs diverge after the entropy has fallen within a few steps"
    meaning = "this head sharpens far faster than it did so far, as heads do before training diverges"
    learning = "this head sharpens far faster than it did so far, as heads do that learn where to look"
    advice = EntropyCollapse.advice

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        known = None if baseline is None else baseline.of(heads)
        if known is None:
            return
        for head, (value, mean, deviation, updates) in enumerate(zip(heads.entropy, *known, strict=True)):
            bar = min(self.threshold * mean, mean - self.deviations * deviation)
            if updates >= self.updates and value < bar:
                what = f"normalized entropy fell to {value:.2g} from a running mean of {mean:.2g}"
                noted = self.learning if value >= self.level else None
                yield self._found(heads, head, value, what, heads.sharpest[head], bar, noted)


@dataclass(frozen=True)
class LogitExplosion(Rule):
    """The greatest logit above `threshold`."""

    threshold: float = 100.0
    name = "logit explosion"
    paper = "Dehghani 2023, Scaling Vision Transformers to 22 Billion Parameters; Kimi Team 2025, Kimi K2 (100)"
    meaning = "the softmax is one-hot there, and half precision rounds such logits coarsely"
    advice = "use QK-norm or QK-clip, lower the learning rate, or add a soft cap"

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        for head, value in enumerate(heads.max_logit):
            if value > self.threshold:
                sample, row = at = heads.steepest[head]
                what = f"largest logit {value:.4g}, above {self.threshold:g}, in row {row} of sample {sample}"
                yield self._found(heads, head, value, what, at)


@dataclass(frozen=True)
class SinkHead(Rule):
    """Mean weight of the first key above `threshold`."""

    threshold: float = 0.3
    name = "attention sink"
    paper = "Xiao 2023, Efficient Streaming Language Models with Attention Sinks; Gu 2025 (whose threshold is 0.3)"
    meaning = "the first token takes weight that is meant for none; trained language models do this"
    advice = "nothing is wrong; keep the first tokens in a sliding cache, and leave the sink out of pictures"
    severity = "note"

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        for head, value in enumerate(heads.sink):
            if value > self.threshold:
                yield self._found(heads, head, value, f"{value:.0%} of the weight is on the first key")


@dataclass(frozen=True)
class DormantHead(SinkHead):
    """Mean weight of the first key above `threshold`, so high that the head gives the same to every token."""

    threshold: float = 0.95
    name = "dormant head"
    paper = "Guo 2024, Active-Dormant Attention Heads"
    meaning = "the head does nothing on this input: every query gets the first token's value"
    advice = "try other inputs; if it sleeps on all of them, prune it"
    covers = ("attention sink", "entropy collapse")


@dataclass(frozen=True)
class UniformHead(Rule):
    """Mean normalized entropy above `threshold`; small weights at the start of training reach 0.9999."""

    threshold: float = 0.99999
    name = "uniform head"
    paper = "Michel 2019, Are Sixteen Heads Really Better than One?"
    meaning = "every key gets the same weight, so the head averages the values whatever the query"
    advice = "early in training, wait; later, prune it or look for queries and keys that get no gradient"
    severity = "note"

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        for head, value in enumerate(heads.entropy):
            if value > self.threshold:
                yield self._found(heads, head, value, f"normalized entropy {value:.6f}, above {self.threshold:g}")


@dataclass(frozen=True)
class RankCollapse(Rule):
    """All rows the same, but for a share below `threshold`: of what the module that attends puts out, in the mean over
    samples; where that was not measured, of kept maps, in every head."""

    threshold: float = 0.01
    name = "rank collapse"
    paper = "Dong 2021, Attention is not all you need: pure attention loses rank doubly exponentially with depth"
    meaning = "the layer gives every token the same, and nothing after it can tell tokens apart"
    advice = "keep skip connections and their scale, lower the weight decay of the projections, or use fewer layers"

    def judge(self, heads: HeadSummary, baseline: Baseline | None) -> Iterator[Finding]:
        if heads.residuals:
            value, where = math.fsum(heads.residuals) / len(heads.residuals), "the tokens of its output"
        else:
            residuals, where = row_residual(heads.call), "in every head the rows"
            value = math.nan if any(map(math.isnan, residuals)) else max(residuals)
        if value < self.threshold:
            what = f"{where} differ by {value:.2g} of their size, below {self.threshold:g}"
            yield self._found(heads, None, value, what)


RULES: tuple[Rule, ...] = (
    NonFinite(),
    EntropyCollapse(),
    EntropyFall(),
    LogitExplosion(),
    RankCollapse(),
    DormantHead(),
    SinkHead(),
    UniformHead(),
)
"""The rules that `check` goes by unless told otherwise."""


def check(calls: Iterable[Call], rules: Sequence[Rule] = RULES, baseline: Baseline | None = None) -> list[Finding]:
    """What the rules find in the calls, in the order of the calls; the steps of a decoding are one call.

    A rule says nothing about what was not measured. `baseline` is read, not changed: update it afterwards.
    """
    return judge(summaries(calls), rules, baseline)


def judge(
    heads: Iterable[HeadSummary], rules: Sequence[Rule] = RULES, baseline: Baseline | None = None
) -> list[Finding]:
    """What the rules find in summaries of calls. What is found of a head several times is told once."""
    found: dict[tuple[str, str, int, int | None], Finding] = {}
    for each in heads:
        for rule in rules:
            for finding in rule.judge(each, baseline):
                found.setdefault((finding.rule, finding.layer, finding.turn, finding.head), finding)
    covers = {rule.name: rule.covers for rule in rules}
    hidden = {(name, *key[1:]) for key in found for name in covers[key[0]]}
    return [finding for key, finding in found.items() if key not in hidden]


def advice(findings: Iterable[Finding], rules: Sequence[Rule] = RULES) -> list[str]:
    """What to try, a line for each rule that found something."""
    names = {finding.rule for finding in findings}
    return [f"{rule.name}: {rule.advice} ({rule.paper})" for rule in rules if rule.name in names]
