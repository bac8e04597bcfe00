"""The labeller alone and beside a generator: price, learning, resuming, corrected labels."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dpgm.artefact import load_model, load_samples, save_samples
from dpgm.cli import BAD_INPUT, OK, REFUSED, main
from dpgm.methods import labeller as labeller_module
from dpgm.methods.base import Note, Release, Resume, privatise
from dpgm.methods.embedding import DPMERF
from dpgm.methods.labelled import Labelled
from dpgm.methods.labeller import Labeller
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import SeededNoise
from dpgm.schema import ImageSchema, Rows, SchemaError

BUDGET = Budget(epsilon=4.0, delta=1e-4)
SMALL = Labeller(steps=60, rate=0.2, dim=120, pictures=300)
GENERATOR = DPMERF(steps=3, batch=10, latent=4, hidden=16)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8, 1) * 15).astype(np.uint8), y.astype(np.int64)


def schema(size: int | None = 1400):
    return ImageSchema(height=8, width=8, channels=1, classes=tuple("0123456789"), size=size)


def open_curator(digits, ledger=None, cap=BUDGET):
    x, y = digits
    ledger = Ledger(None, relation=Relation.ADD_REMOVE, cap=cap) if ledger is None else ledger
    return Curator(lambda: Rows(image=x[:1400], label=y[:1400]), schema=schema(), ledger=ledger, noise=SeededNoise(0))


def run(labeller, curator, *, state=None, stop=None) -> Any:
    """Drive the labeller's talk; returns its tensors, its checkpoints, and how often it asked."""
    plan = labeller.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    used = curator.reserve("fit", plan.items)
    talk = labeller.talk(plan, rng=np.random.default_rng(0), resume=Resume(used=used, state=state))
    answer, notes, asked = None, [], 0
    while True:
        try:
            ask = talk.send(answer)
        except StopIteration as end:
            return end.value, notes, asked
        if isinstance(ask, Note):
            notes.append(ask)
            answer = None
        elif asked == stop:
            return None, notes, asked
        else:
            answer, asked = curator.answer(ask), asked + 1


def test_the_plan_spends_the_budget_and_no_more():
    plan = Labeller().plan(schema(60_000), relation=Relation.ADD_REMOVE, budget=BUDGET)
    assert 0.99 * 4 < plan.guarantee().epsilon <= 4
    with pytest.raises(PrivacyError, match="replace one"):
        Labeller().plan(schema(60_000), relation=Relation.REPLACE, budget=BUDGET)
    with pytest.raises(SchemaError, match="declared number"):
        Labeller().plan(schema(None), relation=Relation.ADD_REMOVE, budget=BUDGET)


@pytest.mark.parametrize(("epsilon", "rate", "dim"), [(1.0, 0.05, 1500), (10.0, 0.2, 3000)])
def test_little_noise_lets_it_look_at_more(epsilon, rate, dim):
    budget = Budget(epsilon=epsilon, delta=1e-5)
    plan = Labeller().plan(schema(60_000), relation=Relation.ADD_REMOVE, budget=budget)
    mechanism: Any = plan.items[0][0]
    assert (mechanism.rate, plan.details["dim"]) == (rate, dim)
    own = Labeller(rate=0.1, dim=70).plan(schema(60_000), relation=Relation.ADD_REMOVE, budget=budget)
    mechanism = own.items[0][0]
    assert (mechanism.rate, own.details["dim"]) == (0.1, 70)


def test_features_are_made_once_however_many_are_asked_for(digits, monkeypatch):
    monkeypatch.setattr("dpgm.methods.labeller._made", {})
    method = dataclasses.replace(SMALL, dim=5000, steps=2)
    tensors, _, _ = run(method, open_curator(digits))
    assert tensors["weight"].shape == (10, 144)  # there are no more
    assert method.trained(schema(), tensors).features.dim == 144
    assert len(labeller_module._made) == 1


def test_it_reads_digits_that_it_has_not_seen(digits):
    tensors, _, asked = run(SMALL, open_curator(digits))
    trained = SMALL.trained(schema(), tensors)
    x, y = digits
    odds = trained(x[1400:])
    np.testing.assert_allclose(odds.sum(1), 1, rtol=1e-5)
    assert (odds.argmax(1) == y[1400:]).mean() > 0.75  # 0.1 by chance
    assert asked == 60
    assert trained(x[:0]).shape == (0, 10)


