"""Draw the pictures of README and of these pages again: python docs/make_pictures.py [FOLDER]

Those of a trained model need runs/g2p (`make train`), one of them a browser too; that of the collapse needs
demos/collapse (`clearhead demo collapse`). Without, they are left alone. Those of PAGES are what the pages' own code
saves: the code is run, so that a picture is what the code above it draws.
"""

import contextlib
import io
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import clearhead as ch
from clearhead.demo import Collapse
from clearhead.demo.picture import picture as collapse_picture

HERE = Path(__file__).parent
RUN = HERE.parent / "runs" / "g2p"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
STORY = HERE.parent / "demos" / "collapse" / "collapse.json"
WORD = "attention"


def weights() -> Figure:
    """The first example: ten random tokens, and how a newly made layer spreads its attention over them."""
    torch.manual_seed(0)
    layer = ch.nn.SelfAttention(embed_dim=128)
    return ch.picture.heatmap(layer.map(torch.randn(1, 10, 128)))


def patterns() -> Figure:
    """Patterns and compositions of them, as who may see whom among the first 24 positions."""
    shown = (
        ch.causal(),
        ch.window(3),
        ch.causal() & ch.window(5),
        ch.chunks(6),
        ch.causal() & (ch.window(3) | ch.first(2)),
        ch.causal() & ~ch.window(2),
    )
    figure = Figure((9, 6.2), layout="compressed", facecolor="white")
    at, zero = torch.arange(24), torch.tensor(0)
    for axes, pattern in zip(figure.subplots(2, 3).flat, shown, strict=True):
        axes.imshow(pattern.allows(zero, zero, at[:, None], at[None, :]).numpy(), cmap="GnBu", vmin=0, vmax=1.3)
        axes.set_title(repr(pattern), fontsize=9, family="monospace")
        axes.set(xticks=[], yticks=[], xlabel="key", ylabel="query")
    return figure


def long() -> Figure:
    """8,192 tokens whose queries look for their like: a wave, seen through a causal window and two first tokens."""
    n = 8192
    at = torch.arange(n)[:, None]
    wave = torch.cat([torch.sin(at * (2 * math.pi / period)) for period in (4096, 1365, 455)], dim=-1)
    x = torch.cat([wave, 2 * at / n], dim=-1)[None, None]
    A = ch.Softmax(ch.causal() & (ch.window(3000) | ch.first(200)), scale=2.0)(x, x)
    return ch.picture.heatmap(A, log=True)


def word() -> Figure:
    """What each phoneme of a word looked at, over the heads of the last layer, in the trained model."""
    model = ch.load(RUN)
    maps = model.maps(WORD)
    A = maps[[name for name in maps if "cross" in name][-1]]
    rows = [*model.predict([WORD])[0].split(), "end"]
    return ch.picture.heatmap(A.weights().mean(1), rows=rows, columns=model.source_tokenizer.labels(WORD), title=WORD)


def atlas() -> bytes:
    """The page of `clearhead inspect` for a word, as a browser shows it: what one phoneme looks at."""
    from playwright.sync_api import sync_playwright

    from clearhead.inspect import inspect

    head = "#layer=decoder.layers.0.cross_attention&head=1&token=3"
    with tempfile.TemporaryDirectory() as work, sync_playwright() as engine:
        file = inspect(RUN, WORD, out=Path(work, "page.html")).files[0]
        browser = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1200, "height": 800}, color_scheme="light")
        page.goto(file.as_uri() + head)
        page.wait_for_selector("[data-ready]")
        seen = page.locator(".atlas").screenshot()
        browser.close()
    return seen


def story() -> Figure:
    """How attention collapses, as the demo told it last."""
    return collapse_picture(Collapse.of(json.loads(STORY.read_text(encoding="utf-8"))))


PICTURES: dict[str, Callable[[], Figure | bytes]] = {
    "weights": weights,
    "patterns": patterns,
    "long": long,
    "word": word,
    "atlas": atlas,
    "story": story,
}
TRAINED = (RUN / "model.safetensors").exists()
NEEDED = {"word": TRAINED, "atlas": TRAINED and BROWSER is not None, "story": STORY.exists()}
"""Is there what these need?"""

PAGES = (HERE / "self-attention.md", HERE / "observe.md")
DPI = 130  # crisp on screens that have more than one dot to a pixel
COLOURS = 256  # of which a picture of a page is made: a third of the bytes, and no eye sees it
_PYTHON = re.compile(r"^(<!-- not run: [^>]+ -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"src=\"pictures/(\w+\.png)\"")


def shown(page: Path) -> list[str]:
    """The files of the pictures that the code of a page saves, and the page shows."""
    found = _SHOWN.findall(page.read_text(encoding="utf-8"))
    return [name for name in found if name.removesuffix(".png") not in PICTURES]


def run(page: Path) -> None:
    """Run the code of a page, from top to bottom, in the present folder."""
    names = {"__name__": "__main__"}
    for skipped, code in _PYTHON.findall(page.read_text(encoding="utf-8")):
        if not skipped:
            exec(code, names)


def make_of(page: Path, folder: Path) -> list[Path]:
    """Draw the pictures of a page into `folder`."""
    made = [folder.resolve() / name for name in shown(page)]
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        run(page)
        for path in made:
            _save(Image.open(path.name), path)
    return made


def _png(drawn: Figure | bytes) -> io.BytesIO:
    if isinstance(drawn, bytes):
        return io.BytesIO(drawn)
    file = io.BytesIO()
    drawn.savefig(file, dpi=DPI)
    return file


def _save(picture: Image.Image, path: Path) -> None:
    few = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def make(folder: Path) -> list[Path]:
    """Draw what can be drawn here into `folder`, but for PAGES; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, draw in PICTURES.items():
        if NEEDED.get(name, True):
            made.append(folder / f"{name}.png")
            _save(Image.open(_png(draw())), made[-1])
    return made


if __name__ == "__main__":
    into = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "pictures"
    for path in make(into):
        print(path)
    for page in PAGES:
        with contextlib.redirect_stdout(None):
            paths = make_of(page, into)
        print(*paths, sep="\n")
