"""Several ledgers of the same records: composition, the weakest evidence, every assumption."""

from __future__ import annotations

import math
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dpgm.privacy import accountant
from dpgm.privacy.accountant import gaussian_epsilon
from dpgm.privacy.guarantee import Budget, BudgetExceeded, Evidence, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import Cost, GaussianEvent, PureEvent
from dpgm.privacy.together import Part, reopen, runs, shared, stands_in, together

CAP = Budget(epsilon=1.0, delta=1e-5)


def written(path: Path, multiplier: float = 10.0, *, relation: Relation = Relation.ADD_REMOVE, **more) -> Path:
    with Ledger(path, relation=relation, cap=CAP) as ledger:
        ledger.reserve("fit", [(Cost(event=GaussianEvent(multiplier), name="sum", **more), 1)])
    return path


@contextmanager
def read(*paths: Path) -> Generator[list[Ledger]]:
    with ExitStack() as stack:
        yield [stack.enter_context(reopen(p)) for p in paths]


def test_runs_compose(tmp_path):
    paths = [written(tmp_path / f"{i}.jsonl", m) for i, m in enumerate((10.0, 20.0))]
    with read(*paths) as ledgers:
        found, one, strict = together(ledgers), together(ledgers[:1]), together(ledgers, delta=1e-7)
    assert found.epsilon == pytest.approx(gaussian_epsilon(math.hypot(1 / 10, 1 / 20), 1e-5), rel=1e-6)
    assert found.delta == 1e-5
    assert "nothing else was ever asked of these records" in found.assumptions
    assert strict.epsilon > found.epsilon > one.epsilon


def test_the_weakest_evidence_and_every_exposure_count(tmp_path):
    paths = [written(tmp_path / "a"), written(tmp_path / "b", evidence=Evidence.CLAIMED, assumptions=("luck",))]
    with reopen(paths[0]) as ledger:
        ledger.expose(reason="a look", audience="me")
    with read(*paths) as ledgers:
        found = together(ledgers)
    assert found.evidence is Evidence.CLAIMED
    assert "luck" in found.assumptions
    assert found.exposures == ("a look (seen by me)",)


def test_a_run_stands_in_the_ledger_that_holds_its_plans_only(tmp_path):
    """Another study's ledger may have the same file name, runs of the same names and the same plans."""
    for study in ("A", "B"):
        with shared(tmp_path / study / "study.ledger", cap=CAP) as whole:
            own = Part(
                tmp_path / study / "run" / "ledger.jsonl", cap=CAP, relation=whole.relation, whole=whole, name="run"
            )
            own.reserve("fit", [(Cost(event=GaussianEvent(10.0), name="sum"), 1)])
            own.close()
    run, first, second = (tmp_path / "A" / "run" / "ledger.jsonl", *(tmp_path / s / "study.ledger" for s in ("A", "B")))
    with read(run, first, second) as (mine, here, there):
        assert stands_in(mine, here)
        for entry in there.entries:  # as if begun a day later
            entry["time"] = "2030-01-01T00:00:00+00:00"
        assert not stands_in(mine, there)
        for entry in here.entries:
            entry["plan_digest"] = "another plan"
        assert not stands_in(mine, here)


def test_another_unit_rests_on_one_record_each(tmp_path):
    """Mechanisms bound what one record does: k records of a patient cost more."""
    for unit, said in (("record", ()), ("patient", ("one patient has one record",))):
        with Ledger(tmp_path / unit, cap=CAP, unit=unit) as ledger:
            ledger.reserve("fit", [(Cost(event=GaussianEvent(10.0), name="sum"), 1)])
            assert ledger.guarantee().assumptions[1:] == said


