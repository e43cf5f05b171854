"""The monitor: its numbers are those of the weights, training is as without it, alarms are told once, ranks agree."""

import json
import logging
import math
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import checkpoint

from clearhead.errors import InputError
from clearhead.nn import SelfAttention
from clearhead.observe.health.remedies import LowerLearningRate, QKClip, StopWithLastGood
from clearhead.observe.health.rules import Finding
from clearhead.observe.monitoring.alarms import PATIENCE, Alarms, sentence
from clearhead.observe.monitoring.digest import digests, merged
from clearhead.observe.monitoring.monitor import AttentionMonitor
from clearhead.observe.monitoring.record_file import RecordFile
from clearhead.observe.watching.watch import watch


class Attends(nn.Module):
    """torch's attention of 12 tokens, of which some are padding."""

    def __init__(self, dim: int = 16, heads: int = 2):
        super().__init__()
        self.inner = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x, padding=None):
        return self.inner(x, x, x, key_padding_mask=padding, need_weights=False)[0]


def batch(b=3, n=12, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    padding = torch.zeros(b, n, dtype=torch.bool)
    padding[1, 9:] = True
    return torch.randn(b, n, dim, generator=generator), padding


def eager(model: Attends, x, padding):
    """Logits and weights of real rows, in float64: (B, H, N, N) with padding rows NaN."""
    w, bias = model.inner.in_proj_weight.double(), model.inner.in_proj_bias.double()
    heads, dim = model.inner.num_heads, x.shape[-1]
    q, k = ((x.double() @ w[i * dim : (i + 1) * dim].T + bias[i * dim : (i + 1) * dim]) for i in (0, 1))
    q, k = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k))
    logits = q @ k.mT / math.sqrt(dim // heads)
    logits = logits.masked_fill(padding[:, None, None], -math.inf)
    hidden = padding[:, None, :, None]
    return logits.masked_fill(hidden, math.nan), logits.softmax(-1).masked_fill(hidden, math.nan)


def test_the_numbers_are_those_of_the_weights():
    torch.manual_seed(0)
    model, (x, padding) = Attends(), batch()
    records = []
    monitor = AttentionMonitor(model, every=5, rows=None, samples=None, log=records.append)
    with monitor.step(10) as notes:
        loss = model(x, padding).square().mean()
        loss.backward()
        notes["loss"] = loss
    (record,) = records
    assert record["step"] == 10
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-3)
    found = record["attention"]["inner"]
    logits, weights = eager(model, x, padding)
    entropy = torch.special.entr(weights).sum(-1)
    seen = (~padding).sum(1)[:, None, None].double()
    want = {
        "entropy": entropy.nanmean((0, 2)),
        "normalized_entropy": (entropy / seen.log()).nanmean((0, 2)),
        "sink": weights[..., 0].nanmean((0, 2)),
        "max_weight": weights.amax(-1).nanmean((0, 2)),
        "max_logit": logits.amax(-1).nan_to_num(-math.inf).amax((0, 2)),
    }
    for name, values in want.items():
        assert found[name] == pytest.approx(values.tolist(), rel=1e-3), name
    for name, part in (("weight_norm", lambda p: p), ("gradient_norm", lambda p: p.grad)):
        norm = math.sqrt(sum(part(p).double().square().sum().item() for p in model.inner.parameters()))
        assert found[name] == pytest.approx(norm, rel=1e-3)
    assert "alarms" not in record


def test_parts_of_a_batch_add_up_to_it():
    torch.manual_seed(0)
    model, (x, padding) = Attends(), batch(b=7)
    with watch(model) as seen:
        model(x, padding)
    with watch(model) as parts:
        model(x[:2], padding[:2])
        model(x[2:], padding[2:])
    (whole,), (one,) = digests(seen), digests(parts)
    for name in ("total", "count", "judged", "least"):
        assert getattr(one, name) == pytest.approx(getattr(whole, name), rel=1e-5, abs=1e-5)
    for name in ("entropy", "sink", "max_logit"):
        assert getattr(one.heads, name) == pytest.approx(getattr(whole.heads, name), rel=1e-5)
    (alone,) = merged(digests(seen[:1]))
    assert alone.heads.sharpest == whole.heads.sharpest
    with watch(model) as once:
        model(x[2:], padding[2:])
    steepest = [torch.stack([call.statistics.max_logit[:, head].amax() for call in parts]) for head in range(2)]
    for head, of_call in enumerate(steepest):
        if of_call.argmax() == 1:  # a row is named as in the batch that it came from
            assert one.heads.steepest[head] == digests(once)[0].heads.steepest[head]


