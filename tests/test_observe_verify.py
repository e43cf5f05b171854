"""verify: it finds each planted fault and names it, passes what is right, and says what it did not check."""

import math
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clearhead as ch
from clearhead.errors import InputError
from clearhead.observe.verifying.verify import LAWS, verify

WIDTH, HEADS, N = 32, 2, 10
HIDDEN = -math.inf


def example(b=3, n=N, e=WIDTH):
    return torch.randn(b, n, e, generator=torch.Generator().manual_seed(5))


class Attention(nn.Module):
    """Attention as one writes it; the faults below each change one part of it."""

    def __init__(self, causal=False):
        super().__init__()
        torch.manual_seed(0)
        self.num_heads, self.causal = HEADS, causal
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, lengths=None):
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        out = self.activation(self.mask(self.scale(q @ k.mT), lengths)) @ v
        return self.o(out.transpose(1, 2).flatten(2))

    def scale(self, s):
        return s / math.sqrt(WIDTH / HEADS)

    def mask(self, s, lengths):
        if self.causal:
            s = s.masked_fill(self.future(s.shape[-1]), HIDDEN)
        return s if lengths is None else s.masked_fill(self.padding(s, lengths), HIDDEN)

    def padding(self, s, lengths):
        return (torch.arange(s.shape[-1]) >= lengths[:, None])[:, None, None]

    def future(self, n):
        return torch.ones(n, n, dtype=torch.bool).triu(1)

    def activation(self, s):
        seen = s.isfinite().any(-1, keepdim=True)
        return s.masked_fill(~seen, 0).softmax(-1) * seen


class NoSoftmax(Attention):
    def activation(self, s):
        return s.masked_fill(s == HIDDEN, 0)


class Sigmoid(Attention):
    def activation(self, s):
        return s.sigmoid()


class Relu(Attention):
    def activation(self, s):
        return s.relu() / s.shape[-1]


class NormalisedRelu(Attention):
    def activation(self, s):
        s = s.relu() + 1e-9
        return s / s.sum(-1, keepdim=True)


class OverQueries(Attention):
    def activation(self, s):
        return s.softmax(-2)


class OverHeads(Attention):
    def activation(self, s):
        return s.softmax(1)


class NoScale(Attention):
    def scale(self, s):
        return s


class ScaleByWidth(Attention):
    def scale(self, s):
        return s / (WIDTH / HEADS)


class ScaleOfAllHeads(Attention):
    def scale(self, s):
        return s / math.sqrt(WIDTH)


class OneAhead(Attention):
    def future(self, n):
        return torch.ones(n, n, dtype=torch.bool).triu(2)


class WrongWayRound(Attention):
    def future(self, n):
        return torch.ones(n, n, dtype=torch.bool).tril(-1)


class NoMask(Attention):
    def future(self, n):
        return torch.zeros(n, n, dtype=torch.bool)


class IgnoresPadding(Attention):
    def padding(self, s, lengths):
        return torch.zeros(1, dtype=torch.bool)


class HidesPaddedQueries(Attention):
    """The mask of padding on the wrong axis."""

    def padding(self, s, lengths):
        return super().padding(s, lengths).mT


class CountsPadding(Attention):
    """Logits are divided by how long the padded batch is."""

    def scale(self, s):
        return super().scale(s) * 10 / s.shape[-1]


class NormalisesOverTheBatch(Attention):
    def forward(self, x, lengths=None):
        return super().forward(x - x.mean(0) / 2, lengths)


class MaskedAfterSoftmax(Attention):
    def mask(self, s, lengths):
        self.hidden = torch.zeros_like(s, dtype=torch.bool)
        if self.causal:
            self.hidden = self.hidden | self.future(s.shape[-1])
        if lengths is not None:
            self.hidden = self.hidden | self.padding(s, lengths)
        return s

    def activation(self, s):
        return s.softmax(-1).masked_fill(self.hidden, 0)


