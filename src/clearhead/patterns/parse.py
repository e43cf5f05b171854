"""Patterns as text: what `repr` writes, and what a configuration holds, read back without evaluating code."""

import ast
from functools import lru_cache

from clearhead.errors import InputError, nearest
from clearhead.patterns import shapes
from clearhead.patterns.base import Pattern

_SHAPES = {
    shape.__name__: shape for shape in (shapes.causal, shapes.chunks, shapes.everything, shapes.first, shapes.window)
}


@lru_cache(maxsize=1024)
def parse(text: str) -> Pattern:
    """The pattern that `text` writes, such as "causal() & window(256)".

    Raises InputError where the text is no pattern, with the nearest valid name.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError):
        raise InputError(f"{text!r} is not a pattern; write one as in 'causal() & window(256)'") from None
    return _build(tree.body, text)


def _build(node: ast.expr, text: str) -> Pattern:
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return _build(left, text) & _build(right, text)
        case ast.BinOp(left, ast.BitOr(), right):
            return _build(left, text) | _build(right, text)
        case ast.UnaryOp(ast.Invert(), inner):
            return ~_build(inner, text)
        case ast.Call(ast.Name(name), _, _):
            return _shape(name, node, text)
        case ast.Name(name):
            raise InputError(f"pattern {text!r}: write {name}() with its parentheses")
    raise InputError(f"pattern {text!r}: {ast.unparse(node)!r} is not allowed; compose shapes with &, | and ~")


def _shape(name: str, call: ast.Call, text: str) -> Pattern:
    if name not in _SHAPES:
        raise InputError(f"pattern {text!r}: unknown shape {name!r}{nearest(name, _SHAPES)}")
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
        return _SHAPES[name](*arguments, **named)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"pattern {text!r}: {ast.unparse(call)} does not fit {name}'s arguments") from None