def test_a_digest_is_of_each_layer_whatever_its_shape():
    torch.manual_seed(0)
    model = nn.ModuleList([Attends(), Attends(heads=4), Attends()])
    with watch(model) as seen:
        for i, (b, n) in enumerate([(3, 12), (2, 9), (5, 15)]):
            model[i](*batch(b, n, seed=i))
    for one, call in zip(digests(seen), seen, strict=True):
        assert one.key[0] == call.name
        entropy = call.statistics.entropy.double()
        if call.padding is not None:
            entropy = entropy.masked_fill(call.padding[:, None], math.nan)
        assert one.numbers(["entropy"])["entropy"] == pytest.approx(entropy.nanmean((0, 2)).tolist(), rel=1e-6)


def test_a_row_is_named_by_its_numbers_in_the_batch():
    torch.manual_seed(0)
    model, (x, padding) = Attends(), batch(b=6)
    x[4, 7] *= 1000
    monitor = AttentionMonitor(model, every=1, rows=11, samples=5)
    found = []
    for _ in range(8):
        with monitor.step():
            model(x, padding)
        found += [each for each in monitor.findings if each.rule == "logit explosion"]
    assert found
    assert {each.row for each in found} == {(4, 7)}


def encoder(dropout=0.2):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def trained(every=None, **options):
    model = encoder()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    monitor = None if every is None else AttentionMonitor(model, every=every, optimizer=optimizer, **options)
    for step in range(6):
        x = torch.randn(4, 20, 16, generator=torch.Generator().manual_seed(step))

        def learn(x=x):
            optimizer.zero_grad()
            (model(x) - x.roll(1, 1)).square().mean().backward()
            optimizer.step()

        if monitor is None:
            learn()
        else:
            with monitor.step(step):
                learn()
    return model.state_dict(), torch.get_rng_state(), monitor


def test_training_is_bit_for_bit_as_without_it(tmp_path):
    weights, random, _ = trained()
    for options in ({"every": 1, "log": tmp_path / "metrics.jsonl"}, {"every": 2, "tensorboard": tmp_path / "board"}):
        watched, same, monitor = trained(**options)
        assert all(weights[name].equal(watched[name]) for name in weights)
        assert random.equal(same)
        assert monitor.record["learning_rate"] == 1e-2
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(6))


def test_other_steps_cost_nothing():
    model = encoder()
    monitor = AttentionMonitor(model, every=4)
    hooks = []
    for step in range(5):
        with monitor.step(step):
            hooks.append(len(torch_module._global_forward_hooks))
    assert [count > 0 for count in hooks] == [True, False, False, False, True]
    with pytest.raises(ZeroDivisionError), monitor.step(8):
        raise ZeroDivisionError
    assert not torch_module._global_forward_hooks


def finding(value=150.0, head=1, rule="logit explosion", threshold=100.0):
    words = f"layer head {head}: largest logit {value:g}"
    return Finding(rule, "layer", head, float(value), threshold, (0, 0), words, "alarm")


def test_an_alarm_is_told_when_it_begins_gets_much_worse_and_ends():
    alarms, judged = Alarms(), {("layer", 0): [True, True]}

    def told(*findings, seen=judged):
        return [(event["event"], event["head"]) for event in alarms.update(findings, seen)]

    assert told() == []
    assert told(finding()) == [("began", 1)]
    assert told(finding(160), finding(head=0)) == [("began", 0)]
    assert told(finding(290), finding(head=0)) == []
    assert told(finding(301), finding(head=0)) == [("worse", 1)]
    assert told(finding(301), seen={}) == []
    for _ in range(PATIENCE):  # the layer did not run, or its rows see too few keys: nothing is known
        assert told(seen={}) == []
        assert told(seen={("layer", 0): [False, False]}) == []
    kept = json.loads(json.dumps(alarms.state_dict()))
    for _ in range(PATIENCE - 1):
        assert told(finding(301)) == []
    assert told(finding(301)) == [("over", 0)]
    alarms.load_state_dict(kept)
    assert told(finding(301)) == []
    assert len(alarms) == 2
    assert told(finding(301)) == [("over", 0)]
    assert sentence({**finding().__dict__, "event": "over"}) == "over: logit explosion of layer head 1"


