"""PGE as published: refuted, yet whole: price, contract, resuming, its networks, codes and options."""

import dataclasses
import json
import math
import sys
from typing import Any

import numpy as np
import pytest

from dpgm.cli import OK, REFUSED, main
from dpgm.evaluation.curve import curves
from dpgm.mechanisms.perturbed import PerturbedProjections
from dpgm.methods import published_pge
from dpgm.methods.base import Resume, privatise
from dpgm.methods.pge import PGE
from dpgm.methods.published_pge import PARTS, Published
from dpgm.nets.codes import save_vq, train_vq
from dpgm.nets.procedural import procedural_images
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation, check_allowed
from dpgm.privacy.ledger import Ledger
from dpgm.samplers import run
from dpgm.schema import ImageSchema, Rows, SchemaError
from dpgm.testing import check_method

BUDGET = Budget(epsilon=8.0, delta=1e-4)


def schema(side=8, channels=1):
    return ImageSchema(height=side, width=side, channels=channels, classes=tuple("0123456789"))


def rows(n=20, side=8):
    rng = np.random.default_rng(0)
    return Rows(image=rng.integers(0, 256, (n, side, side, 1), dtype=np.uint8), label=rng.integers(0, 10, n))


def published(**options):
    given = {"net": "small", "steps": 2, "batch": 4, "rounds": 2, "n_leapfrog": 2, **options}
    return PGE(privacy="published", published=Published(**given))


@pytest.fixture(scope="module")
def vq_file(tmp_path_factory):
    images = procedural_images(8, height=16, width=16, channels=1, rng=np.random.default_rng(0))
    path = tmp_path_factory.mktemp("vq") / "vq.safetensors"
    save_vq(train_vq(images, steps=2, batch=4), path, provenance="made-up pictures")
    return path


def test_it_is_refuted_and_needs_to_be_asked_for():
    plan = published().plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    assert plan.guarantee().evidence is Evidence.REFUTED
    assert plan.guarantee().epsilon == BUDGET.epsilon
    assert "REFUTED" in plan.guarantee().headline()
    with pytest.raises(PrivacyError, match="--allow refuted"):
        check_allowed(plan.guarantee(), None)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"residual": "none", "loss": "derived", "metropolis": "printed", "label": "learned", "smooth": 0.1},
        {"label": "onehot", "bfloat16": True, "velocity": "rayleigh"},
    ],
)
def test_contract(options):
    check_method(published(**options), schema(), rows(), budget=BUDGET, allow="refuted")


def test_contract_of_the_unet_with_codes_of_a_public_vq_model(vq_file, monkeypatch):
    monkeypatch.chdir(vq_file.parent)
    method = published(net="unet", label="learned", rounds=1, n_leapfrog=1, residual=f"vq:{vq_file.name}")
    model = check_method(method, schema(), rows(), budget=BUDGET, allow="refuted")
    assert model.release.details["code"] == [4, 4, 4]
    assert model.guarantee.assumptions == ("the codes saw public data only: made-up pictures",)
    vq_file.rename(vq_file.with_suffix(".gone"))  # sampling does not need it
    assert len(model.release.method.restore(model.release, {}).sample(2, seed=0)) == 2
    vq_file.with_suffix(".gone").rename(vq_file)


class Killed(Exception):
    """The process is gone."""


def test_a_killed_training_goes_on_and_does_all_of_its_steps(tmp_path, monkeypatch):
    """Killed right after its third part was noted, and then while the fifth, paid for, was under way."""
    method, notes = published(steps=3 * PARTS), []
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)

    def go(state, stop):
        def on_note(note):
            notes.append(note)
            if len(notes) == stop:
                raise Killed

        with Ledger(tmp_path / "ledger.jsonl", relation=plan.relation, cap=BUDGET) as ledger:
            curator = Curator(rows, schema=schema(), ledger=ledger)
            return privatise(method, curator, plan, seed=0, on_note=on_note, state=state, allow="refuted")

    with pytest.raises(Killed):
        go(None, stop=3)
    whole = PerturbedProjections.__call__

    def dying(self, given, noise):
        if len(self.state["loss"]) == 12:
            raise Killed
        return whole(self, given, noise)

    monkeypatch.setattr(PerturbedProjections, "__call__", dying)
    with pytest.raises(Killed):
        go(notes[-1].state, stop=0)
    monkeypatch.undo()
    assert [n.step for n in notes] == [3, 6, 9, 12]
    release = go(notes[-1].state, stop=0)
    assert len(release.tensors["loss"]) == method.published.steps
    assert np.array_equal(release.tensors["loss"][:12], notes[3].state["loss"])
    assert release.guarantee.epsilon == BUDGET.epsilon


