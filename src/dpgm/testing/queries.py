"""The contract of queries."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.queries import total
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import Array, Query
from dpgm.schema import Rows
from dpgm.testing.rows import Maker


def check_query(
    query: Query, draw: Maker, *, trials: int = 200, max_rows: int = 8, seed: int = 0
) -> dict[tuple[Relation, int], float]:
    """Raise unless `query` is a frozen sum over records that no neighbour moves further than its sensitivity.

    Checked on drawn data sets of 0 to `max_rows` records: shape, finite answers, zero for no records, the same answer
    twice, partial sums that add up however the rows are cut or ordered, rows left as they were, and the distance of
    the answers of neighbours under both relations, in the L1 and the L2 norm. It can only refute: look at the returned
    ratios, which should come close to 1 for a tight sensitivity and a hostile `draw`.

    Args:
        query: what is checked.
        draw: makes records, see `dpgm.testing.vectors` and `dpgm.testing.images`.
        trials: number of data sets.
        max_rows: largest number of records.
        seed: of the drawn records.

    Returns:
        The largest (distance / sensitivity) seen, for each (relation, norm) that the query supports.

    Raises:
        AssertionError: saying which part of the contract is broken, and by how much.
    """
    _check_frozen(query)
    shape, notes = query.shape, query.assumptions()
    assert all(type(n) is int and n > 0 for n in shape), f"the shape is {shape}; it must be whole numbers above 0"
    assert all(isinstance(n, str) for n in notes), f"the assumptions are {notes!r}; they must be sentences"
    bounds = _bounds(query)
    seen = dict.fromkeys(bounds, 0.0)
    rng = np.random.default_rng(seed)
    for trial in range(trials):
        n = trial if trial < 3 else int(rng.integers(max_rows + 1))
        rows = draw(n + 2, rng)
        before, added = rows.take(slice(0, n)), rows.take(slice(0, n + 1))
        replaced = rows.take(np.r_[0:n, n + 1])
        answer, more, other = (_answer(query, r) for r in (before, added, replaced))
        if n == 0:
            assert not answer.any(), f"no records give {_some(answer)}; the sum over nothing must be 0"
        _check_additive(query, added, more, rng, unit=min(bounds.values()))
        for (relation, norm), bound in bounds.items():
            # One record more against one record less, or the last record exchanged.
            apart = more - answer if relation is Relation.ADD_REMOVE else more - other
            distance = float(np.linalg.norm(apart.ravel(), norm))
            slack = 1e-9 * bound + 1e-12 * float(np.abs(more).max())
            assert distance <= bound + slack, (
                f"under '{relation.value}' one record among {n + 1} moves the answer by {distance:.6g} in the L{norm} "
                f"norm; the query says at most {bound:.6g}"
            )
            seen[relation, norm] = max(seen[relation, norm], distance / bound)
    return seen


def _bounds(query: Query) -> dict[tuple[Relation, int], float]:
    found: dict[tuple[Relation, int], float] = {}
    for relation in Relation:
        for norm in (1, 2):
            try:
                bound = query.sensitivity(relation, norm)
            except PrivacyError:  # a query may say that it has no such bound
                continue
            assert bound > 0, f"the L{norm} sensitivity under '{relation.value}' is {bound}; it must be above 0"
            assert math.isfinite(bound), (
                f"the L{norm} sensitivity under '{relation.value}' is {bound}; it must be finite"
            )
            assert bound == query.sensitivity(relation, norm), f"the L{norm} sensitivity changes when it is asked again"
            found[relation, norm] = bound
    assert found, "the query has no sensitivity under any relation and norm"
    return found


def _check_frozen(value: object) -> None:
    assert dataclasses.is_dataclass(value), f"{type(value).__name__} must be a dataclass, so that its fields are public"
    frozen: bool = value.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    assert frozen, f"{type(value).__name__} must be frozen, so that its price cannot change after it was paid"


def _answer(query: Query, rows: Rows, block: int = 1000) -> Array:
    copies = {name: np.array(rows[name]) for name in rows.names}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            answer = total(query, rows, block=block)
        except RuntimeWarning as warning:
            raise AssertionError(f"the query warns '{warning}': a warning tells something about the rows") from warning
        except (PrivacyError, IndexError, ValueError) as error:
            raise AssertionError(
                f"the query fails on some records ({error}); it must answer whatever they are"
            ) from error
    assert answer.shape == query.shape, f"the answer has shape {answer.shape}; the query says {query.shape}"
    assert np.isfinite(answer).all(), (
        f"the answer holds {_some(answer[~np.isfinite(answer)])}; noise hides no such value"
    )
    for name, copy in copies.items():
        assert np.array_equal(rows[name], copy, equal_nan=copy.dtype.kind == "f"), (
            f"the query changes the column '{name}'"
        )
    return answer


def _check_additive(query: Query, rows: Rows, answer: Array, rng: np.random.Generator, *, unit: float) -> None:
    cuts: list[Array] = [
        _answer(query, rows),
        _answer(query, rows, block=1),
        _answer(query, rows, block=3),
        _answer(query, rows.take(rng.permutation(len(rows)))),
    ]
    scale = max(unit, *(float(np.abs(c).max()) for c in cuts))
    for other, how in zip(
        cuts, ("asked twice", "cut into single rows", "cut into threes", "in another order"), strict=True
    ):
        apart = float(np.abs(other - answer).max())
        assert apart <= 1e-9 * scale, (
            f"{how}, the same rows give an answer {apart:.3g} away: a record's term must depend on that record alone"
        )


def _some(values: NDArray[Any]) -> str:
    return np.array2string(values.ravel()[:4], precision=4)
