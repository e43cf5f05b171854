"""Health: each rule finds what was planted, in its place, and is silent about what is well."""

import math

import pytest
import torch
from torch import nn

import clearhead as ch
from clearhead.errors import InputError
from clearhead.kernels import Statistics
from clearhead.kernels.rows import RAW
from clearhead.nn import maps
from clearhead.observe import watch
from clearhead.observe.calls import Call
from clearhead.observe.heads import Baseline, rank_residual, row_residual, summarise
from clearhead.observe.health.rules import (
    RULES,
    DormantHead,
    EntropyCollapse,
    EntropyFall,
    LogitExplosion,
    NonFinite,
    RankCollapse,
    SinkHead,
    UniformHead,
    advice,
    check,
)

NAME = "encoder.layers.0.attention"


def call_of(A, name=NAME, *, rows=None, keep=False, **more):
    shape = tuple(A.shape)
    rows = None if rows is None else torch.as_tensor(rows)
    return Call(name, "self", "test", shape, A.statistics(rows), rows=rows, map=A if keep else None, **more)


def random_qk(b=2, h=4, n=24, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(b, h, n, d, generator=generator), torch.randn(b, h, n, d, generator=generator)


def call_with_entropy(values, name=NAME):
    """A call whose rows, which see 16 keys each, have these normalized entropies, (H,)."""
    rows = torch.tensor(values)[None, :, None].expand(2, -1, 5).clone()
    visible = torch.full(rows.shape, 16)
    return Call(name, "self", "test", (2, len(values), 5, 16), Statistics(normalized_entropy=rows, visible=visible))


def rules_of(findings):
    return [(finding.rule, finding.head) for finding in findings]


def reference(q, k, causal, lengths=None):
    """From dense float64 logits: they themselves, and normalized entropy and first key's weight by head over the rows
    that see at least 8 keys."""
    b, h, n, d = q.shape
    lengths = torch.full((b,), n) if lengths is None else lengths
    real = torch.arange(n) < lengths[:, None]
    seen = (real[:, :, None] & real[:, None, :])[:, None].expand(b, h, n, n)
    seen = seen.tril() if causal else seen
    logits = (q.double() @ k.double().mT / math.sqrt(d)).masked_fill(~seen, -math.inf)
    log_weights = logits.log_softmax(-1).masked_fill(~seen, 0)
    entropy = -(log_weights.exp() * log_weights * seen).sum(-1)
    visible = seen.sum(-1)
    wide = visible >= 8
    share = [(entropy[:, i] / visible[:, i].log())[wide[:, i]].mean() for i in range(h)]
    sink = [log_weights.exp()[:, i, :, 0][wide[:, i]].mean() for i in range(h)]
    return logits, torch.stack(share), torch.stack(sink)


@pytest.mark.parametrize("pattern", [ch.everything(), ch.causal()])
@pytest.mark.parametrize("lengths", [None, (24, 13)])
def test_a_summary_is_what_dense_weights_say(pattern, lengths):
    q, k = random_qk()
    lengths = None if lengths is None else torch.tensor(lengths)
    A = ch.Softmax(pattern)(q, k, lengths=lengths)
    heads = summarise(call_of(A))
    logits, entropy, sink = reference(q, k, pattern == ch.causal(), lengths)
    assert heads.entropy == pytest.approx(entropy.tolist(), abs=1e-5)
    assert heads.sink == pytest.approx(sink.tolist(), abs=1e-5)
    assert heads.max_logit == pytest.approx(logits.amax((0, 2, 3)).tolist(), rel=1e-5)
    for head in range(4):
        sample, row = heads.steepest[head]
        assert logits[sample, head, row].max() == logits[:, head].max()
        sample, row = heads.sharpest[head]
        assert A.statistics().normalized_entropy[sample, head, row] <= entropy[head]


def test_a_healthy_start_is_no_news():
    torch.manual_seed(1)
    layer = ch.nn.EncoderLayer(ch.nn.SelfAttention(64, 4))
    causal = ch.nn.EncoderLayer(ch.nn.SelfAttention(64, 4, ch.Softmax(ch.causal())))
    for model in (ch.nn.Encoder(layer, 3), ch.nn.Encoder(causal, 3)):
        for n in (1, 2, 5, 9, 40):
            seen = maps(model, torch.randn(2, n, 64))
            assert check([call_of(A, name, keep=True) for name, A in seen.items()]) == []


@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0, 3.0])
def test_initialisations_from_small_to_large_raise_no_alarm(scale):
    q, k = random_qk(n=64)
    for pattern in (ch.everything(), ch.causal()):
        found = check([call_of(ch.Softmax(pattern)(q * scale, k), keep=True)])
        assert [finding for finding in found if finding.severity == "alarm"] == []


