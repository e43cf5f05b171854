"""The page of `clearhead inspect --out page.html` in a real browser: what it shows are the weights of the model."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_task
from clearhead.cli import main
from clearhead.errors import InputError, ShapeError
from clearhead.inspect import inspect
from clearhead.observe import rollout
from clearhead.observe.numbers.records import records
from clearhead.picture import atlas
from clearhead.picture.packing import compressed
from clearhead.train import train
from foreign_models import BY_NAME, transformers

tokenizers = pytest.importorskip("tokenizers")

EVIL = (
    "<script>document.title='owned'</script>",
    "</script><img/src=x/onerror=alert(1)>",
    "\u202eflipped",
    "\x07bell",
    "&lt;",
)
TEXT = " ".join(("the cat", *EVIL, "sat on the mat"))
ATTENTION = "encoder.layer.{}.attention.self"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of Hugging Face with a head in trouble, whose tokenizer cuts at spaces; and a run."""
    folder = tmp_path_factory.mktemp("models")
    names = ["<pad>", "</s>", "<unk>", "[CLS]", *sorted(set(TEXT.split(" ")))]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    marks = [("[CLS]", 3), ("</s>", 1)]
    words.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A </s>", special_tokens=marks)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "[CLS]"}
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    model = BY_NAME["bert"].make("sdpa", vocab_size=len(names))
    with torch.no_grad():
        for part in ("query", "key"):
            getattr(model.encoder.layer[1].attention.self, part).weight[8:16] *= 60  # head 1
    transformers.utils.logging.disable_progress_bar()
    for each in (model, saved):
        each.save_pretrained(folder / "bert")
    monitored = [*tiny_task.SMALL, "model.layers=2", "monitor.every=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train("g2p", monitored, "tiny")
    return folder


@pytest.fixture(scope="module")
def bert(folder):
    """What was found in the model, and the page of it."""
    return inspect(folder / "bert", TEXT, out=folder / "bert.html")


@pytest.fixture(scope="module")
def run(folder):
    return inspect(folder / "runs/tiny", "abcf", out=folder / "run.html")


@pytest.fixture
def visit(browser):
    """Opens a page; afterwards it has asked the network for nothing and has had nothing to complain of."""
    pages, requests, complaints = [], set(), []

    def visit(found, fragment="", width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("request", lambda request: requests.add(request.url.partition("#")[0]))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(found.files[0].as_uri() + fragment)
        page.wait_for_selector("[data-ready]")
        return page

    yield visit
    for page in pages:
        page.close()
    assert len(requests) <= 1
    assert complaints == []


def weights(found, layer, head):
    return found.seen[layer].map.weights()[0, head].numpy()


def open_head(page, layer, head):
    page.locator(f'.head[data-layer="{layer}"][data-head="{head}"]').click()


def reading(page):
    return page.locator("#view .read").inner_text()


def hover_cell(page, row, column):
    """Point at a cell of the map, wherever its names say it is."""
    page.locator(f"#view [data-row='{row}']").scroll_into_view_if_needed()
    down, across = (
        page.locator(f"#view [data-{name}]").bounding_box() for name in (f"row='{row}'", f"column='{column}'")
    )
    page.mouse.move(across["x"] + across["width"] / 2, down["y"] + down["height"] / 2)


def cell_said(page):
    return re.match(r"query '(.*)' gives ([\d.]+) to key '(.*?)'\n", reading(page)).groups()


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 3)])
def test_cells_of_the_map_are_the_weights(visit, bert, layer, head):
    page = visit(bert)
    open_head(page, layer, head)
    page.locator("[data-view=map]").click()
    assert page.locator(".path").inner_text() == ATTENTION.format(layer)
    A, statistics = weights(bert, layer, head), bert.seen[layer].statistics
    for row, column in [(0, 0), (1, 7), (4, 2), (len(A) - 1, len(A) - 1)]:
        hover_cell(page, row, column)
        _, weight, _ = cell_said(page)
        assert weight == f"{A[row, column].astype(float):.6f}"
        sums = re.search(r"query ([\d.]+) nats · the key received ([\d.]+)", reading(page)).groups()
        want = (statistics.entropy[0, head, row].item(), statistics.received[0, head, column].item())
        assert [*map(float, sums)] == pytest.approx(want, abs=0.51e-3)


