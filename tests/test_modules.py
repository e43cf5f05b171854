"""Modules: padding, positions, caches, initialisation, torch's weights, generation."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import clearhead as ch
from clearhead.nn import generate


def tokens(*shape, seed=0, high=20):
    return torch.randint(3, high, shape, generator=torch.Generator().manual_seed(seed))


def model(**options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}
    return ch.nn.Seq2Seq(20, 20, **{**sizes, **options}).eval()


# a batch of padded sequences gives what each gives alone


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
@pytest.mark.parametrize("options", [{}, {"kv_heads": 2, "mechanism": ch.Softmax(ch.window(3), softcap=4.0)}])
def test_a_padded_batch_is_its_sequences_alone(positions, options):
    net = model(positions=positions, **options).double()
    source, target = tokens(4, 9), tokens(4, 7, seed=1)
    s_len, t_len = torch.tensor([9, 1, 5, 3]), torch.tensor([2, 7, 1, 7])
    together = net(source, target, s_len, t_len)
    for i, (s, t) in enumerate(zip(s_len, t_len, strict=True)):
        alone = net(source[i : i + 1, :s], target[i : i + 1, :t])
        assert torch.allclose(together[i : i + 1, :t], alone, atol=1e-12)


def test_gradients_of_a_padded_batch_are_the_sum_of_its_sequences():
    net = model().double()
    source, target, s_len, t_len = tokens(3, 8), tokens(3, 6, seed=1), torch.tensor([8, 2, 5]), torch.tensor([6, 3, 1])

    def loss(rows, s, t):
        logits = net(source[rows, :s], target[rows, :t], *((s_len, t_len) if len(rows) > 1 else ()))
        real = torch.arange(t) < t_len[rows, None]
        return (logits.square().sum(-1) * real).sum()

    parameters = list(net.parameters())
    together = torch.autograd.grad(loss([0, 1, 2], 8, 6), parameters)
    alone = [torch.autograd.grad(loss([i], int(s_len[i]), int(t_len[i])), parameters) for i in range(3)]
    for got, *parts in zip(together, *alone, strict=True):
        assert torch.allclose(got, sum(parts), atol=1e-9)


def test_padding_may_hold_nan_in_self_attention():
    layer = ch.nn.SelfAttention(8, 2)
    x = torch.randn(2, 5, 8)
    spoilt = x.clone()
    spoilt[1, 3:] = math.nan
    lengths = torch.tensor([5, 3])
    clean, out = layer(x, lengths), layer(spoilt, lengths)
    assert torch.equal(clean[0], out[0])
    assert torch.equal(clean[1, :3], out[1, :3])


# prefill + steps = full


def chunks_of(n):
    return st.lists(st.integers(1, 4), min_size=1, max_size=n).map(lambda sizes: [*itertools.accumulate(sizes)])


@given(
    st.sampled_from(["sinusoidal", "learned", "rotary"]),
    st.sampled_from([ch.causal(), ch.causal() & ch.window(3), ch.causal() & (ch.window(2) | ch.first(1))]),
    st.sampled_from([1, 2, 4]),
    chunks_of(5),
    st.integers(0, 3),
)
@torch.no_grad()
def test_prefill_and_steps_are_the_full_pass(positions, pattern, kv_heads, ends, seed):
    torch.manual_seed(seed)
    turn = ch.nn.Rotary(4) if positions == "rotary" else None
    added = {"sinusoidal": ch.nn.Sinusoidal(16), "learned": ch.nn.Learned(16, 64), "rotary": None}[positions]
    attention = ch.nn.SelfAttention(16, 4, ch.Softmax(pattern), kv_heads, turn, qk_norm=seed % 2 == 0)
    stack = ch.nn.Encoder(ch.nn.EncoderLayer(attention, dropout=0.0), 2, added).double()
    x = torch.randn(3, ends[-1], 16, dtype=torch.float64)
    full, cache = stack(x), stack.cache()
    steps = [stack(x[:, a:b], cache=cache) for a, b in itertools.pairwise([0, *ends])]
    assert torch.allclose(torch.cat(steps, 1), full, atol=1e-10)
    assert cache.lengths.tolist() == [ends[-1]] * 3


@given(st.integers(0, 10_000))
@torch.no_grad()
def test_each_sample_goes_on_behind_its_own_last_token(seed):
    """Padded steps of random lengths, and reordering and dropping samples between them."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    attention = ch.nn.SelfAttention(8, 2, ch.Softmax(ch.causal() & ch.window(4)), positions=ch.nn.Rotary(4)).double()
    cache, rows = attention.mechanism.cache(), [torch.zeros(0, 8, dtype=torch.float64) for _ in range(4)]
    for _ in range(4):
        new = torch.randn(len(rows), 3, 8, generator=generator, dtype=torch.float64)
        lengths = torch.randint(0, 4, (len(rows),), generator=generator)
        out = attention(new, lengths, cache=cache)
        rows = [torch.cat([row, x[:n]]) for row, x, n in zip(rows, new, lengths, strict=True)]
        assert cache.lengths.tolist() == [len(row) for row in rows]
        for i, row in enumerate(rows):
            n = int(lengths[i])
            if n:
                assert torch.allclose(out[i, :n], attention(row[None])[0, -n:], atol=1e-10)
        index = torch.randint(0, len(rows), (len(rows),), generator=generator)
        cache.reorder(index)
        rows = [rows[i] for i in index]
        if len(rows) > 2:
            keep = torch.tensor([True] * (len(rows) - 1) + [False])
            cache.keep(keep)
            rows = rows[:-1]


