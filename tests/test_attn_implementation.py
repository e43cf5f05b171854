"""Clearhead as the attention of Hugging Face's models: what `eager` gives, without masks of n² pairs."""

import contextlib
import dataclasses
import math

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from transformers import masking_utils as theirs
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import clearhead as ch
import foreign_models as foreign
from clearhead.errors import InputError
from clearhead.nn import register_with_transformers

register_with_transformers()

LLAMA4 = {**foreign.GROUPED, "attention_chunk_size": 4, "num_local_experts": 2, "head_dim": 8}
LLAMA4["intermediate_size_mlp"] = 48
MODERN = {**foreign.PLAIN, **foreign.ROOM, **foreign.QUIET, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}
MORE = (
    foreign.Foreign("llama4", "Llama4TextConfig", "Llama4TextModel", LLAMA4, kind="decoder"),
    foreign.Foreign("modernbert", "ModernBertConfig", "ModernBertModel", MODERN, sharper=1.0),
)
MODELS = (*foreign.MODELS, *MORE)
BY_NAME = {model.name: model for model in MODELS}
CASES = [
    pytest.param(model, padding, id=f"{model.name}-{padding}")
    for model in MODELS
    for padding in (("none",) if model.kind == "image" else ("none", "right", "left"))
]


def real(given, out):
    """The rows of `out` (B, N, E) that are tokens: what stands in padding is nobody's."""
    mask = given.get("attention_mask")
    return out if mask is None or mask.shape[1] != out.shape[1] else out[mask.bool()]


def refuse(*args, **kwargs):
    raise AssertionError("a mask of all pairs was written out")


def run(model, given):
    """Outputs for real tokens, and all gradients."""
    out = real(given, model(**given).last_hidden_state)
    out.square().mean().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("model", "padding"), CASES)
def test_outputs_and_gradients_are_those_of_eager_without_a_mask_of_all_pairs(model, padding, monkeypatch):
    given = model.inputs(padding != "none", left=padding == "left")
    want, grads = run(model.make("eager"), given)
    monkeypatch.setattr(theirs, "sdpa_mask", refuse)
    got, ours = run(model.make("clearhead"), given)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert any(grad is not None for grad in grads.values())
    for name, grad in grads.items():
        assert (grad is None) == (ours[name] is None)
        if grad is not None:
            torch.testing.assert_close(ours[name], grad, rtol=1e-3, atol=2e-5 * (1 + grad.abs().max().item()))


GENERATING = [
    *(("llama", kind) for kind in ("dynamic", "static")),
    *(("mistral", kind) for kind in ("dynamic", "static")),
    *(("gemma2", kind) for kind in ("dynamic", "static")),
    *((name, "dynamic") for name in ("gpt2", "opt", "qwen2", "gpt_neox", "phi", "llama4")),
]


