"""The DP-SGD step: its price, its sampling, its noise, and what it keeps about records between calls."""

import copy
import dataclasses
import gc
import pickle

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import nn

from dpgm.mechanisms import local_state
from dpgm.mechanisms.gradient import ModuleGradient, PoissonGradient
from dpgm.mechanisms.local_state import LocalState, values_of
from dpgm.mechanisms.per_record import Clip, clipped_gradient_sum
from dpgm.mechanisms.queries import RECORD_ALONE
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import GaussianEvent, Mechanism, PoissonGaussianEvent, SeededNoise
from dpgm.schema import Rows
from dpgm.testing import check_mechanism


def make_rows(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return Rows(image=rng.integers(0, 256, (n, 4, 4, 1)).astype(np.uint8), label=rng.integers(0, 3, n).astype(np.int64))


class Pixels:
    """Unit-norm pixels as features; counts how many images it saw."""

    name, dim, nonnegative, assumptions = "pixels", 16, True, ()

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        flat = images.reshape(len(images), 16).astype(np.float64) + 1
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def cross_entropy(net, x, y):
    return nn.functional.cross_entropy(net(x.flatten(1).float()), y, reduction="none")


def linear():
    net = nn.Linear(16, 3)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    return net


def step(rate=0.5, noise_multiplier=1.0, size=200, clip_norm: Clip = 0.5, **task):
    gradient = ModuleGradient(module=linear(), loss=cross_entropy, clip_norm=clip_norm, **task)
    return PoissonGradient(rate=rate, noise_multiplier=noise_multiplier, size=size, task=gradient)


def test_it_is_the_noisy_sum_of_the_sample_over_the_declared_size():
    rows, mechanism = make_rows(), step(size=1000)
    assert mechanism.task is not None
    found = mechanism(rows, SeededNoise(3))
    noise = SeededNoise(3)
    chosen = np.flatnonzero(noise.coins(200, 0.5))
    exact = mechanism.task.clipped_sum(rows, chosen, noise).double().numpy()
    np.testing.assert_allclose(found, (exact + noise.normal(51, 0.5)) / 500)
    assert 60 < len(chosen) < 140


def test_the_noise_has_the_stated_size_and_an_empty_sample_gets_it_too():
    mechanism = step(rate=1e-9, noise_multiplier=4.0, size=100, clip_norm=0.5)
    draws = np.stack([mechanism(make_rows(5), SeededNoise(s)) for s in range(60)]) * (1e-9 * 100)
    assert draws.shape == (60, 51)
    assert abs(draws.std() / 2.0 - 1) < 0.1  # 4 x 0.5; 3,060 variates, so the twin with half the noise is far off
    assert abs(draws.mean()) < 0.2


@pytest.mark.parametrize("rate", [1.0, 1e-12])
def test_it_keeps_the_contract_of_mechanisms(rate):
    mechanism = step(rate=rate, noise_multiplier=1.5, size=10, clip_norm=0.5)
    task = mechanism.task
    assert task is not None

    def exact(rows):
        return task.clipped_sum(rows, np.arange(len(rows) if rate == 1 else 0), SeededNoise(0)).numpy() / (10 * rate)

    def law(_):
        return lambda z, factor: ndtr(z * 10 * rate / (factor * 1.5 * 0.5))

    check_mechanism(mechanism, make_rows(6), exact=exact, law=law)


def test_groups_get_the_noise_of_their_joint_bound():
    bounds = {"weight": 3.0, "bias": 4.0}
    mechanism = step(rate=1e-9, clip_norm=bounds)
    assert mechanism.task is not None
    assert mechanism.task.bound == 5
    draws = np.stack([mechanism(make_rows(5), SeededNoise(s)) for s in range(60)]) * (1e-9 * 200)
    assert abs(draws.std() / 5.0 - 1) < 0.1


def test_the_price_is_stated_without_a_task_and_does_not_change_with_it():
    mechanism = step()
    template = PoissonGradient(rate=0.5, noise_multiplier=1.0, size=200, rests_on=(RECORD_ALONE,))
    assert isinstance(mechanism, Mechanism)
    assert template.cost(Relation.ADD_REMOVE) == mechanism.cost(Relation.ADD_REMOVE)
    assert template.cost(Relation.ADD_REMOVE).event == PoissonGaussianEvent(0.5, 1.0)
    with pytest.raises(PrivacyError, match="only states a price"):
        template(make_rows(), SeededNoise(0))


def test_replace_is_refused_when_sampled_and_doubled_when_not():
    with pytest.raises(PrivacyError, match="replace one"):
        accountant.epsilon_of([(step().cost(Relation.REPLACE), 1)], delta=1e-5, relation=Relation.REPLACE)
    assert step(rate=1.0).cost(Relation.ADD_REMOVE).event == GaussianEvent(1.0)
    assert step(rate=1.0).cost(Relation.REPLACE).event == GaussianEvent(0.5)


def test_a_task_must_be_as_well_founded_as_the_price_says():
    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class Refuted(ModuleGradient):
        @property
        def evidence(self):
            return Evidence.REFUTED

    task = Refuted(module=linear(), loss=cross_entropy, clip_norm=1.0)
    with pytest.raises(PrivacyError, match="evidence is refuted"):
        PoissonGradient(rate=0.5, noise_multiplier=1.0, size=200, task=task)
    sound = PoissonGradient(rate=0.5, noise_multiplier=1.0, size=200, task=task, evidence=Evidence.REFUTED)
    assert sound.cost(Relation.ADD_REMOVE).evidence is Evidence.REFUTED


@pytest.mark.parametrize(("field", "value"), [("rate", 0.0), ("rate", 1.5), ("noise_multiplier", 0.0), ("size", 0)])
def test_public_numbers_are_checked(field, value):
    with pytest.raises(PrivacyError, match=field):
        dataclasses.replace(step(), **{field: value})


def test_one_record_moves_the_sum_by_at_most_the_bound_and_a_state_that_reads_others_does_not():
    class Coupled(Pixels):  # features that look at the whole block
        def __call__(self, images):
            return super().__call__(images) * (1 if images.max() < 255 else -1)

    image, label = make_rows(40)["image"] // 2, make_rows(40)["label"]
    image[-1] = 255
    rows = Rows(image=image, label=label)
    fewer = rows.take(slice(0, 39))

    def shift(encoder):
        sums = [
            ModuleGradient(module=linear(), loss=cross_entropy, clip_norm=0.5, encoder=encoder).clipped_sum(
                r, np.arange(len(r)), SeededNoise(0)
            )
            for r in (rows, fewer)
        ]
        return float((sums[0] - sums[1]).norm())

    assert shift(Pixels()) <= 0.5 * (1 + 1e-5)
    assert shift(Coupled()) > 1


def test_features_are_made_once_and_large_samples_come_in_pieces(monkeypatch):
    monkeypatch.setattr("dpgm.mechanisms.gradient._PIECE", 7)
    rows, encoder = make_rows(60), Pixels()
    task = ModuleGradient(module=linear(), loss=cross_entropy, clip_norm=0.5, encoder=encoder)
    first = task.clipped_sum(rows, np.arange(50), SeededNoise(0))
    monkeypatch.setattr("dpgm.mechanisms.gradient._PIECE", 1000)
    again = task.clipped_sum(rows, np.arange(50), SeededNoise(0))
    torch.testing.assert_close(again, first, rtol=1e-5, atol=1e-6)
    assert encoder.seen == 60


def test_draws_get_fresh_secret_coins():
    def noisy(x, y, coins):
        noise = torch.from_numpy(coins.standard_normal((2 * len(x), 16), dtype=np.float32))
        return x.flatten(1).repeat_interleave(2, 0) + noise, y.repeat_interleave(2)

    rows = make_rows(20)
    task = ModuleGradient(module=linear(), loss=cross_entropy, clip_norm=0.5, draws=2, inputs=noisy)
    sums = [task.clipped_sum(rows, np.arange(20), SeededNoise(seed)) for seed in (1, 1, 2)]
    assert torch.equal(sums[0], sums[1])
    assert not torch.equal(sums[0], sums[2])


# --- local state


@pytest.mark.parametrize("draws", [1, 2])
def test_inputs_that_multiply_records_are_refused(draws):
    """Every further row would be a record of its own, clipped to C: one record would move the sum by 2 C."""

    def inputs(x, y, coins):
        return x.repeat_interleave(2 * draws, 0), y.repeat_interleave(2 * draws, 0)

    broken = step(rate=1.0, noise_multiplier=1e-9, draws=draws, inputs=inputs)
    with pytest.raises(PrivacyError, match="count several times"):
        broken(make_rows(1), SeededNoise(0))


def test_messages_do_not_tell_how_large_a_sample_is():
    rows = make_rows(137)

    def mean(net, x, y):
        return cross_entropy(net, x, y).mean()

    def ragged(net, x, y):
        return clipped_gradient_sum(cross_entropy, net, (x, y[1:]), clip_norm=0.5)

    for loss in (mean, ragged):
        task = ModuleGradient(module=linear(), loss=loss, clip_norm=0.5)
        with pytest.raises(ValueError, match=r"one (loss for each )?row") as error:
            PoissonGradient(rate=1.0, noise_multiplier=1.0, size=100, task=task)(rows, SeededNoise(0))
        assert "137" not in str(error.value)
        assert "136" not in str(error.value)


def test_local_state_is_an_empty_token_that_is_neither_copied_nor_saved():
    state, rows = LocalState(), make_rows(9)
    values = values_of(state, rows, lambda block: torch.full((len(block), 2), 7.0))
    assert values.shape == (9, 2)
    assert "7" not in repr(state)
    assert not hasattr(state, "__dict__")
    assert [name for name in dir(state) if not name.startswith("__")] == []
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="private"):
            attempt(state)


