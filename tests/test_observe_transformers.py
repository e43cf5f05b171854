"""Watching Hugging Face's models: the same numbers as their eager weights give, and not a bit of them changed."""

import math
from contextlib import nullcontext

import pytest
import torch

pytest.importorskip("transformers")

import foreign_models as foreign
from clearhead.observe import AttentionMonitor, watch

CASES = [
    pytest.param(model, way, padding, id=f"{model.name}-{way}-{padding}")
    for model in foreign.MODELS
    for way in model.ways
    for padding in (("none",) if model.kind == "image" else ("none", "right", "left"))
]


def expected(weights, real_queries, key_slots, query_slots):
    """The statistics that follow from weights (B, H, Nq, Nk) alone, in float64; `real_queries` (B, Nq)."""
    w = weights.double()
    seen = w > 0
    entropy = torch.special.entr(w).sum(-1)
    found = {
        "entropy": entropy,
        "max_weight": w.amax(-1),
        "normalized_entropy": (entropy / seen.sum(-1).clamp(min=2).double().log()).masked_fill(
            seen.sum(-1) < 2, math.nan
        ),
        "received": w.sum(-2),
    }
    if query_slots is not None:
        found["distance"] = (w * (query_slots[:, None] - key_slots).abs()).sum(-1)
    return found


def attentions(output) -> list[torch.Tensor]:
    """All weights that an eager model returned, in the order in which it computed them."""
    if "encoder_attentions" in output:
        pairs = zip(output.decoder_attentions, output.cross_attentions, strict=True)
        return [*output.encoder_attentions, *(w for pair in pairs for w in pair)]
    return list(output.attentions)


