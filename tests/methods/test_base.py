"""What methods share: a toy method that keeps the contract, broken twins that do not, options, plans, driving."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from dpgm import methods
from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.queries import Histogram
from dpgm.methods.base import (
    Batch,
    Method,
    Model,
    Note,
    OnNote,
    Plan,
    Release,
    Resume,
    Talk,
    Tensors,
    check_allowed,
    privatise,
    reporter,
)
from dpgm.methods.options import require_images
from dpgm.privacy import accountant
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation, Source
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import Array, Cost, NoiseSource
from dpgm.schema import ImageSchema, Rows, Schema, SchemaError
from dpgm.testing import check_method, images

SCHEMA = ImageSchema(height=6, width=6, channels=1, classes=("a", "b", "c"))
ROWS = images(SCHEMA)(30, np.random.default_rng(0))
BUDGET = Budget(epsilon=1.0, delta=1e-5)
ADD = Relation.ADD_REMOVE


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Noisy class counts, asked once alone and several times together; samples are grey squares."""

    name: ClassVar[str] = "toy"
    sources: ClassVar[tuple[Source, ...]] = ()
    calls: int = 60
    grey: float = 0.5
    kind: Literal["plain", "bold"] = "plain"
    sizes: tuple[int, ...] = (1, 2)
    base: Toy | None = None

    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        query = Histogram(column="label", bins=schema.n_classes)

        def items(scale: float) -> tuple[tuple[Any, int], ...]:
            std = scale * query.sensitivity(relation)
            return (
                (Gaussian(query=query, noise_std=std, name="first"), 1),
                (Gaussian(query=query, noise_std=8 * std, name="more"), self.calls),
            )

        scale = accountant.calibrate(lambda s: [(m.cost(relation), n) for m, n in items(s)], budget, relation=relation)
        return Plan(
            schema=schema, relation=relation, budget=budget, items=items(scale), details={"noise_multiplier": scale}
        )

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        (first, _), (more, count) = plan.items
        total = yield first
        for step in range(resume.used.get(1, 0), count):
            total = total + (yield more) / 64
            yield Note(stage="ask", step=step + 1, total=count)
        return {"counts": total}

    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> Model:
        rng = np.random.default_rng(seed)
        return ToyModel(release, {"grey": np.array([255 * self.grey + rng.normal()])})

    def restore(self, release: Release, tensors: Tensors) -> Model:
        return ToyModel(release, tensors)


class ToyModel(Model):
    def __init__(self, release: Release, held: Tensors) -> None:
        super().__init__(release)
        self.held = held

    def tensors(self) -> Tensors:
        return self.held

    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        image = rng.normal(self.held["grey"][0], 5, (len(labels), *self.schema.shape)).clip(0, 255)
        return Batch(images=image.astype(np.uint8), labels=labels)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys are found by their names."""
    from dpgm import methods

    real = methods.get
    twins: Mapping[str, type[Method]] = {"toy": Toy}
    monkeypatch.setattr(methods, "get", lambda name: twins[name] if name in twins else real(name))


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("relation", Relation)
def test_toy_keeps_the_contract(relation: Relation) -> None:
    model = check_method(Toy(base=Toy(calls=3)), SCHEMA, ROWS, budget=BUDGET, relation=relation)
    assert 0.99 < model.guarantee.epsilon <= 1.0


# --- broken twins -----------------------------------------------------------------------------------------------------


class TypesTooLittle(Toy):
    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        plan = super().plan(schema, relation=relation, budget=budget)
        return replace(plan, items=tuple((replace(m, noise_std=m.noise_std / 2), n) for m, n in plan.items))


class AsksForMore(Toy):
    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        yield plan.items[0][0]
        return {"counts": (yield plan.items[0][0])}


class AsksForOthers(Toy):
    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        return {"counts": (yield Gaussian(query=Histogram(column="label", bins=3), noise_std=1e-3))}


class AsksForLess(Toy):
    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        return {"counts": (yield plan.items[0][0])}


class PlansByChance(Toy):
    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        plan = super().plan(schema, relation=relation, budget=budget)
        factor = 1 + np.random.default_rng().random()
        return replace(plan, items=tuple((replace(m, noise_std=m.noise_std * factor), n) for m, n in plan.items))


class TrainsByChance(Toy):
    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> Model:
        return super().train(release, seed=int(np.random.default_rng().integers(2**31)), on_note=on_note)


class ForgetsInRestore(Toy):
    def restore(self, release: Release, tensors: Tensors) -> Model:
        return ToyModel(release, {"grey": tensors["grey"] + 9})


@dataclass(frozen=True, kw_only=True)
class Leak(Gaussian):
    """Hands a row out beside the noise."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        out = super().__call__(rows, noise)
        last = rows["image"][-1].ravel() if len(rows) else np.zeros(36)
        return np.concatenate([out, last])


