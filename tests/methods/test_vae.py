"""DP2-VAE: six forms on small digits; price, resuming, and what they draw."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from dpgm.mechanisms.gradient import PoissonGradient
from dpgm.mechanisms.latents import LocalInference
from dpgm.mechanisms.moments import CodeMoments
from dpgm.mechanisms.noise import Gaussian
from dpgm.methods.base import Batch, Note, privatise
from dpgm.methods.decoder import CodeLaws
from dpgm.methods.labelled import Labelled
from dpgm.methods.labeller import Labeller
from dpgm.methods.vae import DP2VAE
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import SeededNoise
from dpgm.schema import ImageSchema, Rows, SchemaError

FORMS = ("local", "one-shot", "budget-split", "public", "joint", "published")
BUDGET = Budget(epsilon=8.0, delta=1e-4)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8, 1) * 15).astype(np.uint8), y.astype(np.int64)


def schema(height=8, width=8, channels=1, size: int | None = 1400):
    return ImageSchema(height=height, width=width, channels=channels, classes=tuple("0123456789"), size=size)


def small(**kw):
    return DP2VAE(**{"warm_start": "none", "steps": 12, "rate": 0.1, "latent": 4, "hidden": 32, "local_steps": 2, **kw})


def open_curator(rows, facts, ledger=None):
    ledger = Ledger(None, relation=Relation.ADD_REMOVE, cap=BUDGET) if ledger is None else ledger
    return Curator(lambda: rows, schema=facts, ledger=ledger, noise=SeededNoise(0))


def release_of(method, digits, **kw):
    x, y = digits
    facts = schema()
    plan = method.plan(facts, relation=Relation.ADD_REMOVE, budget=BUDGET)
    rows = Rows(image=x[:1400], label=y[:1400])
    return privatise(method, open_curator(rows, facts, kw.pop("ledger", None)), plan, seed=0, allow="refuted", **kw)


def plan_of(method):
    return method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)


@pytest.mark.parametrize("form", FORMS)
def test_the_plan_spends_the_budget_and_states_its_evidence(form):
    plan = small(privacy=form).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    promise = plan.guarantee()
    assert 0.98 * 8 < promise.epsilon <= 8
    assert promise.evidence is (Evidence.REFUTED if form == "published" else Evidence.PROVED)
    assert sum(n for m, n in plan.items if isinstance(m, PoissonGradient)) == 12


@pytest.mark.parametrize(("form", "start"), [(form, "none") for form in FORMS] + [("local", "pictures")])
def test_every_form_runs_and_its_model_comes_back_from_the_release(form, start, digits):
    method = small(privacy=form, warm_start=start)
    release = release_of(method, digits)
    model = method.train(release, seed=0)
    batch = model.sample(23, seed=5)
    assert isinstance(batch, Batch)
    assert batch.images.shape == (23, 8, 8, 1)
    again = DP2VAE.from_json(method.to_json()).restore(release, model.tensors())
    assert (again.sample(23, seed=5).images == batch.images).all()
    assert release.tensors["moments"].shape == (10, 4 + 10 + 1)


def test_how_pictures_are_drawn_and_finished_may_change_after_the_release(digits):
    method = small()
    release = release_of(method, digits)
    same, spreads = np.zeros(400, int), []
    plain = method.train(release, seed=0).sample(400, labels=same, seed=1).images.astype(float)
    for change in ({"temperature": 4.0}, {"sharpness": 2.5}, {"movement": 1.0}):
        other = method.retrained(dataclasses.replace(method, **change))
        drawn = other.train(release, seed=0).sample(400, labels=same, seed=1).images.astype(float)
        assert (drawn != plain).any()
        spreads.append(drawn.std(0).mean())
    assert spreads[0] > 1.2 * plain.std(0).mean()
    with pytest.raises(SchemaError, match="decided what was released"):
        method.retrained(dataclasses.replace(method, jitter=0.2))
    for change in ({"sharpness": -1.0}, {"movement": float("nan")}):
        with pytest.raises(SchemaError, match="0 or more"):
            dataclasses.replace(method, **change)
    for change in ({"temperature": 0.0}, {"sharpness": 0.0}):
        wrong = dataclasses.replace(method, **change)
        for refused in (lambda m=wrong: plan_of(m), lambda m=wrong: m.train(release, seed=0)):
            with pytest.raises(SchemaError, match="temperature is"):
                refused()


def test_the_published_form_runs_only_when_refuted_is_allowed(digits):
    method, facts = small(privacy="published"), schema()
    plan = method.plan(facts, relation=Relation.ADD_REMOVE, budget=BUDGET)
    curator = open_curator(Rows(image=digits[0], label=digits[1]), facts)
    with pytest.raises(PrivacyError, match="--allow refuted"):
        privatise(method, curator, plan, seed=0)


def test_starting_from_made_up_pictures_costs_nothing(digits, monkeypatch):
    seen = []
    monkeypatch.setattr("dpgm.methods.vae.LocalInference", lambda **kw: seen.append(kw) or LocalInference(**kw))
    release_of(small(warm_start="pictures"), digits)
    assert seen[0]["start"] is not None
    plans = [
        small(warm_start=start).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
        for start in ("none", "pictures", "components")
    ]
    assert plans[0].items == plans[1].items
    assert plans[2].details["noise_multiplier"] > plans[0].details["noise_multiplier"]


def test_what_cannot_be_priced_is_refused():
    with pytest.raises(PrivacyError, match="replace one"):
        small().plan(schema(), relation=Relation.REPLACE, budget=BUDGET)
    with pytest.raises(SchemaError, match="declared number"):
        small().plan(schema(size=None), relation=Relation.ADD_REMOVE, budget=BUDGET)
    with pytest.raises(PrivacyError, match="prior_share"):
        small(prior_share=0.0).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "each stage needs"),
        ({"privacy": "budget-split", "steps": 1}, "each stage needs"),
        ({"privacy": "budget-split", "first_share": 1.0}, "each stage needs"),
        ({"privacy": "budget-split", "first_share": 0.0}, "each stage needs"),
        ({"mixture": 0}, "number of Gaussians"),
        ({"privacy": "one-shot", "latent": 65}, "64 principal components"),
        ({"warm_start": "components", "latent": 65}, "64 principal components"),
    ],
)
def test_what_would_fail_after_something_is_paid_is_refused_before(options, said):
    with pytest.raises(SchemaError, match=said):
        plan_of(small(**options))


def test_it_draws_digits_that_teach_a_classifier(digits):
    method = small(steps=60, rate=0.3, latent=6, hidden=64, local_steps=5, warm_start="components")
    batch = method.train(release_of(method, digits), seed=0).sample(1500, seed=1)
    x, y = digits
    classifier = LogisticRegression(max_iter=300).fit(batch.images.reshape(1500, -1) / 255, batch.labels)
    assert classifier.score(x[1400:].reshape(-1, 64) / 255, y[1400:]) > 0.6  # 0.1 by chance


@pytest.mark.parametrize("size", [(28, 28, 1), (32, 32, 3), (64, 64, 3), (9, 14, 1)])
@pytest.mark.parametrize("decoder", ["mlp", "conv"])
def test_it_takes_images_from_8_to_64_pixels_grey_and_colour(decoder, size):
    rng = np.random.default_rng(0)
    rows = Rows(image=rng.integers(0, 256, (6, *size)).astype(np.uint8), label=rng.integers(0, 10, 6).astype(np.int64))
    facts = schema(*size, size=6)
    method = DP2VAE(
        decoder=decoder,
        latent=3,
        hidden=8,
        width=2,
        steps=1,
        rate=0.5,
        local_steps=1,
        warm_start="components" if size[0] < 28 else "none",
    )
    plan = method.plan(facts, relation=Relation.ADD_REMOVE, budget=BUDGET)
    release = privatise(method, open_curator(rows, facts), plan, seed=0, allow="unsupported")
    assert method.train(release, seed=0).sample(3, seed=0).images.shape == (3, *size)


@pytest.mark.parametrize("form", ["local", "budget-split"])
def test_an_interrupted_run_goes_on_and_never_asks_for_more_than_was_reserved(form, digits, tmp_path):
    method = small(privacy=form, warm_start="components")
    states = []

    class Killed(Exception):
        pass

    def watch(note: Note):
        if note.state is not None:
            states.append(note.state)
        if note.stage == "last" and note.step == 5:
            raise Killed

    def ledger():
        return Ledger(tmp_path / "ledger.jsonl", relation=Relation.ADD_REMOVE, cap=BUDGET)

    with ledger() as book, pytest.raises(Killed):
        release_of(method, digits, ledger=book, on_note=watch)
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    with ledger() as book:
        release = release_of(method, digits, ledger=book, state=states[-1])
        assert [book.used("fit", i) for i in range(len(plan.items))] == [n for _, n in plan.items]
        assert len([e for e in book.entries if e["kind"] == "reserve"]) == 1
        assert not [e for e in book.entries if e["kind"] == "repeat"]
    assert method.train(release, seed=0).sample(4, seed=0).images.shape == (4, 8, 8, 1)


def test_checkpoints_hold_releases_only(digits):
    """No checkpoint has an axis as long as the records, and codes never appear."""
    states = []
    release_of(small(warm_start="components"), digits, on_note=lambda n: states.append(n.state))
    for state in filter(None, states):
        assert all(1400 not in value.shape for value in state.values())
        assert {name.split(".")[0] for name in state} <= {"components", "last"}


def test_a_labeller_takes_its_share():
    method = Labelled(generator=small(), share=0.2, labeller=Labeller(steps=10))
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    assert 0.95 * 8 < plan.guarantee().epsilon <= 8
    assert [n for _, n in plan.items] == [12, 1, 10]
    assert dataclasses.asdict(method)["share"] == 0.2


def test_several_gaussians_take_a_second_release_within_the_budget(digits):
    method = small(mixture=3, privacy="one-shot")
    plan = plan_of(method)
    assert 0.98 * 8 < plan.guarantee().epsilon <= 8
    assert [n for m, n in plan.items if m.cost(Relation.ADD_REMOVE).name in ("vae-codes", "vae-cells")] == [1, 1]
    release = release_of(method, digits)
    assert release.tensors["cells"].shape == (30, 4 + 10 + 1)
    model = method.train(release, seed=0)
    batch = model.sample(23, seed=5)
    again = DP2VAE.from_json(method.to_json()).restore(release, model.tensors())
    assert (again.sample(23, seed=5).images == batch.images).all()


def test_a_second_release_that_was_cut_off_goes_on_from_the_first(digits):
    method, facts, notes = small(mixture=2, privacy="one-shot"), schema(), []
    plan = plan_of(method)
    ledger = Ledger(None, relation=Relation.ADD_REMOVE, cap=BUDGET)
    x, y = digits
    rows = Rows(image=x[:1400], label=y[:1400])

    def stop(note: Note) -> None:
        notes.append(note)
        if note.stage == "codes":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        privatise(method, open_curator(rows, facts, ledger), plan, seed=0, on_note=stop)
    state = notes[-1].state
    release = privatise(method, open_curator(rows, facts, ledger), plan, seed=0, state=state)
    assert (release.tensors["moments"] == state["moments"]).all()
    assert release.tensors["cells"].shape == (20, 15)


@pytest.mark.parametrize(("per", "right"), [(4, True), (1, False)])
def test_a_mixture_draws_two_modes_and_one_gaussian_does_not(per, right):
    """Codes at -3 and 3 along one axis of two classes: few draws may lie near 0."""
    rng = np.random.default_rng(0)
    label = np.arange(20_000) % 2
    z = rng.normal(size=(20_000, 4)) * 0.3
    z[:, 0] += 3.0 * rng.choice([-1, 1], 20_000) + 5 * label
    rows = Rows(value=z, label=label)
    whole = CodeMoments(codes=lambda r: r["value"], latent=4, n_classes=2, radius=12.0)
    laws = CodeLaws(query=whole, relation=Relation.ADD_REMOVE, noise_multiplier=1.0)
    noisy = Gaussian(query=whole, noise_std=whole.sensitivity(Relation.ADD_REMOVE))(rows, SeededNoise(0))
    means, frames = laws.frames(noisy)
    mixtures = laws.whole(noisy)
    if per > 1:
        centres = dataclasses.replace(small(mixture=per), latent=4)._cells(schema()).centres

        def framed(r):
            return np.einsum("nij,nj->ni", frames[r["label"]], r["value"] - means[r["label"]])

        cells = dataclasses.replace(whole, codes=framed, centres=centres, radius=3.0)
        answer = Gaussian(query=cells, noise_std=cells.sensitivity(Relation.ADD_REMOVE))(rows, SeededNoise(1))
        inner = CodeLaws(query=cells, relation=Relation.ADD_REMOVE, noise_multiplier=1.0)
        mixtures = inner.inside(mixtures, frames, answer)
    drawn = mixtures.draw(np.ones(4000, np.int64), 1.0, rng)
    assert abs(drawn[:, 0].mean() - 5) < 0.3
    assert (float(np.mean(np.abs(drawn[:, 0] - 5) < 1.5)) < 0.2) == right
