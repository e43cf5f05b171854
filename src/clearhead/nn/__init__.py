"""Modules: attention, layers and models that take a mechanism as an object."""

from clearhead.nn.attention import CrossAttention, SelfAttention
from clearhead.nn.generate import Hypothesis, Sampling, generate
from clearhead.nn.hugging_face import register_with_transformers
from clearhead.nn.layers import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward, StackCache
from clearhead.nn.positions import Learned, Rotary, Sinusoidal
from clearhead.nn.seen import maps
from clearhead.nn.seq2seq import Seq2Seq

__all__ = [
    "CrossAttention",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "FeedForward",
    "Hypothesis",
    "Learned",
    "Rotary",
    "Sampling",
    "SelfAttention",
    "Seq2Seq",
    "Sinusoidal",
    "StackCache",
    "generate",
    "maps",
    "register_with_transformers",
]
