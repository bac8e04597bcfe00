"""Guarantees: an epsilon never travels alone and is never printed below what was computed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgm.privacy.guarantee import Budget, Evidence, Guarantee, PrivacyError, Relation, Source, ceil_digits

SOURCE = Source(key="k2020", title="T", authors="A and B", year=2020, where="w", part="theorem 1")
PROMISE = Guarantee(
    relation=Relation.REPLACE,
    unit="record",
    epsilon=0.99991,
    delta=1e-5,
    evidence=Evidence.PROVED,
    mechanisms=("m",),
    sources=(SOURCE,),
    assumptions=("real arithmetic", "public features"),
)


def test_headline_stands_alone() -> None:
    assert PROMISE.headline() == (
        "epsilon 1, delta 1e-05, replace one record: proved, assuming real arithmetic; public features"
    )


def test_no_printed_price_is_below_the_computed_one() -> None:
    line = Guarantee(**{**vars(PROMISE), "epsilon": 0.99991, "delta": 1.0000049e-5}).headline()
    assert line.startswith("epsilon 1, delta 1.00001e-05,")


@pytest.mark.parametrize("evidence", Evidence)
def test_weak_evidence_stands_in_the_headline(evidence: Evidence) -> None:
    line = Guarantee(**{**vars(PROMISE), "evidence": evidence, "exposures": ("FID (seen by me)",)}).headline()
    assert evidence.word in line.lower()
    assert ("no guarantee" in line or "do not rely" in line) == (evidence < Evidence.CLAIMED)
    assert line.endswith("NOT PRIVATE beside it: FID (seen by me)")


@pytest.mark.parametrize("evidence", Evidence)
def test_guarantees_survive_json(evidence: Evidence) -> None:
    promise = Guarantee(**{**vars(PROMISE), "evidence": evidence})
    assert Guarantee.from_json(json.loads(json.dumps(promise.to_json()))) == promise


def test_weakest_evidence_is_the_smallest() -> None:
    assert min(Evidence) is Evidence.REFUTED
    assert sorted(Evidence) == [Evidence.REFUTED, Evidence.UNSUPPORTED, Evidence.CLAIMED, Evidence.PROVED]


@given(st.floats(1e-9, 1e9))
def test_printed_epsilon_is_never_below_the_computed_one(value: float) -> None:
    printed = float(ceil_digits(value))
    assert value * (1 - 1e-12) <= printed <= value * 1.0011


def test_round_numbers_stay_round() -> None:
    assert [ceil_digits(v) for v in (1.0, 0.2, 10.0, 0.3, 1.00001, 0.0, math.inf)] == [
        "1",
        "0.2",
        "10",
        "0.3",
        "1.001",
        "0",
        "inf",
    ]


@pytest.mark.parametrize(
    ("epsilon", "delta"),
    [(0, 0.1), (-1, 0.1), (math.inf, 0.1), (math.nan, 0.1), (1, -0.1), (1, 1), (1, 1.5), (1, math.nan)],
)
def test_budgets_that_promise_nothing_are_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(PrivacyError, match="allowed is"):
        Budget(epsilon=epsilon, delta=delta)


def test_bibtex() -> None:
    entry = SOURCE.bibtex()
    assert entry.startswith("@misc{k2020,")
    assert "note = {theorem 1}" in entry
    assert entry.count("{") == entry.count("}")