def test_a_pixel_has_the_colour_of_its_weight_linear_and_logarithmic(visit, bert):
    page = visit(bert, f"#layer={ATTENTION.format(0)}&head=2&view=map&range=one")
    A = weights(bert, 0, 2).astype(float)
    light = json.loads(re.search(r'"light":(\[.*?\])', bert.files[0].read_text("utf-8"))[1])
    scale = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in light])
    pixel = """at => {
        const copy = new OffscreenCanvas(1, 1).getContext("2d");
        copy.drawImage(document.querySelector("#view .plot canvas"), -at[1], -at[0]);
        return [...copy.getImageData(0, 0, 1, 1).data];
    }"""
    for name, place in (("linear", lambda x: x), ("log", lambda x: np.log(max(x, 1e-6) / 1e-6) / np.log(1e6))):
        if name == "log":
            page.locator("#log").check()
            assert "scale=log" in page.url
        for row, column in [(0, 0), (3, 5), (7, 1)]:
            want = [np.interp(place(A[row, column]), np.linspace(0, 1, len(scale)), scale[:, i]) for i in range(3)]
            assert page.evaluate(pixel, [row, column])[:3] == pytest.approx(want, abs=2)


def test_a_token_shows_what_it_attends_to(visit, bert):
    page = visit(bert)
    open_head(page, 0, 1)
    A = weights(bert, 0, 1)
    token = page.locator(".token[data-side=query][data-index='2']")
    token.hover()
    shown = page.locator(".token[data-side=key] small").all_inner_texts()
    assert [float(text) for text in shown] == pytest.approx(A[2].tolist(), abs=0.51e-4)
    assert page.locator(".lines path:not(.off)").count() == (A[2] >= A.max() / 100).sum()
    assert reading(page).startswith("query 'cat' (2) attends to ")
    page.locator(".token[data-side=key][data-index='3']").hover()
    shown = page.locator(".token[data-side=query] small").all_inner_texts()
    assert [float(text) for text in shown] == pytest.approx(A[:, 3].tolist(), abs=0.51e-4)
    token.click()
    page.mouse.move(5, 5)
    assert reading(page).startswith("query 'cat' (2) attends to ")
    assert "token=2" in page.url
    page.keyboard.press("Escape")
    assert reading(page).startswith("Point at a token")
    assert "token=" not in page.url


def test_a_text_is_coloured_by_what_a_token_attends_to(visit, bert):
    page = visit(bert, f"#layer={ATTENTION.format(0)}&head=1&tokens=text")
    page.locator(".token").nth(2).hover()
    A = weights(bert, 0, 1)[2]
    best = int(A.argmax())
    assert f"'{page.locator('.token').nth(best).inner_text().strip()}' {A[best]:.4f}" in reading(page)
    colours = page.locator(".token").evaluate_all("all => all.map((each) => each.style.backgroundColor)")
    assert len(colours) == len(A)
    assert colours[best] == "rgb(33, 30, 78)"


def test_the_first_key_and_special_tokens_are_hidden(visit, bert):
    page = visit(bert, f"#layer={ATTENTION.format(1)}&head=0")
    count = len(weights(bert, 1, 0))
    assert page.locator(".token[data-side=key]").count() == count
    page.locator("#hide-first").check()
    assert page.locator(".token[data-side=key]").count() == count - 1
    share = 100 * weights(bert, 1, 0)[:, 0].mean()
    assert page.locator("#share").inner_text() == f"the hidden keys hold {share:.0f} % of all weight"
    page.locator("#hide-special").check()
    assert "hide=first+special" in page.url
    for side in ("query", "key"):
        assert page.locator(f".token[data-side={side}]").first.inner_text().split()[0] == "the"
        assert page.locator(f".token[data-side={side}]").count() == count - 2
    page.locator("[data-view=map]").click()
    assert page.locator("#view .blank").count() == 4