@pytest.mark.parametrize(
    ("steps", "deadly"), [(1, [0, 0]), (2, [1, 1]), (3, [1, 1]), (2 * PARTS, [38, 38]), (2 * PARTS, [36, 36])]
)
def test_a_training_killed_in_its_last_parts_does_all_of_its_steps(tmp_path, monkeypatch, steps, deadly):
    """Killed twice, each time in the part that begins after so many steps."""
    method, kept = published(steps=steps), list[Any]([None])
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    assert sum(n for _, n in plan.items) == min(steps, PARTS)
    whole, left = PerturbedProjections.__call__, list(deadly)

    def dying(self, given, noise):
        if left and left[0] == (0 if self.state is None else len(self.state["loss"])):
            left.pop()
            raise Killed
        return whole(self, given, noise)

    def go():
        with Ledger(tmp_path / "ledger.jsonl", relation=plan.relation, cap=BUDGET) as ledger:
            curator = Curator(rows, schema=schema(), ledger=ledger)
            return privatise(
                method, curator, plan, seed=0, on_note=lambda n: kept.append(n.state), state=kept[-1], allow="refuted"
            )

    monkeypatch.setattr(PerturbedProjections, "__call__", dying)
    for _ in deadly:
        with pytest.raises(Killed):
            go()
    release = go()
    assert len(release.tensors["loss"]) == steps
    assert release.guarantee.epsilon == BUDGET.epsilon
    assert release.guarantee.evidence is Evidence.REFUTED


@pytest.mark.parametrize(
    ("broken", "at", "skipped"),
    [((3, 6), [1, 2, 4, 6], [0, 0, 1, 2]), ((1,), [2, 3, 4, 5, 6], [1] * 5), (range(1, 7), [6], [6]), ((), None, [])],
)
def test_steps_that_are_not_finite_are_counted_and_no_file_holds_them(monkeypatch, broken, at, skipped):
    method, notes, calls = published(steps=6), [], iter(range(1000))  # call 0 is the plan's, for the shape
    monkeypatch.setattr(
        published_pge, "make_code", lambda spec: lambda x: x * (math.nan if next(calls) in broken else 1.0)
    )
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    ledger = Ledger(None, relation=plan.relation, cap=BUDGET)
    curator = Curator(rows, schema=schema(), ledger=ledger)
    release = privatise(method, curator, plan, seed=0, allow="refuted", on_note=notes.append)
    assert (np.flatnonzero(np.isnan(release.tensors["loss"])) + 1).tolist() == list(broken)
    assert notes[-1].values.get("skipped") == (len(broken) or None)
    notes.clear()
    model = method.train(release, seed=0, on_note=notes.append)
    assert [n.step for n in notes] == (at or [1, 2, 3, 4, 5, 6])
    assert [n.values["skipped"] for n in notes if "skipped" in n.values] == skipped
    json.dumps([dict(n.values) for n in notes], allow_nan=False)
    finite = [n for n in notes if "loss" in n.values]
    assert len(finite) == 6 - len(broken)
    assert np.ptp(model.sample(2, seed=0).images) > 0
    curve = {"step": [n.step for n in notes], **{k: [n.values[k] for n in notes] for k in notes[0].values}}
    assert [c.name for c in curves(curve)] == ["loss", "skipped"][: 2 if skipped else 1] * (len(notes) > 1)


def test_the_points_of_a_long_curve_end_at_finite_steps():
    method, notes = published(steps=1000), []
    plan = published().plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    ledger = Ledger(None, relation=plan.relation, cap=BUDGET)
    release = privatise(published(), Curator(rows, schema=schema(), ledger=ledger), plan, seed=0, allow="refuted")
    loss = np.arange(1000, dtype=np.float32)
    loss[[4, 9, 500, 999]] = np.nan
    release = dataclasses.replace(release, method=method, tensors={**release.tensors, "loss": loss})
    method.train(release, seed=0, on_note=notes.append)
    steps = [n.step for n in notes]
    assert len(steps) == len(set(steps)) == 200
    assert steps == sorted(steps)
    assert steps[-1] == 1000
    assert notes[-1].values == {"loss": pytest.approx(np.nanmean(loss[steps[-2] :])), "skipped": 4}
    assert all(np.isfinite(n.values["loss"]) for n in notes)


def test_the_plan_counts_the_drawing_and_the_size_of_pictures():
    def planned(side, **options):
        return published(**options).plan(schema(side), relation=Relation.ADD_REMOVE, budget=BUDGET)

    few, many = planned(28, rounds=1), planned(28, rounds=3)
    drawing = many.details["seconds_to_sample_1000"]
    assert isinstance(drawing, float)
    assert many.seconds - few.seconds == pytest.approx(10 * drawing * 2 / 3)
    common = {"net": "unet", "batch": 64}
    measured = {28: 2445, 64: 2717, 256: 2782}
    for side, megabytes in measured.items():
        assert 0.9 * megabytes < planned(side, **common).memory_mb < 1.4 * megabytes
    assert planned(256, **common).memory_mb > planned(28, **common).memory_mb
    assert planned(28, batch=64).memory_mb < 1.3 * 1091  # the small network


