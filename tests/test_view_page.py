"""The page of `clearhead view` in a real browser: every number it shows is a weight, or computed from weights."""

import re
import threading
from contextlib import contextmanager
from math import log10

import numpy as np
import pytest
import torch

import clearhead as ch
from clearhead.inspect.models import Special
from clearhead.observe import check
from clearhead.picture.colour import DARK, LIGHT
from clearhead.view import Explorer, Scene, Server

N, M = 1200, 900
EVIL = "<img src=x onerror=\"document.title='owned'\">"
SPECIAL = (5, 700)
HISTORY = [{"step": i, "attention": {"own": {"entropy": [1.0 + i, 2.0]}}} for i in range(3)]


def names(n):
    found = [EVIL if i == 11 else f"token{i}" for i in range(n)]
    for i in SPECIAL:
        found[i] = Special(found[i])
    return found


class Reader(torch.nn.Module):
    """Two layers of self-attention, one of whose heads is in trouble, and cross-attention to fewer tokens."""

    def __init__(self):
        super().__init__()
        causal = ch.Softmax(ch.causal())
        self.own = ch.nn.SelfAttention(16, num_heads=2, mechanism=causal)
        self.again = ch.nn.SelfAttention(16, num_heads=2, mechanism=causal)
        self.other = ch.nn.CrossAttention(16, num_heads=2)
        with torch.no_grad():
            self.again.query.weight[8:] *= 400

    def forward(self, x, memory):
        x = x + self.own(2 * x)
        return self.other(x + self.again(2 * x), 2 * memory)


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    model = Reader().eval()
    with ch.watch(model, keep_maps=True) as seen, torch.no_grad():
        model(torch.randn(1, N, 16), torch.randn(1, M, 16))
    return Scene(f"a reader {EVIL}", seen, lambda call: (names(N), names(call.shape[3])), whole=True, history=HISTORY)


@contextmanager
def serving(scene):
    with Server(port=0) as server:
        thread = threading.Thread(target=server.show, args=[Explorer(scene)])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def url(scene):
    with serving(scene) as server:
        yield server.url


@pytest.fixture
def visit(browser, url):
    """Opens the page; afterwards it has asked nobody but its server and has had nothing to complain of."""
    pages, requests, complaints = [], [], []

    def visit(width=1000, scheme="light", delay=None, **link):
        page = browser.new_page(delay, viewport={"width": width, "height": 800}, color_scheme=scheme)
        pages.append(page)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}#{'&'.join(f'{key}={value}' for key, value in link.items())}")
        settled(page)
        return page

    yield visit
    for page in pages:
        page.close()
    assert all(request.startswith((url, "data:")) for request in requests)
    assert complaints == []


SETTLED = "html[data-ready] #explorer[aria-busy=false] .maps[data-exact=true]"


def settled(page):
    """Wait until all that was asked for is here and drawn."""
    page.locator("html[data-ready]").wait_for()
    page.evaluate(
        """async (settled) => {
          // what was pressed is handled before the first frame, and drawn in one of them
          for (let frames = 0, all = 0; frames < 3; all++) {
            await new Promise(requestAnimationFrame);
            frames = document.querySelector(settled) ? frames + 1 : 0;
            if (all > 3000) throw new Error("never settled");
          }
        }""",
        SETTLED,
    )


def dense(scene, layer, head):
    return scene.seen[layer].map.weights()[0, head].double().numpy()


def hover(page, x, y, at=0):
    """Point at a place of a map, told from the left and top of its canvas."""
    area = page.locator(".one > canvas").nth(at).bounding_box()
    page.mouse.move(area["x"] + 2, area["y"] + area["height"] - 2)
    page.locator("#read", has_text="Point at a cell").wait_for()
    page.mouse.move(area["x"] + x, area["y"] + y)
    page.locator("#read", has_text=" gives ").wait_for()
    return said(page, at)