def test_collapse_is_found_in_its_head_and_row():
    q, k = random_qk()
    q[:, 2] *= 200
    q[1, 2, 17] *= 10
    A = ch.Softmax(ch.causal())(q, k)
    (finding,) = check([call_of(A)], [EntropyCollapse()])
    assert (finding.rule, finding.layer, finding.head, finding.severity) == ("entropy collapse", NAME, 2, "alarm")
    assert finding.value == pytest.approx(float(reference(q, k, True)[1][2]), abs=1e-5)
    assert finding.value < finding.threshold == 0.02
    sample, row = finding.row
    measured = A.statistics().normalized_entropy
    assert measured[sample, 2, row] == measured[:, 2, 7:].min()
    assert finding.sentence.startswith(f"{NAME} head 2: normalized entropy")
    assert f"row {row} of sample {sample}" in finding.sentence
    assert "\n" not in finding.sentence
    assert str(finding) == finding.sentence


def test_rows_that_see_few_keys_do_not_collapse():
    q, k = random_qk(n=24)
    q[:, :, :7] *= 500  # the rows that see up to 7 keys are one-hot
    A = ch.Softmax(ch.causal())(q, k)
    assert A.statistics().normalized_entropy[:, :, 1:7].mean() < 0.02
    assert check([call_of(A)], [EntropyCollapse()]) == []
    q, k = random_qk(n=7)
    assert check([call_of(ch.Softmax()(q * 500, k))], [EntropyCollapse()]) == []


def test_padding_does_not_collapse():
    q, k = random_qk(b=2, n=20)
    q[1, :, 12:] *= 1000
    A = ch.Softmax()(q, k)
    padding = torch.arange(20) >= torch.tensor([20, 12])[:, None]
    whole, real = summarise(call_of(A)), summarise(call_of(A, padding=padding))
    kept = A.statistics().normalized_entropy.masked_fill(padding[:, None], math.nan).nanmean((0, 2))
    assert real.entropy == pytest.approx(kept.tolist(), abs=1e-6)
    assert max(whole.entropy) < min(real.entropy)
    assert max(whole.max_logit) > 100 > max(real.max_logit)


def test_a_large_logit_is_found_where_it_is():
    q, k = random_qk()
    q[1, 3, 2] = 40 * k[1, 3, 1]
    found = check([call_of(ch.Softmax(ch.causal())(q, k))])
    assert rules_of(found) == [("logit explosion", 3)]
    assert found[0].row == (1, 2)
    assert found[0].value == pytest.approx(float(q[1, 3, 2] @ k[1, 3, 1] / 4), rel=1e-5)
    assert check([call_of(ch.Softmax(ch.causal())(q, k))], [LogitExplosion(found[0].value)]) == []


