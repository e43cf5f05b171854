"""Published patterns, as compositions; each prints as what it is made of."""

from collections.abc import Iterable

from clearhead.errors import InputError, nearest
from clearhead.patterns import shapes, sparse
from clearhead.patterns.base import Pattern, whole


def longformer(window: int = 512, global_tokens: int | Iterable[int] = (0,), dilation: int = 1) -> Pattern:
    """A sliding window and global tokens (Longformer, Beltagy 2020).

    A query sees `window` / 2 positions to each side, `dilation` apart; the tokens at `global_tokens` see all and are
    seen by all. An empty `global_tokens` leaves the window alone.

    >>> longformer(512, [0])
    window(256) | global_tokens([0])
    """
    whole("longformer", "window", window, 2)
    whole("longformer", "dilation", dilation, 1)
    if window % 2:
        raise InputError(f"longformer: window is {window}; half of it lies on each side, write an even number")
    local: Pattern = shapes.window(window // 2 * dilation)
    if dilation > 1:
        local = local & sparse.stride(dilation)
    chosen = [global_tokens] if isinstance(global_tokens, int) else list(global_tokens)
    return local | sparse.global_tokens(chosen) if chosen else local


def bigbird(
    block: int = 64,
    window: int = 3,
    random: int = 3,
    global_blocks: int = 2,
    length: int | None = None,
    seed: int = 0,
) -> Pattern:
    """A window, random keys and global tokens, all in blocks (BigBird in its internal construction, Zaheer 2020).

    Queries see `window` blocks around their own, `random` drawn from the first `length` positions (from
    their past if None: give the length of your sequences where attention is not causal), and the first
    `global_blocks`, which see all. The authors' code spreads these over the first and the last block of a sequence;
    `bigbird(global_blocks=1) | global_tokens(range(n - block, n))` does.

    >>> bigbird(64, length=4096)
    chunks(64, 1) | scattered(3, 0, block=64, length=4096) | first(128)
    """
    whole("bigbird", "window", window, 1)
    whole("bigbird", "global_blocks", global_blocks, 0)
    whole("bigbird", "random", random, 0)
    if window % 2 == 0:
        raise InputError(f"bigbird: window is {window}; as many lie on each side, write an odd number")
    pattern: Pattern = shapes.chunks(block, window // 2)
    if random:
        pattern = pattern | sparse.scattered(random, seed, block, length)
    return pattern | shapes.first(global_blocks * block) if global_blocks else pattern


def sparse_transformer(step: int = 128, kind: str = "strided", summary: int = 8) -> Pattern:
    """Two causal heads in one (Sparse Transformer, Child 2019): the near past, and a far one with holes.

    "strided": the last `step` positions, and every `step`-th one before. "fixed": the own chunk of `step` positions,
    and the last `summary` positions of every chunk. For heads of their own, compose the parts yourself.

    >>> sparse_transformer(128)
    causal() & (window(128, 0) | stride(128))
    >>> sparse_transformer(128, "fixed")
    causal() & (chunks(128) | summaries(128, 8))
    """
    if kind == "strided":
        return shapes.causal() & (shapes.window(step, 0) | sparse.stride(step))
    if kind == "fixed":
        return shapes.causal() & (shapes.chunks(step) | sparse.summaries(step, summary))
    raise InputError(f"sparse_transformer: unknown kind {kind!r}{nearest(str(kind), ('strided', 'fixed'))}")