@pytest.mark.parametrize(("options", "said"), [({"dim": 0}, "dim is 0"), ({"pictures": 1}, "pictures 1")])
def test_features_that_cannot_be_made_are_refused_before_anything_is_reserved(options, said):
    with pytest.raises(SchemaError, match=said):
        dataclasses.replace(SMALL, **options).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_one_class_leaves_nothing_to_tell():
    one = ImageSchema(height=8, width=8, channels=1, classes=("only",), size=100)
    for method in (SMALL, Labelled(generator=GENERATOR, labeller=SMALL)):
        with pytest.raises(SchemaError, match="one class"):
            method.plan(one, relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_noise_alone_moves_a_logit_by_what_the_rate_is_chosen_for():
    from torch import nn

    from dpgm.methods.descent import Descent

    labeller = Labeller()
    plan = labeller.plan(schema(), relation=Relation.ADD_REMOVE, budget=Budget(epsilon=1.0, delta=1e-4))
    mechanism: Any = plan.items[0][0]
    net = nn.Linear(400, 10, bias=False)
    nn.init.zeros_(net.weight)
    descent = Descent(net, steps=300, lr=labeller.learning_rate(mechanism), rule="momentum", average=0.0)
    noise, std = SeededNoise(1), mechanism.noise_multiplier * labeller.clip_norm / (0.05 * 1400)
    for _ in range(300):
        descent.follow(noise.normal(4000, std))
    assert net.weight.std().item() == pytest.approx(labeller.wander, rel=0.1)


def test_an_interrupted_run_goes_on_and_never_asks_for_more_than_was_reserved(digits, tmp_path):
    def ledger():
        return Ledger(tmp_path / "ledger.jsonl", relation=Relation.ADD_REMOVE, cap=BUDGET)

    with ledger() as book:
        _, notes, asked = run(SMALL, open_curator(digits, book), stop=25)
    done = int(notes[-1].state["done"])
    assert 22 <= done <= 25
    with ledger() as book:
        burnt = book.used("fit", 0)
        tensors, more, again = run(SMALL, open_curator(digits, book), state=notes[-1].state)
        assert asked <= burnt
        assert again == 60 - burnt
        assert book.used("fit", 0) == 60
        assert len([e for e in book.entries if e["kind"] == "reserve"]) == 1
    assert int(more[-1].state["done"]) == done + again
    with ledger() as book:  # all is spent: what the last checkpoint holds is the result
        last, _, none = run(SMALL, open_curator(digits, book), state=more[-1].state)
        assert none == 0
        assert (last["weight"] == tensors["weight"]).all()


def test_a_checkpoint_restores_every_number():
    from torch import nn

    from dpgm.methods.descent import Descent

    gradients = SeededNoise(0).normal((6, 20))
    for rule in ("momentum", "adam"):
        through, first, second = (
            Descent(nn.Linear(10, 2, bias=False).requires_grad_(True), steps=6, lr=0.1, rule=rule) for _ in range(3)
        )
        for descent in (first, second):
            descent.load({**through.tensors(), "done": np.array(0)})
        for g in gradients:
            through.follow(g)
        for g in gradients[:3]:
            first.follow(g)
        second.load(first.tensors())
        for g in gradients[3:]:
            second.follow(g)
        assert all((second.tensors()[k] == v).all() for k, v in through.tensors().items())


# --- beside a generator


@pytest.fixture(scope="module")
def release(digits):
    method = Labelled(generator=GENERATOR, labeller=Labeller(steps=20, rate=0.2))
    curator = open_curator(digits)
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    return privatise(method, curator, plan, seed=0, allow="unsupported")


def test_generator_and_labeller_fit_the_budget_together():
    for share in (0.1, 0.5, 0.9):
        plan = Labelled(generator=GENERATOR, share=share).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
        assert 0.95 * 4 < plan.guarantee().epsilon <= 4
        assert plan.guarantee().evidence is Evidence.PROVED
        assert len(plan.items) == 2
    with pytest.raises(SchemaError, match="draws no records"):
        Labelled(generator=SMALL).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    with pytest.raises(PrivacyError, match="share"):
        Labelled(share=1.0).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_filtered_images_keep_their_label_and_relabelled_ones_get_the_labellers(release):
    filtering = release.method.train(release, seed=0)
    batch = filtering.sample(30, seed=1)
    assert (batch.labels == np.arange(30) % 10).all()
    relabelling = dataclasses.replace(release.method, mode="relabel").restore(release, filtering.tensors())
    batch = relabelling.sample(30, seed=1)
    assert (batch.labels == relabelling.labeller(batch.images).argmax(1)).all()
    assert batch.images.shape == (30, 8, 8, 1)


def test_filtering_keeps_the_likeliest_draw(release):
    model = release.method.train(release, seed=0)
    plain = model.generator.sample(40, seed=1)
    odds = [model.labeller(b.images)[np.arange(40), b.labels].mean() for b in (plain, model.sample(40, seed=1))]
    assert odds[1] >= odds[0]


def test_soft_labels_come_beside_filtered_images_and_survive_the_file(release, tmp_path):
    hard = release.method.train(release, seed=0)
    soft = dataclasses.replace(release.method, mode="soft").restore(release, hard.tensors())
    plain, batch = hard.sample(30, seed=1), soft.sample(30, seed=1)
    assert plain.odds is None
    assert (batch.images == plain.images).all()
    assert (batch.labels == plain.labels).all()
    np.testing.assert_array_equal(batch.odds, soft.labeller(batch.images))
    save_samples(batch, schema(), tmp_path / "samples.npz")
    np.testing.assert_array_equal(load_samples(tmp_path).odds, batch.odds)
    save_samples(plain, schema(), tmp_path / "samples.npz")
    assert load_samples(tmp_path).odds is None


def test_a_saved_model_gives_the_same_samples(release):
    model = release.method.train(release, seed=0)
    again = Labelled.from_json(release.method.to_json()).restore(
        Release(**{f.name: getattr(release, f.name) for f in dataclasses.fields(release)}), model.tensors()
    )
    assert (again.sample(5, seed=3).images == model.sample(5, seed=3).images).all()


def test_an_interrupted_talk_of_both_goes_on_where_it_stood(digits, tmp_path):
    method = Labelled(generator=GENERATOR, labeller=Labeller(steps=20, rate=0.2))
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    states = []

    class Killed(Exception):
        pass

    def watch(note):
        if note.state is not None:
            states.append(note.state)
        if note.stage == "labeller" and note.step == 8:
            raise Killed

    path = tmp_path / "ledger.jsonl"
    with Ledger(path, relation=Relation.ADD_REMOVE, cap=BUDGET) as book, pytest.raises(Killed):
        privatise(method, open_curator(digits, book), plan, seed=0, allow="unsupported", on_note=watch)
    for state in (states[0], states[-1]):  # after the generator, and in the middle of the labeller
        assert any(k.startswith("released.") for k in state)
    with Ledger(path, relation=Relation.ADD_REMOVE, cap=BUDGET) as book:
        done = privatise(method, open_curator(digits, book), plan, seed=0, allow="unsupported", state=states[-1])
        assert book.used("fit", 0) == 1
        assert book.used("fit", 1) == 20
    assert (done.tensors["generator.sums"] == states[-1]["released.sums"]).all()
    assert done.tensors["labeller.weight"].shape == (10, 9 * 16)


def test_what_is_free_of_the_generator_is_free_of_both(release):
    method = release.method
    longer = dataclasses.replace(method, generator=dataclasses.replace(method.generator, steps=3), mode="relabel")
    assert method.retrained(longer) is longer
    assert method.retrained(dataclasses.replace(method, mode="soft")).mode == "soft"
    with pytest.raises(SchemaError, match=r"dim.*decided what was released"):
        method.retrained(dataclasses.replace(method, generator=dataclasses.replace(method.generator, dim=98)))
    with pytest.raises(SchemaError, match=r"share.*decided what was released"):
        method.retrained(dataclasses.replace(method, share=0.4))
    with pytest.raises(SchemaError, match="not by 'merf'"):
        method.retrained(method.generator)


def test_it_reads_any_public_features_and_they_travel_in_the_release(digits, tmp_path):
    file = tmp_path / "F.safetensors"
    size = ["--image-size", "8", "--channels", "1", "--instances", "60", "--steps", "3"]
    assert main(["features", "train", "procedural", *size, "--out", str(file)]) == OK
    method = dataclasses.replace(SMALL, features=f"trained:{file}+rff", steps=30)
    assert method.public_sets() == ("procedural",)
    both = Labelled(generator=GENERATOR, labeller=method)
    assert both.public_sets() == ("procedural",)
    plan = both.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    assert "saw public data only: procedural" in plan.guarantee().headline()
    release = privatise(both, open_curator(digits), plan, seed=0)
    model = both.train(release, seed=0)
    file.unlink()
    model.save(tmp_path / "run")
    again = load_model(tmp_path / "run")
    x, y = digits
    odds = again.classify(x[1400:])
    assert odds is not None
    assert (odds == model.classify(x[1400:])).all()
    assert (odds.argmax(1) == y[1400:]).mean() > 0.5  # 0.1 by chance
    reopened = again.release.method.reopened(again.release.tensors)  # the file is gone
    fresh = reopened.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    assert fresh.guarantee() == plan.guarantee()
    assert again.release.method.retrained(both) is both  # as an interrupted run has it from the command line


def test_the_command_line_gives_a_labeller_its_features(tmp_path, capsys):
    file = tmp_path / "F.safetensors"
    assert main(["features", "train", "digits", "--steps", "2", "--records", "50", "--out", str(file)]) == OK
    words = ["plan", "digits", "--labeller-features", f"trained:{file}"]
    assert main(words) == BAD_INPUT
    assert "--labeller 0.3" in capsys.readouterr().err
    assert main([*words, "--labeller", "0.3"]) == REFUSED
    assert "fitted on 'digits'" in capsys.readouterr().err
    assert main(["plan", "digits", "--labeller", "0.3", "--labeller-features", "rff+ntk"]) == OK


def test_features_must_be_named():
    with pytest.raises(SchemaError, match="name one or more"):
        Labeller(features="")
    with pytest.raises(SchemaError, match="allowed are scattering"):
        Labeller(features="nosuch")
