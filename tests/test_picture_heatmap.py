"""Heatmaps show the weights they are given, whatever their length, and name what cannot be drawn."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from clearhead.errors import InputError, ShapeError
from clearhead.picture import grid, heatmap
from clearhead.picture.heads import read
from clearhead.picture.ticks import Ticks, step, visible


class Map:
    """What a picture asks of an AttentionMap, and a count of the matrices it formed."""

    def __init__(self, weights):
        self.matrix, self.shape, self.formed = weights, weights.shape, 0

    def weights(self):
        self.formed += 1
        return self.matrix

    def pool(self, h, w):
        return torch.nn.functional.adaptive_avg_pool2d(self.matrix, (h, w))


def attention(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).softmax(-1)


def shown(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def drawn(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [lambda w: w, lambda w: w.float().numpy(), Map])
def test_each_head_shows_its_weights(kind, dtype):
    weights = attention(1, 3, 5, 7).to(dtype)
    for head, cells in enumerate(shown(heatmap(kind(weights)))):
        np.testing.assert_array_equal(cells, weights[0, head].double().numpy())


def test_a_tensor_that_wants_a_gradient_is_drawn():
    assert shown(heatmap(attention(4, 4).requires_grad_()))[0].shape == (4, 4)


@pytest.mark.parametrize("n", [300, 307, 2000])
def test_long_axes_are_pooled_and_say_so(n):
    weights = attention(n, 40)
    figure = heatmap(weights)
    (cells,) = shown(figure)
    expected = torch.nn.functional.adaptive_avg_pool2d(weights[None], cells.shape)[0]
    np.testing.assert_allclose(cells, expected, atol=1e-6)
    assert cells.shape[0] <= 256
    assert f"{n:,} positions" in figure.axes[0].get_ylabel()
    assert "positions" not in figure.axes[0].get_xlabel()


def test_a_long_map_pools_itself_and_never_forms_its_matrix():
    long = Map(attention(1, 1, 600, 600))
    assert shown(heatmap(long))[0].shape == (200, 200)
    assert long.formed == 0


def test_labels_stand_at_their_positions():
    axes = heatmap(attention(3, 4), ["AH0", "T", "$x$"], ["a", "t", " ", "\n"]).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["AH0", "T", "$x$"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "t", "␣", "↵"]
    assert list(axes.get_xticks()) == [0, 1, 2, 3]


def test_labels_are_thinned_or_turned_where_there_is_no_room():
    assert len(Ticks.of([f"t{i}" for i in range(1000)], 1000, 8.0, vertical=True).shown) <= 64
    assert Ticks.of([*list("attention"), "<eos>"], 10, 2.0, vertical=False).turned == [False] * 9 + [True]
    assert all(Ticks.of(["internationalisation", "a"], 2, 0.6, vertical=False).turned)
    assert [step(x) for x in (0.1, 1.0, 1.2, 3.0, 6.0, 11.0)] == [1, 1, 2, 5, 10, 20]
    assert visible("x" * 99) == "x" * 23 + "…"
    assert visible("a\x00b") == "a\\x00b"


def test_what_the_font_cannot_draw_is_spelt_out():
    figure = heatmap(attention(2, 2), ["\U00030000", "\udc80"], ["é", "→"], title="\U00030001\nb")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["\\U00030000", "\\udc80"]
    drawn(figure)


def test_what_is_not_finite_is_masked_and_explained():
    weights = attention(2, 4, 4)
    weights[0, 1] = float("nan")
    weights[1, 0, 0] = float("inf")
    figure = heatmap(weights)
    first, second = shown(figure)
    assert first.mask.sum() == 4
    assert second.mask.sum() == 1
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["NaN or infinite"]
    drawn(figure)


def test_one_scale_for_all_heads_from_zero():
    figure = heatmap(torch.stack([attention(4, 4), attention(4, 4) / 10]))
    norms = [axes.images[0].norm for axes in figure.axes if axes.images]
    assert norms[0] is norms[1]
    assert norms[0].vmin == 0


def test_a_logarithmic_scale_keeps_zeros_apart_from_nan():
    (cells,) = shown(heatmap(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), log=True))
    assert not np.ma.getmaskarray(cells).any()
    drawn(heatmap(torch.zeros(2, 2), log=True))
    with pytest.raises(InputError, match="negative"):
        heatmap(torch.tensor([[-1.0, 2.0]]), log=True)


def test_negative_weights_get_a_scale_with_zero_in_its_middle():
    norm = heatmap(torch.tensor([[-1.0, 2.0]])).axes[0].images[0].norm
    assert norm(0.0) == 0.5


def test_the_grid_has_a_line_for_each_layer():
    layers = {"encoder.0": attention(3, 4, 4), "decoder.0": Map(attention(1, 2, 3, 4))}
    figure = grid(layers, title="every head")
    assert len(shown(figure)) == 5
    np.testing.assert_array_equal(shown(figure)[3], layers["decoder.0"].matrix[0, 0])
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()][:2] == ["encoder.0", "decoder.0"]
    drawn(figure)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (1, 300), (8, 9, 9), (5, 2, 3), (1, 1, 3, 3)])
def test_every_shape_is_drawn(shape):
    assert drawn(heatmap(attention(*shape), title="a $title$ & <b>")).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("weights", "arguments", "error", "words"),
    [
        (torch.ones(3), {}, ShapeError, r"shape \(3,\), expected \(Nq, Nk\)"),
        (torch.ones(2, 1, 3, 3), {}, ShapeError, r"2 samples.*weights\[b\]"),
        (torch.ones(3, 0), {}, ShapeError, "empty"),
        (np.array([["a"]]), {}, InputError, "real numbers"),
        (torch.ones(2, 2, dtype=torch.complex64), {}, InputError, "real numbers"),
        (torch.ones(2, 3), {"rows": ["a"]}, ShapeError, r"^rows: 1 labels.*2 queries \(Nq\)"),
        (torch.ones(2, 3), {"columns": ["a"]}, ShapeError, r"^columns: 1 labels.*3 keys \(Nk\)"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_one_line(weights, arguments, error, words):
    with pytest.raises(error, match=words) as raised:
        heatmap(weights, **arguments)
    assert "\n" not in str(raised.value)


def test_the_grid_names_the_layer_that_cannot_be_drawn():
    with pytest.raises(ShapeError, match=r"maps\['b'\]"):
        grid({"a": torch.ones(1, 2, 2), "b": torch.ones(2)})
    with pytest.raises(InputError, match="no layer"):
        grid({})


def test_importing_the_room_costs_no_matplotlib():
    code = "import sys, clearhead.picture; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pooled_heads_remember_their_positions():
    heads = read(attention(4, 300, 20))
    assert (heads.values.shape, heads.queries, heads.keys) == ((4, 100, 20), 300, 20)


def test_a_single_layer_is_named_whole_above_its_heads():
    name = "decoder.layers.0.cross_attention_of_the_longest_name"
    sheet = grid({name: attention(3, 4, 5)})
    words = [text.get_text() for text in sheet.findobj(Text)]
    assert words.count(name) == 1
    assert [axes.get_title() for axes in sheet.axes[:3]] == ["head 0", "head 1", "head 2"]
    assert "given" in [text.get_text() for text in grid({name: attention(3, 4, 5)}, title="given").findobj(Text)]
    drawn(sheet)
