"""An attention on trial: what can be told of it by running it, whatever it is inside.

Each check yields a sentence for what breaks its law, and raises Unchecked where the law cannot be checked.

Shapes: B samples, N tokens, E width.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from clearhead.observe.verifying.adapters import Raised, Runner, Tokens, padded

COLUMNS = 16
"""How many tokens are changed one by one, to see which outputs follow."""


class Unchecked(Exception):
    """Why a law could not be checked."""


class Trial:
    """A module that is run on variations of its example."""

    def __init__(self, runner: Runner, fresh: bool) -> None:
        self.runner, self.fresh = runner, fresh
        self.cautions: list[str] = []
        self.odd_weights = False
        """Is it known that its weights are not those of attention? What leaks then leaks through them."""
        self._random = torch.Generator().manual_seed(20170612)
        tokens = runner.tokens
        if len(tokens[0]) == 1 and not runner.fixed:  # laws about samples need two
            tokens = tuple(torch.cat([x, x.flip(-2)]) for x in tokens)
        self.tokens: Tokens = tokens
        self.samples, self.n = tokens[0].shape[0], tokens[0].shape[-2]
        try:
            self.out = self.run(tokens)
        except Raised as error:  # on the example itself it must run
            raise error.__cause__ or error from None

    @torch.no_grad()
    def run(self, tokens: Tokens, lengths: Tensor | None = None) -> Tensor:
        """The output for these tokens."""
        return self.runner(tokens, lengths)

    def other(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Random numbers of the shape and size of x."""
        return self.unit(x) * x.std() * scale + x.mean()

    def unit(self, x: Tensor) -> Tensor:
        """Random numbers of the shape of x, of size 1."""
        return torch.randn(x.shape, generator=self._random).to(x.device, x.dtype)

    def lengths(self, *, empty: bool = False) -> Tensor:
        """A length for each sample, the first of all tokens, the second of half of them or none."""
        if self.runner.no_padding is not None:
            raise Unchecked(self.runner.no_padding)
        if self.samples < 2:
            raise Unchecked("the example has one sample, and other tensors that belong to it")
        later = [max(1, self.n * (self.samples - i) // self.samples) for i in range(2, self.samples)]
        return torch.tensor([self.n, 0 if empty else self.n // 2, *later], device=self.tokens[0].device)

    def differs(self, a: Tensor, b: Tensor, rounding: float = 50.0) -> Tensor:
        """Where outputs (B, …, N, E) differ by more than `rounding` units of their dtype, (B, N); NaN differs."""
        size = self.out.abs().max().clamp(min=torch.finfo(a.dtype).tiny)
        apart = ((a - b).abs() / size).nan_to_num(math.inf).amax(-1)
        while apart.dim() > 2:
            apart = apart.amax(1)
        return apart > rounding * torch.finfo(a.dtype).eps

    @cached_property
    def columns(self) -> list[int]:
        """The tokens that are changed one by one."""
        return sorted({round(i * (self.n - 1) / (COLUMNS - 1)) for i in range(COLUMNS)})

    @cached_property
    def follows(self) -> Tensor:
        """[i, c]: does the output of token i change with token `columns[c]`, or with its key and value where given?"""
        found = torch.zeros(self.n, len(self.columns), dtype=torch.bool)
        for c, j in enumerate(self.columns):
            tokens = list(self.tokens)
            for i in range(1 if self.runner.of_heads else 0, len(tokens)):
                tokens[i] = tokens[i].clone()
                tokens[i][..., j, :] = self.other(tokens[i])[..., j, :]
            found[:, c] = self.differs(self.out, self.run(tuple(tokens))).any(0).cpu()
        return found

    @property
    def ahead(self) -> Tensor:
        """[i, c]: by how many tokens `columns[c]` is ahead of token i."""
        return torch.tensor(self.columns)[None] - torch.arange(self.n)[:, None]

    @property
    def mixes(self) -> bool:
        """Does any output change with another token?"""
        return bool(self.follows[self.ahead != 0].any())

    def needs_mixing(self) -> None:
        """Unchecked where tokens do not see each other at all: every law about who sees whom would hold for nothing."""
        if any(x.shape[-2] != self.n for x in self.tokens):
            raise Unchecked("there are not as many queries as keys")
        if not self.mixes:
            raise Unchecked("no output changes with another token")


def determinism(trial: Trial) -> Iterator[str]:
    """The same input gives the same output."""
    again = trial.run(trial.tokens)
    if bool(trial.out.isfinite().all()) and bool(trial.differs(trial.out, again).any()):
        yield "the same input gives another output each time, so nothing else was checked; is dropout on in evaluation?"
    elif not trial.runner.fixed and all(x.shape[-2] == trial.n for x in trial.tokens) and not trial.mixes:
        trial.cautions.append(
            "attention: no output changes with another token; is this attention, and no projection zero?"
        )


def finite(trial: Trial) -> Iterator[str]:
    """Outputs and gradients are finite, for large inputs too."""
    if not bool(trial.out.isfinite().all()):
        yield f"{_share(~trial.out.isfinite())} of the outputs are NaN or Inf for the example as it is"
        return
    factor = 8.0 if trial.out.dtype == torch.float16 else 30.0
    if not bool(trial.run(tuple(x * factor for x in trial.tokens)).isfinite().all()):
        yield f"NaN or Inf for {factor:g} times the example: a softmax must subtract each row's maximum before exp"
    if not _gradients_are_finite(trial, None):
        yield "gradients in the inputs are NaN or Inf"


def batch(trial: Trial) -> Iterator[str]:
    """A sample's output does not depend on the other samples."""
    if trial.runner.fixed or trial.samples < 2:
        raise Unchecked("other tensors come with the tokens, and must stay together with them")
    alone = torch.cat([trial.run(tuple(x[b : b + 1] for x in trial.tokens)) for b in range(trial.samples)])
    if bool(trial.differs(trial.out, alone, 1000.0).any()):
        yield "a sample alone gives another output than in a batch: something is normalised or mixed over samples"


def causality(trial: Trial) -> Iterator[str]:
    """No output changes with a later token."""
    if not trial.runner.causal:
        raise Unchecked("causal=True was not claimed")
    trial.needs_mixing()
    follows, ahead = trial.follows, trial.ahead
    leaks = follows & (ahead > 0)
    if not bool(leaks.any()):
        return
    row, column = (int(i) for i in leaks.nonzero()[0])
    where = f"the output of token {row} changes with token {trial.columns[column]}"
    if trial.odd_weights:
        yield f"{where}, through its weights"
    elif not bool(follows[ahead < 0].any()):
        yield f"{where}, and no output with an earlier one: the mask is the wrong way round (tril for triu)"
    elif bool(leaks[ahead > 0].all()):
        yield f"{where}, and each output with all later tokens: there is no causal mask"
    else:
        lead = int(ahead[leaks].max())
        yield f"{where}: tokens see up to {lead} token(s) ahead; triu(diagonal=1) marks all that must be hidden"


def padding(trial: Trial) -> Iterator[str]:
    """No output changes with what stands in padding, or with how much of it there is."""
    lengths = trial.lengths()
    trial.needs_mixing()
    hidden = padded(trial.tokens[0], lengths)
    out, again = (trial.run(_refilled(trial, hidden, scale), lengths) for scale in (1.0, 3.0))
    leaks = trial.differs(out, again) & ~hidden
    if bool(leaks.any()):
        b, row = (int(i) for i in leaks.nonzero()[0])
        what = f"token {row} of sample {b}, which has {int(lengths[b])} tokens, changes with what stands in padding"
        yield f"{what}, {'through its weights' if trial.odd_weights else 'whose keys the softmax must not see'}"
        return
    for b, n in enumerate(lengths.tolist()):
        alone = trial.run(tuple(x[b : b + 1, ..., :n, :] for x in trial.tokens))
        if bool(trial.differs(out[b : b + 1, ..., :n, :], alone, 1000.0).any()):
            yield f"sample {b} of {n} tokens gives another output alone than padded to {trial.n} in a batch"
            return
    spoiled = trial.run(_refilled(trial, hidden, math.nan), lengths)
    if bool((trial.differs(spoiled, out) & ~hidden).any()):
        trial.cautions.append("padding: NaN in padding reaches real outputs (0 · NaN is NaN): fill it with numbers")


def _refilled(trial: Trial, hidden: Tensor, scale: float) -> Tokens:
    """The tokens with something else in their padding."""
    marks = [hidden.reshape(len(hidden), *[1] * (x.dim() - 3), -1, 1) for x in trial.tokens]
    return tuple(torch.where(mark, trial.other(x, scale), x) for mark, x in zip(marks, trial.tokens, strict=True))


def empty_rows(trial: Trial) -> Iterator[str]:
    """A sample without tokens gives no NaN."""
    lengths = trial.lengths(empty=True)
    out = trial.run(trial.tokens, lengths)
    if bool(out.isnan().any()):
        sentence = (
            f"a sample without tokens makes {_share(out.isnan())} of the outputs NaN: rows that see no key must be 0"
        )
    elif not _gradients_are_finite(trial, lengths):
        sentence = "a sample without tokens makes gradients NaN"
    else:
        return
    if type(trial.runner.module).__module__.startswith("torch."):
        trial.cautions.append(f"empty rows: {sentence}")
        raise Unchecked("torch's modules promise nothing here; see the caution")
    yield sentence


def initialisation(trial: Trial) -> Iterator[str]:
    """A new module gives outputs about as large as its inputs."""
    module = trial.runner.module
    if not trial.fresh:
        raise Unchecked("fresh=False was given")
    if not isinstance(module, nn.Module) or not any(p.numel() > 1 for p in module.parameters()):
        raise Unchecked("there are no parameters to initialise")
    size = float(trial.run(tuple(map(trial.unit, trial.tokens))).square().mean().sqrt())
    if size > 3:
        yield (
            f"inputs of size 1 give outputs of size {size:.3g}, and each further layer that much more: initialise with "
            "a deviation near 1/√E (nn.init.xavier_uniform_)"
        )
    elif size == 0:
        raise Unchecked("outputs are zero: is a projection zero?")


def _gradients_are_finite(trial: Trial, lengths: Tensor | None) -> bool:
    """Are those in the inputs? Whatever has none is no fault."""
    tokens = tuple(x.clone().requires_grad_() for x in trial.tokens)
    with torch.enable_grad():
        out = trial.runner(tokens, lengths)
        if not out.requires_grad:
            return True
        gradients = torch.autograd.grad(out.square().sum(), tokens, allow_unused=True)
    return all(bool(g.isfinite().all()) for g in gradients if g is not None)


def _share(where: Tensor) -> str:
    return f"{float(where.double().mean()):.0%}"


CHECKS: dict[str, Callable[[Trial], Iterator[str]]] = {
    "batch": batch,
    "causality": causality,
    "padding": padding,
    "empty rows": empty_rows,
    "initialisation": initialisation,
}
"""The checks of a module that is deterministic and finite."""
