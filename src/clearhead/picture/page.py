"""One self-contained HTML page: everything in it, nothing fetched, and nothing a word can say is taken for markup.

The page forbids itself every request and every script and style but its own two, which it names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

SHARED = ("page", "colour", "map")
REPORT = (*SHARED, "chart", "strips", "explorer")
LIVE = (*REPORT, "live")
HEADS = ("page", "colour", "keys", "strips", "dashboard")
ATLAS = (*SHARED, "packing", "keys", "strips", "links", "paths", "dashboard", "weights", "atlas")
"""The parts of each page's script, named like the Python files that write what they bring to life; they share names."""


class Markup(str):
    """Text that is HTML already. Only `tag` and `join` make it, out of escaped parts."""


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element. Plain strings are escaped; an attribute of None is left out, and `_` in its name becomes `-`.

    >>> tag("td", "a < b", class_="word")
    '<td class="word">a &lt; b</td>'
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opened = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Markup(f"<{name}{opened}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Children one after the other."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def void(name: str, /, **attributes: object) -> Markup:
    """An element of HTML that has neither children nor an end, such as `input`."""
    return Markup(tag(name, **attributes).removesuffix(f"</{name}>"))


def page(title: str, body: Markup, data: Any, script: Sequence[str], style: Sequence[str] = ("report",)) -> bytes:
    """The page with `body`, and `data` as JSON for its script, in UTF-8 (a lone surrogate is spelt out: \\udc80).

    `script` and `style` are made of the parts of these names.
    """
    styles, scripts = style_of(style), script_of(script)
    own = f"style-src {_hash(styles)}; script-src {_hash(scripts)}"
    policy = html.escape(f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'", quote=False)
    return _filled("report.html", title, body, data, policy=policy, style=styles, script=scripts)


def linked_page(title: str, body: Markup, data: Any) -> bytes:
    """The same, of a server that has its script at page.js and its style at page.css, and says what it may do."""
    return _filled("linked.html", title, body, data)


def script_of(parts: Sequence[str], more: Sequence[str] = ()) -> str:
    """The script that is made of these parts and of `more` text, which share their names with each other alone."""
    joined = "\n".join([*(_read(f"{name}.js") for name in parts), *more])
    return f'\n"use strict";\n(() => {{\n{joined}}})();\n'


def style_of(parts: Sequence[str]) -> str:
    """The style that is made of these parts."""
    return "".join(_read(f"{name}.css") for name in parts)


def _filled(shell: str, title: str, body: Markup, data: Any, **more: str) -> bytes:
    packed = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    text = Template(_read(shell)).substitute(title=html.escape(title), body=body, data=packed, **more)
    return text.encode("utf-8", "backslashreplace")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
