"""PGE's form by DP-SGD: price, contract, resuming, free options, and that the gradients are those of its losses."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dpgm.mechanisms.per_record import clipped_gradient_sum
from dpgm.methods.base import Note, Resume, privatise
from dpgm.methods.denoising import Denoising
from dpgm.methods.pge import PGE
from dpgm.nets.denoiser import Denoiser, denoising_loss, sliced_loss
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import SeededNoise
from dpgm.schema import ImageSchema, Rows, SchemaError
from dpgm.testing import check_method

BUDGET = Budget(epsilon=8.0, delta=1e-4)
FACTS = ImageSchema(height=8, width=8, channels=1, classes=("a", "b"), size=60)
SMALL = Denoising(steps=3, rate=1.0, draws=2, width=8, levels=2)  # a rate of 1 is accounted for at once


def form(**kw) -> PGE:
    return PGE(privacy="dp-sgd", rounds=2, n_leapfrog=2, denoising=dataclasses.replace(SMALL, **kw))


def rows(n=60):
    rng = np.random.default_rng(0)
    return Rows(image=rng.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8), label=rng.integers(0, 2, n))


def test_the_plan_spends_the_budget():
    plan = form(rate=0.1).plan(FACTS, relation=Relation.ADD_REMOVE, budget=BUDGET)
    promise = plan.guarantee()
    assert 0.97 * BUDGET.epsilon < promise.epsilon <= BUDGET.epsilon
    assert promise.evidence is Evidence.PROVED
    assert [m.cost(plan.relation).name for m, _ in plan.items] == ["pge-means", "pge-spreads", "pge-gradient"]


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "heun", "rate": 0.1},
        {"loss": "sliced", "sampler": "hmc"},
        {"sampler": "langevin"},
        {"sampler": "ddim"},
    ],
)
def test_contract(options):
    check_method(form(**options), FACTS, rows(), budget=BUDGET)


def test_it_goes_on_from_each_checkpoint():
    """A run that stops after any checkpoint asks only for what is missing, and the net is the one that was kept."""
    method = form()
    plan = method.plan(FACTS, relation=Relation.ADD_REMOVE, budget=BUDGET)
    notes, asked = drive(method, plan, Resume(used={}))
    states = [n.state for n in notes if n.state is not None]
    assert asked == ["pge-means", "pge-spreads", *["pge-gradient"] * 3]
    _, rest = drive(method, plan, Resume(used={0: 1}, state=states[0]))
    assert rest == asked[1:]
    _, rest = drive(method, plan, Resume(used={0: 1, 1: 1}, state=states[2]))
    assert rest == asked[2:]
    _, rest = drive(method, plan, Resume(used={0: 1, 1: 1, 2: 2}, state=states[4]))
    assert rest == asked[4:]


def drive(method, plan, resume):
    curator = Curator(
        rows,
        schema=FACTS,
        ledger=Ledger(None, relation=Relation.ADD_REMOVE, cap=BUDGET),
        noise=SeededNoise(0),
    )
    curator.reserve("fit", plan.items)
    talk, answer = method.talk(plan, rng=np.random.default_rng(0), resume=resume), None
    notes, asked = list[Note](), list[str]()
    while True:
        try:
            ask: Any = talk.send(answer)
        except StopIteration:
            return notes, asked
        if isinstance(ask, Note):
            notes.append(ask)
            answer = None
        else:
            asked.append(ask.name)
            answer = curator.answer(ask)


def test_only_the_sampler_is_free():
    method = form()
    free = form(sampler="ddim", levels=5, highest=0.5)
    assert method.retrained(free) is free
    with pytest.raises(SchemaError, match="'lr'"):
        method.retrained(form(lr=0.1))


@pytest.mark.parametrize("bad", [{"steps": 0}, {"draws": 0}, {"levels": 1}, {"highest": 0.01}, {"width": 12}])
def test_options_are_checked(bad):
    with pytest.raises(SchemaError, match="allowed"):
        form(**bad).plan(FACTS, relation=Relation.ADD_REMOVE, budget=BUDGET)


def test_shares_and_sizes_are_checked():
    with pytest.raises(PrivacyError, match="field_share"):
        form(field_share=1.0).plan(FACTS, relation=Relation.ADD_REMOVE, budget=BUDGET)
    with pytest.raises(PrivacyError, match="field's method"):
        SMALL.plan(FACTS, relation=Relation.ADD_REMOVE, budget=BUDGET)
    with pytest.raises(SchemaError, match="size"):
        form().plan(dataclasses.replace(FACTS, size=None), relation=Relation.ADD_REMOVE, budget=BUDGET)


@pytest.mark.parametrize("loss", ["denoising", "sliced"])
def test_one_more_record_leaves_the_coins_of_the_others(loss):
    """What the audit of the gradient rests on: with the stream held fixed, only the added record's rows are new."""
    x, y = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 2
    inputs = form(loss=loss).denoising._inputs
    for few, more in zip(
        inputs(x[:4], y[:4], np.random.default_rng(3)), inputs(x, y, np.random.default_rng(3)), strict=True
    ):
        assert len(more) == 10
        torch.testing.assert_close(few, more[:8])
    assert len(inputs(x[:0], y[:0], np.random.default_rng(3))[0]) == 0