@pytest.mark.parametrize(("name", "cache"), GENERATING)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_generation_gives_the_same_tokens(name, cache, padded):
    """Past the sliding windows of 4 and the chunks of 4, with prompts of their own length."""
    model, options = BY_NAME[name], {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    head = {"gpt2": "GPT2LMHeadModel", "llama4": "Llama4ForCausalLM"}.get(name)
    head = head or model.model.replace("Model", "ForCausalLM")
    model = dataclasses.replace(model, model=head)
    if cache == "static":
        options |= {"cache_implementation": cache, "disable_compile": True}
    eager, ours = (model.make(way) for way in ("eager", "clearhead"))
    given = model.inputs(padded, left=True)
    want = eager.generate(**given, **options, output_logits=True, return_dict_in_generate=True)
    got = ours.generate(**given, **options, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "head"),
    [("bart", "BartForConditionalGeneration"), ("marian", "MarianMTModel"), ("t5", "T5ForConditionalGeneration")],
)
@torch.no_grad()
def test_beam_search_of_encoder_decoders(name, head):
    model = dataclasses.replace(BY_NAME[name], model=head)
    given = {key: x for key, x in model.inputs(True).items() if not key.startswith("decoder")}
    options = {"num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    want, got = (model.make(way).generate(**given, **options) for way in ("eager", "clearhead"))
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
@torch.no_grad()
def test_packed_sequences_are_known_by_their_positions(name, monkeypatch):
    """Each gives what it gives alone, and no mask is written out."""
    model = BY_NAME[name].make("clearhead")
    monkeypatch.setattr(theirs, "sdpa_mask", refuse)
    ids = BY_NAME[name].inputs(False)["input_ids"][:, :11]
    sizes = ((3, 6, 2), (11,), (1, 1, 9))
    at = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in sizes])
    with ch.watch(model) as seen:
        out = model(input_ids=ids, position_ids=at, use_cache=False).last_hidden_state
    far = torch.stack([call.statistics.distance for call in seen], 1)
    for row, x, got, ways in zip(sizes, ids, out, far, strict=True):
        for part, part_got, part_ways in zip(x.split(row), got.split(row), ways.split(row, -1), strict=True):
            with ch.watch(model) as seen:
                alone = model(input_ids=part[None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(part_got, alone, rtol=1e-5, atol=1e-5)
            distance = torch.stack([call.statistics.distance[0] for call in seen])
            torch.testing.assert_close(part_ways, distance, rtol=1e-4, atol=1e-5)


LEFT = torch.tensor([0, 2, 5])
IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [0] * 11, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]])
AT = torch.cat([torch.arange(3), torch.arange(4), torch.arange(4)])[None].expand(3, -1)
TWO = theirs.sliding_window_causal_mask_function(2)
FUNCTIONS = {
    "causal": theirs.causal_mask_function,
    "everything": theirs.bidirectional_mask_function,
    "sliding": theirs.sliding_window_causal_mask_function(4),
    "near": theirs.sliding_window_bidirectional_mask_function(3),
    "chunked": theirs.chunked_causal_mask_function(4, LEFT),
    "packed": theirs.packed_sequence_compatibility_function(theirs.causal_mask_function, AT, IDS),
    "packed sliding": theirs.packed_sequence_compatibility_function(TWO, AT, IDS),
    "unknown": theirs.or_masks(theirs.causal_mask_function, theirs.blockwise_overlay(IDS)),
    "unknown inside": theirs.and_masks(theirs.causal_mask_function, lambda b, h, q, k: (q + k) % 3 > 0),
}
SIZES = ((11, 11, 0, 0), (1, 11, 10, 0), (3, 11, 8, 0), (1, 4, 10, 7), (3, 6, 8, 5), (2, 9, 4, 0), (5, 11, 0, 0))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("padding", ["none", "right", "left", "holes"])
@torch.no_grad()
def test_a_mask_that_is_read_sees_what_it_would_see_written_out(name, padding):
    """Through the attention function itself: of each size, the keys whose weight is not zero."""
    attend = ALL_ATTENTION_FUNCTIONS.get_interface("clearhead", None)
    make = theirs.ALL_MASK_ATTENTION_FUNCTIONS["clearhead"]
    given, slots = None, torch.arange(11)
    if padding != "none":
        counts = torch.tensor([11, 6, 3])[:, None]
        given = {"right": slots < counts, "left": slots >= 11 - counts, "holes": (slots + counts) % 3 > 0}[padding]
    for n_queries, n_keys, q_offset, k_offset in SIZES:
        torch.manual_seed(0)
        sizes = (3, n_queries, n_keys, q_offset, k_offset, FUNCTIONS[name], given)
        seen = theirs.sdpa_mask(*sizes, allow_is_causal_skip=False).expand(3, 4, -1, -1)
        q, k, v = torch.randn(3, 4, n_queries, 8), torch.randn(3, 2, n_keys, 8), torch.randn(3, 2, n_keys, 5)
        out, weights = attend(torch.nn.Module(), q, k, v, make(*sizes), output_attentions=True)
        assert torch.equal(weights > 0, seen), (n_queries, n_keys, q_offset, k_offset)
        want = weights @ v.repeat_interleave(2, 1)
        torch.testing.assert_close(out, want.transpose(1, 2), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_masks_of_other_makes_are_boolean_or_added():
    attend = ALL_ATTENTION_FUNCTIONS.get_interface("clearhead", None)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 6, 8) for _ in range(3))
    seen, more = torch.rand(2, 1, 6, 9) < 0.7, torch.randn(2, 4, 6, 6)
    seen[..., 0] = True
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    logits = q @ k.mT * 0.3 + more
    want = logits.masked_fill(~seen[..., :6], -torch.inf).softmax(-1) @ v
    for mask in (seen, added, added[..., :6]):  # that of a static cache is longer than the keys
        out, weights = attend(torch.nn.Module(), q, k, v, mask, scaling=0.3, position_bias=more)
        assert weights is None
        torch.testing.assert_close(out.transpose(1, 2), want, rtol=1e-5, atol=1e-5)