def test_what_falls_below_its_threshold_gets_worse_downwards():
    alarms, judged = Alarms(), {("layer", 0): [True, True]}
    small = [0.019, 0.012, 0.009, 0.0]
    found = [alarms.update([finding(x, rule="entropy collapse", threshold=0.02)], judged) for x in small]
    assert [[event["event"] for event in events] for events in found] == [["began"], [], ["worse"], ["worse"]]


def test_a_note_that_becomes_an_alarm_begins_as_one():
    alarms, judged = Alarms(), {("layer", 0): [True, True]}
    quiet = Finding("entropy fall", "layer", 1, 0.35, 0.4, (0, 0), "fell to 0.35", "note")
    loud = Finding("entropy fall", "layer", 1, 0.3, 0.4, (0, 0), "fell to 0.3", "alarm")
    told = [alarms.update([each], judged) for each in (quiet, quiet, loud, loud, quiet)]
    assert [[(e["event"], e["severity"]) for e in events] for events in told] == [
        [("began", "note")], [], [("began", "alarm")], [], []
    ]  # fmt: skip
    over = [alarms.update([], judged) for _ in range(PATIENCE)][-1]
    assert [(e["event"], e["severity"]) for e in over] == [("over", "alarm")]


def sharp(scale=40.0):
    torch.manual_seed(0)
    model = SelfAttention(16, 2)
    with torch.no_grad():
        model.query.weight[:8] *= scale  # head 0
    return model


def test_alarms_and_remedies_are_logged_in_a_line_each(caplog):
    model, (x, _) = sharp(), batch()
    monitor = AttentionMonitor(model, every=1, rows=None, samples=None, remedies=[QKClip(limit=20.0)])
    with caplog.at_level(logging.INFO, "clearhead.observe"):
        for _ in range(4):
            with monitor.step():
                model(x)
    lines = [record.message for record in caplog.records]
    assert any("step 0: SelfAttention head 0: largest logit" in line for line in lines)
    assert any("QK-clip: SelfAttention head 0: largest logit" in line for line in lines)
    assert any(line == "step 2: over: logit explosion of SelfAttention head 0" for line in lines)
    assert not any("head 1" in line for line in lines)
    assert max(monitor.record["attention"]["SelfAttention"]["max_logit"]) <= 20.01
    assert not any("\n" in line for line in lines)


def test_a_remedy_may_ask_to_stop():
    model, (x, _) = sharp(), batch()
    monitor = AttentionMonitor(model, every=1, remedies=[StopWithLastGood(patience=2)])
    asked = []
    for _ in range(3):
        with monitor.step():
            model(x)
        asked.append(monitor.asks_to_stop)
    assert asked == [False, True, True]
    assert "asked to stop" in str(monitor.record) or monitor.record.get("remedies") is None


def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    def run(monitor, model, first, last):
        for step in range(first, last):
            x = torch.randn(4, 20, 16, generator=torch.Generator().manual_seed(step))
            with monitor.step(step):
                model(x * (1 + step)).sum()

    whole, records = SelfAttention(16, 2), []
    monitor = AttentionMonitor(whole, every=2, log=records.append)
    run(monitor, whole, 0, 30)
    again: list = []
    first = AttentionMonitor(whole, every=2, log=again.append)
    run(first, whole, 0, 13)
    state = json.loads(json.dumps(first.state_dict()))
    second = AttentionMonitor(whole, every=2, log=again.append)
    second.load_state_dict(state)
    run(second, whole, 13, 30)
    assert again == records
    assert any("alarms" in record for record in records[7:])


