"""How layers and numbers of things are written."""


def label(name: str, turn: int) -> str:
    """A layer, and which of its runs it is where its weights are shared."""
    return f"{name} (run {turn + 1})" if turn else name


def counted(number: int, thing: str) -> str:
    """A number of things, as in "1 token" and "2 tokens"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
