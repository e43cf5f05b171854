"""Advice: candidates are measured, what they give up is told, and the choice follows its rules."""

import json

import pytest
import torch

import clearhead as ch
from clearhead.bench import advise as advise_call
from clearhead.bench.advice import Candidate, _Timed, candidates, receptive_field, recommend, size
from clearhead.cli import main
from clearhead.errors import InputError
from clearhead.patterns import parse


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["advise", *arguments])
    return ended.value.code, *capsys.readouterr()


def candidate(name="full", dtype="float32", seconds=1.0, memory=2**30, field=1.0) -> Candidate:
    return Candidate(name, name, dtype, "sdpa", seconds, memory, 64, None, 1.0, field, 1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--length", "0", "--embed-dim", "8", "--heads", "2"], ("length is 0",)),
        (["--length", "8", "--embed-dim", "512", "--heads", "7"], ("512", "7 heads", "--heads 8")),
        (["--length", "8", "--embed-dim", "8", "--heads", "0"], ("heads is 0",)),
        (["--length", "8", "--embed-dim", "8", "--heads", "2", "--memory", "2 apples"], ("'2 apples'", "2GB")),
        (["--length", "8", "--embed-dim", "8", "--heads", "2", "--memory", "0GB"], ("'0GB'", "2GB")),
        (["--length", "8", "--embed-dim", "8", "--heads", "2", "--device", "tpu"], ("'tpu'", "cpu, cuda")),
        (["--length", "8", "--embed-dim", "8", "--heads", "2", "--layers", "0"], ("layers is 0",)),
        (["--embed-dim", "8", "--heads", "2"], ("--length",)),
    ],
)
def test_what_cannot_be_advised_is_one_line(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line(capsys):
    code, _, err = run(capsys, "--length", "8", "--embed-dim", "8", "--heads", "2", "--device", "cuda")
    assert code == 2
    assert "no CUDA device" in err


@pytest.mark.parametrize(("text", "wanted"), [("2GB", 2e9), ("512 MiB", 2**29), ("1.5kb", 1500), ("7B", 7)])
def test_sizes_are_read(text, wanted):
    assert size(text) == wanted


def test_advice_measures_every_candidate(capsys):
    code, out, _ = run(capsys, "--length", "160", "--embed-dim", "16", "--heads", "2", "--json", "--seconds", "1")
    assert code == 0
    found = json.loads(out)
    assert {one["name"] for one in found["candidates"]} == set(candidates(160, causal=False))
    for one in found["candidates"]:
        assert one["seconds"] > 0
        assert one["measured"] == 160
        assert one["error"] < (1e-5 if one["dtype"] == "float32" else 2e-2)
    assert found["best"] in found["candidates"]


def test_a_budget_that_nothing_meets_names_the_least(unchecked, monkeypatch):
    held = {"window 64": 3 << 20}
    monkeypatch.setattr(
        "clearhead.bench.advice._held", lambda cases, *_: {key: [held.get(key[0], 9 << 20)] for key in cases}
    )
    with pytest.raises(InputError, match=r"the least is 3 MiB, for window\(64, 0\) in .*--memory 3MiB"):
        advise_call(160, 16, 2, causal=True, memory="1MB", seconds=1)
    found = advise_call(160, 16, 2, causal=True, memory="4MB", seconds=1)
    assert found.best.name == "window 64"
    assert "recommended: window(64, 0)" in "\n".join(found.lines())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 100, 3000])
def test_candidates_are_patterns_of_that_kind(length, causal):
    at, zero = torch.arange(length), torch.tensor(0)
    for text in candidates(length, causal).values():
        seen = parse(text).allows(zero, zero, at[:, None], at)
        assert seen.expand(length, length).diagonal().all()
        assert bool(seen.triu(1).any()) is (not causal and length > 1), text


@pytest.mark.parametrize(
    ("pattern", "layers", "causal", "wanted"),
    [
        (ch.window(10), 3, False, 61 / 500),
        (ch.causal() & ch.window(10), 3, True, 31 / 500),
        (ch.everything(), 1, False, 1.0),
        (ch.chunks(50), 9, False, 0.1),
        (ch.window(10) | ch.first(1), 2, False, 1.0),
    ],
)
def test_receptive_fields(pattern, layers, causal, wanted):
    assert receptive_field(pattern, 500, layers, causal) == pytest.approx(wanted)


def test_what_would_take_too_long_is_extrapolated(unchecked, monkeypatch):
    monkeypatch.setattr("clearhead.bench.advice.FIRST", (40, 80))
    monkeypatch.setattr("clearhead.bench.advice._seconds", lambda run, device: 1.0)
    monkeypatch.setattr("clearhead.bench.advice._held", lambda cases, times, say: {key: [2**20] * 2 for key in cases})
    found = advise_call(160, 16, 2, seconds=1e-3)
    assert {one.measured for one in found.candidates} == {80}
    assert {one.seconds for one in found.candidates} == {2.0}  # twice the length, and at least the exponent 1
    assert "≈ extrapolated from at most 80 tokens" in "\n".join(found.lines())


def test_times_are_extrapolated_with_the_exponent_that_was_seen():
    times = _Timed({1000: 1.0, 2000: 4.0, 4000: 16.0})
    assert times.grown([1.0, 4.0, 16.0], 8000) == (pytest.approx(64.0), pytest.approx(2.0))
    assert times.grown([1.0, 4.0, 16.0], 4000) == (16.0, None)


def test_the_choice_follows_its_rules():
    full, fast = candidate(seconds=1.4), candidate("window 256", seconds=1.0)
    near = candidate("window 64", seconds=0.1, field=0.2)
    assert recommend([full, fast, near], None, None)[0] is full
    assert recommend([candidate(seconds=1.6), fast, near], None, None)[0] is fast
    assert recommend([near, candidate("window 65", field=0.3)], None, None)[0].name == "window 65"
    assert recommend([full, near], 2**29 * 2, None)[0] is full
    half = candidate(dtype="bfloat16", seconds=0.5)
    assert recommend([full, half], None, None)[0] is half
    assert recommend([candidate(seconds=0.54), half], None, None)[0].dtype == "float32"