class NanWhereNothingIsSeen(Attention):
    def activation(self, s):
        return s.softmax(-1)


class NanGradientWhereNothingIsSeen(Attention):
    def mask(self, s, lengths):
        if lengths is None:
            return s
        return s + torch.where(self.padding(s, lengths), HIDDEN, 0.0)

    def activation(self, s):
        return s.softmax(-1).nan_to_num(0)


class NoMaximum(Attention):
    def activation(self, s):
        e = s.exp()
        return e / e.sum(-1, keepdim=True).clamp(min=1e-20)


class StandardNormal(Attention):
    def __init__(self):
        super().__init__()
        for parameter in self.parameters():
            nn.init.normal_(parameter)


class AlwaysDrops(Attention):
    def activation(self, s):
        return F.dropout(super().activation(s), 0.3, training=True)


FAULTS = {
    NoSoftmax: "activation: there is no softmax: the weights are the products q · k themselves",
    Sigmoid: "activation: sigmoid in place of softmax",
    Relu: "activation: ReLU in place of softmax",
    NormalisedRelu: "activation: ReLU, divided by its sum, in place of softmax",
    OverQueries: r"weights: the softmax runs over the queries \(dim=-2\), not over the keys",
    OverHeads: r"weights: the softmax runs over the heads \(dim=1\), not over the keys",
    NoScale: "scale: the scale 1/√D is missing: logits are q · k, where D is 16",
    ScaleByWidth: "scale: products are divided by D = 16, not by √D",
    ScaleOfAllHeads: "scale: products are multiplied by 0.177, not by 1/√D = 0.25",
    IgnoresPadding: "padding: token 0 of sample 1, which has 5 tokens, changes with what stands in padding",
    HidesPaddedQueries: "padding: token 0 of sample 1, which has 5 tokens, changes with what stands in padding",
    CountsPadding: "padding: sample 1 of 5 tokens gives another output alone than padded to 10 in a batch",
    NormalisesOverTheBatch: "batch: a sample alone gives another output than in a batch",
    MaskedAfterSoftmax: "weights: with padding, rows sum to .*: weights are masked after the softmax",
    NanWhereNothingIsSeen: "empty rows: a sample without tokens makes 33% of the outputs NaN",
    NanGradientWhereNothingIsSeen: "empty rows: a sample without tokens makes gradients NaN",
    NoMaximum: "finite: NaN or Inf for 30 times the example: a softmax must subtract each row's maximum",
    StandardNormal: "initialisation: inputs of size 1 give outputs of size",
    AlwaysDrops: "determinism: the same input gives another output each time",
}
CAUSAL_FAULTS = {
    OneAhead: "causality: the output of token 0 changes with token 1: tokens see up to 1 token",
    WrongWayRound: "causality: the output of token 0 changes with token 1, and no output with an earlier one",
    NoMask: "causality: the output of token 0 changes with token 1, and each output with all later tokens",
    MaskedAfterSoftmax: "weights: weights are masked after the softmax and not normalised again",
    NoSoftmax: "activation: there is no softmax",
    OverQueries: "weights: the softmax runs over the queries",
    NoScale: "scale: the scale 1/√D is missing",
}
CONSEQUENCES = {  # laws that such a fault breaks besides
    Relu: {"padding"},
    NormalisedRelu: {"padding"},
    NormalisesOverTheBatch: {"padding"},
    OverQueries: {"causality", "padding", "empty rows"},
    OverHeads: {"padding", "empty rows"},
    MaskedAfterSoftmax: {"causality", "padding"},
}


def laws_of(lines):
    return [line.split(":")[0] for line in lines]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_as_one_writes_it_is_right(causal):
    verdict = verify(Attention(causal), example(), causal=causal)
    assert verdict.ok, str(verdict)
    assert bool(verdict)
    assert set(verdict.checked) == set(LAWS) - (set() if causal else {"causality"})
    assert verdict.cautions == ["padding: NaN in padding reaches real outputs (0 · NaN is NaN): fill it with numbers"]
    assert not verify(Attention(causal), example(), causal=causal, strict=True)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda kind: kind.__name__)
