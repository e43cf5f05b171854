"""The page of `clearhead view` in a real browser: every number it reads out is one of the weights."""

import re
import threading
from math import log10

import numpy as np
import pytest
import torch

import clearhead as ch
from clearhead.picture.colour import DARK, LIGHT
from clearhead.view import Explorer, Scene, Server

N, M = 1200, 900
EVIL = "<img src=x onerror=\"document.title='owned'\">"


def names(n):
    return [EVIL if i == 11 else f"token{i}" for i in range(n)]


class Reader(torch.nn.Module):
    """Self-attention, and cross-attention to fewer tokens."""

    def __init__(self):
        super().__init__()
        self.own = ch.nn.SelfAttention(16, num_heads=2, mechanism=ch.Softmax(ch.causal()))
        self.other = ch.nn.CrossAttention(16, num_heads=2)

    def forward(self, x, memory):
        return self.other(x + self.own(2 * x), 2 * memory)


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    model = Reader().eval()
    with ch.watch(model, keep_maps=True) as seen, torch.no_grad():
        model(torch.randn(1, N, 16), torch.randn(1, M, 16))
    return Scene(f"a reader {EVIL}", seen, lambda call: (names(N), names(call.shape[3])))


@pytest.fixture(scope="module")
def url(scene):
    with Server(port=0) as server:
        thread = threading.Thread(target=server.show, args=[Explorer(scene)])
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture
def page(browser, url):
    """The page, opened; afterwards it has asked nobody but its server and has had nothing to complain of."""
    page = browser.new_page(viewport={"width": 700, "height": 600}, color_scheme="light")
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(url)
    settled(page)
    yield page
    page.close()
    assert all(request.startswith((url, "data:")) for request in requests)
    assert complaints == []


def settled(page):
    page.locator("#map[data-ready]").wait_for()
    page.locator("#state[data-exact=true]").wait_for()


def dense(scene, layer, head):
    return scene.seen[layer].map.weights()[0, head].numpy()


def said(page, x, y):
    """What is read out at a point of the map: the first and last query and key, and the value."""
    area = page.locator("#map").bounding_box()
    page.mouse.move(area["x"] - 5, area["y"] - 5)
    page.wait_for_function("document.querySelector('#read').textContent === ''")
    page.mouse.move(area["x"] + x, area["y"] + y)
    number = r"(\d+) '(.*?)'(?: to (\d+) '.*?')?"
    line = page.locator("#read").filter(has_text=re.compile(r"gives .*: [\d.e+-]+$")).inner_text()
    query, query_name, last_query, key, key_name, last_key, value = re.match(
        rf"query {number} gives key {number}: ([\d.e+-]+)$", line
    ).groups()
    assert (query_name, key_name) == (names(N)[int(query)], names(N)[int(key)])
    rows, keys = slice(int(query), int(last_query or query) + 1), slice(int(key), int(last_key or key) + 1)
    return rows, keys, float(value)


def choose(page, layer=0, head=0):
    page.locator("#layer").select_option(str(layer))
    page.locator("#head").select_option(str(head))
    settled(page)


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (1, 0)])
def test_cells_read_out_are_means_of_the_weights_down_to_single_ones(page, scene, layer, head):
    choose(page, layer, head)
    A, widths = dense(scene, layer, head), set()
    page.locator("#map").focus()
    for _ in range(4):
        for x, y in ((40, 60), (111, 222), (250.5, 301.5)):
            rows, keys, value = said(page, x, y)
            assert value == pytest.approx(float(A[rows, keys].mean()), rel=1e-3, abs=1e-30)
            widths.add(rows.stop - rows.start)
        page.keyboard.press("+")
        settled(page)
    assert {1, 2} <= widths


PIXEL = """() => {
  const copy = new OffscreenCanvas(1, 1).getContext("2d");
  copy.drawImage(document.querySelector("#map"), -30, -110);
  return [...copy.getImageData(0, 0, 1, 1).data];
}"""


