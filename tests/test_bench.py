"""Benchmarks compare in turns, say what they measured, and measure memory where it is used."""

import importlib.util
import json
import math
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from clearhead import bench
from clearhead.bench import (
    Case,
    Comparison,
    TrainingCase,
    bench_attention,
    bench_monitor,
    bench_small,
    bench_training,
    compare,
    measure,
    memory,
    monitor,
    patterns,
    peak_memory,
    peers,
    plots,
    scaling,
    trained,
    watch,
)
from clearhead.bench.case import coverage, shape_of
from clearhead.bench.small import calls_of
from clearhead.bench.traps import TRAPS
from clearhead.cli import main
from clearhead.data import Batches
from clearhead.errors import ClearheadError, InputError
from clearhead.patterns import parse


def test_names_are_those_of_no_module():
    """Or an import of the module would put itself in the name's place."""
    modules = {path.stem for path in Path(bench.__file__).parent.glob("*.py")}
    assert not modules & set(bench.__all__)
    assert all(getattr(bench, name) is not None for name in bench.__all__)


def test_arms_take_turns_and_warming_up_is_not_counted():
    order = []
    arms = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = compare("turns", arms, "a", rounds=3)
    assert "".join(order) == "abccbaabccba"
    assert {arm: len(times) for arm, times in found.seconds.items()} == dict.fromkeys("abc", 3)


def test_ratios_are_of_each_round():
    """A machine that became ten times slower in the second round has slowed both."""
    found = Comparison("t", {"own": [2.0, 30.0, 4.0], "peer": [1.0, 10.0, 1.0]}, "peer")
    assert found.ratio("own") == (3.0, 2.5, 3.5)
    assert found.ratio("peer", to="own")[0] == pytest.approx(1 / 3)
    assert "3.000" in found.lines()[2]
    assert found.record()["ratios"]["own"]["median"] == 3.0


