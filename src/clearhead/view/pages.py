"""The page of a scene: what it is made of, and what it holds before it asks for anything."""

from importlib import resources

from clearhead.picture.atlases import training
from clearhead.picture.page import HEADS, Markup, join, linked_page, script_of, style_of, tag, void
from clearhead.view.scene import Scene

PARTS = ("tiles", "maps", "tokens", "flow", "page")
"""Of the script, those that stand here; they come behind `HEADS`."""


def page(scene: Scene) -> bytes:
    """What is at /."""
    told = scene.page
    find = tag("form", tag("label", "search ", _search()), id="find", role="search")
    buttons = [
        tag("button", words, id=name, type="button", hidden="")
        for name, words in (("help", "keys ?"), ("theme", "dark"))
    ]
    header = tag(
        "header",
        tag("div", tag("h1", told["title"]), tag("p", id="about")),
        tag("nav", find, *buttons, aria_label="Page"),
    )
    note = tag("p", "The maps are drawn by a script, and none may run here.", class_="absent")
    body = join(header, tag("main", note, id="explorer"), training(scene.history))
    return linked_page(told["title"], body, told)


def script() -> bytes:
    """What is at /page.js."""
    return script_of(HEADS, [_read(f"{name}.js") for name in PARTS]).encode()


def style() -> bytes:
    """What is at /page.css."""
    return (style_of(("report", "atlas")) + _read("page.css")).encode()


def _search() -> Markup:
    return void("input", id="text", type="search", autocomplete="off", placeholder="a token")


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")
