"""What a mechanism keeps about each record between its calls: features, latent codes, optimiser moments.

Keeping it costs no privacy as long as a record's state is made from that record, its own coins and what was already
released, and from nothing else (docs/proofs/local-inference.md). It never leaves the room: a method holds a
`LocalState`, which is a bare token, and only mechanisms turn the token into values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from dpgm.mechanisms.queries import BLOCK
from dpgm.schema import Rows


class LocalState:
    """A token for values that stay with the private rows; it holds none itself and is neither copied nor saved.

    The values end with the token or with the rows, whichever goes first. A run that is resumed makes them anew: nothing
    private is ever written down.
    """

    __slots__ = ("__weakref__",)

    def __repr__(self) -> str:
        return "LocalState(stays with the rows)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("local state is neither copied nor saved: it belongs to private rows; make a new one")


@dataclass
class _Drawer:
    rows: ref[Rows]
    value: Tensor


_drawers: WeakKeyDictionary[LocalState, _Drawer] = WeakKeyDictionary()


def values_of(state: LocalState, rows: Rows, first: Callable[[Rows], Tensor]) -> Tensor:
    """The values behind a token, `[n, ...]`, one for each of `rows`; for mechanisms only. They may be written to.

    Args:
        state: the token.
        rows: the private rows; other rows than before start anew.
        first: makes the first values of a block of rows, `[b, ...]`, each from its own record.

    Raises:
        ValueError: `first` gives another number of values than there are records.
    """
    drawer = _drawers.get(state)
    if drawer is None or drawer.rows() is not rows:
        parts: list[Tensor] = []
        for block in rows.blocks(BLOCK):
            part = first(block)
            if len(part) != len(block):
                raise ValueError("the first values differ in number from the records; give one for each record")
            parts.append(part)
        token = ref(state)
        drawer = _Drawer(ref(rows, lambda _: _empty(token)), torch.cat(parts) if parts else first(rows))
        _drawers[state] = drawer
    return drawer.value


def _empty(token: ref[LocalState]) -> None:
    """Forget the values behind a token whose rows are gone."""
    state = token()
    if state is not None:
        _drawers.pop(state, None)
