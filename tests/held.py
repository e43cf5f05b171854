"""Work that holds memory, for processes that import it: with nothing else to import, they start at once."""


def holding(mebibytes: int):
    """Work that holds so much."""
    return lambda: bytearray(b"x" * (mebibytes << 20)).count(b"y")
