"""The one door to private rows."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dpgm.privacy.guarantee import Guarantee, PrivacyError
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import Cost, Mechanism, NoiseSource, Reader
from dpgm.schema import Rows, Schema

R = TypeVar("R")

_BLOCKS = 50
"""A repeated call is charged in about this many blocks; a crash burns at most one block."""


class Curator:
    """Holds private rows and answers mechanisms, after the ledger has been paid; nothing else leaves.

    It has no length, no index, no iterator and no rows attribute, and it is not pickled. The rows are read at the
    first answer, so that a whole plan is reserved before they are touched. Python cannot hide an object from code
    that means harm: the curator protects against mistakes, the house rules and tests against carelessness.

    Args:
        reader: reads the private rows when they are first needed.
        schema: the public facts that the rows must fit.
        ledger: what is paid before each answer.
        noise: the source of privacy noise; any but the plain `NoiseSource` makes every guarantee UNSUPPORTED.
    """

    __slots__ = ("_blocks_left", "_door", "_lock", "_noise", "_plan", "ledger", "schema")

    def __init__(self, reader: Reader, *, schema: Schema, ledger: Ledger, noise: NoiseSource | None = None) -> None:
        self.schema, self.ledger = schema, ledger
        self._noise = NoiseSource() if noise is None else noise
        self._plan: tuple[str, Sequence[tuple[Cost, int]]] | None = None
        self._blocks_left: dict[int, int] = {}
        self._lock = threading.RLock()
        self._door = _door(reader, schema)
        if type(self._noise) is not NoiseSource:  # a source of another make may be known to somebody
            ledger.note_seeded_noise()

    def __repr__(self) -> str:
        return f"Curator({self.schema}, {self.guarantee().headline()})"

    def __reduce__(self) -> str:
        raise TypeError("a curator is not pickled: it guards private rows")

    def reserve(self, label: str, items: Sequence[tuple[Mechanism[Any], int]]) -> dict[int, int]:
        """Reserve a whole plan; returns how many calls of each item an earlier, interrupted run has used.

        Args:
            label: name of the plan in the ledger.
            items: pairs (mechanism, how many times it will be called), no two of them with the same price.
        """
        costs = [(m.cost(self.ledger.relation), n) for m, n in items]
        self.ledger.reserve(label, costs)
        self._plan = (label, costs)
        self._blocks_left = {}
        return {i: self.ledger.used(label, i) for i in range(len(items))}

    def answer(self, mechanism: Mechanism[R]) -> R:
        """The noisy answer of a mechanism that the reserved plan contains.

        The only call of an item is made again if a crash destroyed its answer before it was handed out. Of an item
        with several calls a crash burns what was left of one block.

        Raises:
            PrivacyError: no plan is reserved, or the mechanism's price is not in it, or its calls are used up, or
                another curator has handed out the only answer meanwhile.
        """
        if self._plan is None:
            raise PrivacyError("no plan is reserved: reserve the whole plan before the first row is read")
        label, costs = self._plan
        cost = mechanism.cost(self.ledger.relation)
        item = next((i for i, (c, _) in enumerate(costs) if c == cost), None)
        if item is None:
            raise PrivacyError(f"'{cost.name}' with {cost.event} is not in the reserved plan '{label}'; plan it first")
        count = costs[item][1]
        with self._lock:
            self._pay(label, item, count)
        answer = self._door(lambda rows: mechanism(rows, self._noise))
        if count == 1:
            self.ledger.deliver(label, item)
        return answer

    def expose(self, fn: Callable[[Rows], R], *, reason: str, audience: str) -> R:
        """A look at the rows that is *not* private: recorded first, and flagged in every guarantee from then on."""
        self.ledger.expose(reason=reason, audience=audience)
        return self._door(fn)

    def guarantee(self) -> Guarantee:
        """What the ledger promises so far."""
        return self.ledger.guarantee()

    def _pay(self, label: str, item: int, count: int) -> None:
        self.ledger.check_alive()  # what is left of a paid block belongs to the process that paid
        if self._blocks_left.get(item, 0) == 0:
            used = self.ledger.used(label, item)
            if count == 1 and used == 1 and item not in self._blocks_left:  # charged by a run that died
                self.ledger.repeat(label, item)
                self._blocks_left[item] = 1
            else:
                block = max(1, min(math.ceil(count / _BLOCKS), count - used))
                self.ledger.charge(label, item, block)
                self._blocks_left[item] = block
        self._blocks_left[item] -= 1


def _door(reader: Reader, schema: Schema) -> Callable[[Callable[[Rows], Any]], Any]:
    """A closure around the rows, which are read and checked at the first use."""
    kept: list[Rows] = []

    def through(fn: Callable[[Rows], Any]) -> Any:
        if not kept:
            rows = reader()
            schema.check(rows)
            kept.append(rows)
        return fn(kept[0])

    return through
