"""A hook of mkdocs: equations, written as on GitHub, become MathML, which browsers show without a script or a font.

    $\\sqrt{d}$ in a line, and a block of ```math on lines of its own

What of LaTeX is understood: letters, numbers, scripts, groups, \\frac, \\sqrt, \\bar, \\text, \\mathrm, \\mathbb,
\\left and \\right, and the symbols below. Anything else is refused, so that no equation is shown wrong. Where a block
has several equations with \\qquad between, each goes to a line of its own if there is no room beside the others.
"""

import re
from collections.abc import Callable
from typing import Any

SYMBOLS = {
    "alpha": "α", "beta": "β", "delta": "δ", "ell": "ℓ", "lambda": "λ", "pi": "π", "sigma": "σ", "theta": "θ",
    "partial": "∂", "infty": "∞", "top": "⊤", "ldots": "…", "cdots": "⋯",
    "cdot": "⋅", "times": "×", "odot": "⊙", "in": "∈", "le": "≤", "ge": "≥", "ne": "≠", "approx": "≈", "sim": "∼",
    "propto": "∝", "to": "→", "mapsto": "↦", "leftarrow": "←", "Rightarrow": "⇒", "lvert": "|", "rvert": "|",
    "lVert": "‖", "rVert": "‖", "langle": "⟨", "rangle": "⟩", "sum": "∑", "prod": "∏", "|": "‖", "{": "{", "}": "}",
}  # fmt: skip
IDENTIFIERS = "αβδℓλπσθ∂∞⊤…⋯"
DOUBLE = {"R": "ℝ", "E": "𝔼", "1": "𝟙"}
LIMITS = ("sum", "prod", "max", "min", "lim")
FUNCTIONS = ("max", "min", "lim", "log", "exp", "tanh", "cos", "sin")
SPACES = {"\\,": "0.17em", "\\;": "0.28em", "\\ ": "0.25em", "~": "0.25em", "\\quad": "1em"}