def said(page, at=0):
    """What is read out: the queries and keys of the cell that is pointed at, and its value."""
    settled(page)
    number = r"(\d+) '(.*?)'(?: to (\d+) '.*?')?"
    line = page.locator("#read").inner_text()
    found = re.fullmatch(rf"query {number} gives key {number}", line)
    assert found, line
    query, query_name, last_query, key, key_name, last_key = found.groups()
    assert (query_name, key_name) == (names(N)[int(query)], names(N)[int(key)])
    rows, keys = slice(int(query), int(last_query or query) + 1), slice(int(key), int(last_key or key) + 1)
    return rows, keys, value_of(page, at)


def value_of(page, at=0):
    return float(page.locator(".one .value b").nth(at).inner_text())


def listed(page, place):
    """The tokens of a list with what they hold."""
    found = [entry.split("\n") for entry in page.locator(f"#tokens {place} .entry").all_inner_texts()]
    return {int(number.replace(",", "")): (name, value) for name, number, value in found}


def picked(page, *parts):
    """Wait for what is said about the tokens that are picked: head, query, key, what is in colours, what is hidden."""
    page.locator(f"#tokens[data-ready='{' '.join(map(str, parts))}']").wait_for()


def numbers(text):
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_cells_of_maps_side_by_side_are_means_of_the_weights_down_to_single_ones(visit, scene):
    page = visit(maps="0.1+2.0", width=1300)
    maps, widths = [dense(scene, 0, 1), dense(scene, 2, 0)], set()
    assert page.locator(".one h3").all_inner_texts() == ["Attention, own, head 1", "Cross-attention, other, head 0"]
    assert "another shape, 1,200 × 900" in page.locator(".one .state").nth(1).inner_text()
    page.locator(".one > canvas").first.focus()
    for _ in range(4):
        for x, y in ((110, 90), (180, 200), (250.5, 241.5)):
            rows, keys, value = hover(page, x, y)
            assert value == pytest.approx(maps[0][rows, keys].mean(), rel=1e-3, abs=1e-30)
            if keys.stop <= M:  # both are of the same place
                assert value_of(page, 1) == pytest.approx(maps[1][rows, keys].mean(), rel=1e-3, abs=1e-30)
            widths.add(rows.stop - rows.start)
        page.keyboard.press("+")
        settled(page)
    assert {1, 2} <= widths


@pytest.mark.parametrize(("level", "link"), [(0, {"top": 300, "left": 100, "span": 0.05}), (1, {})])
def test_along_the_sides_stand_entropy_and_what_keys_received(visit, scene, level, link):
    page, A = visit(maps="0.1", **link), dense(scene, 0, 1)
    rows, keys, _ = hover(page, 210, 150)
    assert rows.stop - rows.start == 1 << level
    page.locator(".value small", has_not_text="not known").wait_for()
    entropy = -(A * np.log(np.where(A > 0, A, 1))).sum(1)[rows].mean()
    shown = page.locator(".value small").inner_text()
    assert numbers(shown) == pytest.approx([A.sum(0)[keys].mean(), entropy], rel=1e-3, abs=1e-5)
    page.locator("#margin").select_option("max_weight")
    page.locator(".value small", has_text="largest weight").wait_for()
    assert numbers(page.locator(".value small").inner_text())[1] == pytest.approx(A.max(1)[rows].mean(), rel=1e-3)


PIXEL = """([x, y]) => {
  const copy = new OffscreenCanvas(1, 1).getContext("2d");
  copy.drawImage(document.querySelector(".one > canvas"), -x, -y);
  return [...copy.getImageData(0, 0, 1, 1).data];
}"""


def test_the_colour_of_a_cell_is_that_of_its_weight(visit, scene):
    page = visit(maps="0.0", top=0, left=0, span=0.05)
    A = dense(scene, 0, 0)
    rows, keys, value = hover(page, 130, 130)
    assert (rows.stop - rows.start, keys.stop - keys.start) == (1, 1)
    page.mouse.move(5, 5)
    largest, all_but_first = A[:256, :256].max(), A[:256, 1:256].max()
    assert all_but_first < largest
    for key, scale, most in ((None, LIGHT, largest), ("d", DARK, largest), ("f", DARK, all_but_first)):
        if key:
            page.keyboard.press(key)
        settled(page)
        scale = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in scale])
        at = max(0, 1 + log10(value / most) / 5) * (len(scale) - 1)
        want = [np.interp(at, range(len(scale)), scale[:, i]) for i in range(3)]
        assert page.evaluate(PIXEL, [130, 130])[:3] == pytest.approx(want, abs=4)  # of 256 steps of the scale


