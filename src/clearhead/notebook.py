"""What notebooks show: IPython is told, by the names of types, how they are drawn, so that nothing is imported for it.

Tables, figures and what `importance` finds know their own form; attention maps and patterns lie below all pictures.
"""

import html
from typing import Any


def register(shell: Any) -> None:
    """Tell a running IPython; `import clearhead` does."""
    formatters = shell.display_formatter.formatters
    formatters["image/png"].for_type_by_name("clearhead.maps.base", "AttentionMap", draw_map)
    formatters["image/png"].for_type_by_name("clearhead.observe.calls", "Call", draw_call)
    formatters["text/html"].for_type_by_name("clearhead.patterns.base", "Pattern", write_pattern)


def draw_map(A: Any, title: str | None = None) -> bytes | None:
    """Every head of an attention map, of its first sample; long ones on a logarithmic scale."""
    from clearhead.picture import heatmap, png  # which take matplotlib
    from clearhead.picture.heads import TOGETHER

    if 0 in A.shape:
        return None
    sample = 0 if len(A.shape) == 4 else None
    if len(A.shape) == 4 and A.shape[0] > 1:
        title = f"{title}, sample 0" if title else "sample 0"
    return png(heatmap(A, sample=sample, title=title, log=max(A.shape[-2:]) > TOGETHER))


def draw_call(call: Any) -> bytes | None:
    """The map of a call, where it was kept."""
    return None if call.map is None else draw_map(call.map, call.name)


def write_pattern(pattern: Any) -> str:
    """Who sees whom among the first positions, as `print` shows it."""
    return f"<pre>{html.escape(str(pattern))}</pre>"
