"""The contract of methods."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dpgm.artefact import CHECKPOINT, load_checkpoint, load_model, save_checkpoint
from dpgm.methods.base import Batch, Method, Model, Note, Plan, Release, privatise
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation, check_allowed
from dpgm.privacy.ledger import Ledger
from dpgm.schema import Rows, Schema, SchemaError
from dpgm.testing.leaks import check_no_rows
from dpgm.testing.queries import _check_frozen  # pyright: ignore[reportPrivateUsage]


def check_method(
    method: Method,
    schema: Schema,
    rows: Rows,
    *,
    budget: Budget,
    relation: Relation = Relation.ADD_REMOVE,
    allow: str | None = None,
    seed: int = 0,
) -> Model:
    """Raise unless `method` keeps the contract: plan, pay, ask, train, save and load agree.

    Checked: the configuration survives JSON; a plan costs what the ledger then charges and no more than the budget;
    rows are read after the reservation; 0 rows and 1 row work like many; every reserved call is made, and no other;
    a run that was cut goes on from the file of its checkpoint, and is charged what was reserved; the same release and
    seed give the same model, and the same seed the same samples; the saved model is the model; and no row appears in
    release, model, notes, samples or files.

    Args:
        method: what is checked; give it few training steps.
        schema: public facts about `rows`.
        rows: some made-up records; at least one image should be noise (`dpgm.testing.images` makes such).
        budget: what the plan may cost.
        relation: which data sets are neighbours.
        allow: "refuted" or "unsupported" for methods that say so themselves.
        seed: of training and samples.

    Returns:
        The model of all rows.

    Raises:
        AssertionError: saying which part of the contract is broken.
    """
    _check_frozen(method)
    again = type(method).from_json(json.loads(json.dumps(method.to_json())))
    assert again == method, f"the configuration changes on its way through JSON: {method} becomes {again}"
    plan = method.plan(schema, relation=relation, budget=budget)
    _check_plan(method, plan, budget, allow)
    marked = _with_marker(rows, seed)
    notes: list[Note] = []
    for some in (rows.take(slice(0, 0)), rows.take(slice(0, 1)), marked):
        notes.clear()
        release = _release(method, plan, some, notes, allow=allow, seed=seed)
        model = method.train(release, seed=seed, on_note=notes.append)
        _check_batch(model, schema, seed)
    # `release` and `model` are those of the marked rows
    kept = [i for i, note in enumerate(notes) if note.state is not None]
    for cut in sorted({kept[len(kept) // 2], kept[-1]}) if kept else ():
        _check_goes_on(method, plan, marked, release, cut, allow=allow, seed=seed)
    _check_same(model, method.train(release, seed=seed), "trained twice from one release with one seed", seed)
    _check_same(model, method.restore(release, model.tensors()), "restored from its tensors", seed)
    marker = marked["image"][-1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        model.save(folder)
        check_no_rows(folder, marker)
        _check_same(model, load_model(folder), "saved and loaded", seed)
    check_no_rows([repr(model), repr(release), repr(plan), repr(notes), dict(release.tensors), model.tensors()], marker)
    if model.generates:
        check_no_rows(model.sample(20, seed=seed).images, marker)
    return model


def _check_plan(method: Method, plan: Plan, budget: Budget, allow: str | None) -> None:
    assert plan.items, "the plan asks nothing"
    promise = plan.guarantee()
    assert promise.epsilon <= budget.epsilon * (1 + 1e-9), f"the plan costs {promise.epsilon}; the budget is {budget}"
    assert promise.delta == budget.delta, f"the plan is for delta {promise.delta}; the budget is {budget}"
    json.dumps(dict(plan.details))
    twice = method.plan(plan.schema, relation=plan.relation, budget=budget)
    prices = [p.costs() for p in (plan, twice)]
    assert prices[0] == prices[1], "planned again, the prices differ: a resumed run would be refused"
    if promise.evidence < Evidence.CLAIMED:
        try:
            check_allowed(promise, None)
        except PrivacyError:
            assert allow, (
                f"the plan's evidence is {promise.evidence.word}; pass allow= to check the method all the same"
            )


def _release(method: Method, plan: Plan, rows: Rows, notes: list[Note], *, allow: str | None, seed: int) -> Release:
    ledger = Ledger(None, relation=plan.relation, cap=plan.budget)

    def reader() -> Rows:
        assert any(e["kind"] == "charge" for e in ledger.entries), "the rows are read before they are paid for"
        return rows

    curator = Curator(reader, schema=plan.schema, ledger=ledger)
    release = privatise(method, curator, plan, seed=seed, on_note=notes.append, allow=allow)
    for i, (mechanism, count) in enumerate(plan.items):
        used = ledger.used("fit", i)
        assert used == count, (
            f"the plan reserves {count} calls of {mechanism.cost(plan.relation).name}; {used} were charged"
        )
    kinds = {e["kind"] for e in ledger.entries} - {"open", "reserve", "charge", "deliver"}
    assert not kinds, f"the method made the ledger note {sorted(kinds)}"
    promise = plan.guarantee()
    assert release.guarantee == promise, f"the release promises {release.guarantee}; the plan said {promise}"
    for name, tensor in release.tensors.items():
        assert tensor.dtype != object, f"the release's tensor '{name}' holds objects, which would have to be pickled"
        assert np.isfinite(tensor).all(), f"the release's tensor '{name}' is not finite"
    return release


class _Cut(Exception):
    """Ends a run as a kill would."""


def _check_goes_on(
    method: Method, plan: Plan, rows: Rows, whole: Release, cut: int, *, allow: str | None, seed: int
) -> None:
    ledger = Ledger(None, relation=plan.relation, cap=plan.budget)
    curator = Curator(lambda: rows, schema=plan.schema, ledger=ledger)
    seen = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def on_note(note: Note) -> None:
            nonlocal seen
            save_checkpoint(note, folder / CHECKPOINT, method)
            seen += 1
            if seen > cut:
                raise _Cut

        try:
            privatise(method, curator, plan, seed=seed, on_note=on_note, allow=allow)
            raise AssertionError(f"the run made fewer than {cut + 1} notes this time")
        except _Cut:
            state = load_checkpoint(folder, method)
        release = privatise(method, curator, plan, seed=seed, state=state, allow=allow)
    used = [ledger.used("fit", i) for i in range(len(plan.items))]
    assert used == [n for _, n in plan.items], f"cut at note {cut + 1} and gone on, {used} calls were charged"
    shapes = [{name: t.shape for name, t in r.tensors.items()} for r in (whole, release)]
    assert shapes[0] == shapes[1], f"cut at note {cut + 1} and gone on, the release is another: {shapes}"


def _with_marker(rows: Rows, seed: int) -> Rows:
    """The rows, the last image made of random bytes."""
    columns: dict[str, Any] = {name: np.array(rows[name]) for name in rows.names}
    image = columns["image"]
    assert len(image) >= 2, "give two rows or more"
    image[-1] = np.random.default_rng([seed, 0xC0FFEE]).integers(0, 256, size=image.shape[1:], dtype=np.uint8)
    return Rows(**columns)


def _check_batch(model: Model, schema: Schema, seed: int) -> None:
    if not model.generates:
        return _check_odds(model, schema)
    for n in (0, 1, 2 * schema.n_classes + 1):
        batch = model.sample(n, seed=seed)
        assert batch.images.shape == (n, *schema.shape), f"{n} samples have shape {batch.images.shape}"
        assert batch.images.dtype == np.uint8, f"samples are {batch.images.dtype}; they must be uint8"
        assert batch.labels.shape == (n,), f"{n} samples have labels of shape {batch.labels.shape}"
        assert batch.labels.dtype == np.int64, f"labels are {batch.labels.dtype}; they must be int64"
        inside = (batch.labels >= 0) & (batch.labels < schema.n_classes)
        assert bool(inside.all()), "a sample's label lies outside the declared classes"


def _check_odds(model: Model, schema: Schema) -> None:
    """A model without samples classifies, and says so when it is asked for some."""
    try:
        model.sample(1)
    except SchemaError:
        pass
    else:
        raise AssertionError("the model says that it draws no records; sample() must raise a SchemaError")
    for n in (0, 1, 3):
        odds = model.classify(np.zeros((n, *schema.shape), np.uint8))
        assert odds is not None, "a model that draws no records must classify"
        assert odds.shape == (n, schema.n_classes), f"the probabilities of {n} images have shape {odds.shape}"
        assert np.allclose(odds.sum(1), 1, atol=1e-4), "class probabilities do not add up to 1"


def _check_same(model: Model, other: Model, how: str, seed: int) -> None:
    assert other.guarantee == model.guarantee, f"{how}, the model promises something else"
    first, second = model.tensors(), other.tensors()
    assert first.keys() == second.keys(), f"{how}, the model has other tensors"
    for name in first:
        assert np.array_equal(first[name], second[name]), f"{how}, the model's tensor '{name}' differs"
    if not model.generates:
        return
    drawn: list[Batch] = [m.sample(7, seed=seed + 1) for m in (model, model, other)]
    assert np.array_equal(drawn[0].images, drawn[1].images), "the same seed gives other samples"
    assert np.array_equal(drawn[0].images, drawn[2].images), f"{how}, the model gives other samples"
    assert np.array_equal(drawn[0].labels, drawn[2].labels), f"{how}, the model gives other labels"