_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+(?:[.,][0-9]+)*|\S", re.DOTALL)
_PARTS = re.compile(
    r"^```math\n(?P<block>.*?)^```$|^```.*?^```$|(?P<code>`+)(?!`).*?(?<!`)(?P=code)(?!`)"
    r"|\$(?P<inline>[^$\s](?:[^$\n]*[^$\s])?)\$(?P<after>[.,;:)]*)",
    re.MULTILINE | re.DOTALL,
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its equations as MathML; code stays as it is."""
    return _PARTS.sub(_replaced, markdown)


def _replaced(match: re.Match[str]) -> str:
    if match["block"] is not None:
        parts = [mathml(part, block=True) for part in match["block"].split("\\qquad")]
        return f'<div class="equation">{"".join(parts)}</div>'
    if match["inline"] is None:
        return match[0]
    # Markdown would end the paragraph before a bare <math>, and browsers the line before a full stop
    return f'<span class="equation">{mathml(match["inline"])}{match["after"]}</span>'


def equations(markdown: str) -> list[str]:
    """All equations of a page."""
    found = [match["block"] or match["inline"] or "" for match in _PARTS.finditer(markdown)]
    return [part for equation in found for part in equation.split("\\qquad") if part]


def mathml(latex: str, block: bool = False) -> str:
    """An equation as MathML. Raises ValueError for what is not understood."""
    try:
        content = _Reader(latex).row("")
    except ValueError as error:
        raise ValueError(f"{error} in the equation {latex.strip()!r}") from None
    return f'<math display="block">{content}</math>' if block else f"<math>{content}</math>"


class _Reader:
    """Reads tokens one after the other; every method returns MathML."""

    def __init__(self, latex: str) -> None:
        self.tokens = _TOKEN.findall(latex)

    def next(self, *expected: str) -> str:
        token = self.tokens.pop(0) if self.tokens else ""
        if expected and token not in expected:
            raise ValueError(f"{token or 'the end'} where {' or '.join(expected) or 'the end'} should be")
        return token

    def row(self, end: str) -> str:
        """What comes before `end`, which is consumed."""
        parts = []
        while self.tokens and self.tokens[0] != end:
            parts.append(self.scripted())
        self.next(end)
        return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"

    def scripted(self) -> str:
        """An atom with what stands below and above it."""
        limits = self.tokens[0].removeprefix("\\") in LIMITS
        function = self.tokens[0].removeprefix("\\") in FUNCTIONS
        base, below, above = self.atom(), "", ""
        while self.tokens and self.tokens[0] in ("_", "^", "'"):
            mark = self.next()
            if mark == "_":
                below = self.atom()
            else:
                above += "<mo>′</mo>" if mark == "'" else self.atom()
        kind = ("munder", "mover", "munderover") if limits else ("msub", "msup", "msubsup")
        if below or above:
            tag = kind[2] if below and above else kind[0] if below else kind[1]
            base = f"<{tag}>{base}{below}{above}</{tag}>"
        bracket = self.tokens[:1] in (["("], ["\\left"])
        return base + ('<mspace width="0.17em"/>' if function and not bracket else "")

    def atom(self) -> str:
        token = self.next()
        if token in ("", "}", "&", "_", "^"):
            raise ValueError(f"{token or 'the end'} where a symbol should be")
        if token == "{":
            return self.row("}")
        if token[0].isdigit():
            return f"<mn>{token}</mn>"
        if token.isalpha():
            return f"<mi>{token}</mi>"
        if token in SPACES:
            return f'<mspace width="{SPACES[token]}"/>'
        if token[0] == "\\":
            return self.command(token[1:])
        return _operator(token)

    def command(self, name: str) -> str:
        own: dict[str, Callable[[], str]] = {
            "frac": lambda: f"<mfrac>{self.atom()}{self.atom()}</mfrac>",
            "sqrt": lambda: f"<msqrt>{self.atom()}</msqrt>",
            "bar": lambda: f"<mover>{self.atom()}<mo stretchy='false'>¯</mo></mover>",
            "text": lambda: f"<mtext>{self.words()}</mtext>",
            "mathrm": lambda: f"<mi>{self.words()}</mi>",
            "mathbb": lambda: f"<mi>{DOUBLE[self.words()]}</mi>",
            "left": self.fenced,
        }
        if name in own:
            return own[name]()
        if name in FUNCTIONS:
            return f"<{'mo' if name in LIMITS else 'mi'}>{name}</{'mo' if name in LIMITS else 'mi'}>"
        if name not in SYMBOLS:
            raise ValueError(f"unknown \\{name}")
        symbol = SYMBOLS[name]
        return f"<mi>{symbol}</mi>" if symbol in IDENTIFIERS else _operator(symbol)

    def words(self) -> str:
        """The letters of a group; `~` is a space."""
        self.next("{")
        words = ""
        while self.tokens and self.tokens[0] != "}":
            words += self.next()
        self.next("}")
        return _escaped(words.replace("~", "\u00a0"))

    def fenced(self) -> str:
        """\\left( … \\right), as high as what is between."""
        left = self.fence()
        inside = self.row("\\right")
        return f"<mrow>{left}{inside}{self.fence()}</mrow>"

    def fence(self) -> str:
        token = self.next().removeprefix("\\")
        return "" if token == "." else f'<mo stretchy="true">{_escaped(SYMBOLS.get(token, token))}</mo>'


def _operator(symbol: str) -> str:
    how = ' stretchy="false"' if symbol in "()[]{}|‖⟨⟩" else ' lspace="0" rspace="0"' if symbol == "/" else ""
    return f"<mo{how}>{_escaped({'-': '−', '*': '∗'}.get(symbol, symbol))}</mo>"


def _escaped(text: str) -> str:
    """`text`, in which Markdown and HTML find nothing of their own."""
    return "".join(f"&#{ord(c)};" if c in "<>&*_|`\\[]" else c for c in text)
