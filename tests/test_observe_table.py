"""What was seen, as records, tables, frames and JSON: against the dense weights in float64."""

import io
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

import clearhead as ch
from calls_made import dense, made, stack, tokens_of
from clearhead.errors import InputError, MissingExtra
from clearhead.kernels import Statistics
from clearhead.observe.calls import Call, Seen
from clearhead.observe.numbers.families import families

NAMES = ("logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy", "sink", "distance", "visible")


def by_hand(call, name):
    """(B, H, Nq) in float64 from the dense weights; NaN where a row does not define it."""
    A = dense(call)
    n_queries, n_keys = A.shape[2:]
    seen = (A > 0).sum(-1).double()  # no weight of these inputs underflows in float64
    entropy = torch.special.entr(A).sum(-1)
    far = (torch.arange(n_queries)[:, None] - torch.arange(n_keys)).abs().double()
    out = {
        "visible": seen,
        "max_weight": A.amax(-1),
        "entropy": entropy,
        "normalized_entropy": entropy / seen.log(),
        "sink": A[..., 0],
        "distance": (A * far).sum(-1),
    }[name]
    return out.masked_fill((seen < (2 if name == "normalized_entropy" else 1)), math.nan)


@pytest.mark.parametrize("name", ["max_weight", "entropy", "normalized_entropy", "sink", "distance", "visible"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([9, 4])])
def test_a_record_holds_the_mean_spread_extremes_and_worst_row_of_a_head(name, lengths):
    seen = stack(layers=2, lengths=lengths)
    found = {(record["name"], record["head"]): record for record in seen.records()}
    assert list(found) == [(f"encoder.layer.{i}.self", head) for i in range(2) for head in range(4)]
    for call in seen:
        for head in range(4):
            record, x = found[call.name, head], by_hand(call, name)[:, head]
            known = x[~x.isnan()]
            assert record["rows"] == int((dense(call)[:, head].sum(-1) > 0).sum())
            summary = record[name]
            expected = {"mean": known.mean(), "min": known.min(), "max": known.max(), "std": known.std(correction=0)}
            for key, value in expected.items():
                assert summary[key] == pytest.approx(float(value), rel=1e-5, abs=1e-6), key
            worst = summary["worst"]
            if name in ("entropy", "max_weight", "sink"):  # of a row that sees one key they are given
                known = x[by_hand(call, "visible")[:, head] > 1]
            extreme = known.min() if name in ("entropy", "normalized_entropy", "visible") else known.max()
            assert worst["value"] == pytest.approx(float(extreme), rel=1e-5, abs=1e-6)
            assert float(x[worst["sample"], worst["row"]]) == pytest.approx(worst["value"], rel=1e-5, abs=1e-6)


def test_what_keys_received_names_its_worst_key():
    call = made(lengths=torch.tensor([9, 4]))
    sums = dense(call).sum(2)
    for head, record in enumerate(Seen([call]).records()):
        worst = record["received"]["worst"]
        assert worst["value"] == pytest.approx(float(sums[:, head].max()), rel=1e-5)
        assert float(sums[worst["sample"], head, worst["key"]]) == pytest.approx(worst["value"], rel=1e-5)


def test_padding_is_left_out_of_everything():
    call = made(b=3)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[1, 5:] = padding[2, :2] = True
    record = Seen([replace(call, padding=padding)]).records()[2]
    for name in NAMES:
        x = getattr(call.statistics, name)[:, 2][~padding].double()
        assert record[name]["mean"] == pytest.approx(float(x.nanmean()), rel=1e-9), name
        assert not padding[record[name]["worst"]["sample"], record[name]["worst"]["row"]]
    assert record["rows"] == int((~padding).sum())
    shared = Seen([replace(call, padding=padding[1:2])]).records()[2]
    assert shared["rows"] == 3 * 5


