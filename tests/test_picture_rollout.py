"""Rollout: each token has its bar and its colour, rows are a strip, and long inputs name what matters in them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from clearhead.errors import InputError, ShapeError
from clearhead.picture import png, rollout
from clearhead.picture.rollouts import MOST, WRITTEN
from clearhead.picture.scale import scale_of_weights, without_peaks
from legible import check_legible


def relevance(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).dirichlet(np.full(shape[-1], 0.3), shape[:-1])


def bars(figure) -> tuple[list[float], list[float]]:
    """Middles and lengths of the bars."""
    (boxes,) = figure.axes[0].containers
    return [box.get_x() + box.get_width() / 2 for box in boxes], [box.get_height() for box in boxes]


def chips(figure) -> list[tuple[str, tuple]]:
    """The texts below the bars, with their colours."""
    boxes = [artist for artist in figure.artists if isinstance(artist, Rectangle)]
    words = [text for text in figure.texts if text.get_verticalalignment() == "baseline"]
    return [(word.get_text(), box.get_facecolor()) for word, box in zip(words, boxes, strict=True)]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda x: x.tolist()])
def test_each_token_has_its_bar(kind):
    values = relevance(5)
    figure = rollout(kind(values), list("abcde"))
    at, long = bars(figure)
    assert at == pytest.approx([0, 1, 2, 3, 4])
    assert long == pytest.approx(values.tolist())
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == list("abcde")
    scale = scale_of_weights(values, False)
    for label, value in zip(labels, values, strict=True):
        assert label.get_bbox_patch().get_facecolor() == pytest.approx(scale.colour(value))


def test_rows_are_a_strip_and_the_bars_are_of_the_last_one():
    values = relevance(3, 6)
    figure = rollout(values, rows=["first", "second", "third"])
    assert bars(figure)[1] == pytest.approx(values[-1].tolist())
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), values)
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["first", "second", "third"]
    assert figure.axes[0].get_xlabel() == "token · bars of third"


def test_a_text_has_the_colours_of_its_tokens():
    values, tokens = relevance(80), [f"w{i}" for i in range(79)] + [" "]
    figure = rollout(values, tokens)
    scale = scale_of_weights(values, False)
    assert [word for word, _ in chips(figure)] == [*tokens[:79], "␣"]
    for (_, color), value in zip(chips(figure), values, strict=True):
        assert color == pytest.approx(scale.colour(value))


def test_long_inputs_are_pooled_and_name_their_most_relevant_tokens():
    values, tokens = relevance(2, 3000), [f"w{i}" for i in range(3000)]
    figure = rollout(values, tokens)
    _, long = bars(figure)
    assert long == pytest.approx(values[-1].reshape(-1, 12).mean(-1).tolist())
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), values.reshape(2, -1, 12).mean(-1))
    assert "3,000 positions, 12 to a bar" in figure.axes[0].get_xlabel()
    best = np.argsort(-values[-1])[:MOST]
    assert [word.split(" ")[0] for word, _ in chips(figure)] == [f"w{i}" for i in best]
    assert any(f"the most relevant of {3000:,} tokens" in text.get_text() for text in figure.texts)
    assert len(chips(rollout(relevance(WRITTEN), tokens[:WRITTEN]))) == WRITTEN


def test_a_few_peaks_do_not_take_the_colours_of_all_others():
    values = relevance(10, 100)
    values[0, 5] = 50.0
    assert without_peaks(values) < 1.0
    assert without_peaks(values[1:]) == values[1:].max()
    figure = rollout(values)
    assert figure.axes[1].images[0].norm.vmax < 1.0
    assert rollout(values, log=True).axes[1].images[0].norm.vmax == 50.0


def test_what_is_not_finite_is_hatched_and_explained():
    values = relevance(2, 6)
    values[0, 2], values[1, 3] = math.nan, math.inf
    figure = rollout(values, list("abcdef"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["NaN or infinite"]
    assert figure.axes[1].images[0].get_array().mask.sum() == 2
    assert figure.axes[0].get_xticklabels()[3].get_bbox_patch() is None
    check_legible(figure)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((4,), "a"),
        ((1,), "a"),
        ((3, 12), "日本"),
        ((12, 60), "internationalisation"),
        ((2, 200), "w"),
        ((5, 3000), "w"),
    ],
)
def test_every_length_is_legible(shape, tokens):
    names = [f"{tokens}{i}" for i in range(shape[-1])]
    rows = [f"model.layers.{i}.self_attn" for i in range(shape[0])] if len(shape) > 1 else None
    figure = rollout(relevance(*shape), names, rows, title="What it rests on")
    check_legible(figure)
    assert png(figure).startswith(b"\x89PNG")


def test_all_the_same_and_negative_ones_are_drawn():
    for values in (np.full((2, 8), 0.125), np.zeros(4), np.linspace(-1, 2, 20), -np.ones(3)):
        check_legible(rollout(values))


@pytest.mark.parametrize(
    ("values", "arguments", "error", "words"),
    [
        (np.ones((1, 2, 3)), {}, ShapeError, r"shape \(1, 2, 3\), expected \(N,\), or \(R, N\)"),
        (np.ones(0), {}, ShapeError, r"shape \(0,\)"),
        (np.ones(3), {"tokens": ["a"]}, ShapeError, "tokens: 1 labels, but the relevance has 3 tokens"),
        (np.ones((2, 3)), {"rows": ["a"]}, ShapeError, "rows: 1 labels, but the relevance has 2 rows"),
        (np.array(["a"]), {}, InputError, "real numbers"),
        (np.array([-1.0, 1.0]), {"log": True}, InputError, "no place for negative"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_one_line(values, arguments, error, words):
    with pytest.raises(error, match=words) as raised:
        rollout(values, **arguments)
    assert "\n" not in str(raised.value)
