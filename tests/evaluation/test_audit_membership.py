"""Membership inference on samples: copies are caught, samples that know nothing are not, and looks are recorded."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from dpgm.evaluation.audit import Audit, audit_membership, membership
from dpgm.evaluation.audit.membership import nearest, vectors
from dpgm.evaluation.audit.memoriser import memoriser
from dpgm.evaluation.utility import public_door
from dpgm.privacy import accountant
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, Guarantee, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import Column, ImageSchema, Rows, SchemaError, TableSchema

SURE = 1 - 1e-6
BUDGET = Budget(epsilon=1.0, delta=1e-5)
MU = accountant.gaussian_mu(BUDGET)
IMAGES = ImageSchema(height=4, width=4, channels=1, classes=("a", "b"), size=400)
TABLE = TableSchema(
    columns=(
        Column(name="x", kind="number", low=0.0, high=1.0, missing=True),
        Column(name="y", kind="category", values=("u", "v", "w")),
        Column(name="label", kind="boolean"),
    ),
    label="label",
)


def promise(relation: Relation = Relation.REPLACE) -> Guarantee:
    return Guarantee(
        relation=relation, unit="record", epsilon=1.0, delta=1e-5, evidence=Evidence.PROVED, mechanisms=("m",)
    )


def pictures(n: int) -> Rows:
    rng = np.random.default_rng()
    return Rows(image=rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8), label=np.arange(n) % 2)


def people(n: int) -> Rows:
    rng = np.random.default_rng()
    x = np.where(rng.random(n) < 0.1, np.nan, rng.random(n))
    return Rows(table=np.stack([x, rng.integers(0, 3, n), np.arange(n) % 2], 1).astype(np.float64))


def attack(samples: Rows, members: Rows, held_out: Rows, schema: Any = IMAGES, **more: Any) -> Audit:
    terms: dict[str, Any] = {
        "door": public_door(lambda: members),
        "guarantee": promise(),
        "claim": lambda delta: accountant.gaussian_epsilon(MU, delta),
        "confidence": SURE,
    }
    return audit_membership(samples, held_out, schema=schema, **(terms | more))


def test_copies_are_caught_and_the_power_is_stated():
    members, held_out = pictures(600), pictures(600)
    copies = attack(members, members, held_out)
    assert copies.beaten, copies.text()
    assert copies.details is not None
    assert copies.details["nearest"]["tpr"] == 1
    assert copies.details["nearest"]["auc"] == 1
    assert copies.kind == "membership"
    innocent = attack(pictures(600), members, held_out)
    assert not innocent.beaten, innocent.text()
    assert innocent.twin in ("samples that copy 10% of the records", "samples that copy 20% of the records")
    assert "of the members at 1 % false alarms" in innocent.text()
    few = attack(pictures(40), pictures(40), pictures(40))
    assert "false alarms" not in few.text()  # of 40 strangers none marks a level of one in a hundred
    assert few.details is not None
    assert set(few.details["nearest"]) == {"auc"}


def test_the_interval_of_the_share_knows_that_its_level_is_estimated():
    rng, missed = np.random.default_rng(), 0
    true = norm.sf(norm.isf(0.01) - 2.3)
    for _ in range(200):
        rates = membership._rates(rng.normal(size=299) + 2.3, rng.normal(size=299))
        missed += not rates["tpr_low"] <= true <= rates["tpr_high"]
    assert missed <= 25  # of a 95 % interval: one run in 50,000; an interval for a known level misses 100


def test_a_table_of_copies_is_caught_too():
    members, held_out = people(600), people(600)
    assert attack(members, members, held_out, TABLE).beaten
    assert not attack(people(600), members, held_out, TABLE).beaten


def test_claims_under_add_remove_are_those_of_two_steps():
    members, held_out = pictures(600), pictures(600)
    one = attack(members, members, held_out)
    two = attack(members, members, held_out, guarantee=promise(Relation.ADD_REMOVE))
    assert two.beaten, two.text()
    assert two.stated.claimed == pytest.approx(2 * one.stated.claimed)
    assert two.stated.delta == pytest.approx((1 + np.exp(one.stated.claimed)) * one.stated.delta)
    assert one.relation is two.relation is Relation.REPLACE


@pytest.mark.parametrize("epsilon", [3.0, 5.0, 8.0, 10.0])
def test_what_cannot_be_beaten_under_add_remove_is_still_found(epsilon: float):
    """Two steps have more slack than so many guesses can bear; a smaller delta leaves nearly all that they can show."""
    members, held_out = pictures(600), pictures(600)
    mu = accountant.gaussian_mu(Budget(epsilon=epsilon, delta=1e-5))
    terms: dict[str, Any] = {"claim": lambda delta: accountant.gaussian_epsilon(mu, delta), "confidence": 0.999}
    two = attack(members, members, held_out, guarantee=promise(Relation.ADD_REMOVE), **terms)
    one = attack(members, members, held_out, **terms)
    assert one.stated.found - 0.1 < two.stated.found <= two.ceiling
    assert two.stated.found > 4
    assert two.stated.claimed > 2 * epsilon
    assert not two.beaten, two.text()
    few = attack(members.take(np.arange(60)), members, held_out, guarantee=promise(Relation.ADD_REMOVE), **terms)
    assert 1 < few.stated.found < 3, few.text()


def test_claims_that_say_nothing_at_small_deltas_are_taken_where_they_do():
    members, held_out = pictures(600), pictures(600)

    def bare(delta: float) -> float:
        if delta < 1e-6:
            raise PrivacyError("only the stated delta")
        return 1.0

    terms: dict[str, Any] = {"claim": bare, "confidence": 0.999}
    for delta, beaten in ((1e-6, True), (1e-4, False)):
        stated = dataclasses.replace(promise(Relation.ADD_REMOVE), delta=delta)
        found = attack(members, members, held_out, guarantee=stated, **terms)
        assert (found.stated.claimed, found.stated.delta) == (2.0, pytest.approx((1 + np.e) * delta))
        assert found.beaten == beaten, found.text()  # at 1e-4 a few hundred records may be shown whole
        assert (found.ceiling > 0) == beaten

    def coarse(delta: float) -> float:
        return 7.0 if delta > 1e-10 else np.inf

    found = attack(members, members, held_out, claim=coarse, guarantee=promise(Relation.ADD_REMOVE), confidence=0.999)
    assert found.stated.claimed == 14
    assert not found.beaten


def test_a_released_classifier_is_asked():
    members, held_out = pictures(200), pictures(200)
    known = {row.tobytes() for row in members["image"]}

    def odds(images: Any) -> Any:
        sure = np.array([row.tobytes() in known for row in images])
        right = np.where(sure, 0.99, 0.6)
        label = np.arange(len(images)) % 2  # pairs are shuffled, so half of these labels are wrong for strangers
        return np.stack([np.where(label == 0, right, 1 - right), np.where(label == 1, right, 1 - right)], 1)

    found = attack(pictures(50), members, held_out, odds=odds)
    assert found.details is not None
    assert set(found.details) == {"nearest", "density", "labeller"}
    assert "labeller" not in (attack(pictures(50), members, held_out, odds=lambda _: None).details or {})


def test_every_look_goes_through_the_door(tmp_path: Any):
    members, held_out = pictures(100), pictures(100)
    with Ledger(tmp_path / "ledger.jsonl", relation=Relation.ADD_REMOVE, cap=BUDGET) as ledger:
        curator = Curator(lambda: members, schema=IMAGES, ledger=ledger)
        attack(members, members, held_out, door=curator.expose, audience="a tester")
        [look] = curator.guarantee().exposures
    assert look.startswith("membership inference")
    assert "a tester" in look


def test_distances_are_exact_for_copies_and_classes_lie_apart():
    rows = pictures(50)
    points = vectors(rows, IMAGES)
    near = nearest(points, points)
    assert (near[:, 0] == 0).all()
    assert (near.diff(dim=1) >= 0).all()
    brute = (points[:, None] - points[None]).square().sum(2).sort(1).values[:, :10]
    assert torch.allclose(near, brute, atol=1e-4)
    assert torch.isinf(nearest(points[:3], points[:4])[:, 4:]).all()
    same = rows["label"][:, None] == rows["label"][None]
    gaps = torch.cdist(points, points).square().numpy()
    assert gaps[same].max() < gaps[~same].min()


def test_too_little_is_refused():
    with pytest.raises(SchemaError, match="no samples"):
        attack(pictures(0), pictures(50), pictures(50))
    with pytest.raises(SchemaError, match="at least 10"):
        attack(pictures(5), pictures(5), pictures(5))


def test_the_memoriser_falls_and_a_private_model_of_the_same_digits_stands():
    copies, sound = memoriser(confidence=SURE)
    assert copies.beaten, copies.text()
    assert copies.evidence is Evidence.REFUTED
    assert not sound.beaten, sound.text()
    assert sound.twin is not None


def test_the_memoriser_is_found_at_an_epsilon_where_no_pairs_could_beat_it():
    copies, sound = memoriser(epsilon=4.0)
    assert copies.stated.found > 4
    assert copies.ceiling == pytest.approx(copies.stated.found)
    assert not copies.beaten
    assert sound.stated.found < 1, sound.text()
    assert sound.twin == "none, not even samples that copy all records"