def test_the_dashboard_shows_any_statistic_and_health(visit, bert):
    page = visit(bert)
    told = records(bert.seen)
    for name, part in (("entropy", "mean"), ("max_logit", "max"), ("sink", "mean")):
        page.select_option("#statistic", name)
        titles = page.locator(".head").evaluate_all("all => all.map((each) => each.title)")
        values = [float(re.search(r" (-?[\d.]+(?:e[+-]\d+)?)(?:;|$)", title)[1]) for title in titles]
        assert values == pytest.approx([head[name][part] for head in told], rel=1e-3)
    alarms = [finding for finding in bert.findings if finding.severity == "alarm"]
    assert {(finding.layer, finding.head) for finding in alarms} >= {(ATTENTION.format(1), 1)}
    assert "alarm" in page.locator(".head[data-layer='1'][data-head='1']").get_attribute("class")
    open_head(page, 1, 1)
    said = page.locator(".large .alarms").inner_text()
    assert all(finding.sentence in said for finding in alarms if finding.head == 1)


def test_the_flow_of_a_token_is_its_rollout(visit, bert):
    page = visit(bert, f"#layer={ATTENTION.format(0)}&view=flow&token=3")
    relevance = rollout(bert.seen, 3)[0].numpy()
    said = [int(share) for share in re.findall(r"([\d]+)\xa0%", reading(page))]
    assert said == pytest.approx(sorted(100 * relevance)[:-5:-1], abs=0.6)
    page.locator("#view svg").focus()
    page.keyboard.press("ArrowRight")
    assert f"({4}) rests on" in reading(page)
    assert "token=4" in page.url
    page.locator("#view circle[data-level='1'][data-token='4']").hover()
    assert reading(page).startswith("after layer 0, ")


