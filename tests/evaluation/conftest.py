"""A made-up run folder: real ledger, real guarantee, digits from scikit-learn in place of samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dpgm.privacy.guarantee import Budget, Evidence, Relation, Source
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import ClaimEvent, Cost, GaussianEvent
from dpgm.schema import ImageSchema, Rows

SCHEMA = ImageSchema(height=8, width=8, channels=1, classes=tuple("0123456789"), size=1500)
SOURCE = Source(key="dwork2006", title="Our Data, Ourselves", authors="Dwork and others", year=2006, where="EUROCRYPT")

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def digits() -> tuple[Rows, Rows]:
    """Train and test part of the embedded digits."""
    bunch: Any = load_digits()
    images = np.clip(bunch.images * 16, 0, 255).astype(np.uint8)[..., None]
    rows = Rows(image=images, label=bunch.target.astype(np.int64))
    return rows.take(slice(0, 1200)), rows.take(slice(1200, None))


def make_ledger(
    path: Path, evidence: Evidence = Evidence.PROVED, *, exposed: bool = False, seeded: bool = False
) -> Ledger:
    gauss = Cost(event=GaussianEvent(3.74), name="noisy class moments", sources=(SOURCE,))
    costs = [(gauss, 1)]
    if evidence is not Evidence.PROVED:
        costs.append((Cost(event=ClaimEvent(0.2, 0.0), name="perturbed projections", evidence=evidence), 300))
    with Ledger(path, relation=Relation.ADD_REMOVE, cap=Budget(epsilon=100.0, delta=1e-5)) as ledger:
        ledger.reserve("fit", costs)
        ledger.charge("fit", 0)
        if exposed:
            ledger.expose(reason="FID against the train part", audience="the analyst")
        if seeded:
            ledger.note_seeded_noise()
    return ledger


@pytest.fixture
def make_run(tmp_path: Path, digits: tuple[Rows, Rows]) -> MakeRun:
    """Write a run folder; keyword arguments replace keys of run.json."""

    def write(evidence: Evidence = Evidence.PROVED, *, exposed: bool = False, seeded: bool = False, **run: Any) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        ledger = make_ledger(folder / "ledger.jsonl", evidence, exposed=exposed, seeded=seeded)
        train, _ = digits
        np.savez(folder / "samples.npz", images=train["image"][:200], labels=train["label"][:200])
        steps = list(range(50, 5001, 50))
        losses = [0.02 + 2 * math.exp(-s / 400) for s in steps]
        write_json(folder / "training.json", {"step": steps, "loss": losses})
        write_json(folder / "metrics.json", METRICS)
        content = {
            "method": "pge",
            "config": {
                "name": "pge",
                "components": 4,
                "sampler": {"name": "hamiltonian", "steps": 60},
                "labeller": None,
            },
            "data": "digits",
            "guarantee": ledger.guarantee().to_json(),
            "seed": 0,
            "schema": SCHEMA.to_json(),
            "plan": {"noise_multiplier": 3.7401, "clip": 1.0},
            "command": "dpgm run pge --data digits --epsilon 1 --seed 0 --out run",
            "seconds": {"read": 0.1, "release": 1.3, "train": 41.2, "sample": 6.25, "evaluate": 98.0},
            "peak_memory_mb": 812.4,
            "cores": 2,
            "device": "cpu",
            "versions": {"dpgm": "0.1.0", "python": "3.12.3", "torch": "2.13.0"},
            **run,
        }
        write_json(folder / "run.json", content)
        return folder

    return write


METRICS = {
    "accuracy": {
        "cnn": {"mean": 0.9552, "low": 0.9501, "high": 0.9603, "n": 5},
        "logreg": 0.884,
        "mlp": 0.917,
        "real_cnn": 0.983,
        "real_logreg": 0.911,
        "real_mlp": 0.948,
        "labeller": 0.9795,
    },
    "entropy": 2.2871,
    "fid": {"value": 12.31, "features": "lenet-digits", "n": 299, "reference": "test"},
    "sizes": {"synthetic": 10000, "real": 10000, "test": 299},
    "exposures": [{"reason": "not private: reference on real data (cnn)", "audience": "readers of the report"}],
}


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), "utf-8")
