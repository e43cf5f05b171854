"""Heatmaps with their sinks hidden and their marginals beside: at any length, and equal to the weights' own sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

import clearhead as ch
from clearhead.errors import InputError
from clearhead.picture import grid, heatmap, png
from clearhead.picture.heads import Choice, read
from clearhead.picture.names import Names
from legible import check_legible

NAMES = ["[CLS]", "the", "cat", "sat", "down"]


def attention(*shape: int) -> torch.Tensor:
    """Causal where there are as many keys as queries, and drawn to the first key."""
    logits = 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits[..., 0] += 4
    if shape[-2] == shape[-1]:
        logits = logits.masked_fill(torch.ones(shape[-2:]).triu(1).bool(), -math.inf)
    return logits.softmax(-1)


def queries_and_keys(b: int, h: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.randn(2, b, h, n, 8, generator=torch.Generator().manual_seed(2))
    return both[0], both[1]


def entropy(weights: torch.Tensor) -> torch.Tensor:
    return -torch.where(weights > 0, weights * weights.log(), 0).sum(-1)


def xlabel(figure) -> str:
    return figure.axes[0].get_xlabel()


def bars(axes) -> list[list[tuple[float, float]]]:
    """The bars of both marginals: where each begins, and how long it is."""
    above, beside = axes.child_axes
    return [
        [(bar.get_x(), bar.get_height()) for bar in above.patches],
        [(bar.get_y(), bar.get_width()) for bar in beside.patches],
    ]


def test_a_hidden_sink_leaves_the_colours_to_the_rest():
    weights = attention(5, 5)
    figure = heatmap(weights, NAMES, NAMES, hide_sinks=True)
    image = figure.axes[0].images[0]
    cells = image.get_array()
    assert cells.mask[:, 0].all()
    assert not cells.mask[:, 1:].any()
    np.testing.assert_allclose(cells[:, 1:], weights[:, 1:])
    assert image.norm.vmax == pytest.approx(float(weights[:, 1:].max()))
    share = float(weights[:, 0].sum() / weights.sum())
    assert (
        " ".join(xlabel(figure).split()) == f"key (attended to) key 0 ([CLS]) is hidden, with {share:.0%} of all weight"
    )
    assert not figure.legends  # hidden is not "NaN or infinite"


def test_the_sink_is_the_first_key_that_is_no_padding():
    weights = torch.cat([torch.zeros(4, 2), attention(4, 3).float()], 1)
    assert read(weights, choice=Choice(hide_sinks=True)).hidden == [2]


@pytest.mark.parametrize(("keys", "hidden"), [(1, [1]), (-1, [4]), ([3, 0, 3], [0, 3]), ((), []), (False, [])])
def test_sinks_are_named_by_their_numbers(keys, hidden):
    heads = read(attention(2, 5, 5), choice=Choice(hide_sinks=keys))
    assert heads.hidden == hidden
    assert [*np.flatnonzero(heads.blank)] == hidden


@pytest.mark.parametrize("kind", ["array", "map"])
def test_a_long_map_hides_single_keys_within_its_blocks(kind):
    q, k = queries_and_keys(1, 2, 300)
    A = ch.Softmax(ch.causal())(q, k)
    heads = read(A if kind == "map" else A.weights(), choice=Choice(hide_sinks=[0, 7]))
    weights = A.weights()[0].double()
    rows = adaptive_avg_pool1d(weights.mT, 100).mT
    kept = torch.ones(300)
    kept[[0, 7]] = 0
    sums, counts = (adaptive_avg_pool1d(x.double(), 100) for x in (rows * kept, kept[None]))
    np.testing.assert_allclose(heads.values, sums / counts, atol=1e-6)
    assert heads.share == pytest.approx(float(weights[..., [0, 7]].sum() / weights.sum()), abs=1e-6)
    assert not heads.blank.any()


def test_a_block_of_hidden_keys_is_blank():
    heads = read(attention(4, 600), choice=Choice(hide_sinks=range(3, 9)))
    assert heads.values.shape == (1, 4, 200)
    assert [*np.flatnonzero(heads.blank)] == [1, 2]
    assert np.isnan(heads.values[..., 1:3]).all()
    assert np.isfinite(np.delete(heads.values, [1, 2], -1)).all()


@pytest.mark.parametrize("kind", ["array", "map"])
@pytest.mark.parametrize("n", [9, 300])
def test_marginals_are_what_keys_received_and_the_entropy_of_rows(kind, n):
    q, k = queries_and_keys(1, 2, n)
    A = ch.Softmax(ch.causal(), scale=1.0)(q, k)
    weights = A.weights()[0].double()
    heads = read(A if kind == "map" else A.weights(), choice=Choice(marginals=True))
    size = heads.values.shape[-1]
    np.testing.assert_allclose(heads.received, adaptive_avg_pool1d(weights.sum(-2), size), rtol=1e-4)
    np.testing.assert_allclose(heads.entropy, adaptive_avg_pool1d(entropy(weights), size), rtol=1e-4, atol=1e-6)


def test_bars_stand_at_their_rows_and_keys():
    weights = attention(5, 5)
    above, beside = bars(heatmap(weights, marginals=True, hide_sinks=0).axes[0])
    np.testing.assert_allclose([length for _, length in above], weights.sum(0)[1:])
    np.testing.assert_allclose([at for at, _ in above], np.arange(1, 5) - 0.35)
    np.testing.assert_allclose([length for _, length in beside], entropy(weights), atol=1e-12)
    np.testing.assert_allclose([at for at, _ in beside], np.arange(5) - 0.35)


def test_rows_that_see_nothing_or_hold_nan_have_no_entropy():
    weights = attention(6, 6)
    weights[2] = 0
    weights[4, 1] = math.nan
    measured = read(weights, choice=Choice(marginals=True))
    assert [*np.flatnonzero(np.isnan(measured.entropy[0]))] == [2, 4]
    assert np.isfinite(measured.received).all()
    assert len(bars(heatmap(weights, marginals=True).axes[0])[1]) == 4


def test_heads_share_the_scale_of_their_marginals():
    figure = heatmap(attention(2, 5, 5), marginals=True)
    first, second = (axes.child_axes for axes in figure.axes[:2])
    assert [axes.get_ylim() for axes in first] != [axes.get_xlim() for axes in first]
    assert first[0].get_ylim() == second[0].get_ylim()
    assert first[1].get_xlim() == second[1].get_xlim()
    assert any("entropy, up to" in text.get_text() for text in figure.texts)


def test_one_head_and_sample_are_chosen():
    q, k = queries_and_keys(3, 4, 6)
    A = ch.Softmax()(q, k)
    figure = heatmap(A, sample=2, head=-1)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), A.weights()[2, 3])
    assert figure.axes[0].get_title() == "head 3"
    shown = [axes.images[0].get_array() for axes in grid({"a": A}, sample=1).axes if axes.images]
    np.testing.assert_allclose(shown, A.weights()[1])


def test_a_chosen_head_of_a_long_map_is_drawn_as_finely_as_one_alone():
    q, k = queries_and_keys(1, 2, 600)
    A = ch.Softmax()(q, k)
    cells = heatmap(A, head=1).axes[0].images[0].get_array()
    np.testing.assert_allclose(cells, adaptive_avg_pool2d(A.weights(), 200)[0, 1], atol=1e-6)


def test_layers_that_hide_different_keys_say_so():
    padded = torch.cat([torch.zeros(4, 1), attention(4, 3).float()], 1)
    figure = grid({"a": attention(4, 4), "b": padded}, hide_sinks=True)
    assert any("the first key of each layer is hidden" in text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hide_sinks": 5}, "hide_sinks: 5 is out of range, there are keys 0 … 4"),
        ({"hide_sinks": [0, -6]}, "hide_sinks: -6 is out of range"),
        ({"hide_sinks": range(5)}, "all 5 keys are hidden"),
        ({"head": 2}, "head: 2 is out of range, weights has heads 0 … 1"),
        ({"head": True}, "head: True is no whole number"),
        ({"sample": 1}, "sample: 1 is out of range"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(arguments, words):
    with pytest.raises(InputError, match=words) as raised:
        heatmap(attention(2, 5, 5), **arguments)
    assert "\n" not in str(raised.value)


def test_negative_weights_have_no_entropy():
    with pytest.raises(InputError, match="negative weights have no entropy"):
        heatmap(torch.tensor([[0.5, -0.25]]), marginals=True)


def test_layers_are_named_as_shortly_as_tells_them_apart():
    names = [f"model.decoder.layers.{i}.self_attn" for i in range(12)]
    short = Names.of(names, 0.9, 9.0)
    assert short.texts == [f"layers.{i}" for i in range(12)]
    assert short.whole == "model.decoder.*.self_attn"
    assert Names.of(names, 9.0, 9.0).texts == names
    assert Names.of(["a.b", "a.b.c"], 0.1, 9.0).whole == ""
    mixed = Names.of(["decoder.layers.0.self_attention", "decoder.layers.0.cross_attention"], 0.9, 9.0)
    assert len(set(mixed.texts)) == 2


def test_a_picture_shows_itself():
    figure = heatmap(attention(3, 3))
    assert figure._repr_png_() == png(figure)
    assert png(figure).startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 60), (1, 300), (300, 3), (5, 12, 12)])
def test_every_shape_is_legible(shape):
    rows, keys = [f"日{i}" for i in range(shape[-2])], [f"key {i}" for i in range(shape[-1])]
    options = {"marginals": True, "hide_sinks": shape[-1] > 1, "title": "a head that is looked at"}
    check_legible(heatmap(attention(*shape), rows, keys, **options))


def test_a_grid_is_legible():
    maps = {f"model.layers.{i}.self_attn": attention(3, 8, 8) for i in range(2)} | {"cross": attention(2, 5, 40)}
    check_legible(grid(maps, marginals=True, hide_sinks=True, title="all of them"))
    check_legible(grid({"a.very.long.name.of.a.layer": attention(1, 2, 50)}, log=True))
