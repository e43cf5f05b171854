"""Where tokens stand: sinusoidal and learned positions are added to the input, rotary ones turn queries and keys.

Each takes the positions as an argument, so that they are right with a cache, with left padding and in packed rows.
Shapes: B samples, H heads, N tokens, E model width, D head width.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import InputError


class Sinusoidal(nn.Module):
    """Sines and cosines of wavelengths from 2π to `base` · 2π, added to the input (Vaswani 2017, section 3.5).

    Any position has one: there is no longest input.
    """

    def __init__(self, embed_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if embed_dim % 2:
            raise InputError(f"embed_dim={embed_dim} is odd; sinusoidal positions pair sines with cosines")
        self.embed_dim, self.base = embed_dim, base

    def forward(self, x: Float[Tensor, "b n e"], positions: Int[Tensor, "p n"]) -> Float[Tensor, "b n e"]:
        """x (B, N, E) with the vectors of its positions (B or 1, N) added."""
        angles = _angles(positions, self.embed_dim, self.base)
        return x + torch.cat([angles.sin(), angles.cos()], dim=-1).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, base={self.base}"


class Learned(nn.Module):
    """A vector for each of `max_length` positions, learned and added to the input (Gehring 2017)."""

    def __init__(self, embed_dim: int, max_length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small beside the tokens' own vectors, which are of unit size."""
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, x: Float[Tensor, "b n e"], positions: Int[Tensor, "p n"]) -> Float[Tensor, "b n e"]:
        """x (B, N, E) with the vectors of its positions (B or 1, N) added.

        Raises InputError where a position is beyond the table.
        """
        if positions.device.type == "cpu" and not torch.compiler.is_compiling() and positions.numel():
            least, most = int(positions.min()), int(positions.max())
            if least < 0 or most >= self.table.num_embeddings:
                raise InputError(
                    f"position {least if least < 0 else most} is outside the {self.table.num_embeddings} learned ones; "
                    "shorten the input, or use Sinusoidal or Rotary, which have no limit"
                )
        return x + self.table(positions)


class Rotary(nn.Module):
    """Turns pairs of a head's coordinates by angles proportional to the position (Su 2021).

    Products of queries and keys then depend on their distance alone. Coordinates i and i + D/2 are paired, as in
    GPT-NeoX and Llama.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise InputError(f"head_dim={head_dim} is odd; rotary positions turn pairs of coordinates")
        self.head_dim, self.base = head_dim, base

    def forward(self, x: Float[Tensor, "b h n d"], positions: Int[Tensor, "p #h n"]) -> Float[Tensor, "b h n d"]:
        """Queries or keys x (B, H, N, D) turned to their positions (B or 1, H or 1, N)."""
        angles = _angles(positions, self.head_dim, self.base)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def extra_repr(self) -> str:
        return f"{self.head_dim}, base={self.base}"


def _angles(positions: Tensor, width: int, base: float) -> Tensor:
    """position · base^(-2i / width), (…, N, width / 2). In float32 whatever the model's dtype: bfloat16 cannot tell
    position 257 from 256."""
    rates = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
    return positions[..., None] * torch.exp(rates * (-math.log(base) / width))
