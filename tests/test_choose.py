"""Which kernel runs: the list, what each is predicted to cost, memory budgets, and rates measured on this machine."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

import clearhead as ch
from clearhead.errors import InputError
from clearhead.kernels import costs, fused, memory_budget
from clearhead.kernels.calibrate import calibrate


@pytest.fixture(autouse=True)
def uncalibrated(tmp_path, monkeypatch):
    """Each test with a cache folder of its own, in which nothing was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    costs.measured.cache_clear()
    yield
    costs.measured.cache_clear()


def rand(n, heads=1, width=64, dtype=torch.float32):
    return torch.randn(1, heads, n, width, dtype=dtype)


LONG = rand(4096)


@pytest.mark.parametrize(
    ("n", "pattern", "kernel"),
    [
        (64, ch.causal() & ch.window(8), "sdpa"),
        (256, ch.window(8), "sdpa"),
        (1000, ch.window(30), "stream"),
        (1000, ch.window(900), "sdpa"),
        (4096, None, "sdpa"),
        (4096, ch.causal(), "sdpa"),
        (4096, ch.window(256), "stream"),
        (4096, ch.window(256) | ch.first(3), "blocks"),
        (4096, ch.documents((torch.arange(4096) // 100)[None]), "stream"),
        (4096, ch.window(4000), "stream"),
        (4096, ch.stride(7), "stream"),
    ],
)
def test_the_layout_decides(n, pattern, kernel):
    assert ch.explain(rand(n), rand(n), pattern).chosen == kernel


@pytest.mark.parametrize("units", [True, False])
def test_matrix_units_take_dense_bfloat16_unless_gradients_are_wanted(units, monkeypatch):
    monkeypatch.setattr(fused, "_units", lambda: units)
    q = rand(4096, heads=4, dtype=torch.bfloat16)
    found = ch.explain(q, q)
    assert found.chosen == ("stream" if units else "sdpa")
    assert ("faster by its matrix units" in found.reasons["sdpa"]) == units
    assert ch.explain(q[:, :, :64], q[:, :, :64]).chosen == "sdpa"
    assert ch.explain(q.requires_grad_(), q).chosen == "sdpa"
    with torch.no_grad():
        assert ch.explain(q, q).chosen == ("stream" if units else "sdpa")


def test_matrix_units_are_as_right_as_the_fused_kernel():
    q, k, v = (torch.randn(1, 2, 2048, 64).bfloat16() for _ in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    own, fused_one = ch.attend(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert (own - want).norm() <= 1.5 * (fused_one - want).norm()


@pytest.mark.parametrize(
    "pattern", [ch.window(256), ch.documents(torch.arange(4096) // 100)], ids=["window", "documents"]
)
def test_where_nothing_is_compiled_fused_operators_take_what_the_layout_leaves(pattern, monkeypatch):
    monkeypatch.setattr(fused, "_library", lambda: "not compiled: asked for the twin")
    assert ch.explain(LONG, LONG, pattern).chosen == "blocks"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"statistics": True}, "returns no statistics"),
        ({"dropout": 0.1}, "drops no weights"),
        ({"softcap": 3.0}, "has no soft cap"),
        ({"bias": torch.zeros(4096).requires_grad_()}, "gives a bias no gradient"),
        ({"v_dim": 32}, "needs values as wide as keys, not 32 and 64"),
    ],
)
def test_blocks_says_what_it_does_not_take(options, reason):
    found = ch.explain(LONG, LONG, ch.window(256), **options)
    assert found.chosen == "stream"
    assert found.reasons["blocks"] == reason


@pytest.mark.parametrize(("pattern", "name"), [(ch.window(20), "stream"), (ch.window(20) | ch.first(3), "blocks")])
def test_what_is_explained_is_what_runs(pattern, name, monkeypatch):
    q = rand(2000).requires_grad_()
    module = importlib.import_module("clearhead.kernels.operator")
    ran = []
    for kernel, its in module._KERNELS.items():
        own = lambda *call, kernel=kernel, forward=its.forward: ran.append(kernel) or forward(*call)  # noqa: E731
        monkeypatch.setattr(its, "forward", own)
    ch.attend(q, q, q, pattern)
    assert ran == [name]
    assert ch.explain(q, q, pattern).chosen == name


COMPILED = """
import torch, clearhead as ch

for pattern in (ch.window(40), ch.window(40) | ch.first(3)):  # for `stream`, and for `blocks`
    def f(q, k, v):
        return ch.attend(q, k, v, pattern).square()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (1500, 2000):
        inputs = [torch.randn(1, 2, n, 8).requires_grad_() for _ in range(3)]
        got, want = (torch.autograd.grad(g(*inputs).sum(), inputs) for g in (compiled, f))
        for x, y in zip(got, want):
            torch.testing.assert_close(x, y)
print("compiled")
"""


def test_under_the_compiler_the_choice_waits_for_the_tensors():
    """In a process of its own: tracing does not get through the checks that pytest adds to every call."""
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["compiled"], done.stderr[-2000:]


def test_the_table_says_time_and_memory_and_why():
    lines = str(ch.explain(LONG, LONG, ch.window(256))).splitlines()
    assert [line[2:8].strip() for line in lines[:6]] == ["kernel", "sdpa", "blocks", "packed", "flex", "stream"]
    assert "dense mask of 16,777,216 pairs" in lines[1]
    assert "fits, but stream is predicted to take " in lines[2]
    assert lines[3].endswith("is for GPUs")
    assert lines[4].endswith("is for GPUs")
    assert lines[5].startswith("▸ stream")
    assert lines[5].endswith("chosen: predicted to be faster; compiled")
    assert lines[6] == "Times are predicted from rates measured elsewhere: see calibrate."
    assert str(ch.explain(LONG.double(), LONG.double(), softcap=1.0)).count("tensor by tensor: float32 or less") == 1


def test_fewer_pairs_cost_less():
    found = [ch.explain(LONG, LONG, ch.window(w)).costs["blocks"].seconds for w in (100, 300, 900)]
    assert found == sorted(found)
    halves = [ch.explain(x, x, ch.window(256)).costs["blocks"].seconds for x in (rand(4096), rand(8192))]
    assert 1.8 < halves[1] / halves[0] < 2.2


def test_a_budget_passes_over_what_holds_more(monkeypatch):
    """1,000 queries and keys: the mask of `sdpa` takes 5 MB, those of the blocks fewer."""
    monkeypatch.setattr(fused, "_library", lambda: "not compiled: asked for the twin")
    q, pattern = rand(1000), ch.window(400)
    assert ch.explain(q, q, pattern).chosen == "sdpa"
    with memory_budget("4 MB"):
        tight, out = ch.explain(q, q, pattern), ch.attend(q, q, q, pattern)
    assert tight.chosen == "blocks"
    assert tight.reasons["sdpa"] == "would hold more than the memory budget of 4 MB"
    assert ch.explain(q, q, pattern).chosen == "sdpa"
    torch.testing.assert_close(out, ch.attend(q, q, q, pattern))


def test_a_budget_that_no_kernel_meets_is_one_line():
    with memory_budget(2000), pytest.raises(InputError) as raised:
        ch.attend(LONG, LONG, LONG, ch.window(256))
    message = str(raised.value)
    assert message.startswith("memory budget of 1.95 kB: no kernel fits, blocks needs least, about ")
    needed = message.split("about ")[1].split(";")[0]
    assert f"write memory_budget('{needed}')" in message
    with memory_budget(needed):
        ch.attend(LONG, LONG, LONG, ch.window(256))


@pytest.mark.parametrize("size", [0, -5, "much", "3 miles", "", True, "nan GB"])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(InputError, match="write bytes as a whole number, or as in '200MB'"), memory_budget(size):
        pass


def test_sizes_as_people_write_them():
    assert [costs.as_bytes(x) for x in (1500, "1kB", "1.5 GB", "200mb", "7")] == [1500, 1024, 3 << 29, 200 << 20, 7]


def test_what_is_measured_is_written_read_and_decides():
    told = []
    rows = calibrate(dtypes=["float32"], widths=[64], rounds=1, say=told.append)
    assert told == ["cpu, float32, heads of width 64"]
    assert [row.kernel for row in rows] == ["sdpa", "sdpa masked", "blocks", "stream"]
    assert all(row.rate.pair > 0 and row.rate.call >= 0 for row in rows)
    found = json.loads(costs.rates_file().read_text())
    for row in rows:
        assert found["rates"]["cpu"]["float32 64"][row.kernel] == list(row.rate)
        assert costs.rate(row.kernel, torch.device("cpu"), torch.float32, 64) == row.rate
    assert "rates measured on this machine" in str(ch.explain(LONG, LONG))
    found["rates"]["cpu"]["float32 64"]["stream"] = [1e-3, 0.0]
    costs.rates_file().write_text(json.dumps(found))
    costs.measured.cache_clear()
    assert ch.explain(LONG, LONG, ch.window(256)).chosen == "blocks"
    assert ch.explain(rand(4096, width=256), rand(4096, width=256), ch.window(256)).chosen == "stream"


@pytest.mark.parametrize("spoilt", ["", "[]", "{", '{"rates": 3}', '{"machine": "another", "rates": {}}'])
def test_rates_that_cannot_be_read_are_as_if_not_measured(spoilt):
    costs.rates_file().parent.mkdir()
    costs.rates_file().write_text(spoilt)
    assert costs.measured() == {}


def test_a_calibration_that_cannot_be_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="unknown dtype 'float33'; did you mean 'float32'"):
        calibrate(dtypes=["float33"])
    with pytest.raises(InputError, match="width 63 is no shape class; choose among 32, 64, 128"):
        calibrate(widths=[63])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written .*; set XDG_CACHE_HOME to a folder of yours"):
        calibrate(dtypes=[])
