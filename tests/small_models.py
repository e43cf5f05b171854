"""A small model of every architecture that transformers has: configurations shrunk by rules, weights at random.

`build(kind)` makes the model of a model type ("bert"), and `inputs(model)` what it can be called with.
"""

import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES  # noqa: E402

WIDTH, HEADS, HEAD, FEED, WORDS, ROOM, TOKENS, IMAGE, PATCH, MEL = 32, 4, 8, 48, 64, 64, 11, 32, 8, 16
MOST = 3_000_000  # parameters
RULES: dict[str, Any] = {
    r"hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|hidden_dim|emb_dim|model_dim|width|out_hidden_size|"
    r"(en|de)coder_hidden_size|word_embed_proj_dim|projection_dim|text_hidden_size|cross_attention_hidden_size|"
    r"projection_size|(en|de)coder_hidden_dim|cross_hidden_size|mit_hidden_size|pooler_hidden_size|true_hidden_size|"
    r"output_hidden_size|lru_width|pooler_output_size|image_text_hidden_size|hidden_size_global|fpn_hidden_size|"
    r"(in|out)put_embedding_size|backbone_hidden_size|condition_dim|audio_hidden_size|adapter_(in|out)_dim|"
    r"text_embed_dim|project_dim|pred_hidden_size|projector_(in|out)put_dim|vision_output_dim|iou_head_hidden_dim|"
    r"output_channels|mask_feature_size|fpn_feature_size|mask_dim|class_embed_dim|intra_bottleneck_size|"
    r"descriptor_dim|keypoint_decoder_dim|fusion_hidden_size|output_proj_dims|visual_feat_dim|entity_emb_size": WIDTH,
    r"(\w+_)?(num_)?(attention_)?heads|n_heads?|num_attention_heads|\w+_attention_heads|\w*num_attention_heads|"
    r"resampler_n_heads": HEADS,
    r"head_dim|d_kv|attention_head_size|kv_channels|attention_head_dim|qk_nope_head_dim|qk_rope_head_dim|v_head_dim|"
    r"\w+_head_dim|dim_head": HEAD,
    r"intermediate_size|(\w+_)?ffn_dim|mlp_dim|d_ff|d_inner|n_inner|\w*intermediate_size|ffn_hidden_size|dim_ff|"
    r"\w*_dim_feedforward|dim_feedforward|moe_hidden_size|encoder_feedforward_dim|intermediate_size_mlp|"
    r"feed_forward_size|\w+_mlp_hidden_size|expert_ffn_hidden_size|\w+_intermediate_dim|share_expert_dim": FEED,
    r"vocab_size|\w+_vocab_size|vocab_size_per_layer_input|vocab_offset": WORDS,
    r"max_position_embeddings|n_positions|max_(source|target)_positions|\w*max_position_embeddings|"
    r"max_2d_position_embeddings": ROOM,
    r"num_hidden_layers|n_layers?|num_layers|(\w+_)?(encoder|decoder)_layers|depth|num_(en|de)coder_layers|layers|"
    r"\w+_num_hidden_layers|\w+_num_layers|[lrx]_layers|resampler_depth|num_\w+_layers|\w+_layers": 2,
    r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts": 4,
    r"num_experts_per_tok|moe_topk|num_experts_per_token|moe_k|top_k|topk_group|n_group|num_expert_group": 2,
    r"sliding_window|attention_window_size|sliding_window_size|local_attention|window_size": 4,
    r"q_lora_rank|kv_lora_rank|o_lora_rank|classifier_proj_size|xvector_output_dim|codevector_dim|"
    r"proj_codevector_dim|subsampling_conv_channels|num_queries|visual_pos_dim": 16,
    r"num_mel_bins|input_feat_per_channel|feature_projection_input_dim": MEL,
    r"num_codevectors_per_group|num_negatives": 8,
    r"num_conv_pos_embedding_groups|rotary_dim|num_query_tokens|num_frames": 4,
    r"image_size|img_size|max_image_size|pretrain_image_size|max_img_size": IMAGE,
    r"patch_size": PATCH,
    r"conv_channels|stem_channels|out_channels|base_channels|num_filters": 16,
}  # fmt: skip
_RULES = [(re.compile(pattern), value) for pattern, value in RULES.items()]
LISTS: dict[str, Any] = {
    r"depths|stage_num_blocks|num_blocks|layers_per_stage": lambda n: [1] * n,
    r"num_heads|num_attention_heads": lambda n: [2] * n,
    r"hidden_sizes|embed_dims|(encoder|decoder)_hidden_sizes|hidden_dims": lambda n: [16 << i for i in range(n)],
    r"conv_dim|tdnn_dim": lambda n: [16] * n,
    r"image_size|img_size": lambda n: [IMAGE] * n,
}
KEPT = re.compile(
    r"num_kv_shared_layers|first_k_dense_replace|num_nextn_predict_layers|\w*adapter_layers|no_rope_layers|"
    r"type_vocab_size|num_feat_extract_layers|max_window_layers|encode_proj_layers|upsample_\w+|cardinality|"
    r"num_(dense|residual|conv|lstm)_layers"
)
MROPE = re.compile(
    r"(glm4v|glm4v_moe|glm_image|glm_ocr|glm46v|qwen2_vl|qwen2_5_vl|paddleocr_vl|ernie4_5_vl_moe)(_text)?"
)