@pytest.mark.parametrize(
    ("where", "row", "spoiled"),
    [("q", (1, 9), "1 of 24 rows of sample 1, first in row 9"), ("k", (1, 9), "15 of 24 rows of sample 1")],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_row_that_is_not_finite_is_named(where, row, spoiled, bad):
    q, k = random_qk()
    {"q": q, "k": k}[where][1, 2, 9] = bad
    (finding,) = check([call_of(ch.Softmax(ch.causal())(q, k))], [NonFinite()])
    assert (finding.rule, finding.head, finding.row, finding.severity) == ("not finite", 2, row, "alarm")
    assert spoiled in finding.sentence


def test_what_is_in_every_head_is_said_once():
    q, k = random_qk()
    k[1, :, 5] = math.nan
    (finding,) = check([call_of(ch.Softmax()(q, k))])
    assert (finding.head, finding.row) == (None, (1, 0))
    assert "24 of 24 rows of sample 1" in finding.sentence


def test_rows_that_see_nothing_are_not_broken():
    q, k = random_qk()
    A = ch.Softmax()(q, k, lengths=torch.tensor([24, 0]))
    assert A.statistics().entropy[1].isnan().all()
    assert check([call_of(A)]) == []


@pytest.mark.parametrize("name", ["logsumexp", "max_logit", "max_weight", "entropy", "normalized_entropy", "distance"])
def test_nan_in_any_statistic_of_a_row_that_sees_keys_is_an_alarm(name):
    call = call_of(ch.Softmax()(*random_qk()))
    getattr(call.statistics, name)[1, 2, 9:] = math.nan
    (finding,) = check([call])
    assert (finding.rule, finding.head, finding.row, finding.severity) == ("not finite", 2, (1, 9), "alarm")
    assert "15 of 24 rows" in finding.sentence


def test_rows_that_were_never_counted_are_an_alarm():
    """As many keys as NaN makes of a whole number: it is not 0, so that they do not pass for rows that see nothing."""
    call = call_of(ch.Softmax()(*random_qk()))
    never = Statistics.of(torch.full((len(RAW), 2, 4, 24), math.nan), None, distance=True)
    for name in ("entropy", "max_logit", "logsumexp", "visible"):
        getattr(call.statistics, name)[0, 1, 4] = getattr(never, name)[0, 1, 4]
    (finding,) = check([call])
    assert (finding.rule, finding.head, finding.row) == ("not finite", 1, (0, 4))


def test_a_row_of_one_key_has_no_normalized_entropy_and_is_well():
    assert check([call_of(ch.Softmax(ch.window(0))(*random_qk()))], [NonFinite()]) == []


def test_a_sample_of_rows_is_reported_by_their_own_numbers():
    q, k = random_qk()
    q[0, 1, 19] = math.nan
    q[1, 3, 11] *= 1000
    found = check([call_of(ch.Softmax()(q, k), rows=[3, 11, 19])])
    assert {(f.rule, f.head): f.row for f in found} == {("not finite", 1): (0, 19), ("logit explosion", 3): (1, 11)}


def towards_first(share, n=32):
    """Queries and keys (1, 2, n, 4) whose head 1 gives about `share` to the first key; head 0 is ordinary."""
    q, k = random_qk(1, 2, n, 4, seed=3)
    k[:, 1] *= 0.01
    k[:, 1, 0, 0], q[:, 1, :, 0] = 2.0, math.log(share / (1 - share) * (n - 1))
    return q, k


def test_a_sink_is_a_note_and_a_head_that_rests_on_it_is_dormant():
    sink, dormant = (check([call_of(ch.Softmax()(*towards_first(share)))]) for share in (0.6, 0.995))
    assert rules_of(sink) == [("attention sink", 1)]
    assert sink[0].severity == "note"
    assert sink[0].value == pytest.approx(0.6, abs=0.05)
    assert rules_of(dormant) == [("dormant head", 1)], "a dormant head is no sink and no collapse besides"
    alone = check([call_of(ch.Softmax()(*towards_first(0.9999)))], [SinkHead(), EntropyCollapse()])
    assert rules_of(alone) == [("entropy collapse", 1), ("attention sink", 1)] or rules_of(alone) == [
        ("attention sink", 1),
        ("entropy collapse", 1),
    ]


def test_a_uniform_head_is_a_note():
    q, k = random_qk()
    k[:, 1] = k[:, 1, :1]
    (finding,) = check([call_of(ch.Softmax()(q, k))])
    assert (finding.rule, finding.head, finding.severity) == ("uniform head", 1, "note")
    assert finding.value == pytest.approx(1.0)


def test_rows_that_are_all_the_same_collapse_the_layers_rank():
    q, k = random_qk()
    q[:] = q[:, :, :1]  # the same query everywhere
    call = call_of(ch.Softmax()(q, k), keep=True)
    (finding,) = check([call])
    assert (finding.rule, finding.head, finding.severity) == ("rank collapse", None, "alarm")
    assert check([call_of(ch.Softmax()(q, k))]) == [], "without its map nothing is known"
    q[1, 3] = random_qk()[0][1, 3]
    assert check([call_of(ch.Softmax()(q, k), keep=True)], [RankCollapse()]) == [], "one head still tells tokens apart"


def test_how_much_rows_differ_equals_the_dense_measure():
    q, k = random_qk(n=200)
    for pattern in (ch.everything(), ch.causal()):
        A = ch.Softmax(pattern)(2 * q, k)
        rows = A.weights().double()[:, :, 7 if pattern == ch.causal() else 0 :]
        apart = (rows - rows.mean(2, keepdim=True)).square().sum((0, 2, 3)).sqrt()
        expected = apart / rows.square().sum((0, 2, 3)).sqrt()
        assert row_residual(call_of(A, keep=True)) == pytest.approx(expected.tolist(), rel=0.02)


def test_rank_residual_is_the_distance_from_the_mean_token():
    x = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0)) + 2
    real = torch.arange(10) < torch.tensor([10, 4, 0])[:, None]
    kept = x[1, :4].double()
    expected = (kept - kept.mean(0)).norm() / kept.norm()
    assert float(rank_residual(x, real)[1]) == pytest.approx(float(expected), rel=1e-5)
    assert rank_residual(x, real)[2].isnan()
    assert (rank_residual(x[:, :1].expand(-1, 10, -1)) < 1e-6).all()


