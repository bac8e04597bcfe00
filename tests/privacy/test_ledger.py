"""The ledger: what is on disk is what counts, whatever happens to process and file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpgm.privacy import ledger as ledger_module
from dpgm.privacy.accountant import gaussian_epsilon
from dpgm.privacy.guarantee import Budget, BudgetExceeded, Evidence, PrivacyError, Relation, Source
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import (
    BoundedRangeEvent,
    ClaimEvent,
    Cost,
    DiscreteGaussianEvent,
    Event,
    GaussianEvent,
    PoissonGaussianEvent,
    PureEvent,
    ShuffledGaussianEvent,
    ZeroConcentratedEvent,
)

SRC = Path(__file__).parents[2] / "src"
CAP = Budget(epsilon=1.0, delta=1e-5)
MU = math.sqrt(1 / 20**2 + 10 / 60**2)
PLAN = [(Cost(event=GaussianEvent(20.0), name="sum"), 1), (Cost(event=GaussianEvent(60.0), name="steps"), 10)]


def opened(path: Path | None, **terms: Any) -> Ledger:
    return Ledger(path, **{"relation": Relation.ADD_REMOVE, "cap": CAP, **terms})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.jsonl"


@pytest.fixture
def used(path: Path) -> Path:
    """A ledger with a reservation, charges and an exposure, closed."""
    with opened(path) as ledger:
        ledger.reserve("fit", PLAN)
        ledger.charge("fit", 0)
        ledger.charge("fit", 1, 4)
        ledger.expose(reason="FID on the rows", audience="me")
    return path


# --- the account ------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again(used: Path) -> None:
    with opened(used) as ledger:
        assert (ledger.used("fit", 0), ledger.used("fit", 1)) == (1, 4)
        first = ledger.guarantee()
    with opened(used) as ledger:
        assert ledger.guarantee() == first
    assert first.epsilon == pytest.approx(gaussian_epsilon(MU, CAP.delta))
    assert first.mechanisms == ("sum", "steps")


def test_exposure_stands_in_the_headline(used: Path) -> None:
    with opened(used) as ledger:
        headline = ledger.guarantee().headline()
    assert "NOT PRIVATE beside it: FID on the rows (seen by me)" in headline


def test_same_plan_is_free_and_another_is_refused(used: Path) -> None:
    with opened(used) as ledger:
        before = len(ledger.entries)
        ledger.reserve("fit", PLAN)
        assert len(ledger.entries) == before
        for other in (
            PLAN[:1],
            [*PLAN[:1], (PLAN[1][0], 11)],
            PLAN[::-1],
            [(Cost(event=GaussianEvent(21.0), name="sum"), 1)],
        ):
            with pytest.raises(PrivacyError, match="reserved another plan"):
                ledger.reserve("fit", other)
        ledger.reserve("more", PLAN)
        assert ledger.guarantee().epsilon == pytest.approx(gaussian_epsilon(math.sqrt(2) * MU, CAP.delta))


def test_over_budget_is_refused_with_numbers() -> None:
    ledger = opened(None)
    ledger.reserve("a", [(Cost(event=GaussianEvent(4.0), name="sum"), 1)])
    with pytest.raises(BudgetExceeded, match=r"total to epsilon 1\.357; the cap is 1 at delta 1e-05, of which 0\.9264"):
        ledger.reserve("b", [(Cost(event=GaussianEvent(4.0), name="sum"), 1)])
    assert ledger.guarantee().epsilon <= 1.0
    with pytest.raises(PrivacyError, match="nothing is reserved as 'b'"):
        ledger.charge("b", 0)
    with pytest.raises(BudgetExceeded):
        ledger.reserve("c", [(Cost(event=GaussianEvent(1e-200), name="sum"), 1)])


def test_calls_are_counted() -> None:
    ledger = opened(None)
    ledger.reserve("fit", PLAN)
    ledger.charge("fit", 1, 10)
    for item, n in ((1, 1), (0, 2), (0, 0), (0, -1)):
        with pytest.raises(PrivacyError, match="allows"):
            ledger.charge("fit", item, n)
    for item in (-1, 2):
        with pytest.raises(PrivacyError, match="nothing is reserved"):
            ledger.charge("fit", item)


def test_only_a_single_unanswered_call_is_repeated() -> None:
    ledger = opened(None)
    ledger.reserve("fit", PLAN)
    with pytest.raises(PrivacyError, match="not a single interrupted call"):
        ledger.repeat("fit", 0)  # not charged
    ledger.charge("fit", 0)
    ledger.charge("fit", 1)
    ledger.repeat("fit", 0)
    assert "crash interrupted" in ledger.guarantee().headline()
    with pytest.raises(PrivacyError, match="not a single interrupted call"):
        ledger.repeat("fit", 1)
    ledger.deliver("fit", 0)
    with pytest.raises(PrivacyError, match="was handed out"):
        ledger.repeat("fit", 0)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, math.nan])
def test_counts_that_are_none_are_refused(count: Any) -> None:
    with pytest.raises(PrivacyError, match="whole numbers"):
        opened(None).reserve("fit", [(PLAN[0][0], count)])


def test_equal_prices_in_one_plan_must_be_merged() -> None:
    with pytest.raises(PrivacyError, match="merge them into one item with a count"):
        opened(None).reserve("fit", [PLAN[0], (PLAN[0][0], 2)])


def test_weakest_evidence_and_all_assumptions_name_the_whole() -> None:
    ledger = opened(None)
    assert ledger.guarantee().epsilon == 0
    ledger.reserve("a", PLAN)
    assert ledger.guarantee().evidence is Evidence.PROVED
    claim = Cost(event=ClaimEvent(0.1, 1e-6), name="c", evidence=Evidence.CLAIMED, assumptions=("trust",))
    ledger.reserve("b", [(claim, 1)])
    assert ledger.guarantee().evidence is Evidence.CLAIMED
    assert "trust" in ledger.guarantee().headline()
    ledger.note_seeded_noise()
    assert ledger.guarantee().evidence is Evidence.UNSUPPORTED
    ledger.reserve("c", [(Cost(event=ClaimEvent(0.1, 0), name="r", evidence=Evidence.REFUTED), 1)])
    assert "REFUTED (an attack beats this claim: no guarantee)" in ledger.guarantee().headline()


def test_a_plan_that_may_have_been_chosen_by_answers_says_so() -> None:
    ledger, words = opened(None), "no price was chosen by looking at an answer"
    ledger.reserve("a", PLAN[:1])
    ledger.reserve("b", PLAN[1:])  # two plans, and no answer between them
    ledger.charge("a", 0)
    ledger.reserve("b", PLAN[1:])
    assert words not in ledger.guarantee().headline()
    ledger.reserve("c", PLAN[:1])
    assert ledger.guarantee().assumptions.count(words) == 1


def test_delta_zero_takes_pure_costs_only() -> None:
    ledger = opened(None, cap=Budget(epsilon=1.0, delta=0.0))
    ledger.reserve("a", [(Cost(event=PureEvent(0.5), name="p"), 2)])
    assert ledger.guarantee().epsilon == 1.0
    with pytest.raises(PrivacyError, match="delta is 0"):
        ledger.reserve("b", PLAN)


EVENTS: list[Event] = [
    GaussianEvent(1 / 3),
    PoissonGaussianEvent(0.1, 2),
    DiscreteGaussianEvent(0.3, 1),
    ZeroConcentratedEvent(1e-9),
    BoundedRangeEvent(0.1),
    ShuffledGaussianEvent(1.5, 100),
    PureEvent(0),
    ClaimEvent(1.5, 1e-7),
]


@pytest.mark.parametrize("event", EVENTS)
def test_costs_survive_the_file(event: Event) -> None:
    source = Source(key="k", title="Täglich", authors="A", year=2020, where="w", part="p")
    cost = Cost(event=event, name="n", evidence=Evidence.CLAIMED, sources=(source,), assumptions=("a", "b"))
    assert Cost.from_json(json.loads(json.dumps(cost.to_json()))) == cost


def test_unknown_events_are_refused() -> None:
    with pytest.raises(PrivacyError, match="update dpgm"):
        Cost.from_json({**PLAN[0][0].to_json(), "event": "os"})


# --- the file ---------------------------------------------------------------------------------------------------------


def test_other_terms_are_refused(used: Path) -> None:
    for other in ({"relation": Relation.REPLACE}, {"unit": "client"}, {"cap": Budget(epsilon=2.0, delta=1e-5)}):
        with pytest.raises(PrivacyError, match="terms are"):
            opened(used, **other)
    opened(used).close()  # a refused opening leaves neither lock nor open file


@given(cut=st.integers(0, 10_000))
def test_torn_last_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "ledger.jsonl"
    with opened(path) as ledger:
        ledger.reserve("fit", PLAN)
        ledger.charge("fit", 0)
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    cut = start + cut % (len(whole) - start)
    path.write_bytes(whole[:cut])
    with opened(path) as ledger:
        # Half an entry: nothing came of it. Only its newline lost: something may have come of it.
        assert ledger.used("fit", 0) == (1 if cut == len(whole) - 1 else 0)
        ledger.charge("fit", 1)
    with opened(path) as ledger:
        assert ledger.used("fit", 1) == 1


def test_torn_first_line(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"kind": "op')
    with opened(path) as ledger:
        assert [e["kind"] for e in ledger.entries] == ["open"]


def test_every_changed_byte_is_an_error(used: Path) -> None:
    whole = used.read_bytes()
    for i, old in enumerate(whole):
        new = (old ^ 1, ord("\t"), ord("\n"), 0)[i % 4] if i < len(whole) - 1 else ord(" ")
        if new != old:
            used.write_bytes(whole[:i] + bytes([new]) + whole[i + 1 :])
            with pytest.raises(PrivacyError, match="restore"):
                opened(used)
    used.write_bytes(whole)
    opened(used).close()


def test_dropped_doubled_and_swapped_lines_are_errors(used: Path) -> None:
    lines = used.read_bytes().splitlines(keepends=True)
    for changed in (
        lines[1:],
        [*lines[:2], *lines[3:]],
        [*lines, lines[-1]],
        [*lines[:2], lines[3], lines[2], *lines[4:]],
    ):
        used.write_bytes(b"".join(changed))
        with pytest.raises(PrivacyError, match="breaks the hash chain"):
            opened(used)


@pytest.mark.parametrize("junk", [b"\n", b"5\n", b"[1]\n", b"null\n", b"{}\n", b"\xff\n", b'{"hash": 1}\n'])
def test_junk_is_an_error(used: Path, junk: bytes) -> None:
    with used.open("ab") as file:
        file.write(junk)
    with pytest.raises(PrivacyError, match="not a ledger entry"):
        opened(used)


def test_twin_without_a_chain_is_caught(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger whose entries are not bound to their content would let a charge be edited down."""
    monkeypatch.setattr(ledger_module, "_digest", lambda value: "0" * 64)
    other = used.with_name("twin.jsonl")
    with opened(other) as ledger:
        ledger.reserve("fit", PLAN)
        ledger.charge("fit", 1, 4)
    other.write_bytes(other.read_bytes().replace(b'"until": 4', b'"until": 0'))
    with opened(other) as ledger:
        assert ledger.used("fit", 1) == 0  # what test_every_changed_byte_is_an_error forbids