def test_a_sample_of_rows_is_named_by_its_own_numbers():
    rows = torch.tensor([1, 4, 7])
    call = made(rows=rows)
    record = Seen([call]).records()[0]
    x = by_hand(call, "max_weight")[:, 0, rows]
    worst = record["max_weight"]["worst"]
    assert record["rows"] == 6
    assert (worst["sample"], worst["row"]) == (int(x.argmax()) // 3, int(rows[int(x.argmax()) % 3]))
    assert record["received"] is None


def test_forward_passes_are_taken_together_whatever_their_batches():
    first, second = made(b=2, seed=0), made(b=3, seed=1, nq=5, step=1)
    record = Seen([first, second]).records()
    assert len(record) == 4
    every = [by_hand(call, "entropy")[:, 1].flatten() for call in (first, second)]
    assert record[1]["entropy"]["mean"] == pytest.approx(float(torch.cat(every).mean()), rel=1e-5)
    worst = record[1]["sink"]["worst"]
    assert worst["step"] in (0, 1)
    there = by_hand((first, second)[worst["step"]], "sink")
    assert float(there[worst["sample"], 1, worst["row"]]) == pytest.approx(worst["value"], rel=1e-5)


def test_steps_of_decoding_are_joined_along_their_rows():
    whole = made()
    q, k = tokens_of(whole)
    maps = [ch.Softmax()(q[:, :, i : i + 1], k[:, :, : i + 1]) for i in range(9)]
    steps = [Call("layer", "self", "test", A.full_shape, A.statistics(), step=i) for i, A in enumerate(maps)]
    joined, full = Seen(steps).records(), Seen([whole]).records()
    assert len(joined) == 4
    for one, other in zip(joined, full, strict=True):
        for name in ("entropy", "sink", "max_logit", "received"):
            assert one[name]["mean"] == pytest.approx(other[name]["mean"], rel=1e-5), name
        assert one["entropy"]["worst"]["row"] == other["entropy"]["worst"]["row"]
        assert one["rows"] == other["rows"] == 18


def test_what_was_not_measured_is_none_and_what_no_row_defines_is_nan():
    call = made()
    only = Statistics(
        normalized_entropy=torch.full((2, 4, 9), math.nan), visible=torch.ones(2, 4, 9, dtype=torch.int64)
    )
    record = Seen([replace(call, statistics=only)]).records()[0]
    assert [name for name in NAMES if record[name] is None] == [
        "logsumexp",
        "max_logit",
        "max_weight",
        "entropy",
        "sink",
        "distance",
    ]
    assert math.isnan(record["normalized_entropy"]["mean"])
    assert record["normalized_entropy"]["worst"] is None


def test_findings_of_a_head_and_of_its_layer_are_in_the_record():
    call = made(nq=24, gain=60.0)
    assert any(found["rule"] == "logit explosion" for record in Seen([call]).records() for found in record["health"])
    broken = made(nq=24)
    for name in ("logsumexp", "entropy"):
        getattr(broken.statistics, name)[1, :, 5] = math.nan
    for record in Seen([broken]).records():
        assert [(found["rule"], found["severity"]) for found in record["layer_health"]] == [("not finite", "alarm")]
        assert record["health"] == []


# the table


def printed(seen, width=80, **options):
    """What rich prints in a terminal of `width`, without colours."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(seen.table(**options))
    return console.file.getvalue()


def cells(line):
    return line.split()


def test_the_table_shows_the_means_of_each_head_under_its_family():
    seen = stack(layers=2)
    lines = str(seen).splitlines()
    assert "encoder.layer.*.self" in lines
    records = {(record["name"], record["head"]): record for record in seen.records()}
    at = next(i for i, line in enumerate(lines) if line.startswith("---")) + 1
    for i, line in enumerate(lines[at : at + 8]):
        layer, head = divmod(i, 4)
        record = records[f"encoder.layer.{layer}.self", head]
        numbers = [f"{record[name]['mean']:.2f}" for name in ("normalized_entropy", "sink")]
        numbers += [f"{record['max_logit']['max']:.1f}", f"{record['distance']['mean']:.1f}"]
        assert cells(line) == [*([str(layer)] if not head else []), str(head), *numbers, "ok"]


def test_many_heads_are_a_line_for_each_layer_unless_asked_for():
    seen = stack(layers=4, h=12)
    short, full = str(seen).splitlines(), printed(seen, heads=True).splitlines()
    assert len(full) == len(short) + 4 * 11 - 1  # and the line that explains ranges
    sinks = [record["sink"]["mean"] for record in seen.records()[:12]]
    assert f"{min(sinks):.2f}..{max(sinks):.2f}" in short[5]


def test_heads_in_trouble_are_named_in_the_line_of_their_layer():
    seen = stack(layers=4, h=12, nq=24)
    sharp = made("encoder.layer.2.self", h=12, nq=24, gain=80.0)
    for name in ("normalized_entropy", "max_logit", "sink"):
        x, y = getattr(seen[2].statistics, name), getattr(sharp.statistics, name)
        for head in (0, 1, 2, 7):
            x[:, head] = y[:, head]
    ill = {record["head"] for record in seen.records() if any(f["rule"] == "logit explosion" for f in record["health"])}
    assert ill == {0, 1, 2, 7}
    text = str(seen)
    assert "logit explosion" in text
    assert "0-2,7" in text
    assert "48 heads: 4 in alarm" in text
    assert "the softmax is one-hot there" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_and_no_number_is_broken(width):
    huge = stack(layers=2, h=32, nq=40, gain=3e4, names="model.language_model.layers.{}.very_long_name_of_attention")
    for seen in (huge, Seen(huge.calls[:1])):
        for heads in (False, True):
            text = printed(seen, width, heads=heads)
            assert max(map(len, text.splitlines())) <= width
            for record in seen.records():
                if heads:
                    assert f"{record['max_logit']['max']:.1e}" in text
    assert max(map(len, str(huge).splitlines())) <= 80


def test_plain_text_is_ascii_without_colours_and_a_terminal_gets_colours():
    seen = stack()
    assert str(seen).isascii()
    assert "\x1b" not in str(seen)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print(seen)
    assert "\x1b[32mok" in console.file.getvalue()


def test_the_table_is_a_rich_table():
    assert isinstance(stack().table(), Table)


def test_what_was_not_measured_is_said():
    seen = stack(layers=1)
    cross = made("encoder.layer.0.cross", role="cross", nk=5)
    both = Seen([*seen.calls, replace(cross, statistics=replace(cross.statistics, distance=None))])
    assert "-: not measured" in str(both)
    assert "encoder.layer.0.cross (cross-attention)" in str(both)
    bare = Seen([replace(call, statistics=Statistics(sink=call.statistics.sink)) for call in seen])
    assert "not measured: entropy, max logit, distance" in str(bare)
    assert "sink" in str(bare).splitlines()[3]
    nothing = Seen([replace(call, statistics=Statistics(distance=call.statistics.distance)) for call in seen])
    assert "health not measured" in str(nothing)
    assert not any(line.endswith(" ok") for line in str(nothing).splitlines())


def test_rows_that_see_one_key_leave_the_entropy_undefined():
    one = made(nq=1)
    assert "undefined" in str(Seen([one]))


def test_what_was_not_seen_is_listed_with_its_reason():
    seen = Seen(stack().calls, {"decoder.block[0].attn": "compiled by torch.compile, and " + "very " * 30 + "fast"})
    text = str(seen)
    assert "decoder.block[0].attn: compiled by torch.compile" in text
    assert max(map(len, text.splitlines())) <= 80
    assert str(Seen()) == "no attention was seen"
    assert "  a: b" in str(Seen([], {"a": "b"}))


def test_runs_of_a_layer_that_shares_its_weights_are_told_apart():
    calls = [made("layers.group.attention", seed=i, turn=i) for i in range(3)]
    text = str(Seen(calls))
    assert "3 layers, 12 heads" in text
    assert "run 2" in text
    assert "run 3" in text


def test_columns_are_chosen_by_the_names_of_statistics():
    seen = stack(layers=1)
    assert "max weight  visible  health" in printed(seen, columns=["max_weight", "visible"])
    with pytest.raises(InputError, match="there is no statistic 'entropie'; did you mean 'entropy'"):
        seen.table(columns=["entropie"])


def test_html_escapes_what_it_shows():
    seen = Seen(stack().calls, {"<script>alert(1)</script>": "a & b"})
    html = seen._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<tr>") == 1 + 12
    assert html.count("<td") == 12 * 7
    assert "<table" not in Seen()._repr_html_()


def test_families_are_paths_that_differ_in_numbers():
    paths = [
        "enc.block.0.layer.0.Self",
        "dec.block.0.layer.0.Self",
        "dec.block.0.layer.1.Cross",
        "enc.block.1.layer.0.Self",
    ]
    assert families([*paths, "pool"]) == {
        "enc.block.*.layer.0.Self": {"enc.block.0.layer.0.Self": "0", "enc.block.1.layer.0.Self": "1"},
        "dec.block.0.layer.0.Self": {"dec.block.0.layer.0.Self": ""},
        "dec.block.0.layer.1.Cross": {"dec.block.0.layer.1.Cross": ""},
        "pool": {"pool": ""},
    }


# frames and JSON


def test_a_frame_has_a_row_for_each_head():
    pytest.importorskip("pandas")
    seen = stack(layers=2)
    frame = seen.to_pandas()
    assert len(frame) == 8
    for record, (_, row) in zip(seen.records(), frame.iterrows(), strict=True):
        assert (row["name"], row["head"]) == (record["name"], record["head"])
        assert row["entropy_mean"] == record["entropy"]["mean"]
        assert row["entropy_worst_row"] == record["entropy"]["worst"]["row"]
        assert row["received_worst_key"] == record["received"]["worst"]["key"]
    bare = Seen([replace(call, statistics=Statistics(sink=call.statistics.sink)) for call in seen]).to_pandas()
    assert bare["entropy_mean"].isna().all()
    assert bare["sink_mean"].notna().all()


def test_without_pandas_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"^'pandas' is not installed: pip install pandas$"):
        stack().to_pandas()


def test_json_holds_the_records_and_no_number_that_json_lacks():
    seen = Seen(stack(layers=2).calls, {"a.b": "why"})
    seen[0].statistics.max_logit[0, 0, 3] = math.inf
    whole = json.loads(seen.to_json(), parse_constant=pytest.fail)
    assert whole["unseen"] == {"a.b": "why"}
    assert whole["heads"][0]["max_logit"]["max"] is None
    assert whole["heads"][5] == json.loads(json.dumps(seen.records()[5]))
    assert "calls" not in whole


@given(seed=st.integers(0, 2**31), gain=st.sampled_from([0.01, 1.0, 50.0]))
def test_json_of_rows_gives_back_every_float32(seed, gain):
    call = made(seed=seed, gain=gain, lengths=torch.tensor([9, 4]))
    whole = json.loads(Seen([call]).to_json(rows=True), parse_constant=pytest.fail)["calls"][0]
    assert whole["shape"] == [2, 4, 9, 9]
    for name in (*NAMES, "received"):
        numbers = [[[math.nan if x is None else x for x in row] for row in head] for head in whole["statistics"][name]]
        expected = getattr(call.statistics, name)
        back = torch.tensor(numbers, dtype=torch.float32)
        blank = back.isnan() if name == "visible" else expected.isnan()
        assert torch.equal(back.isnan(), blank)
        assert torch.equal(back[~blank], expected.float()[~blank])


def test_reading_what_was_seen_imports_neither_rich_nor_pandas():
    code = "import sys, clearhead.observe.numbers.records, clearhead.observe.numbers.table\n"
    code += "assert not {'rich', 'pandas', 'matplotlib', 'lightning', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