def test_a_killed_run_cannot_change_what_it_trains(tmp_path, monkeypatch, capsys):
    """Prices are the same, so the ledger cannot tell: fewer steps than were taken, more, or another learning rate."""
    words = ["fit", "digits", "--method", "pge", "--privacy", "published", "--allow", "refuted", "--published.net"]
    words += ["small", "--published.batch", "4", "--out", str(tmp_path / "run"), "--published.steps"]
    whole = PerturbedProjections.__call__

    def dying(self, given, noise):
        if self.state is not None and len(self.state["loss"]) == 6:
            raise Killed
        return whole(self, given, noise)

    monkeypatch.setattr(PerturbedProjections, "__call__", dying)
    with pytest.raises(Killed):
        main([*words, "40"])
    monkeypatch.undo()
    before = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    for given in (["20"], ["60"], ["40", "--published.lr", "0.1"]):
        assert main([*words, *given]) == REFUSED
        said = " ".join(capsys.readouterr().err.split())
        assert f"{['lr'] if len(given) > 1 else ['steps']} decided" in said
        assert "go back to the first ones" in said
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == before, "a refused resume charges nothing"
    assert main([*words, "40", "--published.rounds", "2"]) == OK, "free options may change"


def test_a_checkpoint_of_more_steps_is_refused():
    method = published(steps=3)
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    state = {"loss": np.zeros(4, np.float32)}
    with pytest.raises(PrivacyError, match="steps is 3, but the checkpoint has taken 4"):
        next(method.talk(plan, rng=np.random.default_rng(0), resume=Resume(used={0: 1, 1: 1}, state=state)))


def test_only_sampling_options_are_free():
    method = published()
    free = dataclasses.replace(method, published=dataclasses.replace(method.published, rounds=3))
    assert method.retrained(free) is free
    with pytest.raises(SchemaError, match="'k'"):
        method.retrained(dataclasses.replace(method, published=dataclasses.replace(method.published, k=3)))


@pytest.mark.parametrize(("floor", "below", "done"), [(50.0, 0.5, 3), (50.0, 0.0, 7), (1e-6, 0.5, 7)])
def test_rounds_that_accept_nothing_end_early_where_that_is_asked(monkeypatch, floor, below, done):
    seen = []

    def counted(*args, **kw):
        out = run(*args, **kw)
        seen.append(len(out.acceptance))
        return out

    monkeypatch.setattr(published_pge, "run", counted)
    method = published(rounds=7, n_leapfrog=1, step_floor=floor, stop_below=below)
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    ledger = Ledger(None, relation=plan.relation, cap=BUDGET)
    release = privatise(method, Curator(rows, schema=schema(), ledger=ledger), plan, seed=0, allow="refuted")
    method.train(release, seed=0).sample(4, seed=0)
    assert seen == [done]


def test_no_artefact_has_the_path_of_a_vq_model(vq_file):
    method = published(residual=f"vq:{vq_file}")
    shown = method.to_json()["published"]
    assert shown["residual"] == f"vq:{vq_file.name}"  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue, reportOptionalSubscript]
    assert PGE.from_json(method.to_json()).retrained(method) is method  # a resumed run has it from the command line
    with pytest.raises(SchemaError, match="'residual'"):
        method.retrained(published(residual="vq:other.safetensors"))


def test_codes_of_a_vq_model_name_what_it_saw(vq_file):
    assert published(residual=f"vq:{vq_file}").public_sets() == ("made-up pictures",)
    assert published().public_sets() == PGE().public_sets() == ()
    with pytest.raises(SchemaError, match="cannot be read"):
        published(residual="vq:nowhere").public_sets()


def test_the_loss_curve_is_passed_on():
    method, notes = published(steps=5), []
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    ledger = Ledger(None, relation=plan.relation, cap=BUDGET)
    release = privatise(method, Curator(rows, schema=schema(), ledger=ledger), plan, seed=0, allow="refuted")
    method.train(release, seed=0, on_note=notes.append)
    assert [n.step for n in notes] == [1, 2, 3, 4, 5]
    assert [n.values["loss"] for n in notes] == pytest.approx(release.tensors["loss"].tolist())


@pytest.mark.parametrize(
    ("options", "side", "message"),
    [
        ({"residual": "vq"}, 8, "'thumbnail' and 'vq:PATH'"),
        ({"residual": "vq:nowhere.safetensors"}, 8, "nowhere.safetensors cannot be read"),
        ({"residual": "vq:."}, 8, "holds no VQ model .*config.json"),
        ({"net": "unet"}, 10, "multiples of 4: resize to 12"),
        ({"rounds": 0}, 8, "rounds is 0"),
        ({"stop_below": 1.5}, 8, "share of moves"),
    ],
)
def test_bad_options(options, side, message):
    with pytest.raises(SchemaError, match=message):
        published(**options).plan(schema(side), relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SchemaError, match=r"pip install 'dpgm\[diffusion\]'"):
        published(net="unet").plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    assert published().plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET).items