def test_a_planted_fault_is_named(fault):
    verdict = verify(fault(), example())
    assert not verdict
    assert any(re.match(FAULTS[fault], line) for line in verdict.problems), str(verdict)
    cause, *others = laws_of(verdict.problems)
    assert cause == FAULTS[fault].split(":")[0], "the cause comes before its consequences"
    assert set(others) <= CONSEQUENCES.get(fault, set()), str(verdict)
    assert not set(laws_of(verdict.problems)) & set(verdict.checked)


@pytest.mark.parametrize("fault", CAUSAL_FAULTS, ids=lambda kind: kind.__name__)
def test_a_planted_fault_is_named_under_a_causal_mask(fault):
    verdict = verify(fault(causal=True), example(), causal=True)
    assert any(re.match(CAUSAL_FAULTS[fault], line) for line in verdict.problems), str(verdict)
    cause, *others = laws_of(verdict.problems)
    assert cause == CAUSAL_FAULTS[fault].split(":")[0]
    assert set(others) <= CONSEQUENCES.get(fault, set()), str(verdict)
    assert not any("there is no causal mask" in line for line in verdict.problems if fault is not NoMask)


def function(activation="softmax", scale=None, over=-1, future=None):
    def attention(q, k, v, lengths=None):
        s = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if future is not None:
            s = s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(future), HIDDEN)
        if lengths is not None:
            hidden = torch.arange(k.shape[-2]) >= lengths[:, None]
            s = s.masked_fill(hidden.reshape(len(lengths), *[1] * (q.dim() - 2), -1), HIDDEN)
        if activation != "softmax":
            return getattr(torch, activation)(s) @ v
        return s.softmax(over).nan_to_num(0) @ v

    return attention


@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 3, 9, 8)])
@pytest.mark.parametrize(
    ("fault", "law", "causal"),
    [
        ({}, None, False),
        ({"future": 1}, None, True),
        ({"activation": "sigmoid"}, "activation: sigmoid in place", False),
        ({"activation": "tanh"}, "activation: tanh in place", False),
        ({"over": -2}, "weights: the softmax runs over the queries", False),
        ({"over": 0}, "weights: the softmax runs over the samples", False),
        ({"scale": 1.0}, "scale: the scale 1/√D is missing", False),
        ({"scale": 0.125}, "scale: products are divided by D = 8", False),
        ({"future": 2}, "causality: ", True),
        ({}, "causality: .* there is no causal mask", True),
    ],
)
def test_functions_of_queries_keys_and_values(shape, fault, law, causal):
    generator = torch.Generator().manual_seed(1)
    qkv = tuple(torch.randn(shape, generator=generator) for _ in range(3))
    verdict = verify(function(**fault), qkv, causal=causal)
    found = [line for line in verdict.problems if not line.startswith("empty rows")]
    if law is None:
        assert found == [], str(verdict)
        assert {"weights", "activation", "scale"} <= set(verdict.checked)
    else:
        assert any(re.match(law, line) for line in found), str(verdict)


def test_torchs_function_is_right():
    generator = torch.Generator().manual_seed(1)
    qkv = tuple(torch.randn(2, 3, 9, 8, generator=generator) for _ in range(3))
    for causal in (False, True):
        verdict = verify(F.scaled_dot_product_attention, qkv, causal=causal)
        assert verdict.ok, str(verdict)
        assert {"weights", "activation", "scale", "padding", "empty rows"} <= set(verdict.checked)
    verdict = verify(partial(F.scaled_dot_product_attention, is_causal=True), qkv, causal=True)
    assert verdict.ok, str(verdict)
    assert not verify(F.scaled_dot_product_attention, qkv, call=lambda f, x: f(*x, scale=1.0))
    grouped = (qkv[0].repeat(1, 2, 1, 1), *qkv[1:])
    assert verify(partial(F.scaled_dot_product_attention, enable_gqa=True), grouped)