@pytest.mark.parametrize(("sign", "right"), [(1, True), (-1, False)])
def test_following_the_gradients_lowers_the_loss(sign, right):
    """20 noise-free gradients of records of one flat grey a class; a twin that climbs must be told apart."""
    label = np.arange(12) % 2
    grey = np.where(label == 1, 220, 30).astype(np.uint8)
    data = Rows(image=np.broadcast_to(grey[:, None, None, None], (12, 8, 8, 1)).copy(), label=label)
    method = form(steps=20, lr=0.005, clip_norm=5.0)
    plan = method.plan(FACTS, relation=Relation.ADD_REMOVE, budget=BUDGET)
    talk, answer = method.talk(plan, rng=np.random.default_rng(0), resume=Resume(used={})), None
    losses, noise = list[float](), SeededNoise(0)
    while True:
        try:
            ask: Any = talk.send(answer)
        except StopIteration:
            break
        if isinstance(ask, Note):
            answer = None
            continue
        if ask.name != "pge-gradient":  # the field knows other records, so there is something to correct
            answer = ask(rows(), noise)
            continue
        x = torch.from_numpy(data["image"]).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            drawn = [method.denoising._inputs(x, torch.from_numpy(label), np.random.default_rng(i)) for i in range(6)]
            losses.append(sum(float(denoising_loss(ask.task.module, *d).mean()) for d in drawn))
        answer = sign * ask.task.clipped_sum(data, np.arange(12), noise).double().numpy() / 12
    assert (losses[-1] < 0.7 * losses[0]) is right


@pytest.mark.parametrize(
    ("sampler", "highest", "levels", "hot", "right"),
    [
        ("heun", 8.0, 16, True, True),
        ("heun", 8.0, 16, False, False),
        ("heun", 0.5, 6, True, True),
        ("hmc", 8.0, 16, True, True),
        ("hmc", 0.5, 6, True, True),
        ("langevin", 8.0, 16, True, True),
        ("langevin", 0.5, 6, True, True),
        ("ddim", 8.0, 100, True, True),  # of first order: it needs more levels
    ],
)
def test_without_a_gradient_the_law_is_the_fields(sampler, highest, levels, hot, right):
    """Mean variance of 2,000 pictures within 8 % (5 standard errors or so); the twin forgets how hot the field is."""
    method = dataclasses.replace(form(sampler=sampler, highest=highest, levels=levels), temperature=2.5)
    plan = method.plan(FACTS, relation=Relation.ADD_REMOVE, budget=BUDGET)
    book = Ledger(None, relation=Relation.ADD_REMOVE, cap=BUDGET)
    release = privatise(method, Curator(rows, schema=FACTS, ledger=book, noise=SeededNoise(0)), plan, seed=0)
    model: Any = method.train(release, seed=0)
    torch.nn.init.zeros_(model._net.leave.weight)
    torch.nn.init.zeros_(model._net.leave.bias)
    model._net.known = model._field.denoiser(hot=hot)
    labels = torch.ones(2000, dtype=torch.long)
    first = torch.full((2000, 1, 8, 8), 0.5)
    if highest < 1:  # such noise hides no picture: sampling begins at draws of the field
        first = model._field.picture(model._field.draw(labels.numpy(), np.random.default_rng(0)))
    found = model._some(first, labels, torch.Generator().manual_seed(0)).var(0).mean()
    wanted = 2.5 * np.square(model.tensors()["factors"][1]).sum() / 64  # one Gaussian, all frequencies of 8 x 8 pixels
    assert bool(abs(float(found) / wanted - 1) < 0.08) is right


