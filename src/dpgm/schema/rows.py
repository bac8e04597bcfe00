"""The container that holds the records themselves, and the error of whatever does not fit the public facts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class SchemaError(ValueError):
    """Data or configuration that does not fit the declared public facts."""


def plain_number(value: Any) -> Any:
    """A number of numpy's as Python's, which a file can hold; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def check_size(size: Any) -> None:
    """Raise unless so many records can be declared; None declares none."""
    if size is not None and not (isinstance(size, int) and not isinstance(size, bool) and size >= 2):
        raise SchemaError(f"declared size is {size!r}; allowed is 2 or more records, a whole number")


def default_delta(size: int) -> float:
    """1/size rounded down to a power of ten: the largest delta this tool chooses by itself."""
    return 10.0 ** -math.ceil(math.log10(size))


class Rows:
    """Records as equally long columns; it exists only inside the curator, the mechanisms and the readers.

    Args:
        columns: arrays [n, ...] by name: `image` uint8 [n, height, width, channels] and `label` int64 [n] of pictures,
            `table` float64 [n, columns] of a table.

    Raises:
        SchemaError: columns of different lengths.
    """

    __slots__ = ("__weakref__", "_columns")

    def __init__(self, **columns: NDArray[Any]) -> None:
        lengths = {name: len(c) for name, c in columns.items()}
        if len(set(lengths.values())) != 1:
            raise SchemaError(f"columns ({', '.join(lengths)}) differ in length; give every record one value of each")
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._columns)

    def __repr__(self) -> str:
        return f"Rows({', '.join(self._columns)})"  # neither values nor their number

    def __reduce__(self) -> str:
        raise TypeError("rows are not pickled: they may be private; save the source instead")

    def take(self, index: NDArray[Any] | slice) -> Rows:
        """The rows at `index`, a boolean mask, integers or a slice."""
        return Rows(**{name: c[index] for name, c in self._columns.items()})

    def blocks(self, size: int) -> Iterator[Rows]:
        """The rows in order, in blocks of at most `size`, so that memory does not grow with their number."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))
