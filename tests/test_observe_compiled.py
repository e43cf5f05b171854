"""What torch.compile has compiled runs as unwatched, from wherever it is called, and is said once; and several watches
of one model leave nothing behind, in whatever order they end."""

import logging
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clearhead as ch
from clearhead.errors import InputError
from clearhead.nn import SelfAttention
from clearhead.observe import AttentionMonitor
from clearhead.observe.paths import module_at, paths_of, unwrapped
from clearhead.observe.watching.replacing import replaced
from clearhead.observe.watching.watch import watch

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_thread")]
E, H = 8, 2


class Hand(nn.Module):
    """Attention in functions, which a mode sees."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(E, 3 * E)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in self.project(x).chunk(3, -1))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = Hand(), Hand()

    def forward(self, x):
        return self.b(self.a(x))


@pytest.fixture
def x():
    torch._dynamo.reset()
    torch.manual_seed(1)
    return torch.randn(2, 9, E)


def counting(made):
    """A compiler's backend that notes what it compiles."""

    def backend(graph, inputs):
        made.append(graph)
        return graph

    return backend


WAYS = {
    "torch.compile(model), beside it": lambda model, backend: torch.compile(model, backend=backend),
    "model.compile()": lambda model, backend: model.compile(backend=backend) or model,
    "a compiled function that calls it": lambda model, backend: torch.compile(lambda x: model(x), backend=backend),
}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_is_also_compiled_runs_as_unwatched(x, way, warm, caplog):
    made, model = [], Both()
    run = WAYS[way](model, counting(made))
    with warnings.catch_warnings():
        expected = Both()(x)
        if warm:
            run(x)
    monitor = AttentionMonitor(model, every=1)
    with caplog.at_level(logging.INFO, "clearhead.observe"):
        for _ in range(3):
            with monitor.step():
                out = run(x)
    assert torch.equal(out, expected)
    seen_by_compiler = len(made)
    run(x)
    assert len(made) == seen_by_compiler  # no guard failed: hooks and modes were not there
    (line,) = [record.message for record in caplog.records if record.name == "clearhead.observe"]
    assert line == "Both is not monitored: compiled; watch(..., compiled='eager') runs it uncompiled"
    assert monitor.record["attention"] == {}


def test_what_runs_uncompiled_beside_it_is_seen(x):
    model = Both()
    compiled = torch.compile(model, backend="eager")
    with watch(model) as seen:
        compiled(x)
        model(x)
        compiled(x)
    assert seen.names == ["a", "b"]
    assert list(seen.unseen) == ["Both"]
    with watch(model, compiled="eager") as seen:
        compiled(x)
    assert (seen.names, seen.unseen) == (["a", "b"], {})


def test_other_compiled_code_in_the_block_is_none_of_the_models(x):
    model, loss = Both(), torch.compile(lambda y: y.square().mean(), backend="eager")
    with watch(model) as seen:
        loss(model(x)).backward()
    assert (seen.names, seen.unseen) == (["a", "b"], {})


@pytest.mark.parametrize(
    ("layer", "compiled"),
    [
        (Hand, "skip"),
        (Hand, "eager"),
        (lambda: SelfAttention(E, H), "eager"),
        (lambda: nn.MultiheadAttention(E, H), "eager"),
    ],
)
def test_a_compiled_layer_has_the_name_that_it_has_uncompiled(x, layer, compiled):
    plain = layer()
    layer = torch.compile(plain, backend="eager")
    monitor = AttentionMonitor(layer, every=1, compiled=compiled)
    with monitor.step():
        out = layer(x, x, x)[0] if isinstance(plain, nn.MultiheadAttention) else layer(x)
        out.sum().backward()
    name = type(plain).__name__
    assert list(monitor.record["attention"]) == ([name] if compiled == "eager" else [])
    if compiled == "eager":
        assert monitor.record["attention"][name]["gradient_norm"] > 0


