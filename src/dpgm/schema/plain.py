"""Strict reading of JSON objects: nothing is guessed, and what is of another type is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from dpgm.schema.rows import SchemaError

Kinds: TypeAlias = Mapping[str, tuple[type, ...]]
"""Types that each entry may have; `float` allows whole numbers, too, and no number is a truth value."""

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    type(None): "null",
}


def entries(value: Any, kinds: Kinds, where: str) -> dict[str, Any]:
    """The entries of a JSON object, each checked.

    Raises:
        SchemaError: `value` is no object, or one of its entries is unknown or of another type.
    """
    if not isinstance(value, Mapping):
        raise SchemaError(f"{where} is {_short(value)}; write an object with {', '.join(kinds)}")
    found = {str(k): v for k, v in value.items()}
    if unknown := sorted(set(found) - set(kinds)):
        raise SchemaError(f"unknown keys {unknown} in {where}; allowed are {sorted(kinds)}")
    for key, entry in found.items():
        if not _fits(entry, kinds[key]):
            allowed = " or ".join(_WORDS[kind] for kind in kinds[key])
            raise SchemaError(f"'{key}' of {where} is {_short(entry)}; allowed is {allowed}")
    return found


def texts(value: list[Any], where: str) -> tuple[str, ...]:
    """The texts and numbers of a list, as files write them.

    Raises:
        SchemaError: an entry is neither.
    """
    if bad := [v for v in value if not isinstance(v, str | int | float)]:
        raise SchemaError(f"{where} has the entry {_short(bad[0])}; allowed are texts and numbers")
    return tuple(map(str, value))


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
