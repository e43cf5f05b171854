"""PyTorch's own modules as people change them: what ran is reported, and nothing of it differs by a bit."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from clearhead.observe import watch

E, H, D, N = 24, 4, 6, 9


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(2, N, E, generator=torch.Generator().manual_seed(1))


def split(x):
    return x.unflatten(-1, (H, D)).transpose(1, 2)


def projected(attention, x):
    """Queries and keys of the module's own weights, in float64."""
    q, k, _ = F.linear(x.double(), attention.in_proj_weight.double(), attention.in_proj_bias.double()).chunk(3, -1)
    return split(q), split(k)


def entropies(q, k, bias=0.0):
    weights = (q.double() @ k.double().mT / math.sqrt(D) + bias).softmax(-1)
    return torch.special.entr(weights).sum(-1)


def watched(model, *args, **kwargs):
    """What was seen; the outputs, the state and the random numbers must be the unwatched ones."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before_random = torch.get_rng_state()
    expected, expected_state = model(*args, **kwargs), {k: v.clone() for k, v in model.state_dict().items()}
    after_random = torch.get_rng_state()
    model.load_state_dict(state)
    torch.set_rng_state(before_random)
    with watch(model) as seen:
        got = model(*args, **kwargs)
    assert torch.equal(torch.get_rng_state(), after_random)
    assert all(torch.equal(value, expected_state[name]) for name, value in model.state_dict().items())
    got, expected = (y[0] if isinstance(y, tuple) else y for y in (got, expected))
    assert torch.equal(got, expected)
    return seen


def check(seen, q, k, bias=0.0):
    (call,) = seen
    torch.testing.assert_close(call.statistics.entropy.double(), entropies(q, k, bias), rtol=1e-5, atol=1e-5)


def layer(kind=nn.TransformerEncoderLayer, **options):
    made = kind(E, H, 32, batch_first=True, dropout=0.0, **options)
    with torch.no_grad():
        made.self_attn.in_proj_weight.mul_(4)
    return made


class Linear(nn.TransformerEncoderLayer):
    """Attention of its own kind, by functions alone; torch's fast path knows nothing of it."""

    def _sa_block(self, x, attn_mask, key_padding_mask, is_causal=False):
        q = split(x * 2)
        return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)


class Gated(nn.TransformerEncoderLayer):
    def _sa_block(self, x, attn_mask, key_padding_mask, is_causal=False):
        return 0.5 * super()._sa_block(x + 1, attn_mask, key_padding_mask, is_causal)


class NoSoftmax(nn.TransformerEncoderLayer):
    def _sa_block(self, x, attn_mask, key_padding_mask, is_causal=False):
        return x.cumsum(1)


@pytest.mark.parametrize("slow", ["training", "gradients", "odd"])
def test_a_layer_that_attends_in_its_own_way_is_reported_as_it_ran(slow, x):
    """Where torch takes its slow way, the block of the subclass runs."""
    options = {"activation": F.leaky_relu} if slow == "odd" else {}
    made = [layer(kind, **options).train(slow == "training") for kind in (Linear, Gated, NoSoftmax)]
    with torch.set_grad_enabled(slow != "odd"):
        check(watched(made[0], x), split(x * 2), split(x * 2))
        check(watched(made[1], x), *projected(made[1].self_attn, x + 1))
        seen = watched(made[2], x)
    assert (len(seen), seen.unseen) == (0, {})  # it does not attend


@pytest.mark.parametrize("kind", [Linear, Gated, NoSoftmax])
def test_the_fast_path_ignores_the_block_of_a_subclass_and_so_does_the_report(kind, x):
    made = layer(kind).eval()
    plain = nn.TransformerEncoderLayer(E, H, 32, batch_first=True).eval()
    plain.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(made(x), plain(x))
        seen = watched(made, x)
    check(seen, *projected(made.self_attn, x))
    assert seen.names == ["self_attn"]