def test_steps_that_count_themselves_go_on_from_a_checkpoint():
    model, (x, _) = SelfAttention(16, 2), batch()
    first, again = (AttentionMonitor(model, every=2) for _ in "ab")
    for _ in range(5):
        with first.step():
            model(x)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(2):
        with again.step():
            model(x)
    assert (first.record["step"], again.record["step"]) == (4, 6)
    again.load_state_dict({name: kept for name, kept in first.state_dict().items() if name != "next"})  # an older one


@pytest.mark.parametrize(("note", "kind"), [(torch.ones(2), r"of shape \(2,\)"), ("high", "a str"), ([1], "a list")])
def test_what_is_no_number_is_named_and_leaves_nothing_behind(note, kind):
    model, (x, _) = SelfAttention(16, 2), batch()
    monitor = AttentionMonitor(model, every=1)

    def step():
        with monitor.step() as notes:
            model(x)
            notes["loss"] = note

    with pytest.raises(InputError, match=f"loss is {kind}; a record of a step takes single numbers"):
        step()
    assert not monitor.running
    assert not torch_module._global_forward_hooks


@pytest.mark.parametrize(("before", "after", "refused"), [(0, 1, False), (1, 0, True), (1, 1, False)])
def test_remedies_that_have_done_something_are_given_again(before, after, refused):
    first, again = (
        AttentionMonitor(SelfAttention(16, 2), remedies=[LowerLearningRate() for _ in range(n)])
        for n in (before, after)
    )
    for remedy in first.remedies:
        remedy.scale = 0.25
    if refused:
        with pytest.raises(
            InputError, match="what 1 remedies have done so far, and this monitor has 0: give it the same"
        ):
            again.load_state_dict(first.state_dict())
    else:
        again.load_state_dict(first.state_dict())
        assert [remedy.scale for remedy in again.remedies] == ([0.25] if before else [1.0])


def test_records_behind_a_step_are_dropped(tmp_path):
    file = RecordFile(tmp_path / "runs" / "metrics.jsonl")
    for step in (20, 40, 60):
        file({"step": step})
    with open(file.path, "a") as cut:
        cut.write('{"step": 8')
    file.go_back(40)
    file({"step": 50})
    assert [record["step"] for record in file.read()] == [20, 40, 50]
    RecordFile(tmp_path / "none.jsonl").go_back(3)


@pytest.mark.parametrize(("end", "kept"), [("", [1, 2]), ('\n{"step": 3, "lo', [1, 2]), ("\n", [1, 2])])
def test_what_a_full_disk_cut_off_stays_out_of_the_records(tmp_path, end, kept):
    file = RecordFile(tmp_path / "metrics.jsonl")
    file.path.write_text('{"step": 1}\n{"step": 2}' + end)
    file({"step": 4})
    assert [record["step"] for record in file.read()] == [*kept, 4]


@pytest.mark.parametrize("line", ["", "[]", '{"step": "3"}', "[" * 9999, '{"loss": 1}', "\udcff"])
def test_a_record_in_the_middle_that_is_none_is_named_by_its_line(tmp_path, line):
    """What stands after it would otherwise be lost when training goes on."""
    file = RecordFile(tmp_path / "metrics.jsonl")
    content = f'{{"step": 1}}\n{line}\n{{"step": 3}}\n'.encode(errors="surrogateescape")
    file.path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: no record of JSON with a step: remove the line"):
        file.go_back(2)
    assert file.path.read_bytes() == content
    assert [record["step"] for record in file.read_good()] == [1, 3]
    layers = ({"a": {"sink": [0.1, 0.2]}}, {"a": {"sink": [0.1]}, "b": {"sink": [0.5]}})
    file.path.write_text("".join(json.dumps({"step": 1, "attention": layer}) + "\n" for layer in layers))
    assert [list(record["attention"]) for record in file.read_good()] == [["a"], ["b"]]
    with pytest.raises(InputError, match="is a directory"):
        RecordFile(tmp_path).read()