def test_our_function_is_right_and_lets_no_nan_out_of_padding():
    generator = torch.Generator().manual_seed(1)
    qkv = tuple(torch.randn(2, 3, 9, 8, generator=generator) for _ in range(3))
    for causal in (False, True):
        verdict = verify(ch.attend, qkv, causal=causal, strict=True)
        assert verdict.ok, str(verdict)
        assert set(LAWS) - set(verdict.checked) <= {"initialisation", "causality"}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_attention_is_right(causal, batch_first):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=batch_first)
    verdict = verify(module, example(), causal=causal)
    assert verdict.ok, str(verdict)
    assert {"weights", "activation", "scale", "padding", "batch", "initialisation"} <= set(verdict.checked)
    assert module.training, "it is in the mode that it was in"
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("need_weights", [True, False])
def test_torchs_attention_as_it_may_be_called(need_weights):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def call(module, x, lengths):
        hidden = None if lengths is None else torch.arange(x.shape[1]) >= lengths[:, None]
        return module(x, x, x, key_padding_mask=hidden, need_weights=need_weights, average_attn_weights=False)

    verdict = verify(module, example(), call=call)
    assert verdict.ok, str(verdict)
    assert ("scale" in verdict.checked) == need_weights
    triple = (example(), example(n=N), example(n=N))
    assert verify(module, triple).ok


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_layers_are_right(causal, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, batch_first=True, norm_first=norm_first)
    verdict = verify(layer, example(), causal=causal)
    assert verdict.ok, str(verdict)
    assert {"padding", "batch", "finite"} <= set(verdict.checked)
    assert any(line.startswith("weights: TransformerEncoderLayer holds") for line in verdict.unchecked)


@pytest.mark.parametrize("more", [{}, {"kv_heads": 2}, {"dropout": 0.2}, {"out": False}])
@pytest.mark.parametrize("causal", [False, True])
def test_our_attention_is_right(causal, more):
    torch.manual_seed(0)
    module = ch.nn.SelfAttention(WIDTH, 4, ch.Softmax(ch.causal() if causal else ch.everything()), **more)
    verdict = verify(module, example(), causal=causal, strict=True)
    assert verdict.ok, str(verdict)
    assert set(LAWS) - set(verdict.checked) <= {"causality"}


def test_our_attention_is_not_causal_by_claiming_it():
    assert any("no causal mask" in line for line in verify(ch.nn.SelfAttention(WIDTH), example(), causal=True).problems)


@pytest.mark.parametrize("more", [{"positions": ch.nn.Rotary(16)}, {"qk_norm": True}])
def test_what_cannot_be_told_is_said(more):
    torch.manual_seed(0)
    module = ch.nn.SelfAttention(WIDTH, HEADS, **more)
    verdict = verify(module, 3 * example())
    assert verdict.ok, str(verdict)
    assert "weights" in verdict.checked
    assert {"activation", "scale"} <= set(laws_of(verdict.unchecked))
    assert "not checked  scale: weights are positive and sum to one, but not by q · k alone" in str(verdict)


def test_a_stack_is_verified_as_far_as_it_goes():
    torch.manual_seed(0)
    stack = ch.nn.Encoder(ch.nn.EncoderLayer(ch.nn.SelfAttention(WIDTH, HEADS)), 2)
    verdict = verify(stack, example(), strict=True)
    assert verdict.ok, str(verdict)
    assert set(laws_of(verdict.unchecked)) == {"causality", "weights", "activation", "scale"}
    one = verify(ch.nn.EncoderLayer(ch.nn.SelfAttention(WIDTH, HEADS)), example())
    assert {"weights", "activation", "scale"} <= set(one.checked), "the attention inside is read where there is one"


