"""Attention of any length to look at, as one looks at a street map: its numbers at every scale, and a server of them.

scene = read("models/long", Path("long.txt").read_text())
with Server() as server:
    print(server.url)
    server.show(Explorer(scene))
"""

from clearhead.view.answers import Explorer
from clearhead.view.blocks import TILE, Picture
from clearhead.view.pyramid import Pyramid
from clearhead.view.scene import Scene, read
from clearhead.view.server import PORT, Server
from clearhead.view.shown import Shown, view
from clearhead.view.site import Site

__all__ = ["PORT", "TILE", "Explorer", "Picture", "Pyramid", "Scene", "Server", "Shown", "Site", "read", "view"]