def test_what_is_not_a_number_is_null_and_counted():
    model, (x, _) = SelfAttention(16, 2), batch()
    x[2, 5] = math.nan
    records = []
    monitor = AttentionMonitor(model, every=1, rows=None, samples=None, log=records.append)
    with monitor.step():
        model(x)
    text = json.dumps(records, allow_nan=False)
    assert records[0]["attention"]["SelfAttention"]["not_finite"] == [12, 12]
    assert records[0]["alarms"][0]["rule"] == "not finite"
    assert "12 of 12 rows of sample 2" in text


@pytest.mark.parametrize("first", [0, 1])
def test_nan_in_one_part_of_a_batch_is_an_alarm_that_goes_on_after_a_resume(first):
    """The parts of a batch are calls of one step; the state is that of a run that goes on elsewhere."""
    torch.manual_seed(0)
    model, (x, padding) = Attends(), batch(b=6)
    healthy, parts = x.clone(), [slice(0, 3), slice(3, 6)]
    x[3 * first + 2, 4] = math.nan

    def run(monitor, x):
        with monitor.step():
            for part in parts:
                model(x[part], padding[part])
        return [(event["event"], event["rule"]) for event in monitor.record.get("alarms", [])]

    monitor = AttentionMonitor(model, every=1, rows=None, samples=None)
    assert run(monitor, healthy) == []
    assert run(monitor, x) == [("began", "not finite")]
    assert monitor.record["attention"]["inner"]["not_finite"] == [12, 12]
    (found,) = monitor.findings
    assert "12 of 12 rows of sample 2" in found.sentence
    resumed = AttentionMonitor(model, every=1, rows=None, samples=None)
    resumed.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert run(resumed, x) == []  # the same alarm, which has been told
    assert [each.rule for each in resumed.findings] == ["not finite"]
    ends = [run(resumed, healthy) for _ in range(PATIENCE)]
    assert ends == [[]] * (PATIENCE - 1) + [[("over", "not finite")]]


def test_rows_that_were_never_written_are_an_alarm():
    """A kernel that leaves rows out shows NaN in their statistics, and no count of what they see."""
    model, (x, padding) = Attends(), batch()
    monitor = AttentionMonitor(model, every=1, rows=None, samples=None)
    monitor.start(0)
    model(x, padding)
    (call,) = monitor._seen.calls
    lost = {name: getattr(call.statistics, name).clone() for name in ("entropy", "normalized_entropy", "logsumexp")}
    for values in lost.values():
        values[0, 1, 3:6] = math.nan
    monitor._seen.calls[0] = replace(call, statistics=replace(call.statistics, **lost))
    monitor.finish()
    assert monitor.record["attention"]["inner"]["not_finite"] == [0, 3]
    assert [(each.rule, each.head, each.row) for each in monitor.findings] == [("not finite", 1, (0, 3))]


class ByHand(nn.Module):
    """Attention in PyTorch's products, under a mask."""

    def __init__(self, dim: int = 16):
        super().__init__()
        self.project = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return (q @ k.mT / 4).masked_fill(hidden, -math.inf).softmax(-1) @ v


CHECKPOINTED = {
    "nn.MultiheadAttention": Attends,
    "an encoder layer": lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True),
    "Clearhead's": lambda: SelfAttention(16, 2),
    "by hand": ByHand,
}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointed_attention_trains_as_without_the_monitor_and_is_seen_once(name, reentrant):
    def train(monitored):
        torch.manual_seed(0)
        model, (x, _) = nn.Sequential(CHECKPOINTED[name](), CHECKPOINTED[name]()), batch()
        x.requires_grad_()
        monitor = AttentionMonitor(model, every=1, rows=None, samples=None)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            with monitor.step() if monitored else nullcontext():
                y = x
                for layer in model:
                    y = checkpoint(layer, y, use_reentrant=reentrant)
                optimizer.zero_grad()
                y.square().mean().backward()
                optimizer.step()
        return [weights.detach() for weights in model.parameters()], torch.get_rng_state(), monitor

    weights, random, _ = train(False)
    watched, same, monitor = train(True)
    assert all(one.equal(two) for one, two in zip(weights, watched, strict=True))
    assert random.equal(same)
    assert len(monitor.record["attention"]) == 2
    assert all(layer["gradient_norm"] > 0 for layer in monitor.record["attention"].values())