def test_hugging_faces_attention_is_read():
    transformers = pytest.importorskip("transformers")
    from transformers.models.bert.modeling_bert import BertSelfAttention

    config = transformers.BertConfig(hidden_size=WIDTH, num_attention_heads=HEADS, attn_implementation="eager")
    torch.manual_seed(0)
    module = BertSelfAttention(config)
    verdict = verify(module, 5 * example())
    assert verdict.ok, str(verdict)
    assert {"weights", "activation", "scale"} <= set(verdict.checked)
    assert any(line.startswith("padding: it has no argument") for line in verdict.unchecked)
    module.scaling = 1.0
    assert verify(module, 5 * example()).problems == [
        "scale: the scale 1/√D is missing: logits are q · k, where D is 16"
    ]


class OwnNames(nn.Module):
    """Attention in the words of someone else: a list of layers, or other names, heads that nothing counts."""

    def __init__(self, order="qkv", kv_width=WIDTH, scale=None, over=-1):
        super().__init__()
        torch.manual_seed(0)
        widths = {"q": WIDTH, "k": kv_width, "v": kv_width}
        self.order, self.factor, self.over = order, (WIDTH / HEADS) ** -0.5 if scale is None else scale, over
        self.layers = nn.ModuleDict({f"layer_{name}": nn.Linear(WIDTH, widths[name]) for name in order})
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        made = {name: self.layers[f"layer_{name}"](x) for name in self.order}
        q, k, v = (made[name].unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for name in "qkv")
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
        out = (q @ k.mT * self.factor).softmax(self.over) @ v
        return self.last(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("order", ["qkv", "kqv", "vqk", "vkq"])
@pytest.mark.parametrize("kv_width", [WIDTH, WIDTH // 2])
def test_projections_are_found_by_what_they_do(order, kv_width):
    verdict = verify(OwnNames(order, kv_width), 2 * example())
    assert verdict.ok, str(verdict)
    assert {"weights", "activation", "scale"} <= set(verdict.checked)
    (problem,) = verify(OwnNames(order, kv_width, scale=1.0), 2 * example()).problems
    assert problem == "scale: the scale 1/√D is missing: logits are q · k, where D is 16", "so D was found, too"
    assert laws_of(verify(OwnNames(order, kv_width, over=-2), 2 * example()).problems)[0] == "weights"


def test_what_is_not_found_is_not_guessed_at():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.eye(WIDTH))

        def forward(self, x):
            return (x @ self.b @ x.mT / 100).softmax(-1) @ self.a(x)

    verdict = verify(Mine(), example())
    assert verdict.ok
    why = "Mine returns no weights, and its query, key and value projections were not found"
    assert [f"{law}: {why}" for law in ("weights", "activation", "scale")] == verdict.unchecked[:3]


def test_returned_weights_are_read_where_nothing_else_is_known():
    class Mine(nn.Module):
        def __init__(self, over):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.over = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), over

        def forward(self, x):
            weights = (self.a(x) @ x.mT / 5).softmax(self.over)
            return weights @ self.b(x), weights

    assert "weights" in verify(Mine(-1), example()).checked
    assert laws_of(verify(Mine(-2), example()).problems) == ["weights"]


def test_a_zero_projection_makes_no_law_hold():
    module = Attention()
    nn.init.zeros_(module.o.weight)
    nn.init.zeros_(module.o.bias)
    verdict = verify(module, example(), causal=True)
    assert {"causality", "padding", "initialisation"} <= set(laws_of(verdict.unchecked))
    assert not {"causality", "padding", "initialisation"} & set(verdict.checked)
    assert laws_of(verdict.cautions) == ["attention"]
    assert laws_of(verify(nn.Linear(WIDTH, WIDTH), example()).cautions) == ["attention"]


def test_attention_to_a_memory_is_read():
    torch.manual_seed(0)
    memory = torch.randn(3, 14, WIDTH)
    module = ch.nn.CrossAttention(WIDTH, HEADS)
    verdict = verify(module, {"x": example(), "memory": memory})
    assert verdict.ok, str(verdict)
    assert {"weights", "activation", "scale"} <= set(verdict.checked)
    assert verdict.cautions == []
    module.mechanism.scale = 1.0
    assert laws_of(verify(module, {"x": example(), "memory": memory}).problems) == ["scale"]
    torchs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    assert {"weights", "scale", "batch"} <= set(verify(torchs, (example(), memory, memory)).checked)


def test_one_sample_dicts_and_trained_modules():
    assert verify(Attention(), example(b=1)).checked == verify(Attention(), example(b=2)).checked
    assert verify(Attention(), {"x": example()}).checked == verify(Attention(), example()).checked
    grown = StandardNormal()
    assert not verify(grown, example())
    assert verify(grown, example(), fresh=False).ok
    named = {name: torch.randn(2, 9, 8) for name in "qkv"}
    assert verify(function(scale=1.0), named).problems[-1].startswith("scale")


def test_what_the_module_raises_is_no_verdict_but_is_told():
    class RefusesEmptySamples(Attention):
        def forward(self, x, lengths=None):
            if lengths is not None and not lengths.all():
                raise ValueError("each sample needs a token")
            if x.shape[-1] != WIDTH:
                raise ValueError("not my width")
            return super().forward(x, lengths)

    verdict = verify(RefusesEmptySamples(), example())
    assert verdict.ok
    assert "empty rows: it raised ValueError: each sample needs a token" in verdict.unchecked
    assert "padding" in verdict.checked
    with pytest.raises(ValueError, match="not my width"):
        verify(RefusesEmptySamples(), example(e=8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    assert verify(Attention().to(dtype), example().to(dtype)).ok
    found = laws_of(verify(NoScale().to(dtype), example().to(dtype)).problems)
    assert found == ["scale"]
    assert laws_of(verify(OneAhead(causal=True).to(dtype), example().to(dtype), causal=True).problems) == ["causality"]
    assert "padding" in laws_of(verify(IgnoresPadding().to(dtype), example().to(dtype)).problems)


@pytest.mark.parametrize(("name", "interleaved"), [("c_attn", False), ("own", False), ("own", True)])
def test_fused_projections_and_longer_examples(name, interleaved):
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.n_head, self.c_proj = HEADS, nn.Linear(WIDTH, WIDTH)
            setattr(self, name, nn.Linear(WIDTH, 3 * WIDTH))

        def forward(self, x):
            if interleaved:
                q, k, v = getattr(self, name)(x).unflatten(-1, (HEADS, 3, -1)).transpose(1, 2).unbind(-2)
            else:
                q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in getattr(self, name)(x).split(WIDTH, 2))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.factor)
            return self.c_proj(out.transpose(1, 2).flatten(2))

        factor = None

    module = Fused()
    verdict = verify(module, example(n=70), causal=True)
    assert verdict.ok, str(verdict)
    assert {"weights", "activation", "scale", "causality"} <= set(verdict.checked)
    module.factor = 1 / 16
    assert laws_of(verify(module, example(n=70), causal=True).problems) == ["scale"]


def test_wrong_examples_are_refused_in_one_line():
    for wrong in (torch.randn(3, 4), torch.zeros(2, 8, dtype=torch.long), (example(), example()), example(n=2), {}):
        with pytest.raises(InputError, match="example") as error:
            verify(Attention(), wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="verify needs an output for each token"):
        verify(nn.Sequential(Attention(), nn.Flatten()), example())


def test_a_verdict_is_read_by_people():
    text = str(verify(NoScale(), example()))
    assert text.startswith("NoScale: 1 problem(s)\n  problem      scale: ")
    assert "  holds        weights: weights are not negative" in text
    assert "  not checked  causality: causal=True was not claimed" in text