def test_all_of_it_works_from_the_keyboard(visit, bert):
    page = visit(bert, f"#layer={ATTENTION.format(0)}&head=0")
    name = page.locator("#head-name")
    for key, where in (
        ("ArrowRight", "layer 0, head 1"),
        ("ArrowDown", "layer 1, head 1"),
        ("ArrowDown", "layer 1, head 1"),
        ("ArrowLeft", "layer 1, head 0"),
    ):
        page.keyboard.press(key)
        assert name.inner_text() == where
    page.keyboard.press("2")
    for key in ("Enter", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    query, weight, _ = cell_said(page)
    assert (query, weight) == ("cat", f"{weights(bert, 1, 0)[2, 1].astype(float):.6f}")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.head") == "0"
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    assert page.locator("dialog kbd").all_inner_texts()[:3] == ["← → ↑ ↓", "Enter", "Esc"]
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    for key, part in (
        ("l", "scale=log"),
        ("f", "hide=first"),
        ("s", "hide=first+special"),
        ("3", "view=flow"),
        ("d", "theme=dark"),
    ):
        page.keyboard.press(key)
        assert part in page.url


def test_a_link_brings_all_of_it_back(visit, bert):
    page = visit(bert)
    open_head(page, 0, 3)
    page.select_option("#statistic", "sink")
    page.locator(".token[data-side=query][data-index='4']").click()
    for key in ("l", "2", "d"):
        page.keyboard.press(key)
    again = visit(bert, "#" + page.url.partition("#")[2])
    assert again.locator("#head-name").inner_text() == "layer 0, head 3"
    assert again.locator("#statistic").input_value() == "sink"
    assert again.locator("[data-view=map]").get_attribute("aria-selected") == "true"
    assert again.locator("#log").is_checked()
    assert again.evaluate("document.documentElement.dataset.theme") == "dark"
    assert cell_said(again)[0] == EVIL[1]
    wrong = f"#layer={ATTENTION.format(1)}&head=99&token=x&view=all&statistic=<b>"
    same = "layer 0, head 3"
    for fragment, name in (("#nothing", same), ("#layer=none&head=2", same), (wrong, "layer 1, head 0")):
        again.evaluate("fragment => (location.hash = fragment)", fragment)
        again.wait_for_function("name => document.getElementById('head-name').textContent === name", arg=name)


def test_the_theme_follows_the_system_and_a_switch(visit, bert):
    page = visit(bert, scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    page.reload()
    page.wait_for_selector("[data-ready]")
    assert (dark != light, page.evaluate("getComputedStyle(document.body).backgroundColor")) == (True, light)


def test_no_window_is_too_narrow(visit, bert):
    page = visit(bert)
    for width in (800, 640, 400):
        page.set_viewport_size({"width": width, "height": 900})
        for view in ("tokens", "map", "flow"):
            page.locator(f"[data-view={view}]").click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_markup_in_tokens_is_shown_and_not_run(visit, bert):
    page = visit(bert)
    assert "\u202e" not in page.locator("body").inner_text()
    shown = page.locator(".token[data-side=query]").evaluate_all("all => all.map((each) => each.title)")
    assert shown[3:5] == [f"query {i}: {token}" for i, token in enumerate(EVIL[:2], start=3)]
    assert shown[5:8] == ["query 5: \\u202eflipped", "query 6: \\x07bell", "query 7: &lt;"]
    assert (page.title(), page.locator("img").count()) == ("bert: attention", 0)
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_a_run_shows_its_three_stacks_and_its_training(visit, run):
    page = visit(run)
    assert page.locator(".overview h3").all_inner_texts() == ["Encoder", "Decoder", "Cross-attention"]
    for i, call in enumerate(run.seen):
        open_head(page, i, 1)
        assert page.locator(".path").inner_text() == call.name
        page.locator("[data-view=map]").click()
        hover_cell(page, call.shape[2] - 1, 0)
        assert cell_said(page)[1] == f"{weights(run, i, 1)[-1, 0].astype(float):.6f}"
        assert page.locator("#course-name").inner_text() == f"{call.name}, head 1"
    steps = [record["step"] for record in run.model.history() if record.get("attention")]
    assert page.locator(".panel .read").inner_text().startswith(f"step {steps[-1]}: normalized entropy ")
    page.locator("[data-view=flow]").click()
    assert reading(page).startswith("Cross-attention is no stack of its own")


def test_strong_pairs_and_findings_lead_to_their_heads(visit, bert):
    page = visit(bert)
    for i in (0, 3):
        pair = bert.pairs[i]
        line = page.locator("details", has_text="Strongest pairs").locator("li").nth(i)
        assert f" {pair.pair.weight:.4f} " in line.inner_text()
        line.locator("button").click()
        assert page.locator(".path").inner_text() == pair.layer
        assert page.locator("#head-name").inner_text().endswith(f"head {pair.pair.head}")
        assert page.locator(".token.here").get_attribute("data-index") == str(pair.pair.query)


def test_a_page_of_144_heads_is_small(visit, tmp_path):
    """Weights whose entropy is the largest that weights of 128 keys can have."""
    A = np.random.default_rng(0).dirichlet(np.ones(128), (12, 12, 128))
    entropy, names = -(A * np.log(A)).sum(-1), [f"token {i}" for i in range(128)]
    layers = [
        {"path": f"layers.{i}", "group": "", "weights": A[i], "entropy": entropy[i], "received": A[i].sum(-2),
         "statistics": {"entropy": entropy[i].mean(-1)}, "rows": names, "columns": names}
        for i in range(12)
    ]  # fmt: skip
    atlas(tmp_path / "page.html", title="t", subtitle="s", layers=layers)
    assert (tmp_path / "page.html").stat().st_size < 3e6
    found = type("Found", (), {"files": [tmp_path / "page.html"]})
    page = visit(found, "#layer=layers.7&head=5&view=map&token=99&key=42")
    assert cell_said(page) == ("token 99", f"{A[7, 5, 99, 42]:.4f}", "token 42")


def test_numbers_are_packed_as_told():
    """Read back by a loop that follows the description."""
    values = np.random.default_rng(0).exponential(0.02, 500)
    values[[3, 400]] = np.nan, np.inf
    text = compressed([(values[:300].reshape(3, 100), 4), (values[300:], 6)])
    letters = [chr(c) for c in range(33, 127) if chr(c) not in '"<\\']
    words = [91 * letters.index(a) + letters.index(b) for a, b in zip(text[1::2], text[2::2], strict=True)]
    bits = "".join(f"{word:013b}" for word in words)
    packed = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8))
    raw = zlib.decompress(packed[: len(packed) - int(text[0])])
    planes, at = raw[500:], 0
    size = len(planes) // 3
    for i, byte in enumerate(raw[:500]):
        code = byte
        if byte == 255:
            code = planes[at] | planes[size + at] << 8 | planes[2 * size + at] << 16
            at += 1
        decimals = 4 if i < 300 else 6
        assert code == (1 + round(values[i] * 10**decimals) if np.isfinite(values[i]) else 0)
    assert at == size > 0