def test_a_causal_call_without_a_mask():
    """As PyTorch's flag: the beginnings line up, and keys behind the last query (a static cache's) are not there."""
    attend, module = ALL_ATTENTION_FUNCTIONS.get_interface("clearhead", None), torch.nn.Module()
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    full = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for module.is_causal in (False, True):  # what a module says of itself is nothing to eager (BridgeTower's images)
        torch.testing.assert_close(attend(module, q, k, v, None)[0].transpose(1, 2), full)
    torch.testing.assert_close(attend(module, q, k, v, None, is_causal=True)[0].transpose(1, 2), want)
    last = torch.nn.functional.scaled_dot_product_attention(q[:, :, :1], k, v)
    torch.testing.assert_close(attend(module, q[:, :, :1], k, v, None, is_causal=True)[0].transpose(1, 2), last)


def test_dropout_in_training_drops_weights_and_keeps_the_mean():
    attend, module = ALL_ATTENTION_FUNCTIONS.get_interface("clearhead", None), torch.nn.Module()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    plain = attend(module, q, k, v, None)[0]
    drawn = torch.stack([attend(module, q, k, v, None, dropout=0.4)[0] for _ in range(1500)])
    assert not torch.equal(drawn[0], drawn[1])
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - plain).abs() < 5 * error + 1e-6).all()
    model = BY_NAME["bert"].make("clearhead", attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0).train()
    given = BY_NAME["bert"].inputs(True)
    torch.manual_seed(1)
    first = model(**given).last_hidden_state
    assert not torch.allclose(first, model(**given).last_hidden_state)
    torch.manual_seed(1)
    assert torch.equal(first, model(**given).last_hidden_state)


@torch.no_grad()
def test_it_is_set_when_loading_or_afterwards_and_not_saved(tmp_path):
    made, given = BY_NAME["llama"].make("eager"), BY_NAME["llama"].inputs(True)
    made.save_pretrained(tmp_path)
    want = made(**given).last_hidden_state
    loaded = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="clearhead")
    made.set_attn_implementation("clearhead")
    for model in (loaded, made):
        assert model.config._attn_implementation == "clearhead"
        with ch.watch(model) as seen:
            got = model(**given).last_hidden_state
        assert {call.how for call in seen} == {"transformers clearhead"}
        torch.testing.assert_close(real(given, got), real(given, want), rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path)
    assert "clearhead" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(("model", "padding"), [case for case in CASES if case.values[0] not in MORE])
