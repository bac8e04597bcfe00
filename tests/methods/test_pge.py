"""PGE's one-shot form on small digits: price, contract, resuming, what it draws, and the exactness of its dynamics."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from dpgm import methods
from dpgm.mechanisms.cells import CellKNorm
from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.scatter import MatrixLaplace
from dpgm.methods.base import Note, privatise
from dpgm.methods.field import Frame, shared
from dpgm.methods.laws import shrink_covariance, shrink_means
from dpgm.methods.pge import PGE
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import SeededNoise
from dpgm.samplers import hmc, run
from dpgm.schema import ImageSchema, Rows, SchemaError
from dpgm.testing import check_method

BUDGET = Budget(epsilon=8.0, delta=1e-4)
PURE = Budget(epsilon=8.0, delta=0.0)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(methods._BUILT_IN, "pge", "dpgm.methods.pge:PGE")


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8, 1) * 15).astype(np.uint8), y.astype(np.int64)


def schema(height=8, width=8, channels=1):
    return ImageSchema(height=height, width=width, channels=channels, classes=tuple("0123456789"), size=1400)


def open_curator(digits, *, cap=BUDGET, noise_seed=0, ledger=None):
    x, y = digits
    ledger = Ledger(None, relation=Relation.ADD_REMOVE, cap=cap) if ledger is None else ledger
    rows = Rows(image=x[:1400], label=y[:1400])
    return Curator(lambda: rows, schema=schema(), ledger=ledger, noise=SeededNoise(noise_seed))


def model_of(method, digits, budget=BUDGET, **kw):
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=budget)
    release = privatise(method, open_curator(digits, cap=budget, **kw), plan, seed=0, allow="unsupported")
    return method.train(release, seed=0)


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("budget", [BUDGET, PURE, Budget(epsilon=0.2, delta=1e-5)])
@pytest.mark.parametrize("components", [None, 1, 3])
def test_the_plan_spends_the_budget(relation, budget, components):
    plan = PGE(components=components).plan(schema(), relation=relation, budget=budget)
    promise = plan.guarantee()
    assert 0.99 * budget.epsilon < promise.epsilon <= budget.epsilon
    assert promise.evidence is Evidence.PROVED
    assert len(plan.items) == (2 if plan.details["components"] == 1 else 3)
    assert all(isinstance(m, CellKNorm | MatrixLaplace if budget.delta == 0 else Gaussian) for m, _ in plan.items)


def test_components_follow_the_budget():
    for epsilon, expected in ((1.0, 1), (10.0, 8)):
        budget = Budget(epsilon=epsilon, delta=1e-5)
        plan = PGE().plan(schema(), relation=Relation.ADD_REMOVE, budget=budget)
        assert plan.details["components"] == expected


@pytest.mark.parametrize(
    ("method", "budget", "channels"),
    [
        (PGE(components=1, picture="strokes"), BUDGET, 1),
        (PGE(components=2, block=4), BUDGET, 3),
        (PGE(block=4), PURE, 1),
        (PGE(components=1, block=4, features="scattering", directions=8), BUDGET, 1),
    ],
)
def test_contract(method, budget, channels):
    rng = np.random.default_rng(0)
    facts = schema(channels=channels)
    images = rng.integers(0, 256, (40, *facts.shape), dtype=np.uint8)
    rows = Rows(image=images, label=rng.integers(0, 10, 40))
    check_method(dataclasses.replace(method, rounds=2, n_leapfrog=2), facts, rows, budget=budget)


@pytest.mark.parametrize("components", [1, 3])
def test_the_samples_teach_a_classifier(digits, components):
    model = model_of(PGE(components=components), digits)
    drawn = model.sample(800, seed=0)
    assert accuracy(drawn, digits) > 0.82


@pytest.mark.parametrize(("own", "right"), [(True, True), (False, False)])
def test_every_class_moves_at_its_own_step_size(digits, own, right):
    """Mean acceptance of 100 chains is 0.6 or more in each class; the twin moves all at the step size of the first."""
    model: Any = model_of(PGE(components=8), digits, budget=Budget(epsilon=10.0, delta=1e-4))
    sizes, found = model.tensors()["step_size"], []
    for label, size in enumerate(sizes if own else np.full(10, sizes[0])):
        field, coins = model._frame(label), torch.Generator().manual_seed(1)
        chains = run(model._kernel(field, float(size)), field.start(100, coins), n_steps=4, rng=coins)
        found.append(float(chains.acceptance.mean()))
    assert (min(found) >= 0.6) is right


def test_noise_alone_teaches_nothing_but_still_works(digits):
    x, y = digits
    blind = (np.zeros_like(x), y)
    assert accuracy(model_of(PGE(components=1), blind).sample(500, seed=0), digits) < 0.4


def accuracy(drawn, digits):
    x, y = digits
    net = LogisticRegression(max_iter=300, C=0.02).fit(drawn.images.reshape(len(drawn), -1) / 255, drawn.labels)
    return net.score(x[1400:].reshape(-1, 64) / 255, y[1400:])


def test_pure_privacy_draws_digits_at_a_generous_epsilon(digits):
    model = model_of(PGE(), digits, budget=Budget(epsilon=50.0, delta=0.0))
    assert accuracy(model.sample(800, seed=0), digits) > 0.8


def test_the_second_look_is_centred_on_what_was_released(digits, monkeypatch):
    """The curator's rows reach no exact mean: with the first answer replaced by zeros, the second is not centred."""
    method = PGE(components=1)
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    x, y = digits
    rows = Rows(image=x[:1400], label=y[:1400])
    talk: Any = method.talk(plan, rng=np.random.default_rng(0), resume=_fresh())
    first = next(talk)
    talk.send(np.zeros(first.query.shape))
    second = next(talk)
    sums = second.query.partial(rows.take(slice(0, 1000)))
    d = second.query.dim
    assert np.abs(sums[:, :d]).max() > 10  # far from the zero that an exact centre would give


