"""Several ledgers of the same records: composition, the weakest evidence, every assumption."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dpgm.privacy.accountant import gaussian_epsilon
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import Cost, GaussianEvent, PureEvent
from dpgm.privacy.together import reopen, together

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