def test_the_colour_of_a_cell_is_that_of_its_weight(page, scene):
    A = dense(scene, 0, 0)
    page.evaluate("location.hash = 'layer=0&head=0&top=0&left=0&span=0.05&log=1'")
    page.reload()
    settled(page)
    rows, keys, value = said(page, 30, 110)
    assert (rows.stop - rows.start, keys.stop - keys.start) == (1, 1)
    most = A[:256, :256].max()
    for scheme, scale in (("light", LIGHT), ("dark", DARK)):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(300)
        scale = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in scale])
        at = max(0, 1 + log10(value / most) / 5) * (len(scale) - 1)
        want = [np.interp(at, range(len(scale)), scale[:, i]) for i in range(3)]
        assert page.evaluate(PIXEL)[:3] == pytest.approx(want, abs=6)  # of 256 steps of the scale


def test_dragging_and_the_wheel_move_the_map(page):
    area = page.locator("#map").bounding_box()
    rows, keys, _ = said(page, 100, 100)
    page.mouse.wheel(0, -720)
    settled(page)
    closer = said(page, 100, 100)[:2]
    assert closer[0].start in range(rows.start, rows.stop)  # what is under the pointer stays there
    assert closer[1].start in range(keys.start, keys.stop)
    page.mouse.down()
    page.mouse.move(area["x"] + 180, area["y"] + 140, steps=4)
    page.mouse.up()
    settled(page)
    moved = said(page, 180, 140)[:2]
    assert abs(moved[0].start - closer[0].start) <= 1
    assert abs(moved[1].start - closer[1].start) <= 1


def test_searching_a_token_shows_who_attends_to_it(page, scene):
    page.locator("#text").fill("TOKEN123")
    page.locator("#text").press("Enter")
    page.get_by_role("button", name="key 123 'token123'").click()
    line = page.locator("#read").filter(has_text="is attended to most by")
    line.wait_for()
    strongest = int(dense(scene, 0, 0)[:, 123].argmax())
    assert f"by: {strongest} 'token{strongest}'" in line.inner_text()
    page.locator("#text").fill("nowhere")
    page.locator("#text").press("Enter")
    page.get_by_text("no token holds 'nowhere'").wait_for()


def test_a_link_restores_the_view(page, browser, url):
    choose(page, 1, 1)
    page.locator("#map").focus()
    for key in ("+", "+", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    page.locator("#log").uncheck()
    settled(page)
    link, wanted = page.url, said(page, 100, 150)
    assert "layer=1" in link
    other = browser.new_page(viewport={"width": 700, "height": 600})
    other.goto(link)
    settled(other)
    assert said(other, 100, 150) == wanted
    assert other.locator("#log").is_checked() is False
    assert other.locator("#head").input_value() == "1"
    other.close()


def test_markup_is_shown_and_not_run(page):
    assert page.title() == f"a reader {EVIL}"
    page.locator("#text").fill("onerror")
    page.locator("#text").press("Enter")
    page.get_by_role("button", name=EVIL).wait_for()
    assert page.locator("img").count() == 0


def test_what_is_seen_can_be_taken_home(page, scene):
    page.evaluate("location.hash = 'layer=0&head=1&top=300&left=200&span=0.1&log=0'")
    page.reload()
    settled(page)
    with page.expect_download() as waiting:
        page.locator("#csv").click()
    lines = waiting.value.path().read_text().splitlines()
    assert lines[0].startswith("query \\ key,200 token200,")
    values = [float(x) for x in lines[1].split(",")[1:]]
    assert lines[1].startswith("300 token300,")
    assert values == pytest.approx(dense(scene, 0, 1)[300, 200 : 200 + len(values)].tolist(), rel=1e-4)
    with page.expect_download() as waiting:
        page.locator("#png").click()
    assert waiting.value.path().read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [320, 640])
def test_no_window_is_too_narrow(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
