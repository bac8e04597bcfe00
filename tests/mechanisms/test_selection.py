"""The exponential choice of a marginal: its law, its price, and the twin that forgets what replacing does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpgm.mechanisms.selection import SelectMarginal
from dpgm.mechanisms.tables import Cells
from dpgm.privacy.guarantee import PrivacyError, Relation
from dpgm.privacy.mechanism import BoundedRangeEvent, NoiseSource
from dpgm.schema import Rows

CELLS = (Cells(edges=(0.0, 1.0, 2.0)),) * 3
BLOCKS = ((0, 1), (0, 2), (1, 2))
EXPECTED = (np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2)))


def choice(**changes: Any) -> SelectMarginal:
    facts: dict[str, Any] = {"cells": CELLS, "blocks": BLOCKS, "expected": EXPECTED, "strength": 1.0}
    return SelectMarginal(**{**facts, **changes})


def rows(*records: tuple[float, float, float]) -> Rows:
    return Rows(table=np.array(records, dtype=float).reshape(-1, 3))


def law(scores: np.ndarray, strength: float) -> np.ndarray:
    p = np.exp(strength * scores / 2)
    return p / p.sum()


def test_choices_follow_the_stated_law() -> None:
    data, mechanism = rows((0, 0, 1), (1, 1, 1), (0.5, 1, 0)), choice()
    scores = mechanism.scores(data)
    assert scores.tolist() == [1.0, 1.0, 3.0]
    n = 4000
    found = np.bincount([mechanism(data, NoiseSource()) for _ in range(n)], minlength=3) / n
    p = law(scores, 1.0)
    assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / n)).all()


def test_prices() -> None:
    assert choice(strength=0.4).cost(Relation.ADD_REMOVE).event == BoundedRangeEvent(0.4)
    assert choice(strength=0.4).cost(Relation.REPLACE).event == BoundedRangeEvent(0.8)
    assert choice().cost(Relation.REPLACE) == choice(expected=EXPECTED[::-1]).cost(Relation.REPLACE)


def largest_log_ratio(relation: Relation, trials: int = 300, make: Any = choice) -> float:
    """The most that a probability changes between drawn neighbours, for strength 1."""
    far = (np.diag([9.0, 0.0]), np.diag([0.0, 9.0]), np.zeros((2, 2)))  # one error falls where another one rises
    rng, mechanism, worst = np.random.default_rng(0), make(expected=far), 0.0
    for _ in range(trials):
        table = rng.integers(0, 2, (4, 3)).astype(float)
        a, b = (table, table[:3]) if relation is Relation.ADD_REMOVE else (table[:3], table[[0, 1, 3]])
        p, q = (law(mechanism.scores(Rows(table=t)), 1.0) for t in (a, b))
        worst = max(worst, float(np.abs(np.log(p / q)).max()))
    return worst


def epsilon(mechanism: SelectMarginal, relation: Relation) -> float:
    event = mechanism.cost(relation).event
    assert isinstance(event, BoundedRangeEvent)
    return event.epsilon


@pytest.mark.parametrize("relation", list(Relation))
def test_no_neighbour_moves_a_probability_further_than_the_price(relation: Relation) -> None:
    assert 0.4 < largest_log_ratio(relation) <= epsilon(choice(), relation) + 1e-12


def test_twin_that_forgets_what_replacing_does_is_caught() -> None:
    class Forgets(SelectMarginal):
        def cost(self, relation: Relation) -> Any:
            return super().cost(Relation.ADD_REMOVE)

    twin = Forgets(cells=CELLS, blocks=BLOCKS, expected=EXPECTED, strength=1.0)
    assert largest_log_ratio(Relation.REPLACE) > epsilon(twin, Relation.REPLACE)


def test_weights_and_offsets_enter_the_scores_and_not_the_price() -> None:
    data = rows((0, 0, 1), (1, 1, 1), (0.5, 1, 0))
    weighed = choice(weights=(1.0, 0.5, 0.5), offsets=(0.5, 0.0, 2.0))
    assert weighed.scores(data).tolist() == [0.5, 0.5, 0.5]
    assert weighed.cost(Relation.REPLACE) == choice().cost(Relation.REPLACE)


def test_twin_with_a_weight_above_one_is_caught() -> None:
    class Heavy(SelectMarginal):
        def scores(self, rows: Rows) -> np.ndarray:
            return 3.0 * super().scores(rows)

    twin = Heavy(cells=CELLS, blocks=BLOCKS, expected=EXPECTED, strength=1.0)
    assert largest_log_ratio(Relation.ADD_REMOVE, make=lambda **_: twin) > epsilon(twin, Relation.ADD_REMOVE)
    with pytest.raises(PrivacyError, match="at most 1"):
        choice(weights=(1.0, 3.0, 1.0))


def test_refusals() -> None:
    with pytest.raises(PrivacyError, match="one for each"):
        choice(offsets=(1.0,))
    with pytest.raises(PrivacyError, match="strength"):
        choice(strength=0.0)
    with pytest.raises(PrivacyError, match="expected"):
        choice(expected=EXPECTED[:2])
