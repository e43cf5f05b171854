"""Watching any model: what attends is found, measured as its dense weights say, and not changed by a bit."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import clearhead as ch
from clearhead.errors import InputError
from clearhead.observe import watch
from clearhead.observe.watching import torch_modules

E, H, D = 24, 4, 6


def heads(x, h=H):
    return x.unflatten(-1, (h, -1)).transpose(1, 2)


def entropy(weights):
    return torch.special.entr(weights.double()).sum(-1)


def dense(q, k, allowed=None, bias=None, scale=None):
    """The weights of softmax attention in float64."""
    s = q.double() @ k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).mT
    s = s * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = s if bias is None else s + bias.double()
    return (s if allowed is None else s.masked_fill(~allowed, -math.inf)).softmax(-1)


def sharp(module):
    """Weights at which heads differ from uniform ones."""
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() > 1:
                p.mul_(3)
    return module


class Fused(nn.Module):
    """Calls the fused function; options of the call as they come."""

    def __init__(self, **options):
        super().__init__()
        self.qkv, self.options = nn.Linear(E, 3 * E), options

    def split(self, x):
        return (heads(part) for part in self.qkv(x).chunk(3, -1))

    def forward(self, x):
        q, k, v = self.split(x)
        return F.scaled_dot_product_attention(q, k, v, **self.options).transpose(1, 2).flatten(2)


class ByHand(Fused):
    def forward(self, x):
        q, k, v = self.split(x)
        s = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(D)
        if "mask" in self.options:
            s = s.masked_fill(~self.options["mask"], float("-inf"))
        self.kept = w = F.dropout(F.softmax(s.float(), dim=-1).to(q.dtype), 0.1, self.training)
        return (w @ v).transpose(1, 2).flatten(2)


class Batched(Fused):
    """As written before there were four axes: samples and heads in one."""

    num_heads = H

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = (part.reshape(b * H, n, D) for part in self.split(x))
        w = torch.bmm(q / D**0.5, k.transpose(1, 2)).softmax(-1)
        return torch.bmm(w, v).view(b, H, n, D).transpose(1, 2).flatten(2)


class Einsum(Fused):
    def forward(self, x):
        q, k, v = self.split(x)
        w = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) * D**-0.5, -1)
        return torch.einsum("bhqk,bhkd->bhqd", w, v).transpose(1, 2).flatten(2)


@pytest.fixture
def x():
    return torch.randn(2, 9, E, generator=torch.Generator().manual_seed(0))


def test_the_fused_function_is_seen_however_it_is_imported(x):
    model = sharp(nn.Sequential(Fused(), Fused(is_causal=True), Fused(scale=0.3)))
    with watch(model) as seen:
        model(x)
    assert seen.names == ["0", "1", "2"]
    at, causal = x, torch.ones(9, 9, dtype=torch.bool).tril()
    for call, module, allowed, scale in zip(seen, model, (None, causal, None), (None, None, 0.3), strict=True):
        q, k, _ = module.split(at)
        expected = entropy(dense(q, k, allowed, scale=scale))
        torch.testing.assert_close(call.statistics.entropy.double(), expected, rtol=1e-5, atol=1e-6)
        at = module(at)


def test_causal_calls_line_up_their_beginnings_as_pytorch_does(x):
    class Shorter(Fused):
        def forward(self, x):
            q, k, v = self.split(x)
            return F.scaled_dot_product_attention(q[:, :, :5], k, v, is_causal=True)

    model = Shorter()
    with watch(model) as seen:
        model(x)
    assert seen[0].statistics.visible[0, 0].tolist() == [1, 2, 3, 4, 5]


def test_grouped_queries_masks_and_biases(x):
    q, k = torch.randn(2, 4, 9, 6), torch.randn(2, 2, 9, 6)
    allowed = torch.rand(2, 1, 9, 9) < 0.6
    allowed[..., 0] = True
    bias = torch.randn(1, 4, 9, 9)

    class Grouped(nn.Module):
        def forward(self, mask):
            return F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)

    model = Grouped()
    with watch(model) as seen:
        model(allowed)
        model(bias)
        model(torch.zeros(9, 9).masked_fill(~allowed[0, 0], -math.inf) + bias)
    both = dense(q, k, allowed[:1].expand(2, -1, -1, -1), bias)
    for call, weights in zip(seen, (dense(q, k, allowed), dense(q, k, bias=bias), both), strict=True):
        torch.testing.assert_close(call.statistics.entropy.double(), entropy(weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [ByHand, Batched, Einsum])
@pytest.mark.parametrize("training", [False, True])
def test_attention_written_by_hand(kind, training, x):
    model = sharp(kind()).train(training)
    with watch(model) as seen:
        model(x)
    (call,) = seen
    assert (call.shape, call.role, call.how) == ((2, H, 9, 9), "self", "matmul, softmax, matmul")
    q, k, _ = model.split(x)
    torch.testing.assert_close(call.statistics.entropy.double(), entropy(dense(q, k)), rtol=1e-5, atol=1e-6)


def test_a_mask_inside_handwritten_attention(x):
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    model = sharp(ByHand(mask=mask))
    with watch(model) as seen:
        model(x)
    q, k, _ = model.split(x)
    assert seen[0].statistics.visible[1, 2].tolist() == list(range(1, 10))
    torch.testing.assert_close(seen[0].statistics.entropy.double(), entropy(dense(q, k, mask)), rtol=1e-5, atol=1e-6)


def test_a_softmax_that_is_no_attention_is_none(x):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(E, 7)

        def forward(self, x):
            return self.out(x).softmax(-1).log().sum()

    class Mixture(Classifier):
        """Weights that are no products of queries and keys, times values."""

        def forward(self, x):
            return self.out(x).softmax(-1) @ torch.ones(7, E)

    with watch(Classifier()) as seen:
        Classifier()(x)
    model = Classifier()
    with watch(model) as seen:
        model(x)
    assert (len(seen), seen.unseen) == (0, {})
    model = Mixture()
    with watch(model) as seen:
        model(x)
    assert len(seen) == 0
    assert "no product of queries and keys" in seen.unseen["Mixture"]


# torch's own modules


def multi_head_weights(module, query, key, **call):
    return module(query, key, key, need_weights=True, average_attn_weights=False, **call)[1]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 10, "vdim": 10}], ids=str
)
@pytest.mark.parametrize("masked", ["none", "padding", "causal", "float", "each head", "both"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(batch_first, options, masked, need_weights):
    torch.manual_seed(0)
    module = sharp(nn.MultiheadAttention(E, H, batch_first=batch_first, **options)).eval()
    query = torch.randn(2, 5, E)
    key = torch.randn(2, 7, options.get("kdim", E)) if "kdim" in options or masked in ("none", "padding") else query
    call, n = {}, key.shape[1]
    if masked in ("padding", "both"):
        call["key_padding_mask"] = torch.arange(n) >= torch.tensor([[n], [n - 2]])
    if masked in ("causal", "both"):
        call["attn_mask"] = torch.ones(5, n, dtype=torch.bool).triu(n - 5 + 1)
    if masked == "float":
        call["attn_mask"] = torch.randn(5, n)
    if masked == "each head":
        call["attn_mask"] = torch.randn(2 * H, 5, n)
    cross = key is not query
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
        key = key if cross else query
    with torch.no_grad():
        before = module(query, key, key, need_weights=need_weights, **call)[0]
        with watch(module) as seen:
            after = module(query, key, key, need_weights=need_weights, **call)[0]
        weights = multi_head_weights(module, query, key, **call)
    assert torch.equal(before, after)
    assert seen[0].role == ("cross" if cross else "self")
    assert seen[0].shape == tuple(weights.shape)
    rows = ~entropy(weights).isnan()
    torch.testing.assert_close(seen[0].statistics.entropy.double()[rows], entropy(weights)[rows], rtol=1e-5, atol=1e-6)
    given = weights.double()
    if not cross and "key_padding_mask" in call and n == weights.shape[-1]:  # queries that are padding give nothing
        given = given.masked_fill(call["key_padding_mask"][:, None, :, None], 0)
    torch.testing.assert_close(seen[0].statistics.received.double(), given.sum(-2), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"batch_first": True}], ids=str
)
@pytest.mark.parametrize("given", ["batch", "one sample", "masks", "weights asked for", "kept elsewhere", "dropout"])
def test_in_training_the_queries_and_keys_that_autograd_keeps_are_read(options, given, monkeypatch):
    """Where it keeps none, or not as they were, they are projected again."""
    torch.manual_seed(0)
    module = sharp(nn.MultiheadAttention(E, H, dropout=0.3 if given == "dropout" else 0.0, **options))
    again = given in ("weights asked for", "kept elsewhere", "dropout")
    x = torch.randn(5, E) if given == "one sample" else torch.randn(5, 5, E)
    call = {"attn_mask": torch.randn(5, 5)} if given == "masks" else {}
    projected = []
    projections = torch_modules._projections
    monkeypatch.setattr(torch_modules, "_projections", lambda call: projected.append(call) or projections(call))
    elsewhere = torch.autograd.graph.save_on_cpu() if given == "kept elsewhere" else nullcontext()
    with elsewhere:
        torch.manual_seed(1)
        before = module(x, x, x, need_weights=given == "weights asked for", **call)[0]
        torch.manual_seed(1)
        with watch(module) as seen:
            after = module(x, x, x, need_weights=given == "weights asked for", **call)[0]
    assert torch.equal(before, after)
    assert bool(projected) is again
    weights = multi_head_weights(module.eval(), x, x, **call).detach()
    weights = weights if weights.dim() == 4 else weights[None]
    assert seen[0].shape == tuple(weights.shape)
    torch.testing.assert_close(seen[0].statistics.entropy.double(), entropy(weights), rtol=1e-5, atol=1e-6)
    after.sum().backward()
    assert module.in_proj_weight.grad.isfinite().all()


def test_an_earlier_call_is_never_taken_for_this_one():
    """Asked for weights, the second attention keeps no queries; those of the first lie behind it in the graph."""
    torch.manual_seed(0)
    first, second = (sharp(nn.MultiheadAttention(E, H, batch_first=True)) for _ in range(2))
    model = nn.ModuleList([first, second])
    x = torch.randn(2, 5, E)
    with watch(model) as seen:
        h = first(x, x, x, need_weights=False)[0]
        second(h, h, h)
    weights = multi_head_weights(second, h, h).detach()
    torch.testing.assert_close(seen["1"][0].statistics.entropy.double(), entropy(weights), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_transformer_encoders_and_their_fast_path(norm_first, training, padded, x):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = sharp(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)).train(training)
    call = {"src_key_padding_mask": torch.arange(9) >= torch.tensor([[9], [6]])} if padded else {}
    with torch.set_grad_enabled(training):
        before = model(x, **call)
        with watch(model) as seen:
            after = model(x, **call)
    assert torch.equal(before, after)
    assert seen.names == ["layers.0.self_attn", "layers.1.self_attn"]
    at = x
    for call_seen, one in zip(seen, model.layers, strict=True):
        h = one.norm1(at) if norm_first else at
        mask = call.get("src_key_padding_mask")
        weights = multi_head_weights(one.self_attn, h, h, key_padding_mask=mask)
        real = torch.ones(2, 9, dtype=torch.bool) if mask is None else ~mask
        rows = real[:, None].expand(2, H, 9)
        got = call_seen.statistics.entropy.double()[rows]
        torch.testing.assert_close(got, entropy(weights)[rows], rtol=1e-4, atol=1e-5)
        if padded:
            assert torch.equal(~call_seen.padding.expand(2, 9), real)
        at = one.eval()(at, src_key_padding_mask=mask)


def test_a_whole_transformer(x):
    model = nn.Transformer(E, H, 1, 1, 32, batch_first=True).eval()
    with watch(model) as seen:
        model(x, x[:, :4], tgt_mask=nn.Transformer.generate_square_subsequent_mask(4))
    assert [(call.name, call.role) for call in seen] == [
        ("encoder.layers.0.self_attn", "self"),
        ("decoder.layers.0.self_attn", "self"),
        ("decoder.layers.0.multihead_attn", "cross"),
    ]
    assert seen[1].statistics.visible[0, 0].tolist() == [1, 2, 3, 4]


def test_the_function_behind_multihead_attention(x):
    class Own(nn.MultiheadAttention):
        """A subclass is no exact type: its forward may do anything."""

        def forward(self, x):
            x = x.transpose(0, 1)
            return F.multi_head_attention_forward(
                x, x, x, self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias, None, None, False, 0.0,
                self.out_proj.weight, self.out_proj.bias,
            )[0]  # fmt: skip

    model = sharp(Own(E, H)).eval()
    with watch(model) as seen:
        model(x)
    t = x.transpose(0, 1)
    weights = F.multi_head_attention_forward(
        t, t, t, E, H, model.in_proj_weight, model.in_proj_bias, None, None, False, 0.0, model.out_proj.weight,
        model.out_proj.bias, average_attn_weights=False,
    )[1]  # fmt: skip
    torch.testing.assert_close(seen[0].statistics.entropy.double(), entropy(weights), rtol=1e-5, atol=1e-6)


# Clearhead's own


def test_own_modules_and_maps(x):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = ch.nn.SelfAttention(E, H, mechanism=ch.Softmax(ch.causal()))
            self.memory = ch.nn.CrossAttention(E, H)
            self.local = ch.Softmax(ch.window(2))

        def forward(self, x, lengths):
            x = self.memory(self.attention(x, lengths), x, lengths)
            q = heads(x)
            y = self.local(q, q) @ q
            return y + ch.attend(q, q, q, ch.causal()) + ch.attend(q, q, q)

    model, lengths = Mixed(), torch.tensor([9, 5])
    before = model(x, lengths)
    with watch(model) as seen:
        after = model(x, lengths)
    assert torch.equal(before, after)
    assert [call.name for call in seen] == ["attention", "memory", "Mixed", "Mixed", "Mixed"]
    assert [call.role for call in seen] == ["self", "cross", "self", "self", "self"]
    A = model.attention.map(x, lengths)
    torch.testing.assert_close(seen[0].statistics.entropy, A.statistics().entropy, equal_nan=True)
    assert bool(seen[0].statistics.entropy[1, :, 5:].isnan().all())
    assert seen[1].statistics.distance is None
    assert [call.turn for call in seen if call.name == "Mixed"] == [0, 1, 2]


# when a model runs


def test_recomputation_is_not_seen_twice_and_gradients_are_the_same(x):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ByHand()

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    torch.manual_seed(0)
    model = Checkpointed().train()
    gradients = []
    for watching in (False, True):
        model.zero_grad()
        torch.manual_seed(1)
        if watching:
            with watch(model) as seen:
                model(x).square().sum().backward()
        else:
            model(x).square().sum().backward()
        gradients.append(model.inner.qkv.weight.grad.clone())
    assert torch.equal(*gradients)
    assert len(seen) == 1


def test_calls_of_successive_steps_are_joined_along_rows(x):
    torch.manual_seed(0)
    layer = sharp(ch.nn.SelfAttention(E, H, mechanism=ch.Softmax(ch.causal())))
    cache = layer.mechanism.cache()
    with torch.no_grad(), watch(layer) as seen:
        layer(x[:, :4], cache=cache)
        for i in range(4, 9):
            layer(x[:, i : i + 1], cache=cache)
    with torch.no_grad(), watch(layer) as whole:
        layer(x)
    assert [call.step for call in seen] == list(range(6))
    joined = seen["SelfAttention"][0]
    assert joined.shape == (2, H, 9, 9)
    for name in ("entropy", "distance", "max_logit", "sink", "visible", "received"):
        a, b = getattr(joined.statistics, name), getattr(whole[0].statistics, name)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_exception_leaves_nothing_behind(x):
    class Broken(Fused):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("inside")

    model = nn.Sequential(Fused(), Broken())
    hooks = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(RuntimeError, match="inside"), watch(model) as seen:
        model(x)
    assert len(seen) == 2
    assert len(torch.nn.modules.module._global_forward_hooks) == hooks
    assert not torch.overrides._get_current_function_mode_stack()
    with watch(model) as seen:
        with pytest.raises(RuntimeError):
            model(x)
        model[0](x)
    assert [call.step for call in seen] == [0, 0, 1]


def test_other_models_and_other_modes_in_the_block(x):
    model, other = Fused(), Fused()
    with watch(model) as seen:
        other(x)
        with torch.device("cpu"):
            model(x)
        F.scaled_dot_product_attention(heads(x), heads(x), heads(x))
    assert seen.names == ["Fused"]
    assert len(seen) == 1


def test_watches_can_be_nested(x):
    model = nn.Sequential(Fused(), ByHand())
    with watch(model) as outer, watch(model[1]) as inner:
        model(x)
    assert (len(outer), len(inner)) == (2, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_parts_run_compiled_and_are_listed(x):
    calls = []

    def backend(graph, inputs):
        calls.append("compiled")
        return lambda *args: (calls.append("ran"), graph(*args))[1]

    model = nn.Sequential(Fused(), Fused(), Fused()).eval()
    model[1] = torch.compile(model[1], backend=backend)
    model[2].compile(backend=backend)
    with torch.no_grad():
        before = model(x)
        compiled = calls.count("compiled")
        assert compiled >= 1
        with watch(model) as seen:
            after = model(x)
        assert torch.equal(before, after)
        assert seen.names == ["0"]
        assert set(seen.unseen) == {"1", "2"}
        assert "compiled" in seen.unseen["1"]
        ran = calls.count("ran")
        assert ran == 4
        with watch(model, compiled="eager") as seen:
            model(x)
        assert len(seen) == 3
        assert not seen.unseen
        assert calls.count("ran") == ran
        model(x)
    assert calls.count("compiled") == compiled
    assert calls.count("ran") == ran + 2


# what is chosen


def test_statistics_rows_layers_and_maps_are_chosen(x):
    model = sharp(nn.Sequential(Fused(), Fused()))
    with watch(model, statistics=["entropy", "sink"], rows=[0, 4], layers="1", keep_maps=True) as seen:
        model(x)
    (call,) = seen
    assert call.name == "1"
    assert call.rows.tolist() == [0, 4]
    assert call.statistics.entropy.shape == (2, H, 2)
    assert call.statistics.max_logit is None
    q, k, _ = model[1].split(model[0](x))
    torch.testing.assert_close(call.map.weights().double(), dense(q, k), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        call.statistics.entropy.double(), entropy(dense(q, k))[:, :, [0, 4]], rtol=1e-5, atol=1e-6
    )
    with watch(model, rows=3) as sample, torch.random.fork_rng():
        model(x)
    assert len(sample[0].rows) == 3
    assert sample[0].statistics.received is None


def test_a_seed_decides_which_rows_and_samples_and_touches_no_other_random_number(unchecked):
    model, x = nn.Sequential(Fused(), Fused()), torch.randn(20, 30, E)

    def drawn(**options):
        with torch.no_grad(), watch(model, rows=3, samples=4, **options) as seen:
            model(x)
            model(x)
        assert all(call.rows.diff().min() > 0 and call.samples.diff().min() > 0 for call in seen)
        assert seen[0].samples.equal(seen[1].samples)  # the same in all calls of a pass
        return [(call.rows.tolist(), call.samples.tolist()) for call in seen]

    state = torch.get_rng_state()
    once, again, other = drawn(seed=5), drawn(seed=5), drawn(seed=6)
    assert torch.get_rng_state().equal(state)
    assert once == again
    assert drawn() == drawn(seed=0)
    rows = [str(rows) for rows, _ in once + other]
    assert len({*rows}) == 8  # others in each layer, each pass, and by each seed
    assert len({str(samples) for _, samples in once + other}) == 4
    for seed in ("1", 1.0, None, True):
        with pytest.raises(InputError, match="seed"):
            watch(model, seed=seed)


def test_kept_maps_are_those_of_their_time(x):
    class InPlace(Fused):
        def forward(self, x):
            q, k, v = self.split(x)
            out = F.scaled_dot_product_attention(q, k, v)
            k.zero_()
            return out

    model = sharp(InPlace())
    with torch.no_grad(), watch(model, keep_maps=True) as seen:
        model(x)
    q, k, _ = model.split(x)
    torch.testing.assert_close(seen[0].map.weights().double(), dense(q, k), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Fused, ByHand])
def test_statistics_with_gradients(kind, x):
    model = sharp(kind()).eval()
    with watch(model, grad=True) as seen:
        model(x)
    seen[0].statistics.entropy.mean().backward()
    got = model.qkv.weight.grad.clone()
    model.zero_grad()
    q, k, _ = model.split(x)
    torch.special.entr((q @ k.mT / D**0.5).softmax(-1)).sum(-1).mean().backward()
    torch.testing.assert_close(got, model.qkv.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "encoder.layer.9"}, "has no module 'encoder.layer.9'"),
        ({"statistics": ["entropie"]}, "did you mean 'entropy'"),
        ({"statistics": "entropie"}, "no 'entropie'; did you mean 'entropy'"),
        ({"rows": 0}, "rows is 0"),
        ({"rows": 2.5}, "rows is 2.5; write how many"),
        ({"samples": True}, "samples is True; write how many"),
        ({"compiled": "yes"}, "'skip' or 'eager'"),
    ],
)
def test_wrong_input(options, words, unchecked):
    with pytest.raises(InputError, match=words):
        watch(nn.Sequential(Fused()), **options)
    with pytest.raises(InputError, match="not a function"):
        watch(heads)


def test_two_passes_are_two_and_padding_is_joined_with_the_steps():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(E, H, batch_first=True)
    x, hidden = torch.randn(2, 5, E), torch.arange(5) >= torch.tensor([[5], [3]])
    with watch(layer) as seen:
        for _ in range(2):
            layer(x, x, x, key_padding_mask=hidden)
        layer(x[:, :1], x, x)
    assert [call.shape[2] for call in seen["MultiheadAttention"]] == [5, 5, 1]
    assert "entropy" in str(seen)


def test_a_subclass_that_runs_as_torch_does_keeps_its_fast_path(x):
    class Named(nn.MultiheadAttention):
        pass

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 32, batch_first=True).eval()
    layer.self_attn = Named(E, H, batch_first=True).eval()
    ch.observe.sigma_reparam(layer.self_attn)
    for model in (layer, layer.self_attn):
        given = (x,) if model is layer else (x, x, x)
        with torch.no_grad():
            before = model(*given)
            with watch(model) as seen:
                after = model(*given)
        assert torch.equal(before[0], after[0])
        assert len(seen) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("how", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(2, 9, E))])
def test_scripted_children_are_listed_and_run_as_they_are(how, x):
    class Scripted(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(E, 3 * E)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = [part.unflatten(-1, [4, 6]).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)]
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    model = nn.Sequential(Fused(), nn.Sequential(how(Scripted().eval())), ByHand()).eval()
    with torch.no_grad():
        for _ in range(3):  # what is scripted is compiled at its first calls
            before = model(x)
        for compiled in ("skip", "eager"):
            with watch(model, compiled=compiled) as seen:
                after = model(x)
            assert torch.equal(before, after)
            assert seen.names == ["0", "2"]
            assert "scripted" in seen.unseen["1.0"]
            assert all(path.startswith("1.0") for path in seen.unseen)
        with watch(model, layers="2") as seen:
            model(x)
        assert seen.unseen == {}
        alone = how(Scripted().eval())
        with watch(alone) as seen:
            alone(x)
    assert len(seen) == 0
    assert "scripted" in seen.unseen[type(alone).__name__]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", ["skip", "eager"])
def test_flex_attention_called_directly_is_listed(compiled):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    class Flex(nn.Module):
        def forward(self, q):
            mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[2], q.shape[2], device="cpu")
            return flex_attention(q, q, q, block_mask=mask)

    model, q = Flex(), torch.randn(1, 2, 128, 16)
    with torch.no_grad():
        before = model(q)
        with watch(model, compiled=compiled) as seen:
            after = model(q)
    assert torch.equal(before, after)
    assert len(seen) == 0
    assert "FlexAttention" in seen.unseen["Flex"]


def test_what_is_made_of_our_modules_is_followed_where_it_attends_by_itself():
    """Clearhead's own modules speak through their maps, their functions are not followed; those of a subclass are."""

    class Own(ch.nn.SelfAttention):
        def forward(self, x):
            q = heads(x)
            return super().forward(x) + F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    model, x = Own(E, H), torch.randn(2, 5, E)
    with torch.no_grad():
        before = model(x)
        with watch(model) as seen:
            assert torch.equal(model(x), before)
        A = model.map(x)
    assert sorted(call.how for call in seen) == ["Clearhead", "scaled_dot_product_attention"]
    by_how = {call.how: call.statistics.entropy.double() for call in seen}
    torch.testing.assert_close(by_how["Clearhead"], entropy(A.weights()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        by_how["scaled_dot_product_attention"], entropy(dense(heads(x), heads(x))), rtol=1e-5, atol=1e-6
    )


class LinearAttention(nn.Module):
    """Katharopoulos 2020: no softmax."""

    def forward(self, x):
        q, k = F.elu(x) + 1, F.elu(x) + 1
        return torch.einsum("bnd,bde->bne", q, torch.einsum("bnd,bne->bde", k, x)) / (q * k.sum(1, True)).sum(-1, True)


class GatedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x)[0] * x.sigmoid()


def test_what_is_called_an_attention_and_shows_none_is_listed():
    model = nn.Sequential(nn.Linear(8, 8), LinearAttention(), GatedAttention())
    with torch.no_grad(), watch(model) as seen:
        model(torch.randn(2, 5, 8))
    assert list(seen.unseen) == ["1"]
    assert "no softmax over keys was found" in seen.unseen["1"]
    assert [call.name for call in seen] == ["2.inner"]
    with torch.no_grad(), watch(model, layers="2") as seen:
        model(torch.randn(2, 5, 8))
    assert not seen.unseen


def test_a_module_that_is_exchanged_while_the_model_runs_has_the_name_of_its_place():
    """BigBird puts another attention in the place of its own where a sequence is short."""

    class Exchanging(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            self.inner = ByHand()
            return self.inner(x)

    model = nn.Sequential(Exchanging())
    with torch.no_grad(), watch(model) as seen:
        for _ in range(2):
            model(torch.randn(2, 5, E))
    assert [call.name for call in seen] == ["0.inner"] * 2