# --- processes, threads, full disks -----------------------------------------------------------------------------------

OPEN = """
import sys
from pathlib import Path
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
try:
    Ledger(Path(sys.argv[1]), relation=Relation.ADD_REMOVE, cap=Budget(epsilon=1.0, delta=1e-5))
except PrivacyError as error:
    sys.exit(str(error))
"""


def test_second_process_waits_its_turn(used: Path) -> None:
    def other() -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(SRC)}
        return subprocess.run(
            [sys.executable, "-c", OPEN, str(used)], env=env, capture_output=True, text=True, check=False
        )

    with opened(used):
        refused = other()
        with pytest.raises(PrivacyError, match="in use by another run"):
            opened(used)
    assert refused.returncode == 1
    assert "in use by another run" in refused.stderr
    assert other().returncode == 0


def test_copy_in_a_forked_process_cannot_spend(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(None)
    ledger.reserve("fit", PLAN)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)  # what a fork sees
        with pytest.raises(PrivacyError, match="opened by another process"):
            ledger.charge("fit", 0)
    ledger.charge("fit", 0)


def test_closed_ledger_cannot_spend(used: Path) -> None:
    ledger = opened(used)
    ledger.close()
    with pytest.raises(PrivacyError, match="is closed"):
        ledger.charge("fit", 1)


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_failed_write_ends_the_ledger(used: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(_: int) -> None:
        raise error

    ledger = opened(used)
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.os, "fsync", fail)
        with pytest.raises(type(error)):
            ledger.charge("fit", 1)
    with pytest.raises(PrivacyError, match="is closed"):  # whether it counts is known after opening the file anew
        ledger.charge("fit", 1)
    with opened(used) as ledger:
        assert ledger.used("fit", 1) == 5


def test_threads_share_the_calls() -> None:
    ledger = opened(None)
    ledger.reserve("fit", [(Cost(event=GaussianEvent(1e4), name="m"), 200)])
    refused: list[str] = []

    def work() -> None:
        for _ in range(100):
            try:
                ledger.charge("fit", 0)
            except PrivacyError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(refused) == 200
    assert sum(e["kind"] == "charge" for e in ledger.entries) == 200


def test_file_holds_no_machine_and_no_secret(used: Path) -> None:
    text = used.read_text("utf-8")
    assert str(used.parent) not in text
    assert os.uname().nodename not in text
