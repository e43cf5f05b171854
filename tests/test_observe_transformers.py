"""Watching Hugging Face's models: the same numbers as their eager weights give, and not a bit of them changed."""

import math

import pytest
import torch

pytest.importorskip("transformers")

import foreign_models as foreign  # noqa: E402

from clearhead.observe import watch  # noqa: E402

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
                if bool(real.all()):
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
