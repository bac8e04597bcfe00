"""Train on synthetic, test on real: on digits, with few epochs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpgm.evaluation import utility
from dpgm.evaluation.utility import evaluate_images, protocol_epochs, public_door, reference_images, summarise
from dpgm.methods.base import Batch
from dpgm.nets.judges import Judges
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import ImageSchema, Rows, SchemaError

SCHEMA = ImageSchema(height=8, width=8, channels=1, classes=tuple("0123456789"), size=1500)
Digits = tuple[Rows, Rows]


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge of few steps, where entropy is not what is tested."""
    monkeypatch.setattr(utility, "_JUDGE_STEPS", 3)


quick = pytest.mark.usefixtures("_quick")


def batch(rows: Rows, n: int = 800) -> Batch:
    return Batch(images=rows["image"][:n], labels=rows["label"][:n])


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in metrics.items() if k != "seconds"}


@quick
def test_the_cnn_learns_from_soft_labels_and_is_named_so(digits: Digits) -> None:
    train, test = digits
    hard = batch(train)
    turned = np.eye(10, dtype=np.float32)[(hard.labels + 1) % 10]  # what it learns tells which labels it saw
    soft = Batch(images=hard.images, labels=hard.labels, odds=turned)
    found = evaluate_images(soft, test, schema=SCHEMA, epochs=4, classifiers=("cnn", "logreg"))
    assert list(found["accuracy"]) == ["cnn_soft", "logreg"]
    assert found["accuracy"]["cnn_soft"] < 0.1
    assert found["accuracy"]["logreg"] > 0.8
    for odds in (turned[:, :9], turned * 0.5, turned[:-1], -turned):
        with pytest.raises(SchemaError, match="class probabilities"):
            evaluate_images(Batch(images=hard.images, labels=hard.labels, odds=odds), test, schema=SCHEMA)


@quick
def test_field_names_and_scores(digits: Digits) -> None:
    train, test = digits
    looks: list[str] = []

    def door(fn: Any, *, reason: str, audience: str) -> Any:
        looks.append(reason)
        return fn(train)

    found = evaluate_images(batch(train), test, schema=SCHEMA, seed=1, real=door, epochs=4)
    assert set(found) == {"accuracy", "entropy", "sizes", "epochs", "seconds", "exposures"}
    assert set(found["accuracy"]) == {"cnn", "logreg", "mlp", "real_cnn", "real_logreg", "real_mlp"}
    assert all(v > 0.8 for v in found["accuracy"].values())
    assert found["sizes"] == {"synthetic": 800, "real": 800, "test": len(test)}
    assert [e["reason"] for e in found["exposures"]] == looks
    assert len(looks) == 1
    assert json.loads(json.dumps(found)) == found


@quick
def test_shuffled_labels_are_worth_nothing(digits: Digits) -> None:
    train, test = digits
    labels = np.random.default_rng(0).permutation(train["label"][:800])
    bad = Batch(images=train["image"][:800], labels=labels)
    found = evaluate_images(bad, test, schema=SCHEMA, classifiers=("cnn", "logreg"), epochs=2)
    assert all(v < 0.4 for v in found["accuracy"].values())
    assert found["exposures"] == []


def test_entropy_sees_images_not_labels(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utility, "_JUDGE_STEPS", 100)
    train, test = digits

    def entropy(synthetic: Batch) -> float:
        return evaluate_images(synthetic, test, schema=SCHEMA, classifiers=())["entropy"]

    varied = entropy(batch(train))
    zeros = train["image"][train["label"] == 0][:100]
    collapsed = entropy(Batch(images=zeros, labels=np.arange(len(zeros)) % 10))
    assert 0.95 * math.log(10) < varied <= math.log(10) + 1e-9
    assert 0 <= collapsed < 0.5


def test_many_samples_are_seen_less_often_not_for_longer() -> None:
    assert [protocol_epochs(n) for n in (1, 10_000, 60_000, 100_000, 240_000, 400_000)] == [20, 20, 20, 12, 5, 3]
    assert protocol_epochs(10**7) == 1


@quick
def test_same_seed_same_numbers(digits: Digits) -> None:
    train, test = digits
    runs = [evaluate_images(batch(train, 200), test, schema=SCHEMA, seed=3, epochs=1) for _ in range(2)]
    assert timeless(runs[0]) == timeless(runs[1])