def test_peak_memory_is_that_of_the_work_alone(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    held = bytearray(b"x" * (300 << 20))  # by the process that asks: none of the work's
    small, large = (peak_memory("held", "holding", mebibytes=n) / 2**20 for n in (4, 200))
    assert held[-1]
    assert small < 100
    assert 180 < large < 500
    with pytest.raises(ClearheadError, match="'nothing'"):
        peak_memory("held", "nothing")


def test_watching_is_compared(monkeypatch, capsys):
    """Memory takes processes of their own, of which the test above has some."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(
        watch, "peak_memory", lambda *_, arm, **__: {watch.WATCHED: 2, watch.EAGER: 8}.get(arm, 1) << 20
    )
    with pytest.raises(SystemExit) as ended:
        main(["bench", "watch", "--length", "64", "--layers", "1", "--rounds", "1", "--long", "128", "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)
    call, model, long = found["comparisons"]
    assert call["seconds"]["its statistics"][0] > 0
    assert all(len(seconds) == 1 for seconds in model["seconds"].values())
    assert model["memory"][watch.WATCHED] == 2 << 20
    assert long["memory"]["one eager matrix would hold"] == 12 * 4 * 128**2
    assert found["machine"]["threads"] >= 1


def test_training_is_compared_in_real_tokens():
    case = TrainingCase(1, 16, 32, 2, 40, batch_tokens=300, pairs=40)
    found = bench_training(case, rounds=1, steps=1)
    assert list(found.same.seconds) == ["Clearhead", "torch.nn.Transformer", "Hugging Face Marian"]
    assert list(found.whole.seconds) == ["Clearhead", "Seq2SeqTrainer"]
    examples = case.examples()
    assert found.tokens["whole"] == int(examples.source.lengths.sum() + examples.target.lengths.sum())
    assert found.tokens["same"] < found.tokens["whole"]
    record = found.record()
    ours = record["speeds"]["same"]["Clearhead"]
    assert ours["tokens_per_second"] == pytest.approx(found.tokens["same"] / found.same.median("Clearhead"))
    assert ours["times"] == pytest.approx(found.same.median("torch.nn.Transformer") / found.same.median("Clearhead"))
    assert {"attention", "feed-forward", "optimizer", "data"} <= set(record["parts"])
    assert sum("tokens/s" in line for line in found.lines()) == 5
    with pytest.raises(InputError, match="float32 or bfloat16, not in 'float16'"):
        TrainingCase(dtype="float16")


@pytest.mark.parametrize("arm", trained.SAME)
def test_each_arm_of_training_learns_from_its_steps(arm):
    case = TrainingCase(1, 16, 32, 2, 40, dropout=0.0, batch_tokens=300, pairs=20)
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("summed_loss", "cross_entropy"):
            original = getattr(trained, name)
            patch.setattr(trained, name, lambda *a, _f=original, **k: kept.append(_f(*a, **k)) or kept[-1])
        patch.setattr(trained.parts, "cores", lambda: 1)
        step, (batch, *_) = trained.SAME[arm](case), Batches(case.examples(), 300, shuffle=False)
        for _ in range(30):
            step(batch)
    losses = [float(loss.detach()) for loss in kept]
    assert losses[-1] < losses[0]


def test_monitoring_is_compared(monkeypatch):
    def small():
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        return monitor._trained(model, lambda: model(torch.randn(1, 4, 8)).square().mean())

    monkeypatch.setattr(monitor, "_encoder", small)
    monkeypatch.setattr(monitor, "_g2p", small)
    found = bench_monitor(rounds=1)
    assert len({each.title for each in found}) == 4
    assert [len(each.seconds[monitor.WITH]) for each in found] == [1, 20, 1, 20]
    assert all(math.isfinite(each.ratio(monitor.WITH)[0]) for each in found)


TINY = ["--length", "256", "--heads", "2", "--dim", "8", "--rounds", "2", "--no-memory", "--json"]


def found_by(capsys, *arguments: str) -> list[dict]:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return json.loads(out)["comparisons"]


@pytest.fixture
def no_compiler(monkeypatch):
    """FlexAttention compiles for half a minute where there is one."""
    monkeypatch.setattr("shutil.which", lambda name: None)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("pattern", ["everything()", "causal()", "window(32)", "window(31, 0)", "longformer(64, [0])"])
def test_every_peer_of_a_pattern_is_right(no_compiler, capsys, pattern, backward):
    more = ["--backward"] if backward else []
    [table] = found_by(capsys, "attention", "--pattern", pattern, *TINY, *more)
    assert {"Clearhead", "SDPA", "eager"} <= set(table["seconds"])
    for arm, errors in table["errors"].items():
        assert set(errors) == ({"output", "gradients"} if backward else {"output"})
        assert 0 < max(errors.values()) < 3e-6, arm
        assert table["of_limit"][arm] > 0
    assert "FlexAttention" in table["missing"]
    assert not any("WRONG" in note for note in table["notes"])


@pytest.mark.parametrize(
    ("pattern", "peer", "module"),
    [
        ("window(32)", "local-attention", "local_attention"),
        ("window(30, 0)", "local-attention", "local_attention"),
        ("longformer(64, [0])", "transformers' Longformer", "transformers"),
        ("causal()", "x-transformers", "x_transformers"),
    ],
)
def test_peers_run_where_they_know_the_pattern(no_compiler, capsys, pattern, peer, module):
    pytest.importorskip(module)
    [table] = found_by(capsys, "attention", "--pattern", pattern, *TINY)
    assert peer in table["seconds"]


def test_bigbird_is_held_against_the_blocks_that_it_draws(unchecked):
    pytest.importorskip("transformers")
    case = Case(768, 2, 8, pattern="bigbird(length=768)", backward=True)
    job = peers.big_bird(case)
    assert measure.whole_errors(case, peers.big_bird)["gradients"] < 3e-6
    job.run()
    sees = job.sees()
    assert sees.shape == (2, 768, 768)
    assert sees[:, :64].all()
    assert not sees[:, 200].all()


def test_a_wrong_arm_is_said_to_be_wrong(unchecked):
    def wrong(case):
        return peers.job(case, lambda q, k, v: v)

    table = measure.measured("t", Case(64, 1, 8), {"Clearhead": peers.ours, "wrong": wrong}, 1)
    assert table.errors["wrong"]["output"] > 0.5
    assert any("wrong is WRONG here" in line for line in table.lines())


def test_a_peer_that_is_not_installed_is_named(unchecked, no_compiler, monkeypatch):
    def gone(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("importlib.import_module", gone)
    [table] = bench_attention(Case(64, 1, 8, pattern="window(8)"), rounds=1, memory=False)
    said = "\n".join(table.lines())
    assert "local-attention           not installed: pip install 'clearhead[bench]'" in said
    assert "FlexAttention             needs a C++ compiler" in said


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: f"{trap.arm}: {trap.words[:30]}")
def test_peers_fall_into_their_traps_and_clearhead_does_not(unchecked, trap):
    assert not trap.ours()
    try:
        fell = trap.peer()
    except peers.NotRun as reason:
        pytest.skip(str(reason))
    assert fell, "it does so no more: take the trap away"


@pytest.mark.parametrize("backward", [False, True])
def test_statistics_are_compared_and_right(capsys, backward):
    more = ["--backward"] if backward else []
    [table] = found_by(capsys, "statistics", *TINY, "--pattern", "causal()", *more)
    assert table["peer"] == "SDPA"
    both = table["errors"]["output + row statistics"]
    assert set(both) == ({"output", "statistics", "gradients"} if backward else {"output", "statistics"})
    assert all(error < 3e-6 for errors in table["errors"].values() for error in errors.values())
    if not backward:
        assert {"received", "pool(64, 64)", "statistics of 64 rows"} <= set(table["seconds"])


def test_patterns_have_a_table_each_and_documents_three_ways(capsys, monkeypatch):
    monkeypatch.setattr(patterns, "PACKED", 5)
    monkeypatch.setattr(patterns, "MEAN", 20)
    chosen = ["--only", "local", "--only", "documents", "--only", "chunks"]
    local, packed, chunks = found_by(capsys, "patterns", *TINY, "--backward", *chosen)
    assert list(packed["seconds"]) == ["Clearhead", "SDPA, padded", "a loop of SDPA calls"]
    assert packed["case"]["length"] == 100
    for table in (local, packed, chunks):
        assert all(error < 3e-6 for errors in table["errors"].values() for error in errors.values())


def test_documents_vary_and_keep_their_mean():
    lengths = Case(8192, documents=64).document_lengths()
    assert (len(lengths), sum(lengths)) == (64, 8192)
    assert min(lengths) >= 1
    assert max(lengths) > 10 * min(lengths)


def test_growth_is_fitted(capsys, tmp_path):
    assert scaling.exponent([10, 20, 40], [3.0, 12.0, 48.0]) == pytest.approx(2)
    small = ["--length", "256", "--points", "3", "--dim", "8", "--rounds", "2", "--no-memory", "--json"]
    [found] = found_by(capsys, "scaling", *small, "--out", str(tmp_path))
    assert found["lengths"] == [64, 128, 256]
    assert set(found["exponents"]) == {"full", "global", "local", "sparse", "strided"}
    assert found["exponents"]["full"]["memory"] is None
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "scaling.json").read_text())["comparisons"] == [found]


def test_memory_is_measured_and_what_would_not_fit_is_not_run(unchecked, monkeypatch, capsys):
    monkeypatch.setattr(memory, "peak_memory", lambda *_, arm, **__: len(arm))
    case = ["--length", "131072", "--dim", "8", "--json"]
    local, seen = found_by(capsys, "memory", *case)
    assert local["bytes"]["Clearhead"] == len("Clearhead")
    assert "n² weights" in seen["missing"]["eager"] or "million" in seen["missing"]["eager"]
    assert seen["bytes"][memory.MATRIX] == 4 * 131072**2
    assert memory.prepared("output + row statistics", length=64, heads=1, dim=8, pattern="everything()")()


def test_small_calls_are_told_in_microseconds(unchecked):
    [found] = bench_small(Case(8, 1, 8), rounds=2, repeat=2)
    assert "plain, 8 tokens" in found.calls
    assert "µs" in found.lines()[2]
    assert found.record()["calls"]["mask, 64 tokens"]["beyond"]["median"] == found.beyond("mask, 64 tokens")[0]


def test_arms_of_small_calls_compute_the_same():
    for name, arms in calls_of(Case(8, 2, 4), 8).items():
        own, peer = (found[0] if isinstance(found, tuple) else found for found in (arm() for arm in arms))
        seen = slice(0, 7 if name == "lengths" else None)  # what stands in padding is nobody's
        torch.testing.assert_close(own[..., seen, :], peer[..., seen, :])


def test_pictures_are_drawn(tmp_path, unchecked):
    table = measure.measured("t", Case(64, 1, 8), {"Clearhead": peers.ours, "eager": peers.eager}, 2)
    held = memory.Peaks("m", {}, {"Clearhead": 1 << 20, "eager": 1 << 30}, {})
    written = plots.save([table, held], tmp_path / "new", "both")
    assert written == [f"written to {tmp_path / 'new'}: both.png, both.json"]
    assert (tmp_path / "new" / "both.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attention", "--pattern", "windw(3)"], ("windw", "window")),
        (["attention", "--length", "0"], ("length is 0",)),
        (["attention", "--dtype", "float31"], ("float31", "float32")),
        (["attention", "--device", "tpu"], ("tpu", "cpu, cuda")),
        (["attention", "--deviation", "-1"], ("deviation is -1",)),
        (["statistics", "--only", "recieved"], ("recieved", "'received'")),
        (["patterns", "--only", "longform"], ("longform", "'longformer'")),
        (["scaling", "--length", "100"], ("100", "512")),
        (["memory", "--heads", "0"], ("heads is 0",)),
    ],
)
def test_a_benchmark_that_cannot_be_is_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("everything()", "everything"),
        ("causal()", "causal"),
        ("window(1000)", "everything"),
        ("causal() & window(5)", "window"),
        ("window(3) | first(2)", "window and global"),
        ("chunks(9)", "other"),
        ("stride(2)", "other"),
        ("~causal()", "other"),
    ],
)
def test_shapes_are_known_by_what_they_see(text, wanted):
    assert shape_of(parse(text), 200).kind == wanted


@pytest.mark.parametrize("text", ["window(70)", "causal()", "chunks(100) | first(3)", "scattered(2, 0, block=64)"])
@pytest.mark.parametrize("n", [1, 64, 331])
def test_coverage_counts_pairs(text, n):
    at, zero = torch.arange(n), torch.tensor(0)
    seen = parse(text).allows(zero, zero, at[:, None], at).expand(n, n)
    found = coverage(parse(text), n)
    assert found.pairs == int(seen.sum())
    cells = torch.nn.functional.pad(seen, (0, -n % 64, 0, -n % 64)).unflatten(0, (-1, 64)).unflatten(2, (-1, 64))
    assert found.needed == int(cells.any(3).any(1).sum())
    assert found.visited >= found.needed


def test_calibration_is_told_and_kept(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--rounds", "1", "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    rates = json.loads(out)["rates"]
    assert {"sdpa", "blocks", "stream"} <= {row["kernel"] for row in rates}
    assert all(row["rate"]["pair"] > 0 and row["rate"]["call"] >= 0 for row in rates)
    assert any(tmp_path.rglob("*.json"))


def test_calibrating_a_device_that_is_none_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--device", "tpu"])
    assert ended.value.code == 2
    assert "'tpu'" in capsys.readouterr().err


def test_the_table_of_cases_is_made_of_what_is_printed(tmp_path, monkeypatch, capsys):
    """In small: what the docs say of a case is read from the JSON of its command."""
    spec = importlib.util.spec_from_file_location("cases", Path(__file__).parent.parent / "bench" / "cases.py")
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)

    def small(command):
        arguments = re.sub(r"--(length|heads|rounds) \d+", "", command)
        with pytest.raises(SystemExit):
            main(["bench", *shlex.split(arguments), "--length", "64", "--heads", "1", "--rounds", "2", "--json"])
        return json.loads(capsys.readouterr().out)

    case = "output and statistics"
    monkeypatch.setattr(cases, "run", small)
    monkeypatch.setattr(sys, "argv", ["cases.py", case, "--out", str(tmp_path)])
    cases.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 3
    assert re.fullmatch(rf"\| {case} \| [^|]+ \| [\d.]+ \| \d+\.\d\d \(\d+\.\d\d–\d+\.\d\d\) \|", lines[2])
