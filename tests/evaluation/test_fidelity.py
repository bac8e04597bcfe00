"""FID and its kin: values of other libraries, known cases, intervals that cover, looks that are written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from dpgm.evaluation import fidelity
from dpgm.evaluation.fidelity import View, fid, inception_score, kid, measures, neighbourhoods, open_view, real_view
from dpgm.evaluation.utility import public_door
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import ImageSchema, Rows, SchemaError

SCHEMA = ImageSchema(height=8, width=8, channels=1, classes=tuple("0123456789"), size=1500)


def clouds() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)) * [1, 2, 1, 0.5, 1, 1] + 0.3
    y = rng.normal(size=(300, 6)) @ np.triu(np.ones((6, 6))) * 0.6
    return x, y, rng.dirichlet([0.3] * 5, size=300)


def test_values_are_those_of_other_libraries() -> None:
    x, y, odds = clouds()
    assert fid(x, y) == pytest.approx(5.893114300775803, rel=1e-9)  # torchmetrics 1.9.0
    assert kid(x, y)[0] == pytest.approx(3.7394056235271127, rel=1e-9)  # torchmetrics 1.9.0
    assert inception_score(odds) == pytest.approx(2.1304, abs=1e-4)  # torchmetrics 1.9.0, one part
    assert neighbourhoods(cdist(x, x), cdist(y, y), cdist(x, y)) == pytest.approx(  # prdc 0.2
        {"precision": 0.22333333333333333, "recall": 0.86, "density": 0.102, "coverage": 0.27666666666666667}
    )


def test_known_cases() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 3))
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert fid(x, x + 2) == pytest.approx(12)  # the same covariance, means 2 apart in three coordinates
    assert fid(x, 3 * x) == pytest.approx(4 * np.trace(np.cov(x.T)) + 4 * float(x.mean(0) @ x.mean(0)), rel=1e-9)
    assert abs(kid(x, rng.normal(size=(4000, 3)))[0]) < 0.05
    assert inception_score(np.full((50, 10), 0.1)) == pytest.approx(1)
    assert inception_score(np.eye(10).repeat(5, 0)) == pytest.approx(10, rel=1e-6)
    far = neighbourhoods(cdist(x[:200], x[:200]), cdist(x[:200], x[:200]), cdist(x[:200], x[:200] + 99))
    assert set(far.values()) == {0}


def test_kid_of_subsets_is_that_of_their_records() -> None:
    x, y, _ = clouds()
    s, t = np.zeros((300, 2)), np.zeros((300, 2))
    s[:120, 0] = t[50:250, 0] = s[100:, 1] = t[:90, 1] = 1
    found = kid(x, y, (s, t))
    assert found == pytest.approx([kid(x[:120], y[50:250])[0], kid(x[100:], y[:90])[0]])


@pytest.fixture(scope="module")
def many() -> dict[str, Any]:
    """The metrics of 200 data sets of one law, where no metric is near the end of its range: [value, low, high]."""
    rng = np.random.default_rng(2)
    found: dict[str, list[list[float]]] = {}
    for _ in range(200):
        x, y = rng.normal([0.8, 0, 0, 0], size=(100, 4)), rng.normal(size=(100, 4))
        for name, v in measures(x, y, rng.dirichlet([0.5] * 3, size=100), replicates=20).items():
            found.setdefault(name, []).append([v["value"], v["low"], v["high"]])
    return {name: np.array(rows).T for name, rows in found.items()}


def test_intervals_cover(many: dict[str, Any]) -> None:
    """A share of 0.92 of 200 has a standard error of 0.02; intervals of half the width cover 0.67 and are noticed."""
    assert len(many) == 7
    for name, (value, low, high) in many.items():
        truth = value.mean()  # what the metric of so many records is on average
        assert 0.86 < ((low <= truth) & (truth <= high)).mean() <= 1, name
        half = (high - low) / 4
        assert ((value - half <= truth) & (truth <= value + half)).mean() < 0.8, name


def test_intervals_are_as_wide_as_the_spread(many: dict[str, Any]) -> None:
    for name in ("fid", "kid", "inception_score"):
        value, low, high = many[name]
        assert 0.75 < (high - low).mean() / 3.92 / value.std() < 1.3, name  # a standard error of about 5 %


def test_intervals_stay_where_values_can_be() -> None:
    x, y, odds = clouds()
    found = measures(x, x, odds)
    assert found["precision"]["high"] <= 1
    assert found["fid"]["low"] >= 0
    assert {type(v[end]) for v in found.values() for end in ("value", "low", "high")} == {float}, "0 is a float, too"
    assert all(v["low"] <= v["value"] <= v["high"] for v in measures(x, y, odds).values())
    assert measures(x, y, odds) == measures(x, y, odds), "the same seed, the same half-samples"
    with pytest.raises(SchemaError, match="as many of each"):
        measures(x[:10], y, odds)


# --- views -----------------------------------------------------------------------------------------------------------


def rows(n: int, seed: int, noise: float = 20) -> Rows:
    """Ten kinds of bars, with noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 10
    image = rng.normal(40, noise, (n, 8, 8, 1))
    for i, k in enumerate(label):
        image[i, k % 8, :, 0] += 150
        image[i, :, k // 2, 0] += 60
    return Rows(image=image.clip(0, 255).astype(np.uint8), label=label.astype(np.int64))


def test_the_offline_features_never_saw_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    train = fidelity.train_classifier
    monkeypatch.setattr(fidelity, "_STEPS", 60)
    monkeypatch.setattr(fidelity, "train_classifier", lambda x, y, **k: (seen.append(x), train(x, y, **k))[1])
    test = rows(400, seed=0)
    view = open_view("lenet", test, schema=SCHEMA, data="bars")
    assert view is not None
    good, bad = view(rows(300, seed=1)["image"]), view(rows(300, seed=1, noise=80)["image"])
    assert good["fid"]["value"] < bad["fid"]["value"]
    assert (good["fid"]["features"], good["fid"]["n"]) == ("lenet-bars", 200)
    assert "200 records" in good["fid"]["reference"]
    assert set(good) == {"fid", "kid", "inception_score", "precision", "recall", "density", "coverage"}
    trained = {image.tobytes() for image in seen[0]}
    assert len(trained) == 200
    order = np.random.default_rng(fidelity._SEED).permutation(400)
    assert not trained & {image.tobytes() for image in test["image"][order[200:]]}
    assert view(test["image"][:5]) == {}, "too few to say anything"


def test_a_look_at_train_records_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "_STEPS", 20)
    view = open_view("lenet", rows(100, seed=0), schema=SCHEMA, data="bars")
    assert view is not None
    with Ledger(tmp_path / "ledger.jsonl", relation=Relation.ADD_REMOVE, cap=Budget(epsilon=1, delta=1e-5)) as ledger:
        curator = Curator(lambda: rows(200, seed=5), schema=SCHEMA, ledger=ledger)
        found, exposure = real_view(view, curator.expose, n=100, seed=0)
        assert exposure["reason"] in curator.guarantee().headline()
    again, _ = real_view(view, public_door(lambda: rows(200, seed=5)), n=100, seed=0)
    assert found == again


