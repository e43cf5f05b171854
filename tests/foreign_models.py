"""Small models of other people's making, randomly initialised from their configurations, with inputs that fit."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
PLAIN = {**SMALL, "intermediate_size": 48}
ROOM = {"max_position_embeddings": 64}
QUIET = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Foreign:
    """An architecture: its configuration, the class that runs it, and in which ways it can attend."""

    name: str
    config: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    ways: tuple[str, ...] = ("sdpa", "eager")
    kind: str = "encoder"  # or "decoder", "both", "image"
    sharper: float = 4.0
    """What weights are multiplied by: at their initialisation heads are nearly uniform, and would hide mistakes."""

    def make(self, way: str, **settings: Any) -> Any:
        config = getattr(transformers, self.config)(**{**self.settings, **settings})
        torch.manual_seed(0)
        model = getattr(transformers, self.model)._from_config(config, attn_implementation=way)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.dim() > 1 and "embed" not in name and "wpe" not in name and "wte" not in name:
                    p.mul_(self.sharper)
                if name.endswith("sinks"):
                    p.normal_()
        return model.eval()

    def inputs(self, padded: bool, left: bool = False) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        if self.kind == "image":
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
        ids = torch.randint(3, 50, (3, 11), generator=generator)
        given = {"input_ids": ids}
        if padded:
            mask = torch.ones_like(ids)
            for i, n in enumerate((11, 7, 4)):
                mask[i, slice(0, 11 - n) if left else slice(n, 11)] = 0
            given["attention_mask"] = mask
        if self.kind == "both":
            given["decoder_input_ids"] = torch.randint(3, 50, (3, 6), generator=generator)
        return given


SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 50, **ROOM, **QUIET, "decoder_start_token_id": 1,
}  # fmt: skip
GROUPED = {**PLAIN, "num_key_value_heads": 2, **ROOM, **QUIET}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50, **ROOM}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 50,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, **ROOM, **QUIET}
GEMMA2 = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "sliding_window": 4}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 50,
    "decoder_start_token_id": 0,
}
GPT_OSS = {**GROUPED, "head_dim": 8, "sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1}
MODELS = (
    Foreign("bert", "BertConfig", "BertModel", {**PLAIN, **ROOM}),
    Foreign("roberta", "RobertaConfig", "RobertaModel", {**PLAIN, **ROOM}),
    Foreign("distilbert", "DistilBertConfig", "DistilBertModel", DISTILBERT),
    Foreign("gpt2", "GPT2Config", "GPT2Model", GPT2, kind="decoder"),
    Foreign("opt", "OPTConfig", "OPTModel", OPT, kind="decoder"),
    Foreign("llama", "LlamaConfig", "LlamaModel", GROUPED, kind="decoder"),
    Foreign("mistral", "MistralConfig", "MistralModel", {**GROUPED, "sliding_window": 4}, kind="decoder"),
    Foreign("qwen2", "Qwen2Config", "Qwen2Model", GROUPED, kind="decoder"),
    Foreign("gpt_neox", "GPTNeoXConfig", "GPTNeoXModel", {**PLAIN, **ROOM, **QUIET}, kind="decoder"),
    Foreign("phi", "PhiConfig", "PhiModel", {**PLAIN, **ROOM, **QUIET}, kind="decoder"),
    Foreign("gemma2", "Gemma2Config", "Gemma2Model", GEMMA2, ways=("eager",), kind="decoder"),
    Foreign("gpt_oss", "GptOssConfig", "GptOssModel", GPT_OSS, ways=("eager",), kind="decoder"),
    Foreign("t5", "T5Config", "T5Model", T5, kind="both", sharper=1.0),
    Foreign("marian", "MarianConfig", "MarianModel", SEQ2SEQ, kind="both"),
    Foreign("bart", "BartConfig", "BartModel", SEQ2SEQ, kind="both"),
    Foreign("vit", "ViTConfig", "ViTModel", {**PLAIN, "image_size": 16, "patch_size": 4}, kind="image"),
)
BY_NAME = {model.name: model for model in MODELS}
