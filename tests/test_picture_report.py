"""The report says what it was given: escaped, aligned, and honest about what was not measured."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearhead.errors import InputError, ShapeError
from clearhead.picture import page as page_module
from clearhead.picture import training_report
from clearhead.picture.align import align, align_nearest, mistakes
from clearhead.picture.chart import round_numbers
from clearhead.picture.curves import MOST, draw

symbols = st.lists(st.sampled_from(["AH0", "T", "N"]), max_size=7)
EXAMPLE = {"source": "cat", "prediction": ["K", "AE1", "T"], "references": [["K", "AE1", "T"]]}


def attention(title="cat", path="decoder.layers.1.cross_attention", shape=(2, 3, 4), axes=None):
    weights = np.random.default_rng(0).dirichlet(np.ones(shape[-1]), shape[:-1])
    labels = axes or ([f"q{i}" for i in range(shape[-2])], [f"k{i}" for i in range(shape[-1])])
    return {"title": title, "source": labels[1], "target": labels[0], "maps": {path: weights}, "axes": {path: labels}}


def report(tmp_path, **given) -> str:
    empty = {"title": "t", "subtitle": "", "scores": [], "curves": [], "examples": [], "attention": []}
    training_report(tmp_path / "report.html", **{**empty, **given})
    return (tmp_path / "report.html").read_text("utf-8")


def data(page: str):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


@given(symbols, symbols)
def test_alignment_spells_both_sides_with_the_fewest_mistakes(prediction, reference):
    pairs = align(prediction, reference)
    assert [p.predicted for p in pairs if p.predicted is not None] == prediction
    assert [p.expected for p in pairs if p.expected is not None] == reference
    assert mistakes(pairs) == distance(prediction, reference)


def distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b[1:]) + (a[0] != b[0]), distance(a[1:], b) + 1, distance(a, b[1:]) + 1)


def test_alignment_takes_the_nearest_reference():
    assert mistakes(align_nearest(["A", "B"], [["A"], ["A", "B"], ["C"]])) == 0
    kinds = [pair.kind for pair in align(["K", "AE1", "T", "S"], ["K", "AH1", "T"])]
    assert kinds == ["same", "substituted", "same", "inserted"]


def test_words_are_never_markup(tmp_path):
    evil = "<script>alert('x')</script>&\"$title"
    page = report(
        tmp_path,
        title=evil,
        subtitle=evil,
        scores=[{"name": evil, "value": 0.5, "note": evil, "published": False}],
        curves=[{"step": 1, evil: 2.0}],
        examples=[{"source": evil, "prediction": [evil], "references": [["<b>"], [evil, evil]]}],
        attention=[attention(evil, axes=([evil] * 3, [evil] * 4))],
    )
    assert "<script>alert" not in page
    assert "<b>K" not in page
    assert html.escape(evil) in page
    assert data(page)["attention"]["examples"][0]["title"] == evil


def test_a_lone_surrogate_is_spelt_out(tmp_path):
    page = report(tmp_path, examples=[{**EXAMPLE, "source": "a\udc80"}], attention=[attention("a\udc80")])
    assert "a\\udc80" in page


def test_the_page_asks_for_nothing_and_names_its_own_script(tmp_path):
    page = report(tmp_path, attention=[attention()])
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"https?://[^\"')\s]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"<(link|img|iframe)|@import|url\(", page)
    assert not re.search(r"<[^>]+ (style|on\w+)=", page.split("<body>")[1].split("<script")[0])


@pytest.mark.parametrize("high", [1.0, 3.0])
def test_packed_weights_are_the_weights(tmp_path, high):
    example = attention()
    path, weights = next(iter(example["maps"].items()))
    example["maps"][path] = weights = weights * high - (high > 1)
    weights[0, 0, 0] = np.nan
    packed = data(report(tmp_path, attention=[example]))["attention"]
    (layer,) = packed["examples"][0]["groups"][0]["layers"]
    steps = np.stack([np.frombuffer(base64.b64decode(head), "<u2") for head in layer["heads"]]).reshape(weights.shape)
    values = np.where(steps == packed["nothing"], np.nan, layer["low"] + steps * layer["step"])
    np.testing.assert_allclose(values, weights, atol=0.51e-4)
    assert (layer["path"], layer["rows"][0], layer["columns"][-1]) == (path, "q0", "k3")


def test_heads_are_grouped_by_what_they_attend_to(tmp_path):
    paths = ["encoder.layers.0.attention", "decoder.layers.1.self_attention", "decoder.layers.1.cross_attention", "x"]
    example = attention()
    (weights,), (labels,) = example["maps"].values(), example["axes"].values()
    example |= {"maps": dict.fromkeys(paths, weights), "axes": dict.fromkeys(paths, labels)}
    groups = data(report(tmp_path, attention=[example]))["attention"]["examples"][0]["groups"]
    assert [(g["name"], g["layers"][0]["name"]) for g in groups] == [
        ("Encoder", "layer 0"), ("Decoder", "layer 1"), ("Cross", "layer 1"), ("Attention", "x")
    ]  # fmt: skip


def test_a_report_of_eight_words_is_small(tmp_path):
    maps = {f"encoder.layers.{i}.attention": np.full((4, 15, 15), 1 / 15) for i in range(6)}
    labels = [f"s{i}" for i in range(15)]
    words = [{"title": f"w{i}", "maps": maps, "axes": dict.fromkeys(maps, (labels, labels))} for i in range(8)]
    report(tmp_path, attention=words)
    assert (tmp_path / "report.html").stat().st_size < 300_000


def test_what_was_not_measured_is_said_and_never_zero(tmp_path):
    scores = [
        {"name": "words", "value": 0.32379, "note": "", "published": False},
        {"name": "phonemes", "value": None, "note": "", "published": False},
        {"name": "Phonetisaurus", "value": 0.3389, "note": "README", "published": True},
    ]
    page = report(tmp_path, scores=scores, curves=[{"step": 1, "train_loss": 2.5}, {"step": 2, "train_loss": None}])
    assert "32.38 %" in page
    assert "0.00 %" not in page
    assert "not on this split" in page
    assert page.count("not measured</p>") == 4  # three of four charts, and the heads
    assert page.count("not measured</td>") == 1
    assert data(page)["charts"][0]["lines"] == [{"label": "training", "points": [[1.0, 2.5]]}]


def test_values_that_are_not_finite_are_counted_and_not_drawn():
    drawn, lines = draw([{"step": i, "train_loss": value} for i, value in enumerate([2.0, float("nan"), 1.0])])
    assert "(1 not finite)" in drawn
    assert lines[0]["lines"][0]["points"] == [(0.0, 2.0), (2.0, 1.0)]
    assert "never finite" in draw([{"step": 0, "train_loss": float("inf")}])[0]


def test_long_curves_are_thinned_but_keep_their_peaks():
    records = [{"step": i, "train_loss": 1.0 + (i == 4321)} for i in range(10_000)]
    points = draw(records)[1][0]["lines"][0]["points"]
    assert len(points) <= MOST
    assert (4321.0, 2.0) in points


def test_what_a_monitor_records_is_charted_and_is_no_line_of_its_own(tmp_path):
    def record(step, layers):
        numbers = {"entropy": [1.0, 0.5], "gradient_norm": 2.0 / step}
        return {"step": step, "attention": {f"layers.{i}": {**numbers, "weight_norm": i + step} for i in layers}}

    few = [record(step, range(3)) for step in (1, 2)]
    events = [{"event": "over", "rule": "x", "layer": "layers.0", "turn": 0, "head": 0, "severity": "note"}]
    few[1] |= {"alarms": events, "remedies": ["one"], "progress": 1.0}
    both = data(report(tmp_path, curves=few))["charts"]
    for chart in both:
        assert [line["label"] for line in chart["lines"]] == ["layers.0", "layers.1", "layers.2"]
    assert [[point[1] for point in chart["lines"][0]["points"]] for chart in both] == [[1.0, 2.0], [2.0, 1.0]]
    many = data(report(tmp_path, curves=[record(1, range(7))]))["charts"][0]["lines"]
    assert [(line["label"], line["points"][0][1]) for line in many] == [
        ("smallest of a layer", 1.0), ("median", 4.0), ("largest", 7.0)
    ]  # fmt: skip


def test_sections_stand_in_the_order_of_their_links(tmp_path):
    losses = [{"step": i, "train_loss": 5.0 - i, "valid_loss": 5.0 - i} for i in range(1, 5)]
    page = report(tmp_path, curves=losses)
    assert re.findall(r'<section id="(\w+)"', page) == ["scores", "training", "heads", "attention", "predictions"]
    assert re.findall(r'href="#(\w+)"', page) == ["scores", "training", "heads", "attention", "predictions"]
    training = page.split('id="training"')[1]
    assert training.index("Still learning") < training.index("<figure>")


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e6))
def test_round_numbers_lie_inside_and_are_few(low, spread):
    numbers = round_numbers(low, low + spread, 6)
    assert all(low - spread * 1e-3 <= x <= low + spread * 1.001 for x in numbers)
    assert len(numbers) <= 8


def test_mistakes_are_marked_and_come_first(tmp_path):
    wrong = {"source": "colonel", "prediction": ["K", "L"], "references": [["K", "ER1", "N"], ["K", "N"]]}
    body = report(tmp_path, examples=[EXAMPLE, wrong])
    rows = re.findall(r'<tr class="(\w+)"><th scope="row">(\w+)', body)
    assert rows == [("wrong", "colonel"), ("right", "cat")]
    assert 'title="L instead of N"' in body
    assert "K ER1 N" in body


def test_texts_are_shown_by_what_they_score(tmp_path):
    def sample(i):
        return {
            "source": f"s{i}",
            "prediction": ["a", "x"],
            "references": [["a", "b"]],
            "score": i / 50,
            "measure": "chrF",
        }

    body = report(tmp_path, examples=[sample(i) for i in range(50)])
    found = re.findall(r'<article class="sample (\w+)"><p class="measure"><b>([\d.]+)</b> chrF', body)
    assert [kind for kind, _ in found] == ["best"] * 10 + ["middle"] * 10 + ["worst"] * 10
    values = [float(score) for _, score in found]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[10], values[-1]) == (98.0, 58.0, 0.0)
    assert '<dd class="output" dir="auto">a <mark>x</mark> </dd>' in body
    assert '<dd class="reference" dir="auto">a <mark>b</mark> </dd>' in body
    few = report(tmp_path, examples=[sample(1), sample(3)])
    assert re.findall(r"<article .*?<b>([\d.]+)", few) == ["6.0", "2.0"]


def test_scores_say_what_is_better_and_whose_they_are(tmp_path):
    row = {"name": "BLEU", "value": 0.41, "note": "", "published": False, "unit": "", "better": "more"}
    body = report(tmp_path, scores=[row, {**row, "name": "lead", "ours": False}])
    assert "More is better." in body
    assert ">41.00</td>" in body
    assert re.findall(r'class="origin">([\w ]+)<', body) == ["this model", "baseline"]
    body = report(tmp_path, scores=[row, {**row, "better": "less", "unit": "%"}])
    assert "Of error rates less is better" in body
    assert ">41.00 %</td>" in body


def test_the_chart_of_validation_is_that_of_the_task(tmp_path):
    body = report(tmp_path, curves=[{"step": 1, "valid_bleu": 20.0, "valid_chrf": 40.0}])
    assert "Validation, greedy" in body
    assert "Validation error" not in body
    assert "Validation error" in report(tmp_path, curves=[{"step": 1, "train_loss": 2.0}])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {"attention": [attention(shape=(3, 4))]},
            ShapeError,
            r"'cat', 'decoder.*shape \(3, 4\), expected \(H, Nq, Nk\)",
        ),
        ({"attention": [attention(axes=(["a"], list("abcd")))]}, ShapeError, r"rows: 1 labels.*3 queries"),
        ({"attention": [attention(axes=(list("abc"), ["a"]))]}, ShapeError, r"columns: 1 labels.*4 keys"),
        ({"attention": [{**attention(), "axes": {}}]}, InputError, "no entry in 'axes'"),
        ({"examples": [{**EXAMPLE, "references": []}]}, InputError, "'cat' has no reference"),
        ({"examples": [{**EXAMPLE, "references": [], "score": 0.1}]}, InputError, "'cat' has no reference"),
        ({"curves": [{"train_loss": 1.0}]}, InputError, "record 0 has no number as its 'step'"),
        ({"curves": [{"step": 1, "train_loss": "low"}]}, InputError, "'train_loss' at step 1 is 'low'"),
        ({"scores": [{"name": "wer", "value": "x", "note": "", "published": False}]}, InputError, "'wer' is 'x'"),
    ],
)
def test_what_cannot_be_reported_is_named_in_one_line(tmp_path, given, error, words):
    with pytest.raises(error, match=words) as raised:
        report(tmp_path, **given)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "report.html").exists()


def test_every_part_of_a_script_is_in_a_page():
    folder = Path(page_module.__file__).parent
    pages = (page_module.REPORT, page_module.ATLAS, page_module.LIVE)
    assert {name for parts in pages for name in parts} == {file.stem for file in folder.glob("*.js")}
    for parts in pages:
        text = page_module.page("t", page_module.join("b"), {}, parts).decode()
        for name in parts:
            assert (folder / f"{name}.js").read_text(encoding="utf-8") in text