class LeaksARow(Toy):
    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        plan = super().plan(schema, relation=relation, budget=budget)
        (first, _), rest = plan.items
        return replace(plan, items=((Leak(query=first.query, noise_std=first.noise_std, name="first"), 1), rest))

    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        first = yield plan.items[0][0]
        for _ in range(self.calls):
            yield plan.items[1][0]
        return {"counts": first[:3], "prototype": first[3:] / 255}


class FailsWithoutRows(Toy):
    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        made = yield from super().talk(plan, rng=rng, resume=resume)
        return {"counts": made["counts"] / 0 if made["counts"].sum() < 15 else made["counts"]}


class LosesOptions(Toy):
    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in super().to_json().items() if k != "calls"}


class WrongShape(Toy):
    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> Model:
        class Small(ToyModel):
            def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
                batch = super()._sample(labels, rng)
                return Batch(images=batch.images[:, :-1], labels=labels)

        return Small(release, {"grey": np.ones(1)})


TWINS: list[tuple[type[Toy], type[Exception], str]] = [
    (TypesTooLittle, AssertionError, "the plan costs"),
    (AsksForMore, PrivacyError, "allows 1 calls"),
    (AsksForOthers, PrivacyError, "not in the reserved plan"),
    (AsksForLess, AssertionError, "were charged"),
    (PlansByChance, AssertionError, "planned again"),
    (TrainsByChance, AssertionError, "trained twice"),
    (ForgetsInRestore, AssertionError, "restored from its tensors"),
    (LeaksARow, AssertionError, "private marker appears"),
    (LosesOptions, AssertionError, "way through JSON"),
    (WrongShape, AssertionError, "samples have shape"),
]


