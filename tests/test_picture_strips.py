"""Every head through training: what is packed for the page is what the monitor recorded."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from clearhead.errors import InputError
from clearhead.picture.packing import NOTHING
from clearhead.picture.strips import MOST, alarms, pack, shell

LAYERS = {"encoder.layers.0.attention": 3, "decoder.layers.1.cross_attention": 2}


def records(steps=5, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "step": 20 * i + 20,
            "attention": {
                layer: {
                    "normalized_entropy": rng.random(heads).tolist(),
                    "max_logit": (30 * rng.normal(size=heads)).tolist(),
                    "weight_norm": 3.0,
                }
                for layer, heads in LAYERS.items()
            },
        }
        for i in range(steps)
    ]


def event(kind, step_of, head=1, rule="entropy collapse", layer="encoder.layers.0.attention", severity="alarm"):
    said = {"sentence": f"{layer} head {head}: <b>sharp</b>", "value": 0.01} if kind != "over" else {}
    return {"event": kind, "rule": rule, "layer": layer, "turn": 0, "head": head, "severity": severity, **said}


def unpacked(packed, heads):
    steps = np.frombuffer(base64.b64decode(packed["data"]), "<u2").reshape(heads, -1)
    return np.where(steps == NOTHING, np.nan, packed["low"] + steps * packed["step"])


def test_the_numbers_are_those_of_the_records():
    given = records()
    given[2]["attention"]["encoder.layers.0.attention"]["normalized_entropy"][1] = None
    del given[3]["attention"]["encoder.layers.0.attention"]["normalized_entropy"]
    packed = pack([{"step": 1, "train_loss": 3.0}, *given])
    assert packed["steps"] == [20, 40, 60, 80, 100]
    assert [each["key"] for each in packed["statistics"]] == ["normalized_entropy", "max_logit"]
    assert [(each["path"], each["name"], each["heads"]) for each in packed["layers"]] == [
        ("encoder.layers.0.attention", "Encoder, layer 0", 3),
        ("decoder.layers.1.cross_attention", "Cross, layer 1", 2),
    ]
    for layer in packed["layers"]:
        for name in ("normalized_entropy", "max_logit"):
            want = np.full((layer["heads"], 5), np.nan)
            for i, record in enumerate(given):
                values = record["attention"][layer["path"]].get(name)
                if values is not None:
                    want[:, i] = [np.nan if x is None else x for x in values]
            got = unpacked(layer["values"][name], layer["heads"])
            np.testing.assert_allclose(got, want, atol=2e-3 if name == "max_logit" else 0.51e-4)


def test_many_steps_share_columns_by_their_mean_or_their_largest():
    given = records(4 * MOST)
    packed = pack(given)
    assert packed["steps"][0] == 80
    assert len(packed["steps"]) == MOST
    numbers = np.array([record["attention"]["encoder.layers.0.attention"]["normalized_entropy"] for record in given])
    logits = np.array([record["attention"]["encoder.layers.0.attention"]["max_logit"] for record in given])
    values = packed["layers"][0]["values"]
    want = numbers.reshape(MOST, 4, 3).mean(1).T
    np.testing.assert_allclose(unpacked(values["normalized_entropy"], 3), want, atol=0.51e-4)
    np.testing.assert_allclose(unpacked(values["max_logit"], 3), logits.reshape(MOST, 4, 3).max(1).T, atol=3e-3)


def test_alarms_last_from_where_they_begin_to_where_they_are_over():
    given = records(6)
    given[0]["alarms"] = [event("began", 0, severity="note", rule="attention sink")]
    given[1]["alarms"] = [event("began", 1), event("began", 1, head=None, rule="rank collapse")]
    given[2]["alarms"] = [event("worse", 2)]
    given[4]["alarms"] = [event("over", 4)]
    given[5]["alarms"] = [event("began", 5)]
    spans = [(alarm.rule, alarm.head, alarm.since, alarm.until) for alarm in alarms(given)]
    assert spans == [
        ("entropy collapse", 1, 40, 100),
        ("rank collapse", None, 40, None),
        ("entropy collapse", 1, 120, None),
        ("attention sink", 1, 20, None),
    ]
    given[5]["remedies"] = ["QK-clip: scaled"]
    words = shell(given)
    assert "alarm, step 40 to 100" in words
    assert "alarm, from step 120 on" in words
    assert "3 alarms, 1 note" in words
    assert "&lt;b&gt;sharp" in words
    assert "Remedies acted 1 time<" in words
    assert "QK-clip: scaled" in words


def test_without_a_monitor_nothing_was_measured():
    assert pack([{"step": 1, "train_loss": 3.0}]) is None
    assert "not measured" in shell([{"step": 1}])
    assert "No rule of health" in shell(records(1))


@pytest.mark.parametrize("wrong", [[0.5, 0.5], 0.5])
def test_what_is_no_number_for_each_head_is_refused(wrong):
    given = records(2)
    given[1]["attention"]["encoder.layers.0.attention"]["max_logit"] = wrong
    with pytest.raises(InputError, match=r"'max_logit' of 'encoder\.layers\.0\.attention' at step 40 is no list of 3"):
        pack(given)
