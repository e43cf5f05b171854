"""What layers are called where they are drawn."""


def label(name: str, turn: int) -> str:
    """A layer, and which of its runs it is where its weights are shared."""
    return f"{name} (run {turn + 1})" if turn else name
