"""Sequence to sequence: the encoder-decoder transformer (Vaswani 2017).

Shapes: B samples, Ns source tokens, Nt target tokens, E model width, V target vocabulary.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import InputError, ShapeError, nearest
from clearhead.maps import Softmax
from clearhead.nn import initial
from clearhead.nn.attention import CrossAttention, SelfAttention
from clearhead.nn.dropout import Dropout
from clearhead.nn.layers import Decoder, DecoderLayer, Encoder, EncoderLayer, StackCache
from clearhead.nn.positions import Learned, Rotary, Sinusoidal
from clearhead.patterns import causal

POSITIONS = ("learned", "rotary", "sinusoidal")


class Seq2Seq(nn.Module):
    """An encoder and a decoder over token numbers, target embeddings tied to the output projection.

    Args:
        source_vocab, target_vocab: how many tokens each side has.
        mechanism: of the encoder's self-attention; a new `Softmax()` if None. The decoder's is causal softmax.
        positions: "sinusoidal", "rotary" or "learned"; learned ones end at `max_length`.
        dropout: of embeddings and residual branches in training; `attention_dropout` of attention weights.
        activation: of the feed-forwards; GELU if None.
        share_embeddings: source and target have one vocabulary and one table.
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        embed_dim: int = 128,
        num_heads: int = 4,
        ff_dim: int | None = None,
        encoder_layers: int = 2,
        decoder_layers: int = 2,
        kv_heads: int | None = None,
        mechanism: nn.Module | None = None,
        positions: str = "sinusoidal",
        max_length: int = 1024,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation: nn.Module | None = None,
        share_embeddings: bool = False,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise InputError(f"unknown positions {positions!r}{nearest(positions, POSITIONS)}")
        if share_embeddings and source_vocab != target_vocab:
            raise InputError(f"share_embeddings needs one vocabulary, not {source_vocab} and {target_vocab} tokens")

        def own(mechanism: nn.Module) -> SelfAttention:
            turn = Rotary(embed_dim // num_heads) if positions == "rotary" else None
            return SelfAttention(embed_dim, num_heads, mechanism, kv_heads, turn, attention_dropout)

        def added() -> Sinusoidal | Learned | None:
            if positions == "rotary":
                return None
            return Sinusoidal(embed_dim) if positions == "sinusoidal" else Learned(embed_dim, max_length)

        cross = CrossAttention(embed_dim, num_heads, kv_heads=kv_heads, dropout=attention_dropout)
        layer = EncoderLayer(own(Softmax() if mechanism is None else mechanism), ff_dim, dropout, activation)
        self.encoder = Encoder(layer, encoder_layers, added())
        layer_of_decoder = DecoderLayer(own(Softmax(causal())), cross, ff_dim, dropout, activation)
        self.decoder = Decoder(layer_of_decoder, decoder_layers, added())
        self.target_embedding = nn.Embedding(target_vocab, embed_dim)
        self.source_embedding = self.target_embedding if share_embeddings else nn.Embedding(source_vocab, embed_dim)
        # a Linear that shares the weight, not F.linear with it: per-sample gradients are then right
        self.output = nn.Linear(embed_dim, target_vocab, bias=False)
        self.output.weight = self.target_embedding.weight
        self.drop = Dropout(dropout)
        initial.embedding(self.source_embedding)
        initial.embedding(self.target_embedding)

    def forward(
        self,
        source: Int[Tensor, "b s"],
        target: Int[Tensor, "b t"],
        source_lengths: Int[Tensor, " b"] | None = None,
        target_lengths: Int[Tensor, " b"] | None = None,
        logits: bool = True,
    ) -> Float[Tensor, "b t v"]:
        """Logits of each target token's successor, (B, Nt, V), for token numbers (B, Ns) and (B, Nt).

        `target` begins with the token that begins sequences; lengths (B,) mean right padding of any content. Without
        `logits` it is what `output` makes them of, (B, Nt, E), for `linear_cross_entropy`.
        """
        memory = self.encode(source, source_lengths)
        x = self.decoder(self._embed(self.target_embedding, target, "target"), memory, target_lengths, source_lengths)
        return self.output(x) if logits else x

    def encode(
        self, source: Int[Tensor, "b s"], source_lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b s e"]:
        """The memory, (B, Ns, E)."""
        return self.encoder(self._embed(self.source_embedding, source, "source"), source_lengths)

    def decode(
        self,
        target: Int[Tensor, "b t"],
        memory: Float[Tensor, "b s e"] | None,
        target_lengths: Int[Tensor, " b"] | None = None,
        source_lengths: Int[Tensor, " b"] | None = None,
        cache: StackCache | None = None,
    ) -> Float[Tensor, "b t v"]:
        """Logits, (B, Nt, V). With a cache, `target` are the next tokens, and the memory is None after the first."""
        x = self._embed(self.target_embedding, target, "target")
        return self.output(self.decoder(x, memory, target_lengths, source_lengths, cache=cache))

    def _embed(self, table: nn.Embedding, tokens: Tensor, name: str) -> Tensor:
        if tokens.dim() != 2:
            raise ShapeError(f"{name} has shape {tuple(tokens.shape)}; expected (B, N) token numbers")
        return self.drop(table(tokens) * table.embedding_dim**0.5)
