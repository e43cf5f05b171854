"""The report in a real browser: what it shows is what it was given, by mouse, by keyboard, in light and in dark."""

from __future__ import annotations

import re

import numpy as np
import pytest

from clearhead.picture import training_report
from clearhead.picture.colour import DARK, LIGHT

LETTERS, PHONEMES = list("better"), ["<bos>", "B", "EH1", "T", "ER0"]
PATHS = {
    "encoder.layers.0.attention": (LETTERS, LETTERS),
    "decoder.layers.0.self_attention": (PHONEMES, PHONEMES),
    "decoder.layers.0.cross_attention": (PHONEMES, LETTERS),
}
RNG = np.random.default_rng(0)
MAPS = {path: RNG.dirichlet(np.ones(len(keys)), (3, len(rows))) for path, (rows, keys) in PATHS.items()}


ENTROPY = RNG.random((3, 2, 2)).round(4)  # step, layer, head


def watched(step):
    """What a monitor records: two layers of two heads, one of which is in trouble from step 1 on."""
    layers = {
        name: {"normalized_entropy": ENTROPY[step, i].tolist(), "sink": [0.25, 0.5]} for i, name in enumerate("ab")
    }
    event = {"event": "began", "rule": "entropy collapse", "layer": "b", "turn": 0, "head": 1, "severity": "alarm"}
    alarm = [{**event, "value": 0.0, "sentence": "b head 1: <i>sharp</i>"}] if step == 1 else []
    return {"attention": layers, "alarms": alarm}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    evil = "<script>document.title = 'owned'</script>"
    words = [{"title": title, "maps": MAPS, "axes": PATHS} for title in ("better", evil)]
    training_report(
        path,
        title="g2p",
        subtitle=evil,
        scores=[{"name": "words", "value": 0.32, "note": "", "published": False}],
        curves=[{"step": i, "train_loss": 3.0 - i, "valid_wer": 0.5, **watched(i)} for i in range(3)],
        examples=[
            {"source": evil, "prediction": ["B"], "references": [["B", "T"]]},
            {"source": "bet", "prediction": ["B", "EH1", "T"], "references": [["B", "EH1", "T"]]},
        ],
        attention=words,
    )
    return path.as_uri()