def test_the_dashboard_shows_every_head_its_numbers_and_its_health(visit, scene):
    page = visit(maps="0.0")
    for statistic in ("normalized_entropy", "distance"):
        page.locator("#statistic").select_option(statistic)
        for i, call in enumerate(scene.seen):
            values = getattr(call.statistics, statistic)
            shown = page.locator(f'.head[data-layer="{i}"]').all_inner_texts()
            if values is None:
                assert shown == ["", ""]
            else:
                assert numbers(" ".join(shown)) == pytest.approx(values[0].nanmean(-1).tolist(), abs=0.06, rel=0.01)
    findings = check(scene.seen)
    assert any((each.layer, each.head) == ("again", 1) for each in findings)
    assert page.locator(".head.alarm").count() == len({(f.layer, f.head) for f in findings if f.severity == "alarm"})

    page.locator('.head[data-layer="1"][data-head="1"]').click()
    sentences = [each.sentence for each in findings if (each.layer, each.head) == ("again", 1)]
    assert sorted(page.locator(".chosen .alarms li").all_inner_texts()) == sorted(
        f"alarm: {sentence}" for sentence in sentences
    )
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.locator('.head[aria-pressed="true"]').get_attribute("aria-label").startswith("Attention, own, head 0")
    page.locator('.head[data-layer="2"][data-head="1"]').click(modifiers=["Shift"])
    assert page.locator(".one h3").all_inner_texts() == ["Attention, own, head 0", "Cross-attention, other, head 1"]
    assert page.locator(".one.active h3").inner_text() == "Cross-attention, other, head 1"
    page.keyboard.press("b")
    assert page.locator(".one").count() == 3
    page.keyboard.press("x")
    page.keyboard.press("1")
    page.locator(".one.active h3", has_text="own, head 0").wait_for()
    page.keyboard.press("?")
    assert page.locator("dialog[open] kbd").count() > 10
    page.keyboard.press("Escape")
    assert page.locator("#training .strip").count() == 1
    page.locator("#training .panel h3", has_text="own, head 0").wait_for()


def test_dragging_and_the_wheel_move_the_map_and_pick_nothing(visit):
    page = visit(maps="0.0")
    area = page.locator(".one > canvas").bounding_box()
    rows, keys, _ = hover(page, 200, 200)
    page.mouse.wheel(0, -720)
    settled(page)
    closer = hover(page, 200, 200)[:2]
    assert closer[0].start in range(rows.start, rows.stop)  # what is under the pointer stays there
    assert closer[1].start in range(keys.start, keys.stop)
    page.mouse.down()
    page.mouse.move(area["x"] + 280, area["y"] + 240, steps=4)
    page.mouse.up()
    settled(page)
    moved = hover(page, 280, 240)[:2]
    assert abs(moved[0].start - closer[0].start) <= 1
    assert abs(moved[1].start - closer[1].start) <= 1
    assert page.locator("#tokens .absent").is_visible()