@pytest.mark.filterwarnings("ignore:Converting mask without torch.bool")
def test_the_fast_path_takes_a_bias_for_a_mask(x):
    """PyTorch hides each key whose bias is not 0 there; the report says what ran, not what was meant."""
    made = layer().eval()
    bias = torch.zeros(N, N)
    bias[:, 5:] = -0.5
    with torch.no_grad():
        assert torch.equal(made(x, bias), made(x, bias != 0))
        seen = watched(made, x, bias)
    check(seen, *projected(made.self_attn, x), torch.zeros(N, N).masked_fill(bias != 0, -math.inf))
    assert seen[0].statistics.visible.unique().tolist() == [5]


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_decoders_blocks(norm_first, x):
    class Own(nn.TransformerDecoderLayer):
        def _mha_block(self, x, mem, attn_mask, key_padding_mask, is_causal=False):
            return F.scaled_dot_product_attention(split(x), split(mem), split(mem)).transpose(1, 2).flatten(2)

    made = Own(E, H, 32, batch_first=True, norm_first=norm_first).eval()
    with torch.no_grad():
        seen = watched(made, x, x[:, :4])
    assert [(call.name, call.shape[3]) for call in seen] == [("self_attn", N), ("Own", 4)]


class Shifted(nn.MultiheadAttention):
    """A subclass that changes what comes in, and then runs as torch's."""

    def forward(self, query, key, value, **options):
        query = query + 1
        return super().forward(query, query, query, **options)


def moved(module, args):
    x = args[0] + 1
    return (x, x, x)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("changed", ["subclass", "hook", "patched", "output"])
def test_what_changes_the_input_of_an_attention_is_in_the_report(changed, gradients, x):
    attention = (Shifted if changed == "subclass" else nn.MultiheadAttention)(E, H, batch_first=True).eval()
    if changed == "hook":
        attention.register_forward_pre_hook(moved)
    if changed == "output":
        attention.register_forward_hook(lambda module, args, output: (output[0] * 2, output[1]))
    if changed == "patched":  # as accelerate does, and bits of old tutorials
        forward = attention.forward
        attention.forward = lambda query, key, value, **options: forward(*moved(None, (query,)), **options)
    with torch.set_grad_enabled(gradients):
        seen = watched(attention, x, x, x, need_weights=False)
    check(seen, *projected(attention, x if changed == "output" else x + 1))
    assert seen[0].role == "self"


def test_weights_that_are_computed_are_not_computed_again(x):
    """Spectral norm makes a step of its power iteration at each reading in training."""
    attention = nn.MultiheadAttention(E, H, batch_first=True)
    parametrizations.spectral_norm(attention, "in_proj_weight")
    watched(attention.train(), x, x, x)
    seen = watched(attention.eval(), x, x, x)
    check(seen, *projected(attention, x))


def test_an_attention_that_was_replaced(x):
    class Averages(nn.Module):
        batch_first, in_proj_bias, _qkv_same_embed_dim, num_heads = True, None, True, H

        def forward(self, query, key, value, **options):
            return (F.scaled_dot_product_attention(split(query), split(key), split(value)).transpose(1, 2).flatten(2),)

    made = layer().eval()
    made.self_attn = Averages()
    with torch.no_grad():
        check(watched(made, x), split(x), split(x))


@pytest.mark.parametrize("batch_first", [False, True])
def test_values_of_another_tensor_make_no_cross_attention(batch_first, x):
    """Places are added to queries and keys alone, as in DETR."""
    attention = nn.MultiheadAttention(E, H, batch_first=batch_first).eval()
    placed = x + 1
    given = (placed, placed, x) if batch_first else [part.transpose(0, 1) for part in (placed, placed, x)]
    seen = watched(attention, given[0], given[0], given[2])
    check(seen, *projected(attention, placed))
    assert (seen[0].role, seen[0].statistics.distance is None) == ("self", False)


@pytest.mark.parametrize("need_weights", [False, True])
def test_a_hint_of_causality_that_is_wrong_is_what_ran(need_weights, x):
    """With the hint PyTorch does not look at the mask, unless weights are asked for."""
    attention = nn.MultiheadAttention(E, H, batch_first=True)
    mask = torch.zeros(N, N, dtype=torch.bool)
    seen = watched(attention, x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)
    assert seen[0].statistics.visible[0, 0].tolist() == ([N] * N if need_weights else [*range(1, N + 1)])


@pytest.mark.filterwarnings("ignore:.*nested tensors.*")
def test_a_watch_within_a_watch_keeps_the_fast_path(x):
    model = nn.TransformerEncoder(layer(), 2).eval()
    padding = torch.arange(N) >= torch.tensor([[N], [6]])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        with watch(model) as outer, watch(model) as inner:
            got = model(x, src_key_padding_mask=padding)
    assert torch.equal(got, expected)
    assert outer.names == inner.names == ["layers.0.self_attn", "layers.1.self_attn"]
    assert torch.overrides.has_torch_function.__module__ != "clearhead.observe.watching.torch_modules"
