"""The words for what pydantic finds wrong with a value; used for configurations and for options of the command line."""

import difflib
import re
import reprlib
from typing import Any

_NUMBER, _WHOLE = "must be a number", "must be a whole number"
_SWITCH, _TEXT = "must be true or false", "must be a text"
WORDS = {
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "finite_number": _NUMBER,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": _WHOLE,
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "invalid_key": "must be a name",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_type": "must be a section of keys",
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "too_long": "must be at most {max_length} values",
    "tuple_type": "must be a list",
    "value_error": "{error}",
}
"""By pydantic's type of error; `tests/test_train_config.py` sets every key to every kind of wrong value."""


def words(error: Any) -> str:
    """What a value must be, by one of the errors that pydantic reports."""
    return WORDS.get(error["type"], "cannot be that").format(
        **{key: _plain(x) for key, x in error.get("ctx", {}).items()}
    )


def _plain(bound: object) -> object:
    """A bound as people write it: 1 for 1.0."""
    return f"{bound:g}" if isinstance(bound, float) else bound


def instead(error: Any) -> str:
    """What came instead, and the choice that was meant where a word was misspelt."""
    choices = re.findall(r"'([^']*)'", error.get("ctx", {}).get("expected", ""))
    close = difflib.get_close_matches(str(error["input"])[:60], choices, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f", not {shown(error['input'])}{hint}"


def shown(value: object) -> str:
    """A value as YAML writes it, in at most 60 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 100:  # Python refuses to write very long ones
        return f"a number of {value.bit_length()} bits"
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