def test_a_query_and_a_key_are_picked_and_read_in_the_text(visit, scene):
    page, A = visit(maps="0.0", top=0, left=0, span=0.05), dense(scene, 0, 0)
    assert page.locator("#flow").get_by_text("Pick a query").is_visible()
    page.locator(".one > canvas").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    rows, keys, value = said(page)
    page.keyboard.press("Enter")
    query, key = rows.start, keys.start
    picked(page, "0.0", query, key, "query", "")
    assert value == pytest.approx(A[query, key], rel=1e-3)
    assert float(page.locator("#pair b").inner_text()) == pytest.approx(A[query, key], abs=6e-5)

    most = listed(page, ".most:nth-child(1)")
    assert list(most) == np.argsort(-A[query])[: len(most)].tolist()
    assert len(most) == min(8, query + 1)
    rows_of = listed(page, ".most:nth-child(2)")
    assert list(rows_of) == np.argsort(-A[:, key])[:8].tolist()
    for at, (name, weight) in rows_of.items():
        assert (name, float(weight)) == (names(N)[at], pytest.approx(A[at, key], abs=6e-5))

    def read(at):
        page.locator(f'.excerpt [data-at="{at}"]').hover()
        return float(page.locator("#excerpt-read b").inner_text())

    assert read(key) == pytest.approx(A[query, key], abs=6e-5)
    page.keyboard.press("t")
    picked(page, "0.0", query, key, "key", "")
    assert read(query) == pytest.approx(A[query, key], abs=6e-5)
    assert read(key + 60) == pytest.approx(A[key + 60, key], abs=6e-5)
    page.locator('.excerpt [data-at="9"]').click()
    picked(page, "0.0", query, 9, "key", "")

    page.locator("#first").check()
    page.locator("#special").check()
    picked(page, "0.0", query, 9, "key", "first special")
    left = A[query].copy()
    left[[0, *SPECIAL]] = 0
    most = listed(page, ".most:nth-child(1)")
    assert list(most) == np.argsort(-left, kind="stable")[: len(most)].tolist()


SAMPLES = """() => {
  const text = (place) => document.querySelector(place)?.textContent ?? "";
  window.samples = [];
  new MutationObserver(() => samples.push({
    read: text("#read"), value: text(".one .value b"), name: text(".one h3"), pair: text("#pair"),
    shown: !document.querySelector(".picked").hidden,
    keys: text("#tokens .most:nth-child(1) h3"), rows: text("#tokens .most:nth-child(2) h3"),
    here: document.querySelector(".excerpt .here")?.dataset.at,
    turned: document.querySelector("#tokens [aria-pressed=true]")?.dataset.from,
    flow: text("#flow .read"),
  })).observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
}"""


def test_what_is_shown_belongs_together_at_every_moment(visit, scene):
    """However late answers are, and in whatever order they come."""
    page = visit(delay=150, maps="0.0", top=0, left=0, span=0.05)
    page.evaluate(SAMPLES)
    page.locator(".one > canvas").focus()
    for keys in ("ArrowDown Enter", "ArrowLeft ArrowUp Enter", "t", "ArrowLeft Enter f t", "ArrowUp Enter"):
        for key in keys.split():
            page.keyboard.press(key)
            page.wait_for_timeout(40)  # so that the next one comes before or after its answers, at random
        settled(page)
    page.locator('.head[data-layer="1"][data-head="1"]').click()
    settled(page)
    samples = page.evaluate("samples")
    maps = {"Attention, own, head 0": dense(scene, 0, 0), "Attention, again, head 1": dense(scene, 1, 1)}
    cells, pairs = set(), set()
    for now in samples:
        if found := re.match(r"query (\d+) (.+?) gives key (\d+) (.+)$", now["read"]):
            query, key = int(found[1]), int(found[3])
            assert found[2] in ("…", f"'{names(N)[query]}'")
            assert found[4] in ("…", f"'{names(N)[key]}'")
            if now["value"] != "not here yet":
                assert float(now["value"]) == pytest.approx(maps[now["name"]][query, key], rel=1e-3)
                cells.add((query, key))
        if not now["shown"] or not now["pair"]:
            continue
        head, query, key, weight = re.match(
            r"(.*): query (\d+) '.*?' gives key (\d+) '.*?' ([-\d.e]+)$", now["pair"]
        ).groups()
        assert float(weight) == pytest.approx(maps[head][int(query), int(key)], abs=6e-5, rel=0.05)
        assert now["keys"].startswith(f"query {query} ")
        assert now["rows"].startswith(f"key {key} ")
        assert now["here"] == (query if now["turned"] == "query" else key)
        pairs.add((head, query, key, now["turned"]))
    assert len(cells) > 3
    assert len(pairs) > 2
    assert samples[-1]["flow"].startswith(f"the output of '{names(N)[int(query)]}' ({query})")