def test_what_cannot_be_seen_is_said_once(caplog):
    caplog.set_level(logging.WARNING, "clearhead.observe")

    class Additive(nn.Module):
        def forward(self, x):
            logits = (x[:, :, None] + x[:, None]).tanh().sum(-1)
            return logits.softmax(-1) @ x

    model = Additive()
    monitor = AttentionMonitor(model, every=1)
    for _ in range(2):
        with monitor.step():
            model(torch.randn(2, 5, 4))
    (said,) = caplog.records
    assert said.message.startswith("Additive is not monitored: ")
    assert monitor.record["attention"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 2.5}, "every is 2.5"),
        ({"rows": 0}, "rows is 0"),
        ({"statistics": ["entropi"]}, "did you mean 'entropy'"),
        ({"layers": "iner"}, "did you mean 'inner'"),
    ],
)
def test_what_cannot_be_is_refused(options, message, unchecked):
    with pytest.raises(InputError, match=message):
        AttentionMonitor(Attends(), **options)


RANKS = """
    import datetime, json, sys
    import torch
    sys.path.insert(0, sys.argv[3])
    from test_observe_monitor import Attends, batch
    from clearhead.observe.monitoring.monitor import AttentionMonitor

    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2,
                                         timeout=datetime.timedelta(seconds=60))
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(Attends())
    x, padding = batch(b=5)
    x[4, 3] *= 1000
    mine = slice(0, 2) if rank == 0 else slice(2, 5)
    records = []
    monitor = AttentionMonitor(model, every=1, rows=None, samples=None, log=records.append)
    for step in range(2):
        with monitor.step(step) as notes:
            model(x[mine], padding[mine]).sum().backward()
            notes["loss"] = float(rank)
    told = [[str(f) for f in monitor.findings], monitor.record, len(records), monitor.state_dict()]
    x[3, 2] = float("nan")  # in the second process alone, which alone has a loss
    with monitor.step(2) as notes:
        model(x[mine], padding[mine])
        notes |= {"loss": 4.0} if rank else {}
    print(json.dumps([*told, monitor.record, monitor.state_dict()["alarms"]]))
    torch.distributed.destroy_process_group()
"""


def test_processes_together_say_what_one_would_of_the_joint_batch(tmp_path):
    code = textwrap.dedent(RANKS)
    command = [sys.executable, "-W", "ignore", "-c", code]
    where = [str(tmp_path / "store"), __file__.rsplit("/", 1)[0]]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen([*command, str(rank), *where], **pipe) for rank in (0, 1)]
    try:
        said = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    (first, record, written, state, *broken), (second, other, none, same, *alike) = (json.loads(out) for out, _ in said)
    assert (written, none) == (2, 0)  # the first writes
    assert first == second
    assert state == same
    assert record == other
    assert record["loss"] == 0.5
    assert broken == alike  # both say what one of them saw
    assert broken[0]["loss"] == 4.0
    assert broken[0]["attention"]["inner"]["not_finite"] == [12, 12]  # each row sees the key that is NaN
    assert [event["rule"] for event in broken[0]["alarms"]] == ["not finite"]
    assert ["not finite", "inner", 0, None] in [alarm[:4] for alarm in broken[1]]

    torch.manual_seed(0)
    model, (x, padding) = Attends(), batch(b=5)
    x[4, 3] *= 1000
    monitor = AttentionMonitor(model, every=1, rows=None, samples=None)
    for step in range(2):
        with monitor.step(step):
            model(x, padding)
    alone, ranks_ = monitor.record["attention"]["inner"], record["attention"]["inner"]
    for name in ("entropy", "normalized_entropy", "sink", "max_logit", "max_weight", "distance"):
        assert ranks_[name] == pytest.approx(alone[name], rel=2e-4), name
    assert [line.replace("sample 2", "sample 4") for line in first] == [str(each) for each in monitor.findings]
    assert "logit explosion" in {each.rule for each in monitor.findings}


def test_importing_it_imports_no_trainer():
    trainers = {"lightning", "transformers", "matplotlib", "rich", "pandas", "tensorboard"}
    code = f"import sys, clearhead.observe; print([m for m in sys.modules if m in {trainers}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