@torch.no_grad()
def test_positions_given_with_a_cache():
    torch.manual_seed(0)
    attention = ch.nn.SelfAttention(8, 2, ch.Softmax(ch.causal() & ch.window(3)), positions=ch.nn.Rotary(4)).double()
    x, at = torch.randn(2, 9, 8, dtype=torch.float64), torch.tensor([[0, 1, 2, 5, 6, 7, 10, 11, 12]])
    full, cache = attention(x, positions=at), attention.mechanism.cache()
    steps = [attention(x[:, a:b], positions=at[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 6))]
    assert torch.allclose(torch.cat(steps, 1), full[:, :6], atol=1e-10)
    assert cache.positions.tolist() == [8, 8]
    steps = attention(x[:, 6:], positions=at[:, 6:], cache=cache)
    assert torch.allclose(steps, full[:, 6:], atol=1e-10)


@torch.no_grad()
def test_the_memory_is_projected_once_and_followed_by_beams():
    net = model().double()
    source, target, lengths = tokens(3, 6), tokens(3, 4, seed=1), torch.tensor([6, 2, 4])
    memory = net.encode(source, lengths)
    full, cache = net.decode(target, memory, None, lengths), net.decoder.cache()
    first = net.decode(target[:, :1], memory, None, lengths, cache)
    cache.reorder(torch.tensor([2, 0, 0]))
    rest = net.decode(target[[2, 0, 0], 1:], None, cache=cache)
    assert torch.allclose(first, full[:, :1], atol=1e-10)
    assert torch.allclose(rest, full[[2, 0, 0], 1:], atol=1e-10)
    self_cache, cross_cache = cache.layers[0]
    assert cross_cache.map.shape == (3, 4, 3, 6)
    assert torch.allclose(cross_cache.map.weights().sum(-1), torch.ones(3, 4, 3, dtype=torch.float64))
    assert self_cache.map.shape == (3, 4, 3, 4)


# initialisation


@pytest.mark.parametrize("depth", [2, 24])
def test_activations_and_gradients_keep_their_size_to_the_last_layer(depth):
    torch.manual_seed(0)
    stack = ch.nn.Encoder(ch.nn.EncoderLayer(ch.nn.SelfAttention(64, 4), dropout=0.0), depth)
    states = []
    for layer in stack.layers:
        layer.register_forward_hook(lambda module, args, out: states.append(out))
    x = torch.randn(4, 32, 64, requires_grad=True)
    out = stack(x)
    grads = torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *states])
    for sizes in ([float(s.detach().std()) for s in [x, *states]], [float(g.std()) for g in grads]):
        assert max(sizes) / min(sizes) < 4
    # and the gradients of each layer's own weights
    weights = [[*layer.parameters()] for layer in stack.layers]
    stack(x).square().mean().backward()
    norms = [math.sqrt(sum(float(p.grad.square().sum()) for p in layer)) for layer in weights]
    assert max(norms) / min(norms) < 4