def test_what_cannot_be_added_up_is_refused(tmp_path):
    first = written(tmp_path / "a")
    other = written(tmp_path / "b", relation=Relation.REPLACE)
    with read(first, other) as ledgers, pytest.raises(PrivacyError, match="one relation"):
        together(ledgers)
    with Ledger(tmp_path / "pure", relation=Relation.ADD_REMOVE, cap=CAP) as ledger:
        ledger.reserve("fit", [(Cost(event=PureEvent(0.5), name="laplace"), 1)])
        for delta in (-0.1, 1.0, math.nan):
            with pytest.raises(PrivacyError, match="from 0 to below 1"):
                together([ledger], delta=delta)
    with pytest.raises(PrivacyError, match="does not exist"):
        reopen(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for text in ("", "{}\n", "[1]\n", "no json\n"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(PrivacyError, match="does not begin"):
            reopen(tmp_path / "bad")
    first.write_text(first.read_text().replace("10.0", "90.0"))
    with pytest.raises(PrivacyError, match="hash chain"):
        reopen(first)


# --- one ledger for several runs --------------------------------------------------------------------------------------

SUM = [(Cost(event=GaussianEvent(4.0), name="sum"), 1)]
STEPS = [(Cost(event=GaussianEvent(16.0), name="step"), 4)]


@pytest.fixture
def whole(tmp_path: Path) -> Generator[Ledger]:
    with shared(tmp_path / "study.ledger", cap=Budget(epsilon=1.5, delta=1e-5)) as ledger:
        yield ledger


def part(whole: Ledger, name: str, path: Path | None = None, **more) -> Part:
    return Part(path, **{"cap": CAP, "relation": Relation.ADD_REMOVE, **more}, whole=whole, name=name)


def test_the_run_keeps_its_own_promise_and_the_shared_ledger_states_the_total(whole):
    for name in ("first", "second"):
        with part(whole, name) as run:
            run.reserve("fit", SUM)
            run.charge("fit", 0)
            run.deliver("fit", 0)
        assert run.guarantee().epsilon == pytest.approx(gaussian_epsilon(1 / 4, 1e-5))
    assert whole.guarantee().epsilon == pytest.approx(gaussian_epsilon(math.sqrt(2) / 4, 1e-5))
    assert "no price was chosen by looking at an answer" in whole.guarantee().assumptions
    assert "no price was chosen by looking at an answer" not in run.guarantee().assumptions
    assert runs(whole) == ("first", "second")


def test_what_exceeds_the_cap_is_refused_before_anything_is_written(whole, tmp_path):
    first = part(whole, "first")
    first.reserve("fit", [(Cost(event=GaussianEvent(4.0), name="sum"), 1)])
    lines = len(whole.entries)
    big = [(Cost(event=GaussianEvent(3.0), name="sum"), 1)]
    with pytest.raises(BudgetExceeded, match=r"'second' brings the total to epsilon .* is left, so ask for less"):
        part(whole, "second", tmp_path / "second", prices=big)
    assert not (tmp_path / "second").exists()
    with pytest.raises(BudgetExceeded, match="'second/fit' brings"):  # nor where nobody asked beforehand
        part(whole, "second", cap=Budget(epsilon=5.0, delta=1e-5)).reserve("fit", big)
    with pytest.raises(BudgetExceeded, match="raise epsilon or ask for less"):  # its own cap
        part(whole, "second").reserve("fit", [(Cost(event=GaussianEvent(2.0), name="sum"), 1)])
    assert len(whole.entries) == lines


def test_what_is_left_fits_and_little_more_does_not(whole):
    assert whole.left() == 1.5
    part(whole, "first").reserve("fit", SUM)
    left = whole.left()
    assert left > 1.5 - whole.guarantee().epsilon  # composition, not a sum
    pure = Ledger(None, cap=Budget(epsilon=1.0, delta=0.0))
    pure.reserve("fit", [(Cost(event=PureEvent(0.25), name="laplace"), 1)])
    assert pure.left() == pytest.approx(0.75, abs=2e-3)
    for epsilon, fits in ((left, True), (left + 0.01, False)):
        event = accountant.one_release(Budget(epsilon=epsilon, delta=1e-5))
        total = accountant.epsilon_of([*SUM, (Cost(event=event, name="x"), 1)], delta=1e-5, relation=whole.relation)
        assert (total <= 1.5) is fits


def test_a_resumed_run_pays_once_and_goes_on(whole, tmp_path):
    path = tmp_path / "run" / "ledger.jsonl"
    with part(whole, "run", path, prices=STEPS) as run:
        run.reserve("fit", STEPS)
        run.charge("fit", 0, 2)
    price = whole.guarantee().epsilon
    with part(whole, "run", path, prices=STEPS) as run:
        run.reserve("fit", STEPS)
        assert run.used("fit", 0) == 2
        run.charge("fit", 0, 2)
    assert whole.guarantee().epsilon == price
    assert whole.used("run/fit", 0) == 4


class Apart(Part):
    """The twin that shares the price of a plan, and keeps its calls to itself."""

    used, charge, delivered, deliver = Ledger.used, Ledger.charge, Ledger.delivered, Ledger.deliver


@pytest.mark.parametrize(("kind", "calls"), [(Part, 1), (Apart, 2)])
def test_a_copy_of_a_run_makes_no_call_free_and_a_twin_whose_calls_are_its_own_does(whole, tmp_path, kind, calls):
    folder, copy = tmp_path / "run", tmp_path / "copy"

    def opened(place: Path) -> Part:
        ledger = kind(place / "l.jsonl", cap=CAP, relation=Relation.ADD_REMOVE, whole=whole, name="run")
        ledger.reserve("fit", SUM)
        return ledger

    opened(folder).close()
    shutil.copytree(folder, copy)
    made = 0
    for place in (folder, copy):
        with opened(place) as run:
            if run.used("fit", 0):
                with pytest.raises(PrivacyError, match="handed out"):
                    run.repeat("fit", 0)
                continue
            run.charge("fit", 0)
            run.deliver("fit", 0)
            made += 1
    assert made == calls


def test_a_name_is_one_run(whole, tmp_path):
    path = tmp_path / "run" / "ledger.jsonl"
    with part(whole, "run", path) as run:
        run.reserve("fit", SUM)
    with pytest.raises(PrivacyError, match="has a run 'run' already"):
        part(whole, "run", tmp_path / "elsewhere" / "ledger.jsonl")
    with part(whole, "run", path) as run, pytest.raises(PrivacyError, match="another plan"):
        run.reserve("fit", STEPS)
    for name in ("", "a/b"):
        with pytest.raises(PrivacyError, match="without '/'"):
            part(whole, name)
    with pytest.raises(PrivacyError, match="under 'add/remove one', this run under 'replace one'"):
        Part(None, cap=CAP, relation=Relation.REPLACE, whole=whole, name="x")


def test_looks_and_seeds_reach_the_total(whole):
    with part(whole, "run") as run:
        run.expose(reason="a look", audience="me")
        run.note_seeded_noise()
    assert whole.guarantee().exposures == run.guarantee().exposures == ("a look (seen by me)",)
    assert whole.guarantee().evidence is Evidence.UNSUPPORTED


def test_a_run_cannot_spend_when_the_shared_ledger_is_closed(whole):
    run = part(whole, "run")
    run.reserve("fit", SUM)
    whole.close()
    with pytest.raises(PrivacyError, match="is closed"):
        run.charge("fit", 0)
    assert not [e for e in run.entries if e["kind"] == "charge"]


def test_a_shared_file_is_one_process_at_a_time_and_keeps_its_cap(whole, tmp_path):
    path = tmp_path / "study.ledger"
    with pytest.raises(PrivacyError, match="in use by another run"):
        shared(path)
    whole.close()
    with shared(path) as again:
        assert again.cap == Budget(epsilon=1.5, delta=1e-5)
    with pytest.raises(PrivacyError, match="does not exist yet"):
        shared(tmp_path / "other.ledger")
    (tmp_path / "torn.ledger").write_bytes(b'{"kind": "op')  # killed while it was made
    with shared(tmp_path / "torn.ledger", cap=CAP) as begun:
        assert begun.cap == CAP
