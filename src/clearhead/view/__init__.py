"""Attention of any length to look at, as one looks at a street map: numbers, a server of them, and a page."""

from clearhead.view.blocks import TILE, Picture
from clearhead.view.pyramid import Pyramid

__all__ = ["TILE", "Picture", "Pyramid"]