def test_the_flow_through_a_token_is_rollout(visit, scene):
    page = visit(maps="0.0", query=20)
    page.locator("#flow[data-ready='20']").wait_for()
    own, again = (scene.seen[i].map.weights()[0].double().numpy().mean(0) for i in (0, 1))
    relevance = np.eye(N)[20]
    for A in (again, own):
        relevance = (relevance + relevance @ A) / 2
    shares = page.locator("#flow .entry").evaluate_all("all => all.map((each) => Number(each.dataset.share))")
    assert shares == pytest.approx(sorted(relevance, reverse=True)[: len(shares)], rel=1e-3)
    assert "100 %" in page.locator("#flow .read").inner_text().replace("\xa0", " ")  # so early all tokens are followed
    page.locator("#flow .entry").nth(1).click()
    second = int(np.argsort(-relevance)[1])
    page.locator(f"#flow[data-ready='{second}']").wait_for()
    page.locator('.head[data-layer="2"][data-head="0"]').click()
    page.locator("#flow").get_by_text("cross-attention is no stack of its own").wait_for()


def test_searching_a_token_shows_who_attends_to_it_and_markup_is_shown_and_not_run(visit, scene):
    page = visit(maps="0.0")
    assert page.title() == f"a reader {EVIL}"
    page.keyboard.press("/")
    page.keyboard.type("TOKEN123")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="key 123 'token123'").click()
    picked(page, "0.0", "null", 123, "key", "")
    A = dense(scene, 0, 0)
    assert list(listed(page, ".most:nth-child(2)")) == np.argsort(-A[:, 123])[:8].tolist()
    page.locator("#text").fill("nowhere")
    page.locator("#text").press("Enter")
    page.get_by_text("no token holds 'nowhere'").wait_for()
    page.locator("#text").fill("onerror")
    page.locator("#text").press("Enter")
    page.get_by_role("button", name=EVIL).click()
    picked(page, "0.0", "null", 11, "key", "")
    assert page.locator("img").count() == 0


def test_a_link_restores_the_view(visit, browser, url):
    page = visit(maps="0.1+2.1", width=1300)
    page.locator(".one > canvas").nth(1).focus()
    for key in ("+", "+", "Shift+ArrowRight", "Shift+ArrowDown", "l", "f", "d", "ArrowDown", "Enter", "t"):
        page.keyboard.press(key)
    page.locator("#statistic").select_option("sink")
    page.locator("#margin").select_option("distance")
    settled(page)
    page.wait_for_url(lambda url: {"statistic=sink", "rows=distance", "from=key"} <= set(re.split("[#&]", url)))
    link, wanted = page.url, hover(page, 150, 150)
    other = browser.new_page(viewport={"width": 1300, "height": 800})
    other.goto(link)
    settled(other)
    assert hover(other, 150, 150) == wanted
    assert other.locator(".one.active h3").inner_text() == "Cross-attention, other, head 1"
    assert [other.locator(f"#{box}").is_checked() for box in ("log", "first")] == [False, True]
    assert [other.locator(f"#{choice}").input_value() for choice in ("statistic", "margin")] == ["sink", "distance"]
    assert other.locator("html").get_attribute("data-theme") == "dark"
    assert other.locator("#pair").inner_text() == page.locator("#pair").inner_text() != ""
    assert other.locator('[data-from="key"]').get_attribute("aria-pressed") == "true"
    other.close()


def test_what_is_seen_can_be_taken_home(visit, scene):
    page = visit(maps="0.1", top=300, left=200, span=0.1)
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


def test_no_window_is_too_narrow_and_a_server_that_has_gone_is_said(browser, scene):
    with serving(scene) as server:
        page = browser.new_page(viewport={"width": 640, "height": 700})
        page.goto(f"{server.url}#maps=0.0+2.0&query=30&key=12&top=10&left=0&span=0.06")
        settled(page)
        picked(page, "0.0", 30, 12, "query", "")
        for width in (640, 320):
            page.set_viewport_size({"width": width, "height": 700})
            settled(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.route("**/api/**", lambda route: route.abort())  # as where nobody listens
    page.locator(".one > canvas").first.focus()
    page.keyboard.press("Home")
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    page.close()
