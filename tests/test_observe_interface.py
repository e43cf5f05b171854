"""Watching Hugging Face's models however they call their attention interface: by position or by name, and what for."""

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from clearhead.observe import watch

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
IDS = torch.randint(3, 50, (2, 11), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS).index_put_((torch.tensor([1, 1]), torch.tensor([9, 10])), torch.tensor(0))
SOUND = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 8,
}


def made(config, model, way, **settings):
    torch.manual_seed(0)
    config, kind = getattr(transformers, config)(**settings), getattr(transformers, model)
    one = kind._from_config(config, attn_implementation=way).eval()
    with torch.no_grad():
        for p in one.parameters():
            if p.dim() == 2:
                p.mul_(3)
    return one


def sound():
    features = torch.randn(2, 80, 16, generator=torch.Generator().manual_seed(2))
    return {"input_features": features, "attention_mask": (torch.arange(80) < torch.tensor([[80], [56]])).long()}


BY_NAME = {
    "doge": ("DogeConfig", "DogeModel", SMALL, lambda: {"input_ids": IDS, "attention_mask": MASK}),
    "afmoe": (
        "AfmoeConfig",
        "AfmoeModel",
        {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "sliding_window": 4},
        lambda: {"input_ids": IDS, "attention_mask": MASK},
    ),
    "parakeet": ("ParakeetEncoderConfig", "ParakeetEncoder", SOUND, sound),
}
"""Models that call the interface with `attention_mask=` by name, and with all by name."""


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_arguments_are_bound_as_the_interface_names_them(name, way):
    config, model, settings, inputs = BY_NAME[name]
    one, given = made(config, model, way, **settings), inputs()
    with torch.no_grad():
        plain = one(**given).last_hidden_state
        with watch(one) as seen:
            watched = one(**given).last_hidden_state
        weights = made(config, model, "eager", **settings)(**given, output_attentions=True).attentions
    assert torch.equal(plain, watched)
    assert not seen.unseen
    assert len(seen) == len(weights)
    for call, w in zip(seen, weights, strict=True):
        real = torch.ones(w.shape[:3], dtype=torch.bool)
        if call.padding is not None:
            real = ~call.padding[:, None].expand(w.shape[:3])
        entropy = torch.special.entr(w.double()).sum(-1)
        torch.testing.assert_close(call.statistics.entropy.double()[real], entropy[real], rtol=1e-4, atol=1e-5)


def test_a_model_without_values_is_listed():
    config, model, settings, _ = BY_NAME["doge"]
    with torch.device("meta"):
        one = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad(), watch(one) as seen:
        one(input_ids=IDS.to("meta"))
    assert "tensors without values" in seen.unseen["layers.0.self_attn"]
    assert not len(seen)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["sdpa", "eager"])
def test_a_model_is_traced_while_it_is_watched(way):
    one = made("BertConfig", "BertModel", way, **{key: SMALL[key] for key in SMALL if "key" not in key}).encoder.layer[
        0
    ]
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        plain = torch.jit.trace(one, (x,), check_trace=False)
        with watch(one):
            watched = torch.jit.trace(one, (x,), check_trace=False)
        assert torch.equal(watched(x), plain(x))
    kinds = ([node.kind() for node in trace.inlined_graph.nodes()] for trace in (plain, watched))
    assert next(kinds) == next(kinds)


def test_what_fails_in_the_watch_alone_is_listed(monkeypatch):
    from clearhead.observe.watching import hugging_face

    monkeypatch.setattr(hugging_face, "attention_map", lambda *_, **__: 1 / 0)
    config, model, settings, inputs = BY_NAME["doge"]
    one = made(config, model, "sdpa", **settings)
    with torch.no_grad(), watch(one) as seen:
        one(**inputs())
    assert seen.unseen["layers.0.self_attn"] == "it could not be measured: ZeroDivisionError: division by zero"