@quick
def test_reference_is_kept_and_must_match(digits: Digits) -> None:
    train, test = digits
    door = public_door(lambda: train)
    kept = reference_images(door, test, schema=SCHEMA, classifiers=("logreg",), n=300, epochs=1)
    kept = json.loads(json.dumps(kept))
    synthetic = batch(train, 300)
    known: Any = {"schema": SCHEMA, "classifiers": ("logreg",), "epochs": 1}
    again = evaluate_images(synthetic, test, reference=kept, **known)
    assert timeless(again) == timeless(evaluate_images(synthetic, test, real=door, **known))
    for other in ({"seed": 5}, {"epochs": 2}):
        with pytest.raises(SchemaError, match="reference was made with"):
            evaluate_images(synthetic, test, reference=kept, **{**known, **other})
    with pytest.raises(SchemaError, match="reference was made with"):
        evaluate_images(batch(train, 200), test, reference=kept, **known)


@quick
def test_kept_judges_give_the_same_entropy(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits
    judges = Judges()
    known: Any = {"schema": SCHEMA, "classifiers": ()}
    first = evaluate_images(batch(train, 200), test, judges=judges, **known)["entropy"]
    judges.write(tmp_path / "judges.safetensors")
    assert first == evaluate_images(batch(train, 200), test, **known)["entropy"]
    other = evaluate_images(batch(train, 200), test, judges=judges, seed=1, **known)["entropy"]
    assert other != first, "another seed has another judge"
    monkeypatch.setattr(utility, "train_classifier", None)  # nothing is left to be trained
    kept = Judges.read(tmp_path / "judges.safetensors")
    assert first == evaluate_images(batch(train, 200), test, judges=kept, **known)["entropy"]


def test_curator_records_the_look_first(digits: Digits, tmp_path: Path) -> None:
    train, test = digits
    with Ledger(tmp_path / "ledger.jsonl", relation=Relation.ADD_REMOVE, cap=Budget(epsilon=1, delta=1e-5)) as ledger:
        announced: list[int] = []

        def reader() -> Rows:
            announced.append(sum(e["kind"] == "expose" for e in ledger.entries))
            return train

        curator = Curator(reader, schema=SCHEMA, ledger=ledger)
        found = reference_images(curator.expose, test, schema=SCHEMA, classifiers=("logreg",), n=100)
        assert announced == [1]
        assert found["exposures"][0]["reason"] in curator.guarantee().headline()


@quick
def test_one_class_is_no_crash(digits: Digits) -> None:
    train, test = digits
    only = Batch(images=train["image"][:50], labels=np.full(50, 3))
    found = evaluate_images(only, test, schema=SCHEMA, classifiers=("logreg", "mlp"), epochs=1)
    assert found["accuracy"]["logreg"] == found["accuracy"]["mlp"] == float((test["label"] == 3).mean())


def test_what_does_not_fit_is_refused(digits: Digits) -> None:
    train, test = digits
    with pytest.raises(SchemaError, match="allowed are cnn, logreg, mlp"):
        evaluate_images(batch(train), test, schema=SCHEMA, classifiers=("forest",))
    with pytest.raises(SchemaError, match="no records"):
        evaluate_images(batch(train, 0), test, schema=SCHEMA)
    with pytest.raises(SchemaError, match="shape"):
        evaluate_images(
            Batch(images=np.zeros((2, 9, 9, 1), np.uint8), labels=np.zeros(2, np.int64)), test, schema=SCHEMA
        )


def test_large_images_are_averaged_for_the_flat_classifiers() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3)).astype(np.uint8)
    flat = utility._flat(images)
    assert flat.shape == (3, 3 * 32 * 32)
    assert np.allclose(utility._flat(images[:, :32, :32]), images[:, :32, :32].reshape(3, -1) / 255)
    even = utility._flat(images[:, :, :32])  # 64 -> 32 in height: plain means of two
    assert np.allclose(even.mean(1), images[:, :, :32].mean((1, 2, 3)) / 255, atol=1e-5)


def test_summary_is_a_t_interval() -> None:
    found = summarise([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.7764451051977987 * math.sqrt(2.5 / 5)  # t(0.975, 4)
    assert found == pytest.approx({"mean": 3.0, "low": 3 - half, "high": 3 + half, "n": 5})
    assert summarise([0.25, 0.75]) == {"mean": 0.5, "n": 2, "values": [0.25, 0.75]}
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="all finite"):
            summarise(bad)


def test_summary_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(size=(4000, 5))  # the tolerance below is six standard errors
    found = [summarise(list(d)) for d in draws]
    covered = np.mean([f["low"] < 0 < f["high"] for f in found])
    assert abs(covered - 0.95) < 0.02
    shrink = 1.96 / 2.776  # the broken twin: a normal interval where a t-interval is due
    twin = np.mean([abs(f["mean"]) < shrink * (f["high"] - f["mean"]) for f in found])
    assert abs(twin - 0.95) > 0.02
