"""A run as it trains: maps of fixed examples by step in its folder, and the page that follows it, in a real browser."""

import contextlib
import json
import os
import re
import socket
import time
from threading import Thread

import numpy as np
import pytest
import torch

from clearhead.cli import main
from clearhead.data import sources
from clearhead.errors import InputError
from clearhead.train import Model, checkpoints, snapshots, train
from clearhead.train.folder import RunFolder
from clearhead.train.model import build
from clearhead.train.scores import Example
from clearhead.view import Server
from clearhead.view.beside import Beside
from clearhead.view.course import Course
from clearhead.view.site import Asked
from tiny_task import SMALL, Tiny, at_batch, small

pytestmark = pytest.mark.usefixtures("one_thread")
EVIL = "<img src=x onerror=\"document.title='owned'\">"


class Markup(Tiny):
    """The tiny task's words, as markup."""

    def pairs(self, split):
        for word, answer in super().pairs(split):
            yield f"<b>{word}</b>", answer


sources.SOURCES["markup"] = Markup
SETTINGS = (
    "data.source=markup",
    "model.max_length=20",
    "train.duration=12 steps",
    "train.warmup=0",
    "train.learning_rate=0.5",
    "monitor.every=2",
    "monitor.examples=3",
)


def quiet(_):
    pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has ended."""
    path = tmp_path_factory.mktemp("runs")
    train(small(*SETTINGS), name="run", runs=path, say=quiet)
    return RunFolder(path / "run")


def model_at(run, step):
    """The model as it was when that step was evaluated."""
    config, (source, target) = run.read_config(), run.read_tokenizers()
    model = Model(build(config, source, target), source, target, config)
    model.module.load_state_dict(checkpoints.average([run.checkpoints / f"step-{step:09d}.ckpt"]))
    model.module.eval()
    return model


def told(site, path, **given):
    return json.loads(site.at(path, Asked({key: [str(value)] for key, value in given.items()}, lambda: False)).body)


# ---- in the browser


class Reader:
    """The page, and what it says."""

    def __init__(self, page):
        self.page, self.complaints = page, []
        page.set_default_timeout(20_000)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def look(self, condition):
        """Let the page ask for what is new until a condition is true."""
        script = f"document.dispatchEvent(new Event('visibilitychange')); !!({condition})"
        for _ in range(400):
            if self.page.evaluate(script):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never: {condition}")

    def step(self):
        return int(re.match(r"step ([\d,]+)$", self.page.locator("#slider output").inner_text())[1].replace(",", ""))

    def shows(self, step):
        self.look(f"document.querySelector('#slider output').textContent === 'step {step}'")

    def last_step(self):
        return int(self.page.locator(".steps span").last.inner_text().removeprefix("step "))

    def cell(self, path, head, row, column):
        """Query, key and weight, read by keyboard."""
        self.page.locator(f'.head[data-path="{path}"][data-head="{head}"]').click()
        self.page.locator(".large svg").focus()
        for key in ["Home", *["ArrowUp"] * 9, *["ArrowDown"] * row, *["ArrowRight"] * column]:
            self.page.keyboard.press(key)
        said = self.page.locator(".large .read").inner_text()
        query, weight, key = re.match(r"query '(.*)' gives ([\d.]+) to key '(.*?)'", said).groups()
        return query, key, float(weight)


def test_a_run_is_seen_as_it_trains_and_after_it(browser, tmp_path):
    reader = Reader(browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light"))
    page, path, steps = reader.page, "decoder.layers.0.cross_attention", []

    def waiting():
        page.goto(show.url)
        assert page.locator("#status").inner_text() == "Waiting for the first step."
        assert page.locator("#slider").is_hidden()
        assert page.locator("#explorer").inner_text().startswith("None yet")

    def first():
        reader.look("document.querySelector('.steps') && !document.querySelector('#slider').hidden")
        steps.append((reader.last_step(), reader.step()))
        assert page.locator("#status").inner_text().startswith("The run goes on: step ")
        assert page.locator("#heads [data-alarm]").count() == 0
        page.get_by_role("button", name="first key").click()
        page.locator(f'.head[data-path="{path}"][data-head="1"]').click()
        page.locator(".head[aria-pressed=true]").focus()

    def later():
        reader.look("document.title.startsWith('(')")  # an alarm
        steps.append((reader.last_step(), reader.step()))
        assert page.locator("#heads li.alarm").first.is_visible()
        assert "alarm, step" in page.locator("#announced").inner_text()
        assert re.search(r"\d+ alarms?$", page.locator("#status").inner_text())
        assert page.locator(".choices [aria-pressed=true]").inner_text() == "first key"  # what was chosen
        assert page.locator(".large h3").inner_text() == f"{path}, head 1"
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
        page.locator("#slider input").focus()
        page.keyboard.press("Home")  # from now on it does not follow
        reader.shows(1)

    with Beside(port=0) as show, contextlib.ExitStack() as hooks:
        for batch, happens in ((1, waiting), (4, first), (11, later)):
            hooks.enter_context(at_batch(batch, happens))
        train(small(*SETTINGS), name=EVIL, runs=tmp_path, say=quiet, begun=show)
        assert reader.step() == 1
    assert steps[0] < steps[1]
    reader.look("document.querySelector('#status').dataset.state === 'ended'")
    assert "The run has ended. `clearhead view" in page.locator("#status").inner_text()
    run = RunFolder(tmp_path / EVIL)
    (name, example), *_ = run.snapshots().items()
    title = json.loads(example.read_text())["examples"][1]["title"]
    page.locator("[role=tab]").nth(1).click()
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == title
    assert name == 1
    assert title.startswith("<b>")
    answer = dict(Markup().pairs("valid"))[title]
    for step in (8, 12):  # of which there are checkpoints; the server has gone by now
        page.locator("#slider input").focus()
        page.keyboard.press("End")
        for _ in range(12 - step):
            page.keyboard.press("ArrowLeft")
        reader.shows(step)
        A = model_at(run, step).maps(title, answer)[path].weights()[0].numpy()
        for head, row, column in ((0, 0, 0), (1, 2, 4)):
            query, key, weight = reader.cell(path, head, row, column)
            assert (query, key) == ([*answer.split(), "end"][row], title[column])
            assert weight == pytest.approx(A[head, row, column], abs=0.51e-4)
    page.get_by_role("button", name="play").click()
    reader.shows(3)
    assert page.title().endswith(f"· g2p: {EVIL}")  # nothing in it ran
    assert all("ERR_CONNECTION_REFUSED" in line for line in reader.complaints)
    page.close()


def test_a_run_that_has_ended_and_one_whose_files_are_damaged(browser, run):
    lines = run.metrics.read_text()
    maps = {path: path.read_bytes() for path in run.snapshots().values()}
    reader = Reader(browser.new_page(viewport={"width": 640, "height": 900}, color_scheme="dark"))
    with Server(port=0) as server:
        thread = Thread(target=server.show, args=[Course(run.path)])
        thread.start()
        reader.page.goto(server.url)
        status = reader.page.locator("#status").inner_text()
        assert re.match(r"The run has ended: 12 steps, .*Its report is .*report\.html\.", status)
        assert reader.page.locator(".verdict").is_visible()
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= 640
        reader.shows(12)
        run.metrics.write_text("[]\n" + lines + '{"step": 13, "attention": {"a": 5}}\n')
        for path in maps:
            path.write_text('{"examples": [{"title": "cut o')
        reader.look("!document.querySelector('#trouble').hidden")
        assert "1 line is in part no record" in reader.page.locator("#trouble").inner_text()
        reader.look("document.querySelector('#explorer').textContent.includes('is damaged')")
        run.path.rename(run.path.with_name("gone"))
        reader.look("document.querySelector('#status').dataset.state === 'gone'")
        assert "is no longer there" in reader.page.locator("#status").inner_text()
        server.shutdown()
        thread.join()
    run.path.with_name("gone").rename(run.path)
    for path, content in maps.items():
        path.write_bytes(content)
    run.metrics.write_text(lines)
    assert all("400" in line or "REFUSED" in line for line in reader.complaints), reader.complaints
    reader.page.close()


SAMPLES = """() => {
  window.samples = [];
  const text = (place) => document.querySelector(place).textContent;
  new MutationObserver(() => samples.push([text("#slider output"), text(".large .read")]))
    .observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
}"""


def test_the_step_and_its_maps_change_together(browser, run):
    """However late they are, and whichever comes first."""
    with Server(port=0) as server:
        thread = Thread(target=server.show, args=[Course(run.path)])
        thread.start()
        page = browser.new_page(delay=150, viewport={"width": 1280, "height": 900})
        reader = Reader(page)
        page.goto(server.url)
        reader.shows(12)
        page.evaluate(SAMPLES)
        page.locator(".large svg").focus()
        page.keyboard.press("Home")
        read = {"step 12": page.locator(".large .read").text_content()}
        page.locator("#slider input").focus()
        for key in ("Home", "ArrowRight", "ArrowRight", "End", "ArrowLeft"):
            page.keyboard.press(key)
        reader.shows(11)
        samples = page.evaluate("samples")
        for step in range(11, 0, -1):
            reader.shows(step)
            read[f"step {step}"] = page.locator(".large .read").text_content()
            page.keyboard.press("ArrowLeft")
        server.shutdown()
        thread.join()
    assert len(set(read.values())) > 8
    assert {step for step, _ in samples} >= {"step 12", "step 11"}
    assert {(step, words) for step, words in samples if " gives " in words} <= read.items()
    page.close()


# ---- in the run folder


def test_maps_are_those_of_the_model_and_nothing_random_is_drawn(run):
    assert [*run.snapshots()] == [*range(1, 13)]
    model, content = model_at(run, 12), run.snapshots()[12].read_text()
    answers = dict(Markup().pairs("valid"))
    examples = [Example(one["title"], [answers[one["title"]]]) for one in json.loads(content)["examples"]]
    assert len(examples) == 3
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].tolist()
    model.module.training = True
    snapshots.write(run, 12, model, examples)
    assert run.snapshots()[12].read_text() == content
    assert torch.equal(state, torch.get_rng_state())
    assert numbers == np.random.get_state()[1].tolist()
    assert model.module.training


def test_examples_are_of_a_usual_length_and_shorter_where_there_are_many_heads(run):
    config, (source, target) = run.read_config(), run.read_tokenizers()
    texts = ["a" * (1 + i % 97) for i in range(1000)]
    examples = [Example(text, ["A1"]) for text in texts]

    def lengths(count, **network):
        large = config.model_copy(update={"model": config.model.model_copy(update={"max_length": 500, **network})})
        chosen = snapshots.typical(Model(build(config, source, target), source, target, large), examples, count)
        return [len(one.source) for one in chosen]

    assert lengths(3) == pytest.approx([32] * 3, abs=4)  # of those up to 64
    many = lengths(4, layers=8, num_heads=16)
    assert max(many) ** 2 * 4 * 3 * 8 * 16 <= snapshots.WEIGHTS
    assert min(many) > 5
    assert lengths(16, layers=100, num_heads=400) == []  # not even one token fits


def test_what_is_asked_of_a_run_whatever_is_in_its_folder(run, tmp_path):
    course = Course(run.path)
    assert told(course, "/api/version")["version"] == told(course, "/api/run")["version"]
    assert told(course, "/api/maps", step=3)["examples"] == json.loads(run.snapshots()[3].read_text())["examples"]
    with pytest.raises(InputError, match="there are no maps of step 99"):
        told(course, "/api/maps", step=99)
    course.end("Interrupted.", wait=0)
    assert told(course, "/api/version")["words"] == "Interrupted."
    for file, content in (("config.yaml", run.config.read_bytes()), ("metrics.jsonl", b'{"step": 2, "progress": 0.25')):
        (tmp_path / file).write_bytes(content)
    begun = Course(tmp_path)
    assert told(begun, "/api/version")["words"] == "Waiting for the first step."
    with open(tmp_path / "metrics.jsonl", "ab") as file:  # the line that was being written
        file.write(b', "seconds": 60}\n\xff\n')
    assert told(begun, "/api/version")["words"] == "The run goes on: step 2, 25%, about 3 min left."
    assert told(begun, "/api/run")["steps"] == []
    assert "1 line is no record; the first is line 2" in told(begun, "/api/version")["trouble"]
    os.utime(tmp_path / "metrics.jsonl", (0, time.time() - 600))
    assert "nothing new for 10 min" in told(begun, "/api/version")["words"]


# ---- the command line


def command(capfd, *arguments):
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code, capfd.readouterr().err


def test_train_with_a_page(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(snapshots, "SHARES", 4)
    asked = [part for setting in [*SMALL, *SETTINGS, "train.evaluations=1"] for part in ("--set", setting)]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        status, said = command(capfd, "train", "g2p", *asked, "--view", "--port", number)
    assert (status, said.count("\n")) == (2, 1)
    assert f"port {number} is in use" in said
    assert not (tmp_path / "runs").exists()
    assert command(capfd, "train", "g2p", "--port", "0") == (2, "error: --port belongs to --view\n")
    status, said = command(capfd, "train", "g2p", *asked, "--view", "--port", "0")
    assert status == 0
    assert len(re.findall(r"^http://127\.0\.0\.1:\d+/ shows runs/g2p as it trains$", said, re.M)) == 1
    assert [*RunFolder("runs/g2p").snapshots()] == [1, 3, 6, 9, 12]  # however long it is


def test_view_of_a_run_needs_no_text(run, monkeypatch, capfd):
    shown = []
    monkeypatch.setattr(Server, "show", lambda server, site, browser: shown.append((site, browser)))
    assert command(capfd, "view", str(run.path), "--port", "0", "--no-open")[0] == 0
    (site, browser), *_ = shown
    assert isinstance(site, Course)
    assert not browser
    status, said = command(capfd, "view", str(run.path), "--target", "A1", "--port", "0")
    assert status == 2
    assert "nothing to read was given" in said