@pytest.mark.parametrize(("model", "way", "padding"), CASES)
def test_statistics_are_those_of_the_eager_weights(model, way, padding):
    given = model.inputs(padding != "none", left=padding == "left")
    watched, eager = model.make(way), model.make("eager")
    with torch.no_grad():
        with watch(watched) as seen:
            watched(**given)
        weights = attentions(eager(**given, output_attentions=True))
    assert not seen.unseen
    assert len(seen) == len(weights)
    mask = given.get("attention_mask")
    for call, w in zip(seen, weights, strict=True):
        assert call.shape == tuple(w.shape)
        b, _, nq, nk = w.shape
        slots = None if call.role == "cross" else torch.arange(nq)
        real = torch.ones(b, nq, dtype=torch.bool)
        if mask is not None and call.role == "self" and nq == mask.shape[1]:
            real = mask.bool()
            assert call.padding is not None
            assert torch.equal(~call.padding.expand(b, nq), real)
        for name, value in expected(w, real, torch.arange(nk), slots).items():
            got = getattr(call.statistics, name)
            assert got is not None, name
            if name == "received":
                value = w.double().masked_fill(~real[:, None, :, None], 0).sum(-2)
                torch.testing.assert_close(got.double(), value, rtol=1e-5, atol=2e-6 * nq)
                continue
            rows = real[:, None].expand(got.shape)
            torch.testing.assert_close(got.double()[rows], value[rows], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("model", foreign.MODELS, ids=lambda model: model.name)
def test_roles_and_names(model):
    with torch.no_grad(), watch(model.make(model.ways[0])) as seen:
        seen_by = seen
        model.make(model.ways[0])  # another model, which is not watched
    assert len(seen_by) == 0
    watched = model.make(model.ways[0])
    with torch.no_grad(), watch(watched) as seen:
        watched(**model.inputs(False))
    modules = dict(watched.named_modules())
    for call in seen:
        assert call.name in modules
    roles = [call.role for call in seen]
    assert roles == (["self"] * 2 + ["self", "cross"] * 2 if model.kind == "both" else ["self"] * 2)


@pytest.mark.parametrize("way", ["sdpa", "eager"])
@pytest.mark.parametrize("model", foreign.MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_nothing_is_changed(model, way, training):
    if way not in model.ways:
        pytest.skip("this architecture does not attend so")
    given = model.inputs(True) if model.kind != "image" else model.inputs(False)
    results = []
    for watching in (False, True):
        one = model.make(way).train(training)
        torch.manual_seed(3)
        if watching:
            with watch(one) as seen:
                out = one(**given).last_hidden_state
                out.square().mean().backward()
            assert len(seen) >= 2
        else:
            out = one(**given).last_hidden_state
            out.square().mean().backward()
        results.append((out.detach(), {n: p.grad for n, p in one.named_parameters()}, torch.get_rng_state()))
    (out, grads, state), (again, grads_again, state_again) = results
    assert torch.equal(out, again)
    assert torch.equal(state, state_again)
    for name, grad in grads.items():
        assert (grad is None) == (grads_again[name] is None)
        assert grad is None or torch.equal(grad, grads_again[name]), name


def causal_model(name):
    """The architecture with a head that predicts tokens, as `generate` needs it."""
    model = foreign.BY_NAME[name]
    return foreign.Foreign(
        name, model.config, model.model.replace("Model", "ForCausalLM"), model.settings, model.ways, model.kind
    )


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox"])
def test_decoding_with_a_cache_gives_the_rows_of_one_pass(name, padding, cache):
    model = causal_model(name).make("sdpa")
    given = causal_model(name).inputs(padding, left=True)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "cache_implementation": cache}
    if cache == "static":
        options["disable_compile"] = True
    with torch.no_grad():
        with watch(model) as seen:
            tokens = model.generate(**given, **options)
        mask = given.get("attention_mask")
        mask = None if mask is None else torch.nn.functional.pad(mask, (0, 3), value=1)
        with watch(model) as whole:
            model(tokens[:, :-1], attention_mask=mask, use_cache=False)
    assert not seen.unseen
    n = tokens.shape[1] - 1
    assert [call.shape[2] for call in seen if call.name.startswith("model.layers.0") or ".layers.0" in call.name] == [
        11,
        1,
        1,
        1,
    ]
    for name in whole.names:
        (joined,), (once,) = seen[name], whole[name]
        assert joined.shape[:3] == once.shape[:3] == (3, 4, n)
        real = torch.ones(3, n, dtype=torch.bool) if mask is None else mask.bool()
        rows = real[:, None].expand(3, 4, n)
        for statistic in ("entropy", "max_logit", "sink", "distance", "visible"):
            if statistic == "sink" and name.startswith("model.layers") and model.config.model_type == "mistral":
                assert (
                    joined.statistics.sink is None
                )  # a step sees its window alone: where the sample begins is not known
                continue
            a, b = getattr(joined.statistics, statistic)[rows], getattr(once.statistics, statistic)[rows]
            torch.testing.assert_close(
                a, b, rtol=1e-4, atol=1e-4, equal_nan=True, msg=lambda m, s=statistic: f"{s}: {m}"
            )


def test_beam_search_and_an_encoder_decoder():
    model = foreign.Foreign("bart", "BartConfig", "BartForConditionalGeneration", foreign.SEQ2SEQ).make("sdpa")
    given = {k: v for k, v in foreign.BY_NAME["bart"].inputs(True).items() if not k.startswith("decoder")}
    with torch.no_grad(), watch(model) as seen:
        model.generate(**given, num_beams=2, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert not seen.unseen
    cross = seen["model.decoder.layers.1.encoder_attn"]
    assert [(call.role, call.shape) for call in cross] == [("cross", (6, 4, 3, 11))]
    (own,) = seen["model.decoder.layers.1.self_attn"]
    assert own.shape == (6, 4, 3, 3)
    assert own.statistics.visible[0, 0].tolist() == [1, 2, 3]
    assert cross[0].statistics.visible[2:4, 0, 0].tolist() == [7, 7]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("name", "way"), [("llama", "sdpa"), ("llama", "eager"), ("bert", "sdpa"), ("t5", "sdpa")])
def test_gradient_checkpointing(name, way, reentrant):
    """With a mask, watched, watched with gradients and monitored: bit for bit as unwatched."""
    given, grads = foreign.BY_NAME[name].inputs(True), []
    for by in ("nobody", "watch", "watch with gradients", "monitor"):
        model = foreign.BY_NAME[name].make(way).train()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        looking = {
            "nobody": nullcontext(),
            "watch": watch(model),
            "watch with gradients": watch(model, grad=True),
            "monitor": AttentionMonitor(model).step(),
        }[by]
        torch.manual_seed(0)
        with looking as seen:
            model(**given).last_hidden_state.square().mean().backward()
        if by.startswith("watch"):
            assert not seen.unseen
            assert len(seen) == (6 if name == "t5" else 2)
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for some in zip(*grads, strict=True):
        assert all(torch.equal(some[0], other) for other in some[1:])


@pytest.mark.filterwarnings("ignore")
def test_flex_attention():
    """One architecture: each compiles for seconds."""
    given = foreign.BY_NAME["gemma2"].inputs(True, left=True)
    with torch.no_grad():
        with watch(foreign.BY_NAME["gemma2"].make("eager", num_hidden_layers=1)) as eager:
            pass
        models = [foreign.BY_NAME["gemma2"].make(way, num_hidden_layers=1) for way in ("flex_attention", "eager")]
        both = []
        for model in models:
            with watch(model) as seen:
                model(**given)
            both.append(seen)
    assert len(eager) == 0
    (flex,), (eager,) = both
    assert flex.how == "transformers flex_attention"
    real = given["attention_mask"].bool()[:, None].expand(3, 4, 11)
    for name in ("entropy", "max_logit", "distance", "visible"):
        a, b = getattr(flex.statistics, name)[real], getattr(eager.statistics, name)[real]
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_that_the_interface_does_not_describe_is_unseen_and_said_so(dropout):
    """A module whose function does more than softmax(q · k · scale + mask) v, in training too."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = foreign.BY_NAME["bert"].make("sdpa", attention_probs_dropout_prob=dropout).train(dropout > 0)
    inputs, given = foreign.BY_NAME["bert"].inputs(False), ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = lambda *args, **kwargs: (given(*args, **kwargs)[0] * 1.1, None)
    outputs = []
    try:
        for watching in (False, True):
            torch.manual_seed(0)
            with watch(model) if watching else nullcontext() as seen:
                outputs += [model(**inputs).last_hidden_state, torch.get_rng_state()]
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert len(seen) == 0
    assert "of its own kind" in seen.unseen["encoder.layer.0.attention.self"]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])


@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_dropout_in_training_is_no_other_attention(way):
    model = foreign.BY_NAME["bert"].make(way, attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.0).train()
    torch.manual_seed(0)
    with watch(model) as seen:
        model(**foreign.BY_NAME["bert"].inputs(True))
    assert not seen.unseen
    assert len(seen) == 2