@pytest.mark.parametrize(("twin", "error", "message"), TWINS)
def test_broken_method_is_caught(twin: type[Toy], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_method(twin(calls=3), SCHEMA, ROWS, budget=BUDGET)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_method_that_needs_rows_is_caught() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        check_method(FailsWithoutRows(calls=1), SCHEMA, ROWS, budget=Budget(epsilon=100.0, delta=1e-5))


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_survive_json() -> None:
    method = Toy(calls=7, grey=0.25, kind="bold", sizes=(), base=Toy(base=Toy()))
    assert Toy.from_json(json.loads(json.dumps(method.to_json()))) == method
    assert Toy.from_json({}) == Toy()
    assert Toy.from_json({"grey": 1}).grey == 1.0


@pytest.mark.parametrize(
    "value",
    [
        {"steps": 3},
        {"calls": 1.5},
        {"calls": True},
        {"calls": "3"},
        {"grey": "0.5"},
        {"kind": "fat"},
        {"sizes": 3},
        {"sizes": [1, "2"]},
        {"base": 3},
        {"base": {"name": "merf"}},
        {"base": {"name": "no such"}},
        {"name": "merf"},
    ],
)
def test_options_that_do_not_fit_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(SchemaError):
        Toy.from_json(value)


# --- driving ----------------------------------------------------------------------------------------------------------


def curator_of(relation: Relation = ADD, schema: ImageSchema = SCHEMA, cap: Budget = BUDGET) -> Curator:
    return Curator(lambda: ROWS, schema=schema, ledger=Ledger(None, relation=relation, cap=cap))


def test_plan_must_fit_the_curator() -> None:
    plan = Toy().plan(SCHEMA, relation=ADD, budget=BUDGET)
    for curator in (curator_of(Relation.REPLACE), curator_of(schema=replace(SCHEMA, classes=("a", "b")))):
        with pytest.raises(PrivacyError, match="plan again for these"):
            privatise(Toy(), curator, plan, seed=0)
        assert len(curator.ledger.entries) == 1
    with pytest.raises(PrivacyError, match=r"the cap is 0\.5"):
        privatise(Toy(), curator_of(cap=Budget(epsilon=0.5, delta=1e-5)), plan, seed=0)


def test_interrupted_talk_goes_on() -> None:
    plan, curator = Toy(calls=60).plan(SCHEMA, relation=ADD, budget=BUDGET), curator_of()

    def stop(note: Note) -> None:
        if note.step == 31:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        privatise(Toy(calls=60), curator, plan, seed=0, on_note=stop)
    with pytest.raises(PrivacyError, match="was handed out"):  # the toy keeps no checkpoint of its first answer
        privatise(Toy(calls=60), curator, plan, seed=0)
    assert curator.reserve("fit", plan.items) == {0: 1, 1: 32}  # blocks of two
    assert curator.guarantee() == plan.guarantee()


@dataclass(frozen=True, kw_only=True)
class Weak(Gaussian):
    evidence: Evidence = Evidence.REFUTED

    def cost(self, relation: Relation) -> Cost:
        return replace(super().cost(relation), evidence=self.evidence)


def test_weak_evidence_needs_its_name() -> None:
    def plan(evidence: Evidence) -> Plan:
        weak = Weak(query=Histogram(column="label", bins=3), noise_std=9.0, evidence=evidence)
        return Plan(schema=SCHEMA, relation=ADD, budget=BUDGET, items=((weak, 1),))

    refuted, unsupported = plan(Evidence.REFUTED).guarantee(), plan(Evidence.UNSUPPORTED).guarantee()
    for promise, allow in ((refuted, None), (refuted, "unsupported"), (unsupported, None)):
        with pytest.raises(PrivacyError, match=f"--allow {promise.evidence.word}"):
            check_allowed(promise, allow)
    check_allowed(refuted, "refuted")
    check_allowed(unsupported, "refuted")
    check_allowed(unsupported, "unsupported")
    check_allowed(plan(Evidence.CLAIMED).guarantee(), None)
    with pytest.raises(PrivacyError, match="allowed are None"):
        check_allowed(refuted, "everything")
    curator = curator_of()
    with pytest.raises(PrivacyError, match="--allow refuted"):
        privatise(Toy(), curator, plan(Evidence.REFUTED), seed=0)
    assert len(curator.ledger.entries) == 1


# --- models -----------------------------------------------------------------------------------------------------------


def test_samples() -> None:
    plan = Toy(calls=1).plan(SCHEMA, relation=ADD, budget=BUDGET)
    model = Toy().train(privatise(Toy(calls=1), curator_of(), plan, seed=0), seed=0)
    assert model.sample(7).labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert model.sample(2, labels=[2, 0]).labels.tolist() == [2, 0]
    assert len(model.sample(0)) == 0
    assert "epsilon" in repr(model)
    assert "proved" in repr(model)
    for n, labels in ((-1, None), (2, [0]), (1, [3]), (1, [-1]), (1, [0.5]), (1, [True])):
        with pytest.raises(SchemaError):
            model.sample(n, labels=labels)


def test_images_may_be_required_to_be_squares() -> None:
    assert require_images(SCHEMA, 6) is SCHEMA
    assert require_images(SCHEMA) is SCHEMA
    with pytest.raises(SchemaError, match="--resize 8"):
        require_images(SCHEMA, 8, 32)


def test_progress_is_thinned() -> None:
    notes: list[Note] = []
    report = reporter(notes.append, "train", 1000, points=10)
    for step in range(1000):
        report(step, 1.0)
    assert len(notes) == 11
    assert notes[-1].step == 1000


@pytest.mark.parametrize("name", methods.names())
def test_options_that_must_be_above_0_say_so_by_their_type(name: str) -> None:
    kind = methods.get(name)
    hints = typing.get_type_hints(kind, include_extras=True)
    positive = [n for n, hint in hints.items() if "above 0" in str(hint) and n in {f.name for f in fields(kind)}]
    for option in positive:
        with pytest.raises(SchemaError, match=f"{option} is 0; allowed is a number above 0"):
            kind(**{option: 0})
    sizes = {"batch", "cells", "clip_norm", "components", "draws", "hidden", "latent", "slices", "slice_dim", "width"}
    assert {f.name for f in fields(kind)} & sizes <= set(positive)
