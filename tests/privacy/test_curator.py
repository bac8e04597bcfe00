"""The curator: the one door to rows, which opens after the ledger was paid, for what was planned."""

from __future__ import annotations

import copy
import io
import os
import pickle
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.queries import Histogram
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import Array, NoiseSource, SeededNoise
from dpgm.schema import ImageSchema, Rows, SchemaError
from dpgm.testing import check_no_rows

SCHEMA = ImageSchema(height=4, width=4, channels=1, classes=("a", "b"))
COUNTS = Gaussian(query=Histogram(column="label", bins=2), noise_std=10.0, name="counts")
STEPS = Gaussian(query=Histogram(column="label", bins=2), noise_std=100.0, name="steps")
N = 4321


class Source:
    """A reader that knows whether it was asked."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.reads = rows, 0

    def __call__(self) -> Rows:
        self.reads += 1
        return self.rows


def made(**options: Any) -> tuple[Curator, Source]:
    rng = np.random.default_rng(0)
    rows = Rows(image=rng.integers(0, 256, (N, 4, 4, 1), dtype=np.uint8), label=rng.integers(0, 2, N))
    source = Source(options.pop("rows", rows))
    ledger = Ledger(None, relation=Relation.ADD_REMOVE, cap=Budget(epsilon=5.0, delta=1e-5))
    return Curator(source, schema=SCHEMA, ledger=options.pop("ledger", ledger), **options), source


# --- nothing but answers comes out ------------------------------------------------------------------------------------


def test_curator_is_no_container() -> None:
    curator, source = made()
    acts: tuple[Any, ...] = (
        len,
        iter,
        list,
        lambda c: c[0],
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        lambda c: c.rows,
        lambda c: c._rows,
        vars,
        lambda c: setattr(c, "rows", 1),
    )
    for act in acts:
        with pytest.raises((TypeError, AttributeError)):
            act(curator)
    assert source.reads == 0


def test_repr_and_messages_show_no_rows() -> None:
    curator, source = made()
    curator.reserve("fit", [(COUNTS, 1)])
    curator.answer(COUNTS)
    texts = [repr(curator), repr(curator.ledger.entries), repr(source.rows), curator.guarantee().headline()]
    with pytest.raises(PrivacyError) as refused:
        curator.answer(COUNTS)
    texts.append(str(refused.value))
    check_no_rows(texts, source.rows["image"][7])
    check_no_rows(texts, N)
    with pytest.raises(AssertionError, match="the number"):  # the check sees what it should
        check_no_rows([*texts, f"{len(source.rows)} rows"], N)
    with pytest.raises(AssertionError, match="its values"):
        check_no_rows([*texts, source.rows["image"]], source.rows["image"][7])


def test_rows_are_not_pickled() -> None:
    _, source = made()
    for act in (pickle.dumps, copy.copy, copy.deepcopy, lambda r: pickle.Pickler(io.BytesIO()).dump(r)):
        with pytest.raises(TypeError, match="not pickled"):
            act(source.rows)


# --- pay first --------------------------------------------------------------------------------------------------------


def test_nothing_is_read_before_the_plan_is_reserved_and_paid() -> None:
    curator, source = made()
    with pytest.raises(PrivacyError, match="no plan is reserved"):
        curator.answer(COUNTS)
    curator.reserve("fit", [(COUNTS, 1)])
    repr(curator)
    assert source.reads == 0
    curator.answer(COUNTS)
    assert source.reads == 1
    curator.reserve("more", [(STEPS, 2)])
    curator.answer(STEPS)
    assert source.reads == 1


def test_every_answer_is_announced_before_the_mechanism_sees_rows() -> None:
    curator, _ = made()
    seen: list[list[str]] = []

    class Watching(Gaussian):
        def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
            seen.append([e["kind"] for e in curator.ledger.entries])
            return super().__call__(rows, noise)

    watching = Watching(query=COUNTS.query, noise_std=10.0)
    curator.reserve("fit", [(watching, 1)])
    curator.answer(watching)
    assert seen == [["open", "reserve", "charge"]]
    assert curator.ledger.entries[-1]["kind"] == "deliver"


def test_only_what_was_planned_is_answered() -> None:
    curator, source = made()
    curator.reserve("fit", [(COUNTS, 1)])
    for other in (
        replace(COUNTS, noise_std=9.999),
        replace(COUNTS, noise_std=11.0),
        replace(COUNTS, name="other"),
        STEPS,
    ):
        with pytest.raises(PrivacyError, match="not in the reserved plan"):
            curator.answer(other)
    assert source.reads == 0
    with pytest.raises(PrivacyError, match="merge them into one item"):
        curator.reserve("twice", [(COUNTS, 1), (replace(COUNTS), 1)])


def test_answers_are_fresh_and_counted() -> None:
    curator, _ = made()
    curator.reserve("fit", [(COUNTS, 1), (STEPS, 120)])
    answers = [curator.answer(STEPS) for _ in range(120)]
    assert len(np.unique(answers)) == 240
    with pytest.raises(PrivacyError, match="allows 120 calls; 120 are used"):
        curator.answer(STEPS)
    assert sum(e["kind"] == "charge" for e in curator.ledger.entries) == 40  # in blocks of three


def test_answer_that_was_handed_out_is_not_drawn_again() -> None:
    curator, _ = made()
    curator.reserve("fit", [(COUNTS, 1)])
    curator.answer(COUNTS)
    for _ in range(2):
        with pytest.raises(PrivacyError, match=r"allows 1 calls|was handed out"):
            curator.answer(COUNTS)
        curator.reserve("fit", [(COUNTS, 1)])  # the hole of a finished plan that is reserved again


def test_a_forked_copy_does_not_use_up_what_this_process_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    curator, _ = made()
    curator.reserve("fit", [(STEPS, 500)])
    curator.answer(STEPS)  # of a block of ten
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)  # what a fork sees
        with pytest.raises(PrivacyError, match="opened by another process"):
            curator.answer(STEPS)
    curator.answer(STEPS)


class Interrupted(Gaussian):
    """In its first call another curator of the same ledger makes the same plan's only call, to the end."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        if then:
            then.pop()()
        return super().__call__(rows, noise)