def _fresh(state=None):
    from dpgm.methods.base import Resume

    return Resume(used={}, state=state)


def test_resuming_asks_only_what_is_missing(digits):
    method = PGE(components=2)
    plan = method.plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)
    curator = open_curator(digits)
    curator.reserve("fit", plan.items)
    talk, notes, answer = method.talk(plan, rng=np.random.default_rng(0), resume=_fresh()), list[Any](), None
    while len(notes) < 2:
        ask = talk.send(answer)
        answer = None if isinstance(ask, Note) else curator.answer(ask)
        notes += [ask] if isinstance(ask, Note) else []
    rest = method.talk(plan, rng=np.random.default_rng(0), resume=_fresh(notes[-1].state))
    ask: Any = next(rest)
    assert ask.name == "pge-cells"
    np.testing.assert_array_equal(notes[-1].state["means"], notes[0].state["means"])


@pytest.mark.parametrize(
    "bad", [{"components": 0}, {"block": 0}, {"rounds": 0}, {"temperature": 0.0}, {"wobble": -1.0}]
)
def test_options_are_checked(bad):
    with pytest.raises(SchemaError, match=r"allowed|must be"):
        PGE(**bad).plan(schema(), relation=Relation.ADD_REMOVE, budget=BUDGET)


# ------------------------------------------------------------------------------------------------ numerics


def frame(temperature=2.0):
    g = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = 2 * torch.randn(2, 3, generator=g, dtype=torch.float64)
    factors = torch.linalg.cholesky(
        torch.diag_embed(0.5 + torch.rand(2, 3, generator=g, dtype=torch.float64)) + 0.1 * torch.ones(3, 3)
    )
    return Frame(weights, means, factors, temperature=temperature), (weights, means, factors)