class Deep(nn.ModuleList):
    """Layers of attention, one on top of the other, with skip connections or pure."""

    def __init__(self, skip):
        super().__init__(ch.nn.SelfAttention(32, 4) for _ in range(8))
        self.skip = skip

    def forward(self, x):
        for layer in self:
            x = x + layer(nn.functional.layer_norm(x, (32,))) if self.skip else layer(x)
        return x


def test_pure_attention_loses_rank_with_depth_and_skip_connections_keep_it():
    """Dong 2021."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 32)
    for skip in (False, True):
        with watch(model := Deep(skip)) as seen, torch.no_grad():
            model(x)
        found = {finding.layer for finding in check(seen, [RankCollapse()])}
        assert skip or {"6", "7"} <= found
        assert not skip or not found
        assert "0" not in found


def noisy(mean, generator, size=0.02):
    return (torch.tensor(mean) + size * torch.randn(len(mean), generator=generator)).clamp(0, 1).tolist()


def run(values, baseline):
    """Check, then update, for each step's entropies: the steps at which each head was found."""
    found = []
    for step, entropies in enumerate(values):
        call = call_with_entropy(entropies)
        found += [(step, finding.head) for finding in check([call], [EntropyFall()], baseline)]
        baseline.update([call])
    return found


def test_a_sudden_fall_is_found_at_once_and_only_in_its_head():
    generator = torch.Generator().manual_seed(0)
    steps = [noisy([0.9, 0.5], generator) for _ in range(40)] + [noisy([0.9, 0.15], generator) for _ in range(3)]
    assert run(steps, Baseline())[0] == (40, 1)
    assert {head for _, head in run(steps, Baseline())} == {1}


