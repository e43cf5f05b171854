"""The colours of attention: one scale for every picture, on paper and on screen.

Both scales run through the same hues in equal steps of OKLab lightness, so that twice the weight looks twice as far
from the background, to colour-blind eyes and on grey paper too. Zero is the background: white, or the dark page.
"""

LIGHT = (
    "#ffffff", "#c6f5e5", "#87e8dd", "#3ed5dd", "#00bed8", "#07a4cc",
    "#008cc0", "#0073b4", "#0f5aa6", "#24448a", "#26306c", "#211e4e",
)  # fmt: skip
DARK = (
    "#1e1d27", "#2c2851", "#33367a", "#2b4aa0", "#0066b7", "#0082b5",
    "#049db8", "#07b8b9", "#4bd0ae", "#a1deaa", "#dbe9be", "#fcf9ea",
)  # fmt: skip
NOT_FINITE = "#f0a202"
"""NaN and infinity: amber, which neither scale contains, and hatched, for eyes that see no hues."""