@pytest.fixture
def page(browser, url):
    """The report, opened; afterwards it has asked the network for nothing and has had nothing to complain of."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    yield page
    page.close()
    assert requests == [url]
    assert complaints == []


def head(page, path, number):
    return page.locator(f'.head[data-path="{path}"][data-head="{number}"]')


def hover(page, row, column):
    """Point at a cell of the large picture, wherever its labels say it is."""
    rows, columns = (
        page.locator(f"[data-row='{row}']").bounding_box(),
        page.locator(f"[data-column='{column}']").bounding_box(),
    )
    page.mouse.move(columns["x"] + columns["width"] / 2, rows["y"] + rows["height"] / 2)


def said(page):
    """Query, weight and key as the page reads them out."""
    query, weight, key = re.match(
        r"query '(.*)' gives ([\d.]+) to key '(.*?)'", page.locator(".large .read").inner_text()
    ).groups()
    return query, float(weight), key


@pytest.mark.parametrize("path", PATHS)
def test_a_clicked_head_shows_the_numbers_it_was_given(page, path):
    rows, columns = PATHS[path]
    head(page, path, 2).click()
    assert page.locator(".large h3").inner_text() == f"{path}, head 2"
    page.locator(".large svg").scroll_into_view_if_needed()
    for row, column in [(0, 0), (1, 4), (len(rows) - 1, len(columns) - 1)]:
        hover(page, row, column)
        query, weight, key = said(page)
        assert (query, key) == (rows[row], columns[column])
        assert weight == pytest.approx(MAPS[path][2, row, column], abs=0.51e-4)


def test_all_of_it_works_from_the_keyboard(page):
    head(page, "encoder.layers.0.attention", 0).click()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert page.locator(".large h3").inner_text() == "decoder.layers.0.self_attention, head 1"
    for key in ("Enter", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    query, weight, key = said(page)
    assert (query, key) == ("EH1", "B")
    assert weight == pytest.approx(MAPS["decoder.layers.0.self_attention"][1, 2, 1], abs=0.51e-4)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.locator("[role=tab]").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tab][aria-selected=true]").inner_text().startswith("<script>")


def repainted(page):
    """Wait until what is drawn in the colours of the page is drawn anew: some frames."""
    page.evaluate("async () => { for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame); }")


def test_the_colours_follow_the_theme(page):
    def colours():
        pixel = "() => [...document.querySelector('.head canvas').getContext('2d').getImageData(0, 0, 1, 1).data]"
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), page.evaluate(pixel)

    light = colours()
    page.emulate_media(color_scheme="dark")
    repainted(page)
    dark = colours()
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    page.locator("#theme").click()
    repainted(page)
    assert colours() == light


def test_small_weights_have_a_colour_on_a_logarithmic_scale(page):
    path = "decoder.layers.0.cross_attention"
    head(page, path, 1).click()
    pixel = """at => {
        const copy = new OffscreenCanvas(1, 1).getContext("2d");
        copy.drawImage(document.querySelector(".large .plot canvas"), -at[1], -at[0]);
        return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);
    }"""
    weights = MAPS[path][1]
    row, column = map(int, np.unravel_index(np.argmin(np.abs(weights - 0.01)), weights.shape))
    place = {False: weights[row, column], True: np.log10(weights[row, column] / 1e-4) / 4}
    scale = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in LIGHT])
    for log in (False, True):
        page.locator("#log").set_checked(log)
        want = [np.interp(place[log], np.linspace(0, 1, len(scale)), scale[:, i]) for i in range(3)]
        assert page.evaluate(pixel, [row, column]) == pytest.approx(want, abs=2)


def test_predictions_can_be_filtered_and_words_stay_words(page):
    rows = page.locator(".examples tbody tr")
    assert rows.count() == 2
    page.get_by_text("wrong 1").click()
    assert [row.is_visible() for row in rows.all()] == [True, False]
    page.get_by_text("right 1").click()
    assert [row.is_visible() for row in rows.all()] == [False, True]
    assert page.title() == "g2p"


def test_a_chart_reads_its_lines_out(page):
    page.locator("[data-chart='0']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-chart='0'] .cursor text").all_text_contents() == ["step 1", "training 2"]


def course_said(page):
    """Head, step, statistic and value as the section Heads reads them out."""
    line = page.locator(".panel .read").inner_text().splitlines()[0]
    step, statistic, value = re.match(r"step ([\d,]+): (.*) ([\d.]+)$", line).groups()
    return page.locator(".panel h3").inner_text(), int(step), statistic, float(value)


def test_heads_through_training_by_keyboard(page):
    assert course_said(page) == ("b, head 1", 2, "normalized entropy", pytest.approx(ENTROPY[2, 1, 1], abs=0.6e-4))
    page.locator(".strips").focus()
    for key in ("Home", "ArrowUp", "ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    assert course_said(page) == ("a, head 1", 1, "normalized entropy", pytest.approx(ENTROPY[1, 0, 1], abs=0.6e-4))
    for _ in range(5):
        page.keyboard.press("ArrowUp")
    assert course_said(page)[0] == "a, head 0"
    page.get_by_role("button", name="first key").press("Enter")
    assert course_said(page) == ("a, head 0", 1, "first key", 0.25)


def test_heads_through_training_by_pointer(page):
    strip = page.locator(".strip").nth(1)
    strip.scroll_into_view_if_needed()
    area = strip.bounding_box()
    for step in range(3):
        for head in range(2):
            page.mouse.move(area["x"] + area["width"] * (step + 0.5) / 3, area["y"] + area["height"] * (head + 0.5) / 2)
            want = pytest.approx(ENTROPY[step, 1, head], abs=0.6e-4)
            assert course_said(page) == (f"b, head {head}", step, "normalized entropy", want)


def test_an_alarm_leads_to_its_head(page):
    assert page.locator(".alarms li").inner_text().endswith("b head 1: <i>sharp</i>")
    assert page.locator(".strip rect.alarm").count() == 1
    page.locator(".strips").focus()
    page.keyboard.press("ArrowUp")
    page.get_by_role("button", name="alarm, from step 1 on").click()
    assert course_said(page)[:2] == ("b, head 1", 1)
    assert "entropy collapse" in page.locator(".panel .read").inner_text()


def test_the_strips_follow_the_theme(page):
    page.emulate_media(color_scheme="dark")
    repainted(page)
    pixel = page.evaluate("[...document.querySelector('.strip canvas').getContext('2d').getImageData(2, 1, 1, 1).data]")
    scale = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in DARK])
    at = np.linspace(0, 1, len(scale))
    want = [np.interp(ENTROPY[2, 0, 1], at, scale[:, i]) for i in range(3)]
    assert pixel[:3] == pytest.approx(want, abs=1)


@pytest.mark.parametrize("width", [320, 390, 800])
def test_no_window_is_too_narrow(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_a_script_the_rest_is_there(browser, url):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert page.get_by_text("a script draws them").count() == 2
    assert page.get_by_text("b head 1: <i>sharp</i>").is_visible()
    assert page.locator("[data-chart='0'] polyline").is_visible()
    context.close()