def test_a_fall_within_a_few_updates_is_found_before_it_is_a_collapse():
    generator = torch.Generator().manual_seed(1)
    steps = [noisy([0.8], generator) for _ in range(30)] + [noisy([0.8 * 0.75**i], generator) for i in range(1, 12)]
    first = run(steps, Baseline())[0][0]
    assert first <= 34
    assert steps[first][0] > EntropyCollapse().threshold


def test_a_fall_is_a_note_where_heads_learn_and_an_alarm_where_they_collapse():
    def found(value):
        baseline = Baseline()
        for _ in range(12):
            baseline.update([call_with_entropy([0.8, 0.8])])
        return check([call_with_entropy([value, 0.8])], [EntropyFall()], baseline)

    (learns,), (collapses,) = found(0.09), found(0.04)
    assert (learns.severity, collapses.severity) == ("note", "alarm")
    assert "learn" in learns.sentence
    assert "diverges" in collapses.sentence
    assert (learns.rule, learns.head, learns.threshold) == (collapses.rule, collapses.head, collapses.threshold)


def test_slow_sharpening_and_noise_are_natural():
    generator = torch.Generator().manual_seed(2)
    slow = [noisy([0.95 * 0.98**i, 0.3], generator, size=0.01) for i in range(100)]
    rough = [noisy([0.3, 0.5], generator, size=0.08) for _ in range(300)]
    assert run(slow, Baseline()) == []
    assert run(rough, Baseline()) == []


def test_a_young_baseline_says_nothing():
    steps = [[0.9]] * 9 + [[0.1]]
    assert run(steps, Baseline()) == []
    assert run([[0.9]] * 10 + [[0.1]], Baseline()) == [(10, 0)]
    assert check([call_with_entropy([0.1])], [EntropyFall()]) == []


def test_the_baseline_is_the_exponential_mean_written_out():
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(30, 2, generator=generator, dtype=torch.float64).float()
    baseline, mean, noise = Baseline(0.8), torch.zeros(2).double(), torch.zeros(2).double()
    for i, value in enumerate(values):
        baseline.update([call_with_entropy(value.tolist())])
        if i:
            noise += max(1 / i, 0.2) * ((value.double() - values[i - 1].double()) ** 2 / 2 - noise)
        mean += max(1 / (i + 1), 0.2) * (value.double() - mean)
    known = baseline.of(summarise(call_with_entropy([0.1, 0.1])))
    assert known[0] == pytest.approx(mean.tolist(), rel=1e-6)
    assert known[1] == pytest.approx(noise.sqrt().tolist(), rel=1e-5)
    assert known[2] == [30, 30]


def test_a_head_that_was_not_measured_keeps_its_baseline():
    baseline = Baseline()
    for values in ([0.5, 0.6], [math.nan, 0.7], [0.7, math.nan]):
        baseline.update([call_with_entropy(values)])
    mean, _, updates = baseline.of(summarise(call_with_entropy([0.1, 0.1])))
    assert mean == pytest.approx([0.6, 0.65])
    assert updates == [2, 2]


def test_parts_of_a_batch_are_one_update():
    baseline, whole = Baseline(), Baseline()
    for values in (0.5, 0.8, 0.6):
        baseline.update([call_with_entropy([values - 0.1, math.nan]), call_with_entropy([values + 0.1, values])])
        whole.take(NAME, [values, values])
    summary = summarise(call_with_entropy([0.1, 0.1]))
    (mean, deviation, updates), expected = baseline.of(summary), whole.of(summary)
    assert mean == pytest.approx(expected[0])
    assert deviation == pytest.approx(expected[1])
    assert updates == [3, 3]