@torch.no_grad()
def test_watch_sees_the_same_as_of_eager(model, padding):
    given, found = model.inputs(padding != "none", left=padding == "left"), []
    for way in ("eager", "clearhead"):
        one = model.make(way)
        with ch.watch(one) as seen:
            one(**given)
        assert not seen.unseen
        found.append(seen)
    assert [(a.name, a.role, a.shape) for a in found[1]] == [(a.name, a.role, a.shape) for a in found[0]]
    for want, got in zip(*found, strict=True):
        assert got.how == "transformers clearhead"
        rows = torch.ones(got.shape[0], got.shape[2], dtype=torch.bool)
        if want.padding is not None:
            rows = ~want.padding.expand(rows.shape)
            assert torch.equal(got.padding.expand(rows.shape), ~rows)
        for name in ("entropy", "max_weight", "max_logit", "logsumexp", "sink", "distance", "visible", "received"):
            a, b = getattr(want.statistics, name), getattr(got.statistics, name)
            assert (a is None) == (b is None), name
            if a is not None:
                some = rows[:, None].expand(a.shape) if name != "received" else slice(None)
                torch.testing.assert_close(b[some].double(), a[some].double(), rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("hiding", [-1e4, -1e9, torch.finfo(torch.float32).min, -math.inf])
@torch.no_grad()
def test_masks_of_numbers_hide_as_their_weights_say(hiding):
    model, ids = BY_NAME["bert"].make("eager"), BY_NAME["bert"].inputs(False)["input_ids"]
    added = torch.zeros(3, 1, 11, 11).masked_fill(~torch.ones(11, 11, dtype=torch.bool).tril(), hiding)
    added = added - 0.3 * torch.arange(11)
    want = model(ids, attention_mask=added).last_hidden_state
    model.set_attn_implementation("clearhead")
    with ch.watch(model) as seen:
        got = model(ids, attention_mask=added).last_hidden_state
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for call in seen:
        assert torch.equal(call.statistics.visible, torch.arange(1, 12).expand(3, 4, 11))


@torch.no_grad()
def test_weights_are_given_where_they_are_asked_for():
    model, given = BY_NAME["bert"].make("eager"), BY_NAME["bert"].inputs(True)
    want = model(**given, output_attentions=True).attentions
    model.set_attn_implementation("clearhead")
    got = model(**given, output_attentions=True).attentions
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


BERT, OWN = {**foreign.PLAIN, **foreign.ROOM}, "computes with masks itself"
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64, "vocab_size": 50}
OTHERS = (
    (foreign.Foreign("mpt", "MptConfig", "MptModel", MPT, kind="decoder"), f"{OWN}, by to .modeling_mpt.py:"),
    (foreign.Foreign("megatron", "MegatronBertConfig", "MegatronBertModel", BERT), OWN),
    (foreign.Foreign("mvp", "MvpConfig", "MvpModel", foreign.SEQ2SEQ, kind="both"), OWN),
    (foreign.Foreign("canine", "CanineConfig", "CanineModel", BERT), OWN),
)


@pytest.mark.parametrize(("model", "why"), OTHERS, ids=lambda x: getattr(x, "name", None))
@torch.no_grad()
def test_what_it_cannot_do_is_refused_in_one_line(model, why):
    with pytest.raises(InputError, match=why) as error:
        model.make("clearhead")(**model.inputs(True))
    assert "\n" not in str(error.value)
    assert "write 'eager'" in str(error.value) or "attn_implementation='eager'" in str(error.value)


def mask_of_a_model():
    return theirs.ALL_MASK_ATTENTION_FUNCTIONS["clearhead"](2, 5, 7, 2, 0, theirs.causal_mask_function)