def kinds() -> list[str]:
    """The model types of transformers that have a model, one for each pair of configuration and model."""
    found, known = [], set()
    for kind, names in MODEL_MAPPING_NAMES.items():
        name = names if isinstance(names, str) else names[0]
        if name not in known:
            known.add(name)
            found.append(kind)
    return found


def model_class(kind: str) -> type[nn.Module]:
    names = MODEL_MAPPING_NAMES[kind]
    return getattr(transformers, names if isinstance(names, str) else names[0])


def small(kind: str) -> Any:
    """The configuration of a model type, made small."""
    cls = CONFIG_MAPPING[kind]
    settings = shrunk(cls())
    settings.update(EXCEPTIONS.get(kind, {}))
    return cls(**settings)


EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "moe"]},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "bros": {"dim_bbox_sinusoid_emb_2d": 32, "dim_bbox_sinusoid_emb_1d": 4, "dim_bbox_projection": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "lilt": {"channel_shrink_ratio": 2, "hidden_size": 48, "intermediate_size": 48},
    "layoutlmv3": {"input_size": 32, "patch_size": 8, "coordinate_size": 4, "shape_size": 4, "hidden_size": 24},
    "mobilebert": {"intra_bottleneck_size": 32, "true_hidden_size": 32, "embedding_size": 32},
    "reformer": {
        "axial_pos_shape": [1, 11],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 11,
        "lsh_attn_chunk_length": 11,
        "num_buckets": 2,
    },
    "nemotron": {"num_key_value_heads": 4},
    "mistral4": {"head_dim": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "autoformer": {"prediction_length": 4, "context_length": 8},
    "bridgetower": {
        "text_config": {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 48,
            "vocab_size": 64,
        },
        "vision_config": {"hidden_size": 64, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
    },
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"]},
    "moonshine_streaming": {},
}


def shrunk(config: Any) -> dict[str, Any]:
    """The settings of a configuration that make it small."""
    own = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    found: dict[str, Any] = {}
    for key, value in own.items():
        if isinstance(value, transformers.PretrainedConfig):
            found[key] = {"model_type": value.model_type, **shrunk(value)}
        elif key.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= WORDS:
            found[key] = WORDS - 1 - len([k for k in found if k.endswith(("_token_id", "_token_index"))])
        elif (rule := _rule(key, value)) is not None:
            found[key] = rule
        elif key in ("mask_time_prob", "mask_feature_prob"):  # SpecAugment, which wants long sounds
            found[key] = 0.0
        elif key in ("attn_logit_softcapping", "attn_logit_softcap") and value:  # so low that it matters
            found[key] = 2.0
        elif key == "query_pre_attn_scalar" or (key == "head_dim" and value is None):
            found[key] = HEAD
    _layers(own, found)
    _rope(config, own, found)
    if "fullatt_block_indexes" in own:
        found["window_size"] = 2 * PATCH * own["spatial_merge_size"]
        found["fullatt_block_indexes"] = [1]
    return found


def _rule(key: str, value: Any) -> Any:
    if isinstance(value, bool) or KEPT.fullmatch(key):
        return None
    if key in ("num_key_value_heads", "num_kv_heads", "multi_query_group_num") or key.endswith("key_value_heads"):
        return value and None
    if isinstance(value, int):
        found = next((small for pattern, small in _RULES if pattern.fullmatch(key)), None)
        return None if found is None or value <= found else found
    if isinstance(value, list | tuple) and value and isinstance(value[0], int):
        return next((made(len(value)) for pattern, made in LISTS.items() if re.fullmatch(pattern, key)), None)
    return None


def _layers(own: dict[str, Any], found: dict[str, Any]) -> None:
    """Lists of kinds of layers: each kind once, and at least two layers."""
    types = own.get("layer_types") or own.get("layers_block_type")
    if types:
        kept = list(dict.fromkeys(types))
        kept += kept[-1:] if len(kept) < 2 else []
        name = "layer_types" if own.get("layer_types") else "layers_block_type"
        found[name] = kept
        found["num_hidden_layers"] = len(kept)
    n = found.get("num_hidden_layers")
    for key in ("mlp_layer_types",):
        if own.get(key) and n:
            each = list(dict.fromkeys(own[key]))
            found[key] = (each * n)[:n]
    for key in own:
        if key.endswith("key_value_heads") or key == "num_kv_heads":
            heads, kv = own.get(key.replace("key_value", "attention").replace("_kv", "")), own[key]
            if isinstance(kv, int):
                found[key] = 1 if kv == 1 and heads != 1 else HEADS if kv == heads else 2


def _rope(config: Any, own: dict[str, Any], found: dict[str, Any]) -> None:
    name = "rope_parameters" if own.get("rope_parameters") else "rope_scaling"
    rope = own.get(name)
    if isinstance(rope, dict) and ("mrope_section" in rope or MROPE.fullmatch(config.model_type)):
        half = int(HEAD * rope.get("partial_rotary_factor", 1.0)) // 2
        found[name] = {
            **rope,
            "mrope_section": [half - 2 * (half // 3), half // 3, half // 3] if half > 2 else [1, 1, 0],
        }


def build(kind: str, way: str = "eager", dropping: bool = False) -> Any:
    """The model of a model type, small, in evaluation mode, with heads that are not uniform."""
    torch.manual_seed(0)
    model = model_class(kind)._from_config(small(kind), attn_implementation=way)
    sharpen(model)
    if dropping:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
    return model.eval()


@torch.no_grad()
def sharpen(model: nn.Module) -> None:
    """Draw weights anew, so large that attention is far from uniform, which would hide mistakes."""
    for name, p in model.named_parameters():
        if not p.is_floating_point():
            continue
        if name.endswith("sinks"):
            p.normal_()
        elif p.dim() > 1:
            fan = p[0].numel() if p.dim() > 1 else 1
            p.normal_(0, 1.5 / fan**0.5 if "embed" not in name else 1.0)


def inputs(model: Any) -> dict[str, Tensor]:
    """What the model can be called with: two samples, of which the second is padded where that is known."""
    g = torch.Generator().manual_seed(1)
    takes = inspect.signature(model.forward).parameters
    main = model.main_input_name
    needed = [n for n, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    given: dict[str, Any] = {}
    for name in dict.fromkeys([main, *needed, *takes]):
        wanted = name in needed or name == main or name in ALWAYS
        if name == "pixel_values" and not wanted:
            wanted = "input_ids" in takes and not any("image_token" in key for key in vars(model.config))
        if name == "attention_mask" and not {"input_ids", "inputs_embeds"} & {*given}:
            continue  # of images and sounds it has a length of its own
        if wanted and "grid_thw" in takes and name in ("hidden_states", "pixel_values"):
            given[name] = torch.randn(48, _patch_width(model), generator=g)
        elif wanted and name in MAKERS:
            given[name] = MAKERS[name](model.config, g)
    return given | {name: make(g) for name, make in GIVEN.get(model.config.model_type, {}).items()}


ALWAYS = ("input_ids", "attention_mask", "decoder_input_ids", "bbox", "input_features_mask")
GIVEN: dict[str, Any] = {}


def _ids(n: int) -> Any:
    return lambda config, g: torch.randint(5, 40, (2, n), generator=g)


def _mask(config: Any, g: Any) -> Tensor:
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 7:] = 0
    return mask


def image(config: Any, g: Any) -> Tensor:
    channels = _first(config, ("num_channels", "in_channels"), 3)
    channels = channels if isinstance(channels, int) else 3
    size = _first(config, ("image_size", "img_size"), IMAGE)
    h, w = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(2, channels, h, w, generator=g)


def _patch_width(model: nn.Module) -> int:
    """How many numbers a flat patch has."""
    weights = (p for name, p in model.named_parameters() if "patch" in name and p.dim() > 1)
    return next(weights)[0].numel()


def _video(config: Any, g: Any) -> Tensor:
    n = _first(config, ("num_frames", "frames_per_clip"), 4)
    return image(config, g)[:, None].repeat(1, n, 1, 1, 1) + torch.randn(2, n, 1, 1, 1, generator=g)


def _features(config: Any, g: Any) -> Tensor:
    mel, room = (
        _first(config, ("num_mel_bins", "feature_size", "input_feat_per_channel"), MEL),
        _first(config, ("max_source_positions",), 0),
    )
    return torch.randn(2, mel, 2 * room, generator=g) if room else torch.randn(2, 64, mel, generator=g)


def _first(config: Any, names: tuple[str, ...], default: Any) -> Any:
    for holder in (
        config,
        *(getattr(config, part, None) for part in ("vision_config", "audio_config", "encoder_config")),
    ):
        for name in names:
            value = getattr(holder, name, None)
            if value is not None:
                return value
    return default


MAKERS: dict[str, Any] = {
    "input_ids": _ids(TOKENS),
    "decoder_input_ids": _ids(6),
    "attention_mask": _mask,
    "pixel_values": image,
    "image_embeds": image,
    "pixel_values_videos": _video,
    "bbox": lambda config, g: (
        torch.tensor([1, 2, 8, 9]).expand(2, TOKENS, 4) + torch.randint(5, (2, TOKENS, 1), generator=g)
    ),
    "input_values": lambda config, g: torch.randn(2, 2000, generator=g),
    "input_features": _features,
    "input_features_mask": lambda config, g: torch.ones(2, 64, dtype=torch.long),
    "query_embeds": lambda config, g: torch.randn(2, 4, WIDTH, generator=g),
    "inputs_embeds": lambda config, g: torch.randn(2, TOKENS, WIDTH, generator=g),
    "grid_thw": lambda config, g: torch.tensor([[1, 4, 4], [1, 4, 8]]),
    "hidden_states": lambda config, g: torch.randn(2, TOKENS, WIDTH, generator=g),
}


def why_not(kind: str) -> str | None:
    """Why a model type cannot be run small, in a word of `architectures.NOT_RUN`; None: it can."""
    try:
        with torch.device("meta"):
            if sum(p.numel() for p in model_class(kind)(small(kind)).parameters()) > MOST:
                return "large"
    except Exception:  # some cannot be built without memory
        pass
    try:
        model = build(kind)
    except ImportError:
        return "library"
    except Exception:
        return "configuration"
    try:
        with torch.no_grad():
            out = model(**inputs(model))
    except Exception:
        return "inputs"
    return (
        "nan" if any(x.is_floating_point() and x.isnan().any() for x in out.values() if isinstance(x, Tensor)) else None
    )
