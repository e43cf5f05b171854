"""The page of a run whose files are odd: it shows what is good, and says what is not."""

import copy
import json
import os
import random

import pytest

from clearhead.picture import live
from clearhead.train.folder import RunFolder
from clearhead.view import Server
from clearhead.view.course import Course
from clearhead.view.records import BLOCK, Records
from clearhead.view.site import Asked
from conftest import TRIALS
from tiny_task import small

ALARM = {"rule": "collapse", "layer": "a.b", "head": 1, "turn": 0, "event": "began", "severity": "alarm"}
GOOD = [
    {
        "step": step,
        "epoch": 0,
        "seconds": 0.5 * step,
        "progress": step / 10,
        "train_loss": 3.0 / step,
        "learning_rate": 0.1,
        "valid_loss": 2.5,
        "valid_wer": 0.5,
        "tokens_per_second": 100.0,
        "attention": {"a.b": {"entropy": [1.0, 2.0], "sink": [0.1, None], "max_logit": [3.0, 9.0], "weight_norm": 1.5}},
        "alarms": [{**ALARM, "sentence": "a.b head 1 collapses"}],
        "remedies": ["lowered the learning rate"],
    }
    for step in (1, 2, 3)
]
VALUES = (
    *(
        None,
        True,
        -1,
        0,
        10**400,
        2**53,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        "",
        "a",
        "\ud800",
        "<b>",
        "9" * 9999,
    ),
    *(
        [],
        [1],
        [[1.0, 2.0]],
        ["a", "b"],
        [1.0, 2.0, 3.0],
        [None, None],
        [float("nan"), 1e308],
        {},
        {"a": 1},
        {"a.b": {}},
    ),
)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_config(small())
    return folder


def _asked(**values):
    return Asked({key: [value] for key, value in values.items()}, lambda: False)


def _shown(run):
    """What the page, its data and its status say; all of it can be sent."""
    course = Course(run.path)
    page, now = course.at("/", _asked()), json.loads(course.at("/api/version", _asked()).body)
    drawn = json.loads(course.at("/api/run", _asked()).body)
    assert page.body
    return drawn, now


def _lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_good_records_are_no_trouble(run):
    run.metrics.write_text(_lines(GOOD) + '{"step": 4, "train_lo')  # which is being written
    drawn, now = _shown(run)
    assert (now["trouble"], now["short"]) == ("", "step 3")
    wanted = json.loads(json.dumps(live.drawn(GOOD)))
    assert {key: drawn[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("line", "trouble"),
    [
        (b"", "1 line is no record; the first is line 3"),
        (b"[]", "1 line is no record; the first is line 3"),
        (b"\xff\xfe", "1 line is no record; the first is line 3"),
        (b"[" * 99999, "1 line is no record; the first is line 3"),
        (b'{"step": 2', "1 line is no record; the first is line 3"),
        (b'{"step": "2"}', "1 line is no record; the first is line 3"),
        (b'{"step": true}', "1 line is no record; the first is line 3"),
        (b'{"step": NaN}', "1 line is no record; the first is line 3"),
        (b'{"train_loss": 1}', "1 line is no record; the first is line 3"),
        (b'{"step": 3}\n[]\n{}', "2 lines are no record; the first is line 4"),
        (b'{"step": 3, "note": "\\ud800"}', "1 line is no record; the first is line 3"),
        (b'{"step": 3, "train_loss": "low"}', "1 line is in part no record; the first is line 3: train_loss"),
        (b'{"step": 3, "seconds": Infinity}', "1 line is in part no record; the first is line 3: seconds"),
        (b'{"step": 3, "attention": {"a.b": 5}}', "1 line is in part no record; the first is line 3: attention.a.b"),
        (b'{"step": 3, "attention": {"a.b": {"sink": [1]}}}', "the first is line 3: attention.a.b"),
        (b'{"step": 3, "alarms": [{"rule": "collapse"}]}', "the first is line 3: alarms"),
        (
            b"{}\n" + b'{"step": 3, "remedies": 1}',
            "1 line is no record, 1 line is in part no record; the first is line 3",
        ),
    ],
)
def test_what_is_good_is_shown_and_what_is_not_is_said(run, line, trouble):
    before, after = _lines(GOOD[:2]).encode(), _lines([{**GOOD[2], "step": 9}]).encode()
    run.metrics.write_bytes(before + line + b"\n" + after)
    drawn, now = _shown(run)
    assert trouble in now["trouble"]
    assert now["trouble"].startswith(f"{run.metrics}: ")
    assert now["short"] == "step 9"
    assert drawn["heads"]["steps"][-1] == 9
    assert "lowered the learning rate" in drawn["markup"]["alarms"]


def test_numbers_that_are_not_finite_are_no_mistake(run):
    run.metrics.write_text('{"step": 1, "train_loss": NaN}\n{"step": 2, "train_loss": Infinity}\n')
    drawn, now = _shown(run)
    assert now["trouble"] == ""
    assert "never finite" in drawn["markup"]["training-drawn"]


def test_what_is_no_file_is_said(run):
    run.metrics.mkdir()
    assert _shown(run)[1]["trouble"] == f"{run.metrics}: it is no file."
    run.metrics.rmdir()
    os.mkfifo(run.metrics)  # which opening would wait for
    assert _shown(run)[1]["trouble"] == f"{run.metrics}: it is no file."
    run.metrics.unlink()
    run.metrics.symlink_to(run.metrics)
    assert _shown(run)[1]["trouble"] == f"{run.metrics}: too many levels of symbolic links."
    run.metrics.unlink()
    assert _shown(run)[1]["trouble"] == ""


def test_a_line_longer_than_a_block_is_skipped(run):
    with open(run.metrics, "wb") as file:
        file.write(b'{"step": 1}\n"')
        file.truncate(2 * BLOCK)
        file.seek(0, 2)
        file.write(b'"\n{"step": 3}\n')
    records = Records(run.metrics)
    assert [record["step"] for record in records.read()] == [1, 3]
    assert records.trouble == f"{run.metrics}: 1 line is no record; the first is line 2."


def _places(value, path=()):
    """The path of every value in a record."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], (*path, key))


def test_no_value_of_any_key_stops_the_page(run):
    """Each value of a record becomes each kind of another."""
    places = [path for path in _places(GOOD[1]) if path]
    cases = [(path, value) for path in places for value in VALUES]
    for path, value in cases if TRIALS else random.Random(0).sample(cases, 150):
        record = copy.deepcopy(GOOD[1])
        inner = record
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with open(run.metrics, "w", encoding="utf-8") as file:
            file.write(_lines([GOOD[0], record, GOOD[2]]))
        drawn, now = _shown(run)
        assert "is damaged" not in now["trouble"], (path, value, now["trouble"])
        assert drawn["markup"]["training-drawn"].count("<svg") >= 3, (path, value)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"examples": 1}', '{"examples": [1]}', '{"examples": [{"groups": 1}]}', "[" * 99999]
)
def test_damaged_maps_are_said(run, content):
    run.maps.mkdir()
    (run.maps / "step-000000001.json").write_text(content)
    with Server(port=0) as server:
        server.site = Course(run.path)
        with pytest.raises(Exception, match=r"step-000000001\.json is damaged: the maps of step 1 cannot be shown"):
            server.site.at("/api/maps", _asked(step="1"))