CAUSAL = torch.ones(5, 7, dtype=torch.bool).tril(2).expand(2, 1, 5, 7)
SCORES = torch.randn(2, 3, 5, 7)
MISUSES = {
    "filled where it may attend": lambda m: SCORES.masked_fill(m, -1e4),
    "filled so, in place": lambda m: SCORES.clone().masked_fill_(m, -1e4),
    "added": lambda m: SCORES + m,
    "added in place": lambda m: SCORES.clone().add_(m),
    "inverted as a number": lambda m: (1.0 - m) * -1e4,
    "multiplied": lambda m: SCORES * m,
    "numbers": lambda m: m.to(SCORES.dtype),
    "floats": lambda m: m.float(),
    "of what was a number": lambda m: m.to(torch.bool),
    "booleans of numbers": lambda m: m.bool(),
    "compared": lambda m: m == 0,
    "not zero": lambda m: m != 0,
    "joined with numbers made booleans": lambda m: torch.cat([m, torch.zeros(2, 1, 5, 2).to(m.dtype)], -1),
    "padded with zeros": lambda m: torch.nn.functional.pad(m, (0, 2), value=0.0),
    "written into": lambda m: m.__setitem__((..., 0), 0),
    "filled": lambda m: m.masked_fill(CAUSAL, torch.finfo(torch.float32).min),
    "and-ed with numbers": lambda m: m & torch.ones(2, 1, 5, 7, dtype=torch.long),
    "summed": lambda m: m.sum(-1),
    "sorted": lambda m: m.argmax(-1),
    "turned": lambda m: m.mT,
    "bare": lambda m: m.data,
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_mask_that_is_used_in_a_way_not_understood_is_refused(name):
    mask = mask_of_a_model()
    with pytest.raises(InputError, match=r"computes with masks itself, by .* write attn_implementation='eager'"):
        MISUSES[name](mask)
    assert torch.equal(mask.written(), CAUSAL)


USES = {
    "a part": (lambda m: m[:, :, 1:3, :4], CAUSAL[:, :, 1:3, :4]),
    "an axis": (lambda m: m[:, 0], CAUSAL[:, 0]),
    "heads": (lambda m: m.expand(-1, 3, -1, -1), CAUSAL.expand(-1, 3, -1, -1)),
    "beams": (lambda m: m.repeat_interleave(2, 0), CAUSAL.repeat_interleave(2, 0)),
    "moved": (lambda m: m.to("cpu"), CAUSAL),
    "joined": (lambda m: torch.cat([m, m], -1), torch.cat([CAUSAL, CAUSAL], -1)),
    "less": (lambda m: m & ~torch.eye(5, 7, dtype=torch.bool), CAUSAL & ~torch.eye(5, 7, dtype=torch.bool)),
    "more": (
        lambda m: torch.eye(5, 7, dtype=torch.bool).flip(0) | m,
        CAUSAL | torch.eye(5, 7, dtype=torch.bool).flip(0),
    ),
}


@pytest.mark.parametrize("name", USES)
def test_what_leaves_a_mask_a_mask_is_understood(name):
    use, want = USES[name]
    got = use(mask_of_a_model())
    assert type(got) is type(mask_of_a_model())
    assert torch.equal(got.written(), want)


def test_a_copy_of_a_mask_is_not_written_out(monkeypatch):
    monkeypatch.setattr(theirs, "sdpa_mask", refuse)
    for copy in (mask_of_a_model().detach(), mask_of_a_model().clone(), mask_of_a_model().contiguous()):
        assert copy.sight is not None
    copy.requires_grad = False
    assert not copy.requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_gradient_checkpointing_changes_nothing(name, reentrant):
    """Watched too: bit for bit."""
    model, grads = BY_NAME[name].make("clearhead").train(), []
    for watching in (None, False, True):
        if watching is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        with ch.watch(model) if watching else contextlib.nullcontext() as seen:
            run(model, BY_NAME[name].inputs(True))
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert not seen.unseen
    assert len(seen) == (6 if name == "t5" else 2)
    for plain, checkpointed, watched in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)  # what is shared is added up in another order
        assert torch.equal(watched, checkpointed)


def test_what_reads_a_mask_as_booleans_is_understood():
    mask, q = mask_of_a_model(), torch.randn(2, 3, 5, 4)
    assert torch.equal(SCORES.masked_fill(~mask, -1e4), SCORES.masked_fill(~CAUSAL, -1e4))
    assert torch.equal(torch.where(mask, SCORES, -1e4), torch.where(CAUSAL, SCORES, -1e4))
    k = torch.randn(2, 3, 7, 4)
    out, want = (torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=m) for m in (mask, CAUSAL))
    assert torch.equal(out, want)


@torch.no_grad()
def test_a_long_window_costs_no_square(monkeypatch):
    """20,000 tokens, whose boolean mask alone would be 400 MB."""
    monkeypatch.setattr(theirs, "sdpa_mask", refuse)
    model = BY_NAME["mistral"].make("clearhead", num_hidden_layers=1, max_position_embeddings=1 << 15)
    ids = torch.randint(3, 50, (1, 20_000), generator=torch.Generator().manual_seed(0))
    out = model(input_ids=ids, use_cache=False).last_hidden_state
    end = model(input_ids=ids[:, -40:], position_ids=torch.arange(19_960, 20_000)[None], use_cache=False)
    torch.testing.assert_close(out[:, -20:], end.last_hidden_state[:, -20:], rtol=1e-4, atol=1e-4)


def test_a_transformers_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(theirs, "sdpa_mask", lambda batch_size, cache_position: None)
    with pytest.raises(InputError, match="too old for attn_implementation='clearhead': pip install -U transformers"):
        register_with_transformers()