class Pixels:
    """Sees an image as its pixels."""

    def look(self, images: Any) -> tuple[Any, Any]:
        return images.reshape(len(images), -1).astype(float), np.full((len(images), 10), 0.1)


def test_train_records_in_the_order_of_their_classes_are_seen_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "NEAR", 60)  # of the 300 that are drawn
    real = rows(300, seed=0)["image"]
    view = View(name="pixels", net=Pixels(), real=Pixels().look(real)[0], reference="test")  # type: ignore[arg-type]
    mixed = rows(600, seed=5)
    ordered = mixed.take(np.argsort(mixed["label"], kind="stable"))
    as_mixed, as_ordered = (real_view(view, public_door(lambda r=r: r), n=300, seed=0)[0] for r in (mixed, ordered))
    assert as_mixed["recall"]["value"] > 0.6
    assert as_ordered["recall"]["value"] == pytest.approx(as_mixed["recall"]["value"], abs=0.15)
    assert as_ordered["coverage"]["value"] == pytest.approx(as_mixed["coverage"]["value"], abs=0.15)


def test_no_view_and_wrong_views(tmp_path: Path) -> None:
    test = rows(40, seed=0)
    assert open_view("none", test, schema=SCHEMA, data="bars") is None
    for kind, said in (("vgg", "allowed are lenet"), (f"inception:{tmp_path}/no.pth", "nothing is downloaded")):
        with pytest.raises(SchemaError, match=said):
            open_view(kind, test, schema=SCHEMA, data="bars")
