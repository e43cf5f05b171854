"""A statistic over layers and heads: each number in its cell, what is missing hatched, and the right heads ringed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.colors import AsinhNorm
from matplotlib.patches import Rectangle

from clearhead.errors import InputError, ShapeError
from clearhead.picture import png, statistic
from clearhead.picture.panel import HATCH, HIDDEN
from clearhead.picture.scale import measure, scale_of, written
from legible import check_legible

LAYERS = [f"model.decoder.layers.{i}.self_attn" for i in range(12)]


def numbers(*shape: int, high: float = 1.0) -> np.ndarray:
    return high * np.random.default_rng(3).random(shape)


def cells(figure, hatch: str | None = None) -> dict[tuple[int, int], float | None]:
    """What the cells show, by row and head: those in colours, or those with a hatch."""
    found = {}
    for squares in figure.axes[0].collections:
        assert isinstance(squares, PolyCollection)
        if squares.get_hatch() == hatch:
            values = squares.get_array() if hatch is None else [None] * len(squares.get_paths())
            for path, value in zip(squares.get_paths(), values, strict=True):
                x, y = path.vertices.min(0) + 0.5
                found[round(y), round(x)] = value
    return found


def rings(figure) -> list[tuple[float, float, float]]:
    """The middle row, the first head and the number of heads of each ring."""
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [
        (round(box.get_y() + box.get_height() / 2), round(box.get_x() + 0.3), round(box.get_width())) for box in boxes
    ]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda x: {f"layer {i}": row for i, row in enumerate(x)}])
def test_each_head_has_its_number_in_its_cell(kind):
    values = numbers(3, 4)
    figure = statistic(kind(values), "normalized_entropy")
    assert cells(figure) == {(i, j): pytest.approx(values[i, j]) for i in range(3) for j in range(4)}
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{value:.2f}" for value in values.flat]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["layer 0", "layer 1", "layer 2"]


def test_layers_may_have_different_numbers_of_heads():
    figure = statistic({"encoder": [0.1, 0.2], "cross": None, "decoder": [0.3, 0.4, math.nan, math.inf]}, "sink")
    assert {*cells(figure)} == {(0, 0), (0, 1), (2, 0), (2, 1)}
    assert {*cells(figure, HIDDEN["hatch"])} == {(1, 0), (1, 1), (1, 2), (1, 3), (2, 2)}
    assert {*cells(figure, HATCH["hatch"])} == {(2, 3)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["not measured", "infinite"]


def test_a_statistic_has_the_scale_that_suits_it():
    shares = scale_of(numbers(4, 4, high=0.2), measure("normalized_entropy"))
    assert (shares.norm.vmin, shares.norm.vmax) == (0.0, 1.0)
    distances = scale_of(numbers(4, 4, high=50), measure("distance"))
    assert (distances.norm.vmin, distances.norm.vmax) == (0.0, pytest.approx(50, rel=0.2))
    logits = np.array([3.0, 4.0, 5.0, 2000.0])
    exploded = scale_of(logits, measure("max_logit"))
    assert isinstance(exploded.norm, AsinhNorm)
    assert exploded.norm(4.0) > 0.1
    assert exploded.ticks == [0.0, 10.0, 100.0, 1000.0]
    assert scale_of(-logits, measure("max_logit")).ticks == [-1000.0, -100.0, -10.0, 0.0, 10.0, 100.0, 1000.0]
    both = scale_of(np.array([-2.0, 1.0]), measure("my own"))
    assert both.norm(0.0) == 0.5
    assert scale_of(np.full(3, np.nan), measure("entropy")).norm.vmax == 1.0


def test_marks_ring_their_heads_and_are_explained():
    marks = {"entropy collapse": [(0, 3), (LAYERS[5], 11)], "rank collapse": [(2, None)], "sink": [(0, 3)]}
    figure = statistic(numbers(12, 12), "entropy", LAYERS, marks=marks)
    assert rings(figure) == [(0, 3, 1), (5, 11, 1), (2, 0, 12), (0, 3, 1)]
    outer, inner = figure.axes[0].patches[0], figure.axes[0].patches[3]
    assert inner.get_width() < outer.get_width()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*marks]


def test_numbers_are_left_out_where_they_do_not_fit():
    figure = statistic(numbers(60, 64), "sink", [f"layer {i}" for i in range(60)])
    assert not figure.axes[0].texts
    assert len(cells(figure)) == 60 * 64


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (-0.001, "0.00"),
        (0.567, "0.57"),
        (14.0, "14.0"),
        (-14.04, "-14.0"),
        (1203.4, "1203"),
        (2e6, "2e6"),
        (3e15, "3e15"),
        (math.nan, ""),
        (math.inf, ""),
    ],
)
def test_numbers_are_short(value, text):
    assert written(value) == text


SHAPES = (
    numbers(2, 3),
    numbers(1, 1),
    numbers(12, 12, high=1e4),
    numbers(3, 40),
    numbers(48, 2),
    np.full((3, 4), np.nan),
    np.ones((2, 2)),
    -numbers(4, 5, high=1e7),
)


@pytest.mark.parametrize("values", SHAPES, ids=lambda x: f"{x.shape}")
def test_every_shape_is_legible(values):
    layers = [*LAYERS, *(f"日本語.{i}" for i in range(40))][: len(values)]
    marks = {"a": [(0, 0)], "a much longer word for what ails these heads": [(0, 0), (len(values) - 1, None)]}
    figure = statistic(values, "distance", layers, marks=marks, title="all of them, on 32 sentences of the test set")
    check_legible(figure)
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("values", "arguments", "error", "words"),
    [
        (np.ones(3), {}, ShapeError, r"shape \(3,\), expected \(L, H\)"),
        (np.ones((0, 3)), {}, ShapeError, r"shape \(0, 3\)"),
        ({"a": np.ones((2, 2))}, {}, ShapeError, r"values\['a'\]: shape \(2, 2\), expected \(H,\)"),
        ({}, {}, InputError, "nothing was measured"),
        ({"a": None}, {}, InputError, "nothing was measured"),
        (np.array([["x"]]), {}, InputError, "real numbers"),
        (np.ones((2, 3)), {"layers": ["a"]}, ShapeError, r"1 labels, but the values have 2 layers"),
        ({"a": [1.0]}, {"layers": ["a"]}, InputError, "name the layers already"),
        (np.ones((2, 3)), {"marks": {"bad": [(2, 0)]}}, InputError, r"marks\['bad'\]: layer 2 is out of range"),
        (
            np.ones((2, 3)),
            {"marks": {"bad": [(1, 3)]}},
            InputError,
            r"head 3 is out of range, 'layer 1' has heads 0 … 2",
        ),
        (np.ones((2, 3)), {"marks": {"bad": [("layer l", 0)]}}, InputError, "no layer 'layer l'; did you mean 'layer"),
        (np.ones((2, 3)), {"marks": {str(i): [] for i in range(9)}}, InputError, "9 kinds"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_one_line(values, arguments, error, words):
    with pytest.raises(error, match=words) as raised:
        statistic(values, "entropy", **arguments)
    assert "\n" not in str(raised.value)