def test_a_baseline_goes_through_a_checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(4)
    steps = [noisy([0.8, 0.6], generator) for _ in range(20)]
    whole, first, second = Baseline(0.95), Baseline(0.95), Baseline()
    run(steps, whole)
    run(steps[:11], first)
    torch.save(first.state_dict(), tmp_path / "baseline.pt")
    second.load_state_dict(torch.load(tmp_path / "baseline.pt", weights_only=True))
    run(steps[11:], second)
    summary = summarise(call_with_entropy([0.1, 0.1]))
    assert second.of(summary) == whole.of(summary)
    assert second.decay == 0.95
    with pytest.raises(InputError, match=r"decay is 1\.5"):
        Baseline(1.5)


def test_steps_of_decoding_are_one_call_and_turns_are_apart():
    q, k = random_qk(n=16)
    q[:, 1] *= 300
    A = ch.Softmax(ch.causal())(q, k)
    steps = [call_of(ch.Softmax()(q[:, :, i : i + 1], k[:, :, : i + 1]), step=i) for i in range(16)]
    joined, whole = check(steps), check([call_of(A)])
    assert {(f.rule, f.head, f.row) for f in joined} == {(f.rule, f.head, f.row) for f in whole} != set()
    turns = check([call_of(A, turn=turn) for turn in range(2)], [EntropyCollapse()])
    assert [(finding.head, finding.turn) for finding in turns] == [(1, 0), (1, 1)]
    assert f"{NAME} (turn 1) head 1" in turns[1].sentence


@pytest.mark.parametrize("rounding", [0.0, 1e-7, -1e-7])
def test_of_rows_that_are_equal_but_for_rounding_the_first_is_named(rounding):
    entropy, logit = torch.full((1, 2, 12), 0.5), torch.full((1, 2, 12), 30.0)
    entropy[..., [6, 9, 11]] = torch.tensor([0.2001, 0.2, 0.2 + rounding])
    logit[..., [6, 9, 11]] = torch.tensor([699.0, 700.0, 700 * (1 + rounding)])
    statistics = Statistics(normalized_entropy=entropy, max_logit=logit, visible=torch.full((1, 2, 12), 12))
    found = summarise(Call(NAME, "self", "test", (1, 2, 12, 12), statistics))
    assert found.sharpest == found.steepest == [(0, 9), (0, 9)]


def test_what_was_not_measured_is_not_judged():
    q, k = random_qk()
    measured = ch.Softmax()(q * 1000, k).statistics()
    only = Call(NAME, "self", "test", (2, 4, 24, 24), Statistics(entropy=measured.entropy))
    assert check([only]) == []
    assert math.isnan(summarise(only).sink[0])
    logits = Call(NAME, "self", "test", (2, 4, 24, 24), Statistics(max_logit=measured.max_logit))
    assert rules_of(check([logits])) == [("logit explosion", head) for head in range(4)]
    assert check([]) == []


def test_thresholds_are_the_users_and_advice_names_the_paper():
    q, k = random_qk()
    call = call_of(ch.Softmax()(q, k))
    strict = [UniformHead(0.5), LogitExplosion(0.1), DormantHead(0.001), EntropyCollapse(0.99)]
    found = check([call], strict)
    assert {finding.rule for finding in found} == {"uniform head", "logit explosion", "dormant head"}
    assert len(found) == 12
    lines = advice(found)
    assert len(lines) == 3
    assert any("Kimi" in line and line.startswith("logit explosion: ") for line in lines)
    for rule in RULES:
        for words in (rule.name, rule.paper, rule.meaning, rule.advice):
            assert words
            assert "\n" not in words


def test_small_initial_weights_are_no_uniform_heads():
    """Hugging Face's models begin with weights of 0.02, whatever their width."""
    torch.manual_seed(0)
    layer = ch.nn.SelfAttention(32, 4)
    with torch.no_grad():
        for projection in (layer.query, layer.key):
            projection.weight.normal_(0, 0.02)
    for n in (8, 32, 128):
        A = layer.map(torch.randn(2, n, 32))
        assert check([call_of(A, keep=True)]) == []