SUMS = {"entropy": np.ones((2, 3)), "received": np.ones((2, 3))}
NAMED = {"path": "a", "group": "", "statistics": {"sink": [0.5, None]}, "rows": list("abc"), "columns": list("abc")}
LAYER = {**NAMED, **SUMS, "weights": np.full((2, 3, 3), 1 / 3)}


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ([], InputError, "there are none"),
        ([{**LAYER, "weights": np.ones((3, 3))}], ShapeError, r"layers: 'a': shape \(3, 3\), expected \(H, Nq, Nk\)"),
        ([{**LAYER, "entropy": np.ones(3)}], ShapeError, r"entropy has shape \(3,\), expected \(2, 3\)"),
        ([{**LAYER, "rows": list("ab")}], ShapeError, "rows: 2 labels, but the weights have 3 queries"),
        ([{**LAYER, "statistics": {"sink": [1.0]}}], ShapeError, "sink: 1 labels, but it has 2 heads"),
        ([{**LAYER, "weights": -LAYER["weights"]}], InputError, "do not fit into a page"),
    ],
)
def test_what_cannot_be_shown_is_named_in_one_line(tmp_path, layers, error, words):
    with pytest.raises(error, match=words):
        atlas(tmp_path / "page.html", title="t", subtitle="s", layers=layers)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", " ", "--out", "page.html"], "the text is empty"),
        (["--text", "the " * 80, "--out", "page.html"], "the text has 82 tokens, and the model positions for 64"),
        (["--text", "the \udc80", "--out", "page.html"], "the text holds bytes that are no UTF-8"),
        (["--text", "the", "--out", "none/page.html"], "cannot write none/page.html: there is no folder none"),
        (["--text", "the", "--out", "mine.html"], "mine.html was not written by clearhead"),
        (["--text", "the", "--out", "folder.html"], "folder.html is a folder"),
        (["--text", "the", "--out", "page.html", "--head", "encoder.layer.0:9"], "has heads 0 … 3"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("mine.html").write_text("mine")
    Path("folder.html").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(folder / "bert"), *arguments])
    output, errors = capfd.readouterr()
    assert (ended.value.code, output, errors.count("\n")) == (2, "", 1), errors
    assert message in errors
    assert not Path("page.html").exists()
    assert Path("mine.html").read_text() == "mine"


def test_too_many_weights_for_a_page(folder, tmp_path, monkeypatch):
    from clearhead.inspect import pages

    monkeypatch.setattr(pages, "LIMIT", 1000)
    with pytest.raises(InputError, match="too many for one page, which holds 1,000: shorten the text, choose some --l"):
        inspect(folder / "bert", TEXT, out=tmp_path / "page.html")


def test_a_page_is_written_again(folder, tmp_path):
    for head in ("0", "2"):
        found = inspect(folder / "bert", "the cat", heads=[f"encoder.layer.1:{head}"], out=tmp_path / "page.html")
        assert found.files == [tmp_path / "page.html"]
        assert f'"opened":[1,{head}]' in found.files[0].read_text("utf-8")