def test_a_map_that_is_applied_where_the_compiler_gave_up_is_not_recorded_of_its_caller(x):
    class GivesUp(nn.Module):
        @torch._dynamo.disable
        def attend(self, x):
            return ch.Softmax()(x, x).apply(x)

        def forward(self, x):
            return self.attend(x) + 1

    model = nn.Sequential(GivesUp(), SelfAttention(E, H))
    model[0] = torch.compile(model[0], backend="eager")
    with watch(model) as seen:
        model(x)
    assert seen.names == ["1"]
    assert list(seen.unseen) == ["0"]


# names


def test_wrappers_have_no_part_in_a_path():
    model = Both()
    plain = {module: path for path, module in model.named_modules()}
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    assert unwrapped(wrapped) is model
    assert {module: path for module, path in paths_of(wrapped).items() if module in plain} == plain
    assert module_at(wrapped, "Both") is model
    assert module_at(wrapped, "a.project") is model.a.project
    with pytest.raises(InputError, match=r"Both has no module 'a\.proj'; did you mean 'a\.project'"):
        module_at(wrapped, "a.proj")
    held = nn.ModuleDict({"module": nn.Sequential(torch.compile(model.a, backend="eager"))})  # a name, not a wrapper
    assert module_at(held, "module.0.project") is model.a.project


# several at once


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("compiled", ["skip", "eager"])
def test_two_watches_end_in_any_order_and_leave_nothing(x, first, compiled):
    modeling = pytest.importorskip("transformers.modeling_utils")
    from torch._dynamo import eval_frame

    def state():
        dynamo = eval_frame._maybe_set_eval_frame, eval_frame._stance.stance
        hooks = dict(nn.modules.module._global_forward_hooks), dict(nn.modules.module._global_forward_pre_hooks)
        return modeling.AttentionInterface.get_interface, torch.compile, *dynamo, *hooks, [*warnings.filters]

    model = Both()
    run = torch.compile(lambda x: model(x), backend="eager")
    before, watches = state(), [watch(model, compiled=compiled) for _ in range(2)]
    for each in watches:
        each.__enter__()
    run(x)
    watches[first].__exit__(None, None, None)
    run(x)
    watches[1 - first].__exit__(None, None, None)
    assert state() == before
    calls = [len(each.seen) for each in watches]
    assert sorted(calls) == ([0, 0] if compiled == "skip" else [2, 4])


def test_a_replacement_is_gone_when_its_block_ends_whichever_ends_first():
    class Holder:
        number = 1

    one, two = replaced(Holder, "number", lambda x: x + 10), replaced(Holder, "number", lambda x: x * 3)
    one.__enter__()
    two.__enter__()
    assert Holder.number == 33
    one.__exit__(None, None, None)
    assert Holder.number == 3
    two.__exit__(None, None, None)
    assert Holder.number == 1


def test_two_watches_leave_the_fused_path_of_a_layer_alone():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 16, batch_first=True).eval()
    model, x = nn.Sequential(Hand(), layer, Hand()), torch.randn(3, 7, E)
    slow = []
    layer.self_attn.forward = lambda *args, **more: (
        slow.append(args) or nn.MultiheadAttention.forward(layer.self_attn, *args, **more)
    )
    with torch.no_grad():
        expected = model(x)
        with watch(model) as seen, watch(model) as again:
            out = model(x)
    assert slow == []
    assert torch.equal(out, expected)
    assert seen.names == again.names == ["0", "1.self_attn", "2"]


def test_no_mode_of_two_watches_lies_over_what_is_not_followed():
    modes = []

    class Own(SelfAttention):
        def _queries(self, x):
            modes.append(torch.overrides._get_current_function_mode_stack())
            return super()._queries(x)

    Own.__module__ = SelfAttention.__module__  # as one of Clearhead's, whose maps speak for themselves
    model = nn.Sequential(Hand(), Own(E, H), Hand())
    with watch(model) as seen, watch(model) as again:
        model(torch.randn(2, 7, E))
    assert modes == [[]]
    assert seen.names == again.names == ["0", "1", "2"]
