"""Names of tokens in any script: written where some font of the machine can, spelt out where none can."""

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import fontManager

from clearhead.picture import fonts, heatmap
from clearhead.picture.sheet import inches
from clearhead.picture.ticks import LONGEST, drawable, visible

OURS = "\U00030000\U00030001"
"""Characters of Chinese that matplotlib's own fonts do not have."""
SPELT = r"\U00030000\U00030001"


def square(side: int):
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, side), (side, side), (side, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


@pytest.fixture
def forget(monkeypatch):
    """No fonts but matplotlib's own; what is known about others is forgotten, before and after."""
    own = [font for font in fontManager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(fontManager, "ttflist", own)

    def all_of_it() -> None:
        for known in (fonts._family, fonts._others, fonts._shapes, inches):
            known.cache_clear()

    all_of_it()
    yield
    all_of_it()


@pytest.fixture
def font(tmp_path, forget):
    """A font of black squares, installed: its family."""
    names = [".notdef", "one", "two"]
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder(names)
    made.setupCharacterMap(dict(zip(map(ord, OURS), names[1:], strict=True)))
    made.setupGlyf({name: square(side) for name, side in zip(names, (100, 700, 900), strict=True)})
    made.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    made.setupHorizontalHeader(ascent=900, descent=-100)
    made.setupNameTable({"familyName": "Squares Sans", "styleName": "Regular"})
    made.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=100)
    made.setupPost()
    made.save(tmp_path / "squares.ttf")
    fontManager.addfont(tmp_path / "squares.ttf")
    return "Squares Sans"


def test_a_font_of_the_machine_writes_what_the_first_one_cannot(font):
    assert drawable(f"a{OURS}é") == f"a{OURS}é"
    assert fonts.fallback(f"a{OURS}é") == [font]
    assert fonts.fallback("aé") == []
    assert fonts.fallback("é\U0010ffff") == []
    assert fonts.properties(OURS, 9.0).get_family()[-1] == font
    assert inches(OURS, 72.0) == pytest.approx(2.0, rel=0.02)  # two squares of an em


def test_the_picture_shows_it(font):
    """Two pictures that differ in a label alone differ in its squares, and nothing warns of a missing shape."""
    weights = np.random.default_rng(0).random((3, 3))
    pictures = []
    for label in OURS:
        canvas = FigureCanvasAgg(heatmap(weights, rows=["a", label, "b"]))
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., 0].astype(int))
    changed = np.argwhere(pictures[0] != pictures[1])
    assert len(changed) > 10
    assert changed[:, 1].max() < pictures[0].shape[1] / 3  # at the left, where the queries are named


def test_what_no_font_has_is_spelt_out(forget):
    assert drawable(f"a{OURS}") == f"a{SPELT}"
    assert drawable("\U0010ffff\x00") == r"\U0010ffff\x00"


def test_a_font_that_cannot_be_read_is_passed_over(font, tmp_path):
    (tmp_path / "squares.ttf").write_bytes(b"no font")
    assert drawable(OURS) == SPELT


def test_a_long_name_is_cut_between_characters(forget):
    assert visible(OURS * 9) == f"{SPELT}…"
    assert len(visible("x" * 99)) == LONGEST
