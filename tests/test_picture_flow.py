"""The flow of one token: the vectors as they are, the scores that they give, and the keys that matter of many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import clearhead as ch
from clearhead.errors import InputError, ShapeError
from clearhead.picture import flow, png
from clearhead.picture.vectors import MOST
from legible import check_legible


def head(n: int, d: int = 8, d_v: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of a head for its token n // 2, which sees itself and the past."""
    generator = torch.Generator().manual_seed(seed)
    x, q, k = (torch.randn(n, size, generator=generator) for size in (6, d, d))
    v = torch.randn(n, d_v, generator=generator)
    A = ch.Softmax(ch.causal())(q, k)
    i = n // 2
    return {"q": q[i], "k": k, "v": v, "weights": A.weights(i), "out": (A @ v)[i], "x": x}


def strips(figure) -> list[np.ndarray]:
    """What is drawn in colours, from top to bottom and left to right."""
    placed = [(axes.get_position(), axes.images[0].get_array()) for axes in figure.axes if axes.images]
    return [values for _, values in sorted(placed, key=lambda each: (-round(each[0].y1, 3), each[0].x0))]


def lengths(figure) -> list[list[float]]:
    """The lengths of the bars, of scores and of weights."""
    both = [axes for axes in figure.axes if not axes.images]
    return [[bar.get_width() for bar in axes.patches] for axes in sorted(both, key=lambda axes: axes.get_position().x0)]


@pytest.mark.parametrize("kind", [lambda t: t, lambda t: t.numpy(), lambda t: t.double()])
def test_every_vector_is_drawn_as_it_is(kind):
    tensors = head(7)
    figure = flow(**{name: kind(tensor) for name, tensor in tensors.items()}, tokens=list("abcdefg"), query=3)
    q, x, k, v, out = strips(figure)
    for name, drawn in (("q", q[0]), ("x", x), ("k", k), ("v", v), ("out", out[0])):
        np.testing.assert_allclose(drawn, tensors[name], rtol=1e-6)


def test_scores_and_weights_are_bars_and_unseen_keys_have_none():
    tensors = head(7)
    figure = flow(**tensors)
    scores, weights = lengths(figure)
    np.testing.assert_allclose(scores, (tensors["k"] @ tensors["q"] / math.sqrt(8))[:4], rtol=1e-5)
    np.testing.assert_allclose(weights, tensors["weights"][:4], rtol=1e-5)
    assert [text.get_text() for text in figure.texts].count("not seen") == 6
    doubled, _ = lengths(flow(**tensors, scale=2 / math.sqrt(8)))
    np.testing.assert_allclose(doubled, 2 * np.array(scores), rtol=1e-5)


def test_of_many_keys_the_weightiest_are_drawn_and_the_token_itself():
    tensors = head(3000)
    tensors["weights"][1500] = 0.0
    figure = flow(**tensors, tokens=[f"w{i}" for i in range(3000)], query=-1500)
    weights = tensors["weights"].numpy()
    best = sorted({*np.argsort(-weights, kind="stable")[: MOST - 1].tolist(), 1500})
    np.testing.assert_array_equal(strips(figure)[2], tensors["k"][best])
    words = [text.get_text() for text in figure.texts]
    assert [word for word in words if word.startswith("w") and "(" in word][::2] == [f"w{i} ({i:,})" for i in best]
    rest = np.delete(weights, best).sum()
    said = " ".join(words).replace("\n", " ")
    assert f"2,988 of 3,000 keys are not drawn; they have {rest:.1%} of the weight." in said


def test_inputs_may_be_left_out():
    tensors = head(5)
    del tensors["x"]
    figure = flow(**tensors)
    assert len(strips(figure)) == 4
    assert not any("W_k" in text.get_text() for text in figure.texts)


def test_few_numbers_are_written_and_what_is_not_finite_is_hatched():
    tensors = head(4, d=3, d_v=3)
    tensors["v"][1, 2] = math.nan
    figure = flow(**tensors)
    written = sum(len(axes.texts) for axes in figure.axes)
    assert written == 3 + 4 * 3 + 4 * 3 + 3 + 4 * 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["NaN or infinite"]
    check_legible(figure)


@pytest.mark.parametrize(
    ("n", "name"), [(1, "a"), (4, "$x$"), (12, "internationalisation_"), (60, "日本"), (3000, "w")]
)
def test_every_length_is_legible(n, name):
    figure = flow(**head(n, d=64), tokens=[f"{name}{i}" for i in range(n)], query=n // 2, title="layer 0 · head 3")
    check_legible(figure)
    assert png(figure).startswith(b"\x89PNG")


def test_all_the_same_and_nothing_but_nan_are_drawn():
    for value in (1.0, 0.0, math.nan):
        figure = flow(*(np.full(shape, value) for shape in ((3,), (4, 3), (4, 2), (4,), (2,))))
        check_legible(figure)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"q": torch.ones(3)}, ShapeError, r"^k: q \(3,\), k \(7, 8\)"),
        ({"k": torch.ones(8)}, ShapeError, r"^k: .*k \(8,\)"),
        ({"v": torch.ones(6, 5)}, ShapeError, r"^v: .*v \(6, 5\)"),
        ({"weights": torch.ones(2, 7)}, ShapeError, r"^weights: .*weights \(2, 7\)"),
        ({"out": torch.ones(4)}, ShapeError, r"^v: .*out \(4,\)"),
        (
            {"x": torch.ones(6, 5)},
            ShapeError,
            r"^x: shape \(6, 5\), expected \(N, E\), an input for each of the 7 keys",
        ),
        ({"k": torch.ones(0, 8)}, ShapeError, "none empty"),
        ({"tokens": ["a"]}, ShapeError, "tokens: 1 labels, but there are 7 keys"),
        ({"query": 7}, InputError, "query: 7 is out of range, there are tokens 0 … 6"),
        ({"q": np.array(["a"] * 8)}, InputError, "q: values of type <U1"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(changes, error, words):
    with pytest.raises(error, match=words) as raised:
        flow(**{**head(7), **changes})
    assert "\n" not in str(raised.value)