def test_projections_are_xavier_and_embeddings_of_unit_size():
    net = model(embed_dim=64)
    attention = net.encoder.layers[0].attention
    bound = math.sqrt(6 / (64 + 64))
    for projection in (attention.query, attention.key, attention.value):
        assert 0.9 * bound < float(projection.weight.detach().abs().max()) <= bound
        assert not projection.bias.any()
    assert float(attention.out.weight.detach().abs().max()) <= bound / math.sqrt(4)
    embedded = net.source_embedding(tokens(50, 8)) * 64**0.5
    assert 0.7 < float(embedded.detach().std()) < 1.3
    assert net.output.weight is net.target_embedding.weight


def test_copies_of_a_layer_do_not_begin_alike():
    net = model()
    first, second = net.encoder.layers
    assert not torch.equal(first.attention.query.weight, second.attention.query.weight)
    assert first.attention.mechanism is not second.attention.mechanism


# torch's weights


@pytest.mark.parametrize("bias", [True, False])
def test_from_torch_keeps_outputs(bias):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, bias=bias, batch_first=True, dtype=torch.float64).eval()
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
    ours = ch.nn.SelfAttention.from_torch(theirs)
    x, lengths = torch.randn(3, 7, 16, dtype=torch.float64), torch.tensor([7, 2, 5])
    padding = torch.arange(7) >= lengths[:, None]
    want, weights = theirs(x, x, x, key_padding_mask=padding, average_attn_weights=False)
    got = ours(x, lengths)
    assert torch.allclose(got[~padding], want[~padding])
    assert torch.allclose(ours.map(x, lengths).weights()[~padding.any(1)], weights[~padding.any(1)])
    assert not ours.training
    cross = nn.MultiheadAttention(16, 2, kdim=6, vdim=6, bias=bias, batch_first=True).eval()
    memory = torch.randn(3, 4, 6)
    want = cross(x.float(), memory, memory)[0]
    assert torch.allclose(ch.nn.CrossAttention.from_torch(cross)(x.float(), memory), want, atol=1e-6)


def test_dropout_is_of_training_alone():
    layer = ch.nn.SelfAttention(8, 2, dropout=0.5)
    x = torch.randn(2, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_rotary_products_depend_on_distance_alone():
    turn = ch.nn.Rotary(8)
    q, k = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)

    def product(i, j):
        at = [torch.tensor([[[p]]]) for p in (i, j)]
        return float((turn(q, at[0]) * turn(k, at[1])).sum())

    assert product(5, 3) == pytest.approx(product(105, 103), abs=1e-4)
    assert abs(product(5, 3) - product(5, 4)) > 1e-3


def test_sinusoidal_positions_are_those_of_the_paper():
    at, width = torch.tensor([[0, 1, 7, 300]]), 6
    got = ch.nn.Sinusoidal(width)(torch.zeros(1, 4, width), at)[0]
    for row, p in zip(got.tolist(), at[0].tolist(), strict=True):
        for i in range(3):
            angle = p / 10_000 ** (2 * i / width)
            assert row[i] == pytest.approx(math.sin(angle), abs=1e-4)
            assert row[i + 3] == pytest.approx(math.cos(angle), abs=1e-4)


# generation


def score_of(net, source, target, penalty):
    """The normalised log-probability of a target that ends, by one full pass."""
    inputs = torch.tensor([[1, *target]])
    log_p = net(source, inputs)[0].log_softmax(-1)
    total = sum(float(log_p[i, token]) for i, token in enumerate([*target, 2]))
    return total / (len(target) + 1) ** penalty


