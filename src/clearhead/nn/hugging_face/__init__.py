"""Clearhead as the attention of Hugging Face's models: `attn_implementation="clearhead"`."""

from clearhead.nn.hugging_face.attention import register_with_transformers

__all__ = ["register_with_transformers"]