def test_energy_and_score_agree_with_torch_distributions():
    field, (weights, means, factors) = frame()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights),
        torch.distributions.MultivariateNormal(means, scale_tril=factors * 2**0.5),
    )
    true = -law.log_prob(field.back(x))
    gap = field.energy(x) - true
    torch.testing.assert_close(gap, gap[0].expand_as(gap))
    (slope,) = torch.autograd.grad(true.sum(), x)
    torch.testing.assert_close(field.score(x), -slope)


@pytest.mark.parametrize(("adjust", "right"), [(True, True), (False, False)])
def test_the_dynamics_keep_the_tempered_mixture(adjust, right):
    """Temperature 1 has known moments: 20,000 chains keep |z| < 5.3 (1e-7 a moment); no accept step fails."""
    field, (weights, means, factors) = frame(temperature=1.0)
    n, coins = 20_000, torch.Generator().manual_seed(2)
    pick = torch.multinomial(weights, n, replacement=True, generator=coins)
    z = means[pick] + (factors[pick] @ torch.randn(n, 3, 1, generator=coins, dtype=torch.float64))[:, :, 0]
    x = torch.linalg.solve_triangular(field.factor, (z - field.middle).T, upper=False).T
    kernel = hmc(field.energy, score=field.score, step_size=1.1, n_leapfrog=3, adjust=adjust)
    z = field.back(run(kernel, x, n_steps=10, rng=coins).x)
    covariance = factors @ factors.transpose(1, 2)
    mean = weights @ means
    var = (weights[:, None] * (covariance.diagonal(dim1=1, dim2=2) + (means - mean) ** 2)).sum(0)
    second = (z - mean) ** 2
    scores = torch.cat([(z.mean(0) - mean) / (var / n).sqrt(), (second.mean(0) - var) / (second.std(0) / n**0.5)])
    assert (float(scores.abs().max()) < 5.3) is right


@pytest.mark.parametrize(("twin", "right"), [(None, True), ("centres", False)])
def test_pictures_vary_as_the_law_says(twin, right):
    """A hundred coordinates: 4,000 chains from draws of the law keep its variance; from centres they stay short."""
    g = torch.Generator().manual_seed(0)
    means, factors = torch.randn(3, 100, generator=g), torch.diag_embed(0.5 + torch.rand(3, 100, generator=g))
    weights = torch.tensor([0.2, 0.3, 0.5])
    field = Frame(weights, means, factors, temperature=2.0, dtype=torch.float32)
    x = field.start(4000, g)
    if twin:
        x = field._centres[torch.multinomial(weights, 4000, replacement=True, generator=g)]
    kernel = hmc(field.energy, score=field.score, step_size=0.6, n_leapfrog=6, jitter=0.2)
    z = field.back(run(kernel, x, n_steps=12, rng=g).x)
    mean = weights @ means
    var = weights @ (2 * factors.diagonal(dim1=1, dim2=2).square() + (means - mean).square())
    ratio = float(((z - mean).square().mean(0) / var).mean())
    assert (abs(ratio - 1) < 0.02) is right


def test_shrinkage_helps_and_knows_its_limits():
    rng = np.random.default_rng(0)
    base = np.diag(np.linspace(2, 0.2, 12))
    turn = np.eye(12) + 0.2 * rng.normal(size=(12, 12))
    true = turn @ base @ turn.T
    noise = rng.normal(size=(12, 12)) * 0.5
    noisy = true + (noise + noise.T) / 2
    found = shrink_covariance(noisy, 0.5, 1e6, base)
    assert np.linalg.norm(found - true) < np.linalg.norm(noisy - true)
    assert np.linalg.eigvalsh(found).min() > 0
    np.testing.assert_allclose(shrink_covariance(true, 1e-9, 1e12, base), true, atol=1e-3)
    np.testing.assert_allclose(shrink_covariance(noisy, 1e6, 1e6, base), base, atol=1e-6)
    means = rng.normal(size=(10, 12))
    got, left = shrink_means(means, np.full(10, 1e-6), np.zeros(12))
    np.testing.assert_allclose(got, means, atol=1e-6)
    assert left.max() < 1e-9
    got, _ = shrink_means(means, np.full(10, 100.0), np.zeros(12))
    assert np.ptp(got, axis=0).max() < 1e-6


