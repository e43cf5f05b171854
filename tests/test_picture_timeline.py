"""Every head through training: what was measured stands at its step, what was not is a gap, and alarms say when."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, QuadMesh

from clearhead.errors import InputError, ShapeError
from clearhead.picture import history, png, timeline
from clearhead.picture.sheet import spread
from legible import check_legible

LAYERS = ["encoder.layers.0.attention", "encoder.layers.1.attention"]
HEADS = [(layer, head) for layer in LAYERS for head in range(3)]


def course(steps: int, heads: int) -> np.ndarray:
    return np.random.default_rng(5).random((steps, heads))


def records(values: np.ndarray, steps, name: str = "sink") -> list[dict]:
    """A record for each number; NaN has none."""
    return [
        {"step": int(at), "layer": layer, "head": head, name: float(value)}
        for at, row in zip(steps, values, strict=True)
        for (layer, head), value in zip(HEADS, row, strict=True)
        if not math.isnan(value)
    ]


def strip(figure) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the strip's cells along the steps, and its cells (heads, cells), NaN where there are none."""
    (mesh,) = (each for each in figure.axes[1].collections if isinstance(each, QuadMesh))
    return mesh.get_coordinates()[0, :, 0], mesh.get_array().filled(np.nan)


def named_lines(figure) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The coloured lines by the names beside them."""
    named = {text.get_color(): text.get_text() for text in figure.axes[0].texts if "head" in text.get_text()}
    found = {}
    for line in figure.axes[0].lines:
        if line.get_transform() == figure.axes[0].transData and line.get_color() in named and len(line.get_xdata()) > 1:
            found.setdefault(named[line.get_color()], line.get_data())
    return found


@pytest.mark.parametrize("shuffled", [False, True])
def test_records_stand_at_their_steps_and_heads(shuffled):
    values = course(8, 6)
    given = records(values, range(0, 160, 20))
    if shuffled:
        given = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
        given.sort(key=lambda record: LAYERS.index(record["layer"]))  # layers keep the order in which they come
    edges, cells = strip(timeline(given, "sink"))
    np.testing.assert_allclose(cells, values.T)
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, np.arange(0, 160, 20))


def test_an_array_draws_what_its_records_draw():
    values, steps = course(5, 6), np.arange(5) * 10
    one = timeline(torch.tensor(values), "sink", steps, HEADS)
    other = timeline(records(values, steps), "sink")
    for first, second in zip(strip(one), strip(other), strict=True):
        np.testing.assert_allclose(first, second)


def test_the_records_of_a_monitor_are_read_with_their_alarms():
    event = {
        "event": "began",
        "rule": "entropy collapse",
        "layer": LAYERS[1],
        "turn": 0,
        "head": 1,
        "severity": "alarm",
    }
    values = course(3, 6)
    given = [
        {
            "step": 10 * i,
            "attention": {
                LAYERS[0]: {"sink": [*row[:3]], "weight_norm": 3.0},
                LAYERS[1]: {"sink": [*row[3:5], None], "entropy": [1.0] * 3},
            },
        }
        for i, row in enumerate(values.tolist())
    ]
    given[1]["alarms"] = [
        {**event, "value": 0.01, "sentence": f"{LAYERS[1]} head 1: it collapsed"},
        {**event, "severity": "note", "sentence": "a note"},
        {**event, "layer": "elsewhere", "head": None, "sentence": "elsewhere: all tokens are the same"},
    ]
    given += [{"step": 15, "train_loss": 2.0}, {"step": 20, "alarms": [{**event, "event": "over"}]}]
    figure = timeline(given, "sink")
    _, cells = strip(figure)
    np.testing.assert_allclose(cells, np.where(np.arange(6)[:, None] == 5, np.nan, values.T))
    words = [text.get_text() for text in figure.texts]
    assert f"step 10: {LAYERS[1]} head 1: it collapsed" in words
    assert "step 10: elsewhere: all tokens are the same" in words
    assert not any("a note" in word for word in words)


def test_what_was_not_measured_is_a_gap_and_never_zero():
    values = course(9, 6)
    values[3:5, 1] = np.nan
    kept = [i for i in range(9) if i != 6]
    steps = np.arange(9) * 20
    steps[7:] += 200
    given = records(values[kept], steps[kept])
    figure = timeline(given, "sink", highlight=[HEADS[1]])
    edges, cells = strip(figure)
    assert np.isnan(cells[1, 3:5]).all()
    (hole,) = np.flatnonzero(np.isnan(cells).all(0))
    assert edges[hole] == pytest.approx(steps[5] + 10)
    assert edges[hole + 1] == pytest.approx(steps[7] - 10)
    at, shown = named_lines(figure)[
        "encoder.layers.0.attention · head 1".replace("encoder.", "").replace(".attention", "")
    ]
    assert np.isnan(shown[[3, 4, 6]]).all()
    np.testing.assert_allclose(shown[~np.isnan(shown)], values[[0, 1, 2, 5, 7, 8], 1])
    np.testing.assert_allclose(at[~np.isnan(shown)], steps[[0, 1, 2, 5, 7, 8]])
    others = [each for each in figure.axes[0].collections if isinstance(each, LineCollection)]
    assert len(others[0].get_segments()) == 5
    assert "not measured" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_regular_change_of_pace_is_no_gap():
    steps = [*range(10), *range(10, 200, 20)]
    _, cells = strip(timeline(course(len(steps), 2), "sink", steps))
    assert cells.shape == (2, len(steps))


def test_infinity_is_told_from_what_is_missing():
    values = course(6, 3)
    values[2, 1], values[4, 0] = np.inf, np.nan
    figure = timeline(values, "max_logit")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["not measured", "infinite"]
    assert len(figure.axes[1].patches) == 1
    box = figure.axes[1].patches[0]
    assert (box.get_x(), box.get_y()) == (1.5, 0.5)


def test_alarms_are_marked_at_their_heads_and_told_in_order():
    values, steps = course(6, 6), np.arange(6) * 100
    alarms = [
        {"step": 300, "layer": LAYERS[1], "head": 2, "sentence": "logit explosion"},
        {"step": 200, "layer": LAYERS[0], "head": None, "sentence": "rank collapse"},
    ]
    figure = timeline(records(values, steps), "sink", alarms=alarms)
    spots = [
        [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        for axes in figure.axes[:2]
    ]
    assert spots == [[(300, pytest.approx(values[3, 5]))], [(300, 5)]]
    words = [text.get_text() for text in figure.texts]
    told = [f"step 200: {LAYERS[0]}: rank collapse", f"step 300: {LAYERS[1]} head 2: logit explosion"]
    assert [word for word in words if word.startswith("step ")] == told
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text().isdigit()] == ["1", "2"]
    assert len(named_lines(figure)) == 1


def test_many_heads_are_bands_and_long_courses_keep_their_peaks():
    past = history.read(course(5000, 300), "sink", None, None)
    past.values[1234, 7], past.values[100:300] = 9.0, np.nan
    at, shown = past.line(7, 800)
    assert len(at) <= 1300
    assert np.nanmax(shown) == 9.0
    assert at[np.nanargmax(shown)] == 1234
    assert np.isnan(shown).any()
    _, cells = past.cells(500)
    np.testing.assert_allclose(cells[3], past.values[30:40].mean(0))
    assert np.isnan(cells[11]).all()
    where, bands = past.bands(800)
    stretch = past.values[np.array_split(np.arange(5000), 800)[400]]
    assert bands[400].tolist() == pytest.approx(np.percentile(stretch, [0, 25, 50, 75, 100]))
    assert where[400] == pytest.approx(np.array_split(np.arange(5000), 800)[400].mean())
    assert len(timeline(past.values, "sink").axes[0].collections) == 2


@pytest.mark.parametrize(("steps", "heads"), [(1, 6), (2, 1), (3, 250), (40, 24), (1000, 24)])
def test_every_size_is_legible(steps, heads):
    layers = max(1, heads // 12)
    values = course(steps, heads)
    values[steps // 2, 0] = 5000.0
    named = [(f"model.layers.{j * layers // heads}.日本", j) for j in range(heads)]
    alarms = [
        {"step": i % steps, "layer": named[i % heads][0], "head": named[i % heads][1], "sentence": "so it is " * 30}
        for i in range(12)
    ]
    figure = timeline(values, "max_logit", None, named, alarms=alarms, title="a run")
    check_legible(figure)
    assert png(figure).startswith(b"\x89PNG")


def test_nothing_measured_and_all_the_same_are_drawn():
    for values in (np.full((4, 3), np.nan), np.full((4, 3), 0.25), np.zeros((4, 3))):
        check_legible(timeline(values, "entropy"))


def test_places_are_spread_within_their_range():
    assert spread([0.5, 0.5, 0.1], 0.1, 0.0, 1.0) == pytest.approx([0.5, 0.6, 0.1])
    assert spread([0.98, 0.99, 1.0], 0.1, 0.0, 1.0) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([-0.2], 0.1, 0.0, 1.0) == [0.0]
    assert spread([], 0.1, 0.0, 1.0) == []


GOOD = {"step": 1, "layer": "a", "head": 0, "sink": 0.5}
ALARM = {"step": 1, "layer": "a", "head": 0, "sentence": "s"}


@pytest.mark.parametrize(
    ("values", "arguments", "error", "words"),
    [
        ([], {}, InputError, "no record holds 'sink': there are none"),
        ([{**GOOD, "sinks": 1}, {"step": 2, "layer": "a", "head": 0}], {"name": "sinc"}, InputError, "'sinc'; did you"),
        ([{"layer": "a", "head": 0, "sink": 1}], {}, InputError, "record 0 has no 'step'"),
        ([{**GOOD, "sink": "x"}], {}, InputError, "'sink' at step 1 is 'x', expected a number"),
        (np.ones(3), {}, ShapeError, r"shape \(3,\), expected \(S, n\)"),
        (np.ones((0, 3)), {}, ShapeError, r"shape \(0, 3\)"),
        (np.ones((2, 3)), {"steps": [1]}, ShapeError, "steps: 1 labels, but the values have 2 steps"),
        (np.ones((2, 3)), {"steps": [2, 1]}, InputError, "must rise"),
        (np.ones((2, 3)), {"heads": [("a", 0)]}, ShapeError, "heads: 1 labels, but the values have 3 heads"),
        ([GOOD], {"steps": [1]}, InputError, "name their steps and heads themselves"),
        ([GOOD], {"highlight": [("b", 0)]}, InputError, "highlight: no layer 'b'"),
        ([GOOD], {"highlight": [("a", 1)]}, InputError, "highlight: no head 1 in layer 'a', which has 0"),
        ([GOOD], {"alarms": [{**ALARM, "head": 3}]}, InputError, "alarm 0: no head 3"),
        ([GOOD], {"alarms": [{**ALARM, "step": 7}]}, InputError, "alarm 0 is at step 7, and the steps are 1 … 1"),
        ([GOOD], {"alarms": [{"step": 1, "layer": "a"}]}, InputError, "alarm 0 has no 'sentence'"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_one_line(values, arguments, error, words):
    with pytest.raises(error, match=words) as raised:
        timeline(values, **{"name": "sink", **arguments})
    assert "\n" not in str(raised.value)