then: list[Any] = []


def test_of_two_calls_at_once_one_answer_is_handed_out() -> None:
    first, _ = made()
    second, _ = made(ledger=first.ledger)
    mechanism = Interrupted(query=COUNTS.query, noise_std=10.0)
    answers: list[Array] = []

    def other() -> None:
        second.reserve("fit", [(mechanism, 1)])
        answers.append(second.answer(mechanism))

    then[:] = [other]
    first.reserve("fit", [(mechanism, 1)])
    with pytest.raises(PrivacyError, match="was handed out while"):
        answers.append(first.answer(mechanism))
    assert len(answers) == 1


class Failing(Gaussian):
    """Dies in its first calls, after the rows were seen."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        if fail_next.pop():
            raise MemoryError
        return super().__call__(rows, noise)


fail_next: list[bool] = []


def test_interrupted_single_call_is_repeated_and_said() -> None:
    curator, _ = made()
    failing = Failing(query=COUNTS.query, noise_std=10.0)
    fail_next[:] = [False, True, True]
    for _ in range(2):
        curator.reserve("fit", [(failing, 1)])
        with pytest.raises(MemoryError):
            curator.answer(failing)
    curator.reserve("fit", [(failing, 1)])
    assert curator.answer(failing).shape == (2,)
    assert "crash interrupted" in curator.guarantee().headline()


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(2, 130))
def test_crashes_burn_blocks_and_never_overdraw(crashes: list[int], count: int) -> None:
    curator, _ = made()
    drawn = 0
    for after in [*crashes, 1000]:  # each life: some calls, then a crash; the last one takes what is left
        used = curator.reserve("fit", [(STEPS, count)])[0]
        assert drawn <= used <= count
        for _ in range(min(after, count - used)):
            curator.answer(STEPS)
            drawn += 1
            assert drawn <= curator.ledger.used("fit", 0) <= count
    assert drawn <= count
    assert drawn >= count - len(crashes) * -(-count // 50)  # at most one block a crash


# --- schema, exposure, noise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"image": np.zeros((3, 4, 5, 1), np.uint8), "label": np.zeros(3, np.int64)},
        {"image": np.zeros((3, 4, 4, 1), np.float32), "label": np.zeros(3, np.int64)},
        {"image": np.zeros((3, 4, 4, 1), np.uint8), "label": np.full(3, 2)},
        {"image": np.zeros((3, 4, 4, 1), np.uint8), "label": np.zeros((3, 1), np.int64)},
    ],
)
def test_rows_must_fit_the_schema(columns: dict[str, Any]) -> None:
    curator, _ = made(rows=Rows(**columns))
    curator.reserve("fit", [(COUNTS, 1)])
    with pytest.raises(SchemaError):
        curator.answer(COUNTS)
    with pytest.raises(SchemaError):
        curator.expose(len, reason="r", audience="a")


def test_exposure_is_written_before_the_look() -> None:
    curator, source = made()

    def look(rows: Rows) -> int:
        assert curator.ledger.entries[-1]["kind"] == "expose"
        return len(rows)

    assert curator.expose(look, reason="debugging", audience="me") == N
    assert source.reads == 1
    assert "NOT PRIVATE beside it: debugging (seen by me)" in curator.guarantee().headline()


class NotRandom(NoiseSource):
    """Says nothing about itself, and gives no noise."""

    def bits(self, n: int) -> Any:
        return np.full(n, 2**63, dtype=np.uint64)


@pytest.mark.parametrize("noise", [SeededNoise(0), NotRandom()])
def test_noise_that_somebody_may_know_is_unsupported(noise: NoiseSource) -> None:
    curator, _ = made(noise=noise)
    curator.reserve("fit", [(COUNTS, 1)])
    assert curator.guarantee().evidence is Evidence.UNSUPPORTED
    assert "do not rely on it" in repr(curator)
    plain, _ = made()
    plain.reserve("fit", [(COUNTS, 1)])
    assert plain.guarantee().evidence is Evidence.PROVED


def test_noise_stays_known_after_a_sound_resume(tmp_path: Any) -> None:
    terms: dict[str, Any] = {"relation": Relation.ADD_REMOVE, "cap": Budget(epsilon=5.0, delta=1e-5)}
    with Ledger(tmp_path / "l", **terms) as ledger:
        made(ledger=ledger, noise=SeededNoise(0))
    with Ledger(tmp_path / "l", **terms) as ledger:
        assert made(ledger=ledger)[0].guarantee().evidence is Evidence.UNSUPPORTED


# --- broken twins -----------------------------------------------------------------------------------------------------


@dataclass
class Eager:
    """A curator that reads rows when it is made."""

    source: Source

    def __post_init__(self) -> None:
        self.rows = self.source()


def test_twins_are_caught() -> None:
    _, source = made()
    Eager(source)
    assert source.reads == 1  # what test_nothing_is_read_before... forbids
    with pytest.raises(AssertionError, match="its values"):
        check_no_rows(
            [repr(np.array(vars(Eager(source))["rows"]["image"][7]).ravel().tolist())], source.rows["image"][7]
        )