def test_pictures_may_be_refined_after_the_release_and_the_default_is_as_before(digits):
    plain = model_of(PGE(), digits)
    release = dataclasses.replace(plain.release, method=plain.release.method.retrained(PGE(refine=20)))
    refined = release.method.train(release, seed=0)
    assert refined.guarantee == plain.guarantee
    a, b = (m.sample(30, seed=1).images.astype(float) for m in (plain, refined))
    assert 0 < np.abs(a - b).mean() < 80
    again = release.method.restore(release, refined.tensors())
    assert (again.sample(30, seed=1).images == b).all()
    kept = {name: t for name, t in refined.tensors().items() if not name.startswith("refiner.")}
    assert (release.method.restore(release, kept).sample(30, seed=1).images == a).all()
    with pytest.raises(SchemaError, match="only 'one-shot' is refined"):
        PGE(privacy="dp-sgd", refine=20)


@pytest.mark.parametrize("wrong", [{"refine": 20}, {"privacy": "dp-sgd"}])
def test_scattering_draws_its_own_detail(wrong):
    with pytest.raises(SchemaError, match="features is 'scattering', with"):
        PGE(features="scattering", **wrong)


def test_scattering_needs_a_picture():
    with pytest.raises(SchemaError, match="images are 1 x 9"):
        PGE(features="scattering").plan(schema(height=1, width=9), relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_samples_of_wavelet_moduli_teach_a_classifier(digits):
    model = model_of(PGE(components=1, features="scattering", block=6, directions=30), digits)
    assert accuracy(model.sample(800, seed=0), digits) > 0.82


def test_copies_share_a_point_and_not_a_picture(digits):
    model: Any = model_of(PGE(components=1, block=6, temperature=2.0, wobble=0.5, copies=4), digits)
    labels = np.arange(60) % 3
    drawn, draw = [], model.draw
    model.draw = lambda labels, rng: drawn.append(len(labels)) or draw(labels, rng)
    images = model.sample(60, labels=labels, seed=0).images
    assert drawn == [15]
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60
    flat = images.reshape(60, -1).astype(float)
    of_one_class = flat[labels == 0]
    copies = np.linalg.norm(of_one_class[:15] - of_one_class[5:], axis=1)  # the same point, five samples later
    others = np.linalg.norm(of_one_class[:16] - of_one_class[4:], axis=1)
    assert np.median(copies) < 0.7 * np.median(others)


def test_pictures_are_finished_part_by_part(digits, monkeypatch):
    model = model_of(PGE(components=1, block=6), digits)
    whole = model.sample(20, seed=0).images
    monkeypatch.setattr("dpgm.methods.field._PART", 7)
    np.testing.assert_array_equal(model.sample(20, seed=0).images, whole)


def test_points_are_shared_evenly():
    drawn, of = shared(np.array([2, 0, 2, 2, 0, 2, 2]), 2)
    np.testing.assert_array_equal(drawn[of], [2, 0, 2, 2, 0, 2, 2])
    np.testing.assert_array_equal(np.bincount(of), [2, 2, 2, 1])
    np.testing.assert_array_equal(of, [1, 0, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(shared(np.array([1, 0, 1]), 1)[0][shared(np.array([1, 0, 1]), 1)[1]], [1, 0, 1])


@pytest.mark.parametrize("wrong", [{"wobble": 0.0}, {"privacy": "dp-sgd", "picture": "strokes"}, {}])
def test_copies_of_one_picture_are_refused(wrong):
    with pytest.raises(SchemaError, match="copies is 2"):
        PGE(copies=2, **wrong)