# ------------------------------------------------------------------------------------------------ net and losses


def nothing(x, sigma, y):
    return torch.zeros_like(x)


class Gaussian(torch.nn.Module):
    """The right denoiser of N(0, v I), or `factor` times its correction."""

    def __init__(self, v, factor=1.0):
        super().__init__()
        self.v, self.factor = v, torch.nn.Parameter(torch.tensor(factor))

    def forward(self, x, sigma, y):
        return x - self.factor * x * (sigma**2 / (sigma**2 + self.v)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("loss", [denoising_loss, sliced_loss])
def test_both_losses_are_least_at_the_true_score(loss):
    """The slope of the mean loss in `factor` is 0 at 1, negative below and positive above, at 5 standard errors."""
    rng = torch.Generator().manual_seed(0)
    n, v = 4000, 0.3
    x = v**0.5 * torch.randn(n, 1, 4, 4, generator=rng)
    more = (torch.randn(n, 1, 4, 4, generator=rng),) if loss is sliced_loss else ()
    inputs = (torch.randn(n, 1, 4, 4, generator=rng), torch.full((n,), 0.6), torch.zeros(n, dtype=torch.long), *more)

    def slope(factor):
        net, h = Gaussian(v), 0.01
        values = []
        for f in (factor + h, factor - h):
            net.factor.data.fill_(f)
            values.append(loss(net, x, *inputs).detach())
        each = (values[0] - values[1]) / (2 * h)
        return float(each.mean() / (each.std() / n**0.5))

    assert abs(slope(1.0)) < 5
    assert slope(0.8) < -5
    assert slope(1.2) > 5


@pytest.mark.parametrize("loss", [denoising_loss, sliced_loss])
def test_gradients_layer_by_layer_are_those_of_one_record_at_a_time(loss):
    rng = torch.Generator().manual_seed(0)
    net = Denoiser(known=nothing, channels=1, n_classes=2, width=8, rng=rng)
    torch.nn.init.normal_(net.leave.weight, std=0.1, generator=rng)  # at zero the other layers would have no gradient
    x, noise, v = (torch.randn(6, 1, 9, 9, generator=rng) for _ in range(3))
    more = (v,) if loss is sliced_loss else ()
    inputs = (x, noise, torch.rand(6, generator=rng) + 0.1, torch.tensor([0, 0, 1, 1, 0, 0]), *more)
    found = [clipped_gradient_sum(loss, net, inputs, clip_norm=1.0, draws=2, engine=e) for e in ("layers", "loop")]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_the_net_begins_as_the_known_denoiser(size):
    rng = torch.Generator().manual_seed(0)
    net = Denoiser(known=lambda x, sigma, y: x / 3, channels=3, n_classes=2, width=8, rng=rng)
    x, level, y = torch.randn(2, 3, *size, generator=rng), torch.tensor([0.1, 2.0]), torch.tensor([0, 1])
    torch.testing.assert_close(net(x, level, y), x / 3)
    torch.nn.init.constant_(net.leave.weight, 0.1)
    assert (net(x, level, y) - x / 3).abs().min() > 1e-3