@torch.no_grad()
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_targets(penalty):
    torch.manual_seed(1)
    net = ch.nn.Seq2Seq(20, 6, 16, 2, encoder_layers=1, decoder_layers=1, dropout=0.0).double().eval()
    source = tokens(1, 5)
    every = [t for n in range(4) for t in itertools.product((0, 1, 3, 4, 5), repeat=n)]
    best = sorted(every, key=lambda t: -score_of(net, source, t, penalty))[:3]
    found = generate(net, source, bos=1, eos=2, max_length=4, beam=700, n_best=700, length_penalty=penalty)[0]
    found = [h for h in found if h.finished and len(h.tokens) <= 3][:3]
    assert [tuple(h.tokens) for h in found] == best
    for h in found:
        assert h.score == pytest.approx(score_of(net, source, h.tokens, penalty))


@torch.no_grad()
def test_greedy_is_the_argmax_of_each_step_and_batches_change_nothing():
    torch.manual_seed(0)
    net = model(positions="rotary").double()
    nn.init.normal_(net.target_embedding.weight, std=1.0)
    source, lengths = tokens(6, 7), torch.tensor([7, 1, 3, 7, 5, 2])
    together = generate(net, source, lengths, bos=1, eos=2, max_length=9)
    for i, n in enumerate(lengths):
        inputs = torch.tensor([[1]])
        while inputs.shape[1] < 10:
            step = net(source[i : i + 1, :n], inputs)[0, -1].argmax()
            if step == 2:
                break
            inputs = torch.cat([inputs, step.view(1, 1)], 1)
        assert together[i][0].tokens == inputs[0, 1:].tolist()
        assert together[i][0].finished is (inputs.shape[1] < 10)
    for beam in (2, 5):
        together = generate(net, source, lengths, bos=1, eos=2, max_length=9, beam=beam, n_best=2)
        for i, n in enumerate(lengths):
            alone = generate(net, source[i : i + 1, :n], bos=1, eos=2, max_length=9, beam=beam, n_best=2)[0]
            assert [h.tokens for h in together[i]] == [h.tokens for h in alone]


@torch.no_grad()
def test_sampling_draws_from_the_model():
    torch.manual_seed(0)
    net = ch.nn.Seq2Seq(20, 5, 16, 2, encoder_layers=1, decoder_layers=1).eval()
    source = tokens(1, 4)
    share = net(source, torch.tensor([[1]]))[0, 0].softmax(-1)
    drawn = generate(
        net,
        source.expand(3000, -1),
        bos=1,
        eos=2,
        max_length=1,
        sampling=ch.nn.Sampling(generator=torch.Generator().manual_seed(0)),
    )
    counts = torch.zeros(5)
    for (h,) in drawn:
        counts[2 if h.finished else h.tokens[0]] += 1
    assert torch.allclose(counts / 3000, share, atol=0.04)
    greedy = generate(net, source, bos=1, eos=2, max_length=5)[0][0].tokens
    for sampling in (ch.nn.Sampling(top_k=1), ch.nn.Sampling(top_p=1e-6), ch.nn.Sampling(temperature=1e-4)):
        assert generate(net, source, bos=1, eos=2, max_length=5, sampling=sampling, n_best=3)[0][0].tokens == greedy


def test_maps_are_those_of_the_forward_pass():
    net = model(kv_heads=2)
    source, target, lengths = tokens(2, 6), tokens(2, 4, seed=1), torch.tensor([6, 3])
    maps = ch.nn.maps(net, source, target, lengths)
    assert list(maps) == [
        "encoder.layers.0.attention",
        "encoder.layers.1.attention",
        "decoder.layers.0.self_attention",
        "decoder.layers.0.cross_attention",
        "decoder.layers.1.self_attention",
        "decoder.layers.1.cross_attention",
    ]
    cross = maps["decoder.layers.1.cross_attention"]
    assert cross.shape == (2, 4, 4, 6)
    assert not cross.weights()[1, :, :, 3:].any()
    assert cross.statistics().distance is None
    assert maps["encoder.layers.0.attention"].statistics().distance is not None