def test_local_state_lasts_between_calls_and_starts_anew_for_other_rows():
    state, rows, other = LocalState(), make_rows(9), make_rows(5)
    values_of(state, rows, lambda block: torch.zeros(len(block)))[3] = 1
    assert values_of(state, rows, lambda block: torch.zeros(len(block)))[3] == 1
    assert values_of(state, other, lambda block: torch.zeros(len(block))).sum() == 0
    with pytest.raises(ValueError, match="one for each record"):
        values_of(LocalState(), rows, lambda block: torch.zeros(1))


def test_local_state_is_forgotten_with_its_token_or_its_rows():
    before = len(local_state._drawers)
    for forgotten in ("state", "rows"):
        held = {"state": LocalState(), "rows": make_rows(3)}
        values_of(held["state"], held["rows"], lambda block: torch.zeros(len(block)))
        assert len(local_state._drawers) == before + 1
        del held[forgotten]
        gc.collect()
        assert len(local_state._drawers) == before


def test_other_engines_see_the_same_features_when_there_are_no_rows():
    rows = make_rows(4).take(slice(0, 0))
    task = ModuleGradient(module=linear(), loss=cross_entropy, clip_norm=0.5, encoder=Pixels())
    assert task.clipped_sum(rows, np.arange(0), SeededNoise(0)).shape == (51,)
