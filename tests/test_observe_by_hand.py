"""Watching Hugging Face's models that write attention by hand: padding and masks as their weights say."""

import math

import pytest
import torch

pytest.importorskip("transformers")

import foreign_models as foreign
from clearhead.observe import watch

GPTJ = {**foreign.GPT2, "rotary_dim": 4}
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64, "vocab_size": 50}
XGLM = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "vocab_size": 50, **foreign.ROOM}
NEO = {
    **foreign.SMALL,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
}
FALCON = {**foreign.SMALL, **foreign.QUIET, "new_decoder_architecture": False, "multi_query": False}
MODELS = (
    foreign.Foreign("bloom", "BloomConfig", "BloomModel", {**foreign.SMALL, "n_layer": 2, "n_head": 4}),
    foreign.Foreign("gptj", "GPTJConfig", "GPTJModel", GPTJ),
    foreign.Foreign("falcon", "FalconConfig", "FalconModel", {**FALCON, "alibi": False}),
    foreign.Foreign("falcon alibi", "FalconConfig", "FalconModel", {**FALCON, "alibi": True}),
    foreign.Foreign("openai-gpt", "OpenAIGPTConfig", "OpenAIGPTModel", foreign.GPT2),
    foreign.Foreign("codegen", "CodeGenConfig", "CodeGenModel", {**GPTJ, "n_head": 4}),
    foreign.Foreign("mpt", "MptConfig", "MptModel", MPT),
    foreign.Foreign("gpt_neo", "GPTNeoConfig", "GPTNeoModel", NEO),
    foreign.Foreign("xglm", "XGLMConfig", "XGLMModel", XGLM),
    foreign.Foreign("megatron", "MegatronBertConfig", "MegatronBertModel", {**foreign.PLAIN, **foreign.ROOM}),
    foreign.Foreign("roformer", "RoFormerConfig", "RoFormerModel", {**foreign.PLAIN, **foreign.ROOM}),
    foreign.Foreign("mpnet", "MPNetConfig", "MPNetModel", {**foreign.PLAIN, **foreign.ROOM}),
    foreign.Foreign("deberta", "DebertaV2Config", "DebertaV2Model", {**foreign.PLAIN, **foreign.ROOM}),
)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_hand_written_attention_is_seen_as_its_weights_say(model, padding):
    given, one = model.inputs(padding != "none", left=padding == "left"), model.make("eager")
    with torch.no_grad():
        plain = one(**given)
        with watch(one) as seen:
            watched = one(**given)
        weights = one(**given, output_attentions=True).attentions
    assert torch.equal(plain.last_hidden_state, watched.last_hidden_state)
    assert not seen.unseen
    assert len(seen) == len(weights) == 2
    real = given.get("attention_mask", torch.ones(3, 11)).bool()
    for call, w in zip(seen, weights, strict=True):
        w, statistics = w.double(), call.statistics
        rows = real[:, None].expand(w.shape[:3])
        if padding == "none":
            assert call.padding is None
        else:
            assert torch.equal(~call.padding.expand(3, 11), real)
        want = {
            "visible": (w > 0).sum(-1),
            "entropy": torch.special.entr(w).sum(-1),
            "max_weight": w.amax(-1),
            "distance": (w * (torch.arange(11)[:, None] - torch.arange(11)).abs()).sum(-1),
        }
        sink = torch.stack([w[i, ..., n] for i, n in enumerate(real.int().argmax(-1))])
        want["sink"] = sink.masked_fill(sink == 0, math.nan)  # a window that does not reach it
        for name, value in want.items():
            got = getattr(statistics, name)
            torch.testing.assert_close(got[rows].double(), value[rows].double(), rtol=1e-4, atol=1e-5, equal_nan=True)
        received = w.masked_fill(~rows[..., None], 0).sum(2)
        torch.testing.assert_close(statistics.received.double(), received, rtol=1e-4, atol=1e-5)
