"""Patterns as text: what `repr` writes, and what a configuration holds, read back without evaluating code."""

import ast
import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from clearhead.errors import InputError, nearest
from clearhead.patterns import edges, given, presets, shapes, sparse
from clearhead.patterns.base import Pattern

_SHAPES: dict[str, Callable[..., Pattern]] = {
    shape.__name__: shape
    for shape in (
        presets.bigbird,
        shapes.causal,
        shapes.chunks,
        shapes.everything,
        shapes.first,
        sparse.global_tokens,
        presets.longformer,
        shapes.prefix,
        sparse.scattered,
        presets.sparse_transformer,
        sparse.stride,
        sparse.summaries,
        shapes.window,
    )
}
_HOLDING: dict[str, Pattern] = {
    "documents": given.documents(torch.zeros(1, 0, dtype=torch.int64)),
    "graph": edges.graph(torch.zeros(2, 0, dtype=torch.int64)),
}
"""Patterns that hold tensors, empty, by their names in an outline."""


@lru_cache(maxsize=1024)
def parse(text: str) -> Pattern:
    """The pattern that `text` writes, such as "causal() & window(256)".

    Raises InputError where the text is no pattern, with the nearest valid name.
    """
    return _read(text, _shape)


def restore(outline: str, tensors: Sequence[Tensor]) -> Pattern:
    """The pattern whose `outline()` and `tensors()` these are: how patterns cross to where no Python object can go."""
    return _outlined(outline).holding(tensors)


@lru_cache(maxsize=1024)
def _outlined(outline: str) -> Pattern:
    return _read(outline, lambda name, call, text: _HOLDING[name] if name in _HOLDING else _shape(name, call, text))


_Leaf = Callable[[str, ast.Call, str], Pattern]


def _read(text: str, leaf: _Leaf) -> Pattern:
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _build(tree.body, _start(text), leaf)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: thousands of levels
        if isinstance(error, InputError):
            raise
        raise InputError(f"{_start(text)!r} is not a pattern; write one as in 'causal() & window(256)'") from None


def _start(text: str) -> str:
    """The text as messages show it, which need no more than its start."""
    return text if len(text) <= 80 else f"{text[:79]}…"


def _build(node: ast.expr, text: str, leaf: _Leaf) -> Pattern:
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return _build(left, text, leaf) & _build(right, text, leaf)
        case ast.BinOp(left, ast.BitOr(), right):
            return _build(left, text, leaf) | _build(right, text, leaf)
        case ast.UnaryOp(ast.Invert(), inner):
            return ~_build(inner, text, leaf)
        case ast.Call(ast.Name(name), _, _):
            return leaf(name, node, text)
        case ast.Name(name):
            raise InputError(f"pattern {text!r}: write {_start(name)}() with its parentheses")
    raise InputError(f"pattern {text!r}: {_start(ast.unparse(node))!r} is not allowed; compose shapes with &, | and ~")


def _shape(name: str, call: ast.Call, text: str) -> Pattern:
    if name in _HOLDING:
        raise InputError(
            f"pattern {text!r}: {name} holds tensors, which text cannot; write it in Python, as ch.{name}(…)"
        )
    if name not in _SHAPES:
        raise InputError(f"pattern {text!r}: unknown shape {_start(name)!r}{_alike(_start(name))}")
    shape = _SHAPES[name]
    known = inspect.signature(shape).parameters
    for keyword in call.keywords:
        if keyword.arg not in known:
            raise InputError(
                f"pattern {text!r}: {name} has no argument {_start(keyword.arg or '')!r}"
                f"{nearest(_start(keyword.arg or ''), known)}"
            )
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        return shape(*arguments, **named)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"pattern {text!r}: {_start(ast.unparse(call))} does not fit {name}'s arguments") from None


def _alike(name: str) -> str:
    return nearest(name, [*_SHAPES, *_HOLDING])
