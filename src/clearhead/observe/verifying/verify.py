"""`verify`: hold any implementation of attention to the laws, by running it, and say in a sentence what is wrong.

    print(verify(module, torch.randn(2, 12, 64), causal=True))

Nothing is read from its code. Which output changes with which token shows leaks; values that are an identity show the
weights; a sample alone shows what padding and its neighbours do to it. What could not be checked is listed as such.

Shapes: B samples, H heads, N tokens, E width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from clearhead.observe.verifying.adapters import Raised, Runner, name_of, padded
from clearhead.observe.verifying.naming import name_weights
from clearhead.observe.verifying.reading import Unreadable, read
from clearhead.observe.verifying.trial import CHECKS, Trial, Unchecked, determinism, finite

LAWS = {
    "determinism": "the same input gives the same output in evaluation mode",
    "finite": "outputs and gradients are finite, for large inputs too",
    "weights": "weights are not negative, and those of each row sum to one over the keys",
    "activation": "weights are the softmax of the products q · k",
    "scale": "the products are divided by √D",
    "batch": "a sample's output does not depend on the other samples",
    "causality": "no output changes with a later token",
    "padding": "no output changes with what stands in padding, or with how much of it there is",
    "empty rows": "a sample without tokens gives no NaN",
    "initialisation": "a new module gives outputs about as large as its inputs",
}


@dataclass
class Verdict:
    """What `verify` found; true where nothing is wrong.

    Attributes:
        module: what was verified.
        problems: a sentence for each law that is broken, beginning with the law's name.
        cautions: what may hurt, though torch's own modules do it too.
        checked: the laws that hold.
        unchecked: the laws that could not be checked, and why.
    """

    module: str
    problems: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Is nothing wrong, as far as it could be checked?"""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        head = f"{self.module}: " + ("no problem found" if self.ok else f"{len(self.problems)} problem(s)")
        lines = [f"  problem      {line}" for line in self.problems]
        lines += [f"  caution      {line}" for line in self.cautions]
        lines += [f"  holds        {law}: {LAWS[law]}" for law in self.checked]
        return "\n".join([head, *lines, *(f"  not checked  {line}" for line in self.unchecked)])

    __repr__ = __str__


def verify(
    module: Any,
    example: Any,
    *,
    causal: bool = False,
    call: Callable[..., Any] | None = None,
    fresh: bool = True,
    strict: bool = False,
) -> Verdict:
    """Hold an attention to the laws, and name what is wrong.

    It is run in evaluation mode some dozens of times on variations of the example; a short one will do, two samples of
    8 to 16 tokens. Its parameters, their gradients and its mode stay as they are.

    Args:
        module: a module or function of x, or of (q, k, v). torch's MultiheadAttention, its encoder layers and
            `scaled_dot_product_attention` are told of causality and padding; anything else must be causal by itself,
            and takes padding as `lengths`, `key_padding_mask` or `src_key_padding_mask`.
        example: x (B, N, E), or (q, k, v), each (B, N, D) or (B, H, N, D), or a dict of keyword arguments that holds
            them. Always batch first.
        causal: does it claim that no token sees a later one?
        call: `call(module, x, lengths)`, or with `(q, k, v)` for x, where it is called otherwise; `lengths` (B,) is how
            many tokens each sample has, None all of them. A call of two parameters says that it knows no padding.
        fresh: are its parameters as they were initialised? Only then the size of its output is judged.
        strict: are cautions problems too?

    Raises InputError for an example of another shape, and where no output for each token comes back; whatever the
    module raises for the example itself is passed on.
    """
    runner, verdict = Runner(module, example, causal, call), Verdict(name_of(module))
    with _evaluating(module):
        trial = Trial(runner, fresh)
        if _holds(trial, verdict, "determinism", determinism) and _holds(trial, verdict, "finite", finite):
            _check_weights(trial, verdict)  # first, because they explain what leaks
            for law, check in CHECKS.items():
                _holds(trial, verdict, law, check)
        else:
            done = {line.split(":")[0] for line in (*verdict.problems, *verdict.checked)}
            verdict.unchecked += [f"{law}: its outputs cannot be compared" for law in LAWS if law not in done]
    (verdict.problems if strict else verdict.cautions).extend(trial.cautions)
    return verdict


def _holds(trial: Trial, verdict: Verdict, law: str, check: Callable[[Trial], Iterator[str]]) -> bool:
    """Does the check find nothing against the law? What it finds goes into the verdict."""
    try:
        found = [f"{law}: {sentence}" for sentence in check(trial)]
    except (Unchecked, Raised) as why:
        verdict.unchecked.append(f"{law}: {why}")
        return True
    verdict.problems += found
    verdict.checked += [] if found else [law]
    return not found


@torch.no_grad()
def _check_weights(trial: Trial, verdict: Verdict) -> None:
    """The three laws of the weights themselves."""
    laws = ("weights", "activation", "scale")
    tolerance = max(1e-4, 30 * torch.finfo(trial.out.dtype).eps)
    try:
        reading = read(trial.runner, trial.tokens)
    except (Unreadable, Raised) as why:
        verdict.unchecked += [f"{law}: {why}" for law in laws]
        return
    problems, unchecked = name_weights(reading, tolerance)
    if not problems:
        problems = [("weights", sentence) for sentence in _not_renormalised(trial, tolerance)]
    verdict.problems += [f"{law}: {sentence}" for law, sentence in problems]
    broken, told = {law for law, _ in problems}, {law for law, _ in (*problems, *unchecked)}
    trial.odd_weights = bool(broken & {"weights", "activation"})
    if trial.odd_weights:  # nothing finer can be said of them
        unchecked = [(law, "its weights are not those of attention") for law in laws if law not in broken]
    verdict.unchecked += [f"{law}: {why}" for law, why in unchecked]
    verdict.checked += [] if trial.odd_weights else [law for law in laws if law not in told]


def _not_renormalised(trial: Trial, tolerance: float) -> Iterator[str]:
    """Do weights sum to one where there is padding? Nothing is said where that cannot be told."""
    try:
        lengths = trial.lengths()
        weights = read(trial.runner, trial.tokens, lengths).weights
    except (Unchecked, Unreadable, Raised):
        return
    sums = weights.sum(-1).transpose(1, 2)[~padded(trial.tokens[0], lengths)]
    if not bool(((sums - 1).abs() < tolerance).all()):
        spread = f"rows sum to {sums.min():.3g} … {sums.max():.3g}"
        yield f"with padding, {spread}: weights are masked after the softmax and not normalised again"


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """The module in evaluation mode; afterwards each part of it is in its own again."""
    parts = list(module.modules()) if isinstance(module, nn.Module) else []
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
