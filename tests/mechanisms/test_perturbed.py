"""PGE's published training: what its parts compute, and the one-step counterexample to its theorem."""

import math

import numpy as np
import pytest
import torch

from dpgm.mechanisms.perturbed import PerturbedProjections, nearest_response, perturbed_loss
from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import ClaimEvent, SeededNoise
from dpgm.schema import Rows


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_the_response_keeps_its_vector_as_often_as_it_should(epsilon):
    """4,000 coins: |z| below 5 (6e-7); the others are among the nearest."""
    v = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    k = 5
    out = nearest_response(v, epsilon=epsilon, k=k, coins=np.random.default_rng(0))
    kept = float((out == v).all(1).double().mean())
    expected = math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    assert abs(kept - expected) < 5 * math.sqrt(expected * (1 - expected) / 4000)
    cosine = torch.nn.functional.cosine_similarity(out, v)
    rank = torch.nn.functional.cosine_similarity(v[:20, None], v[None], dim=2).topk(k, dim=1).values[:, -1]
    assert bool((cosine[:20] >= rank - 1e-6).all())


def test_the_response_copes_with_one_candidate():
    v = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for k in (1, 10):
        assert nearest_response(v[:1], epsilon=1.0, k=k, coins=np.random.default_rng(0)).equal(v[:1])


@pytest.mark.parametrize("loss", ["printed", "derived"])
def test_the_loss_of_a_linear_score(loss):
    """q(x) = A x has the Jacobian A, so every term is known."""
    g = torch.Generator().manual_seed(0)
    a, x, v, r = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 4), (6, 4), (6, 4), (6, 4)))
    left = r if loss == "printed" else v
    true = ((left @ a * r).sum(1) + ((x @ a.T) * v).sum(1) ** 2 / 2).mean()
    torch.testing.assert_close(perturbed_loss(lambda z: z @ a.T, x, v, r, loss=loss), true)


class Decay(torch.nn.Module):
    """q(x) = -theta x: one number to train."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, x, y, code=None):
        return -self.theta * x


def mechanism(**kw):
    return PerturbedProjections(**{"build": Decay, "epsilon": 0.2, "steps": 1, "batch": 4, "k": 2, **kw})


def test_the_claim_is_refuted_in_one_step():
    """The event {theta falls} has probability 0 without the bright record and a large one with it.

    With black records the loss is -theta |R(v)|^2: theta can only rise. One white record among four adds
    theta^2 (v^T x)^2 / 2, which makes it fall whenever the record is drawn and theta (v^T x)^2 outweighs the sum of
    |R(v)|^2. So no (0.2, delta) holds with delta below the frequency seen.
    """
    black = np.zeros((4, 16, 16, 1), np.uint8)
    bright = black.copy()
    bright[0] = 255
    falls = []
    for image in (black, bright):
        rows = Rows(image=image, label=np.zeros(4, np.int64))
        found = [mechanism()(rows, SeededNoise(s))["theta"] < 4 for s in range(60)]
        falls.append(float(np.mean(found)))
    assert falls[0] == 0
    assert falls[1] > 0.1


def test_price_and_numbers():
    cost = mechanism().cost(Relation.ADD_REMOVE)
    assert cost.event == ClaimEvent(0.2, 0.0)
    assert cost.evidence is Evidence.REFUTED
    with pytest.raises(PrivacyError, match="whole numbers"):
        mechanism(k=0)


class Bend(torch.nn.Module):
    """q(x) = -a tanh(b x) + c code: three numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Parameter(torch.tensor(t)) for t in (1.0, 0.5, 0.1))

    def forward(self, x, y, code=None):
        return -self.a * torch.tanh(self.b * x) + (0.0 if code is None else self.c * code.mean((1, 2, 3), keepdim=True))


def some_rows():
    rng = np.random.default_rng(0)
    return Rows(image=rng.integers(0, 256, (12, 4, 4, 1), dtype=np.uint8), label=np.zeros(12, np.int64))


def test_memory_does_not_change_the_answer():
    base = {"build": Bend, "steps": 3, "batch": 10, "code": lambda x: x, "smooth": 0.1, "lr": 0.1}
    whole, pieces = (mechanism(**base, physical=p)(some_rows(), SeededNoise(0)) for p in (64, 3))
    assert {k: float(t) for k, t in whole.items()} == pytest.approx({k: float(t) for k, t in pieces.items()}, abs=1e-6)
    assert float(whole["c"]) != pytest.approx(0.1, abs=1e-3)


def test_the_answer_can_be_averaged_weights():
    last = mechanism(build=Bend, steps=6, lr=0.1)(some_rows(), SeededNoise(0))
    mean = mechanism(build=Bend, steps=6, lr=0.1, ema=0.9)(some_rows(), SeededNoise(0))
    assert 0.5 < (float(mean["b"]) - 0.5) / (float(last["b"]) - 0.5) < 0.97


class OneStream(SeededNoise):
    """All who ask draw from the same generator."""

    def generator(self):
        self.stream = getattr(self, "stream", None) or np.random.default_rng(0)
        return self.stream


def test_two_parts_are_one_training():
    common = {"build": Bend, "batch": 4, "lr": 0.1, "ema": 0.9, "resumable": True}
    whole = mechanism(**common, steps=10)(some_rows(), OneStream(0))
    noise = OneStream(0)
    part = mechanism(**common, steps=4)(some_rows(), noise)
    part = mechanism(**common, steps=6, state=part, first=False)(some_rows(), noise)
    assert set(whole) == {f"{k}.{n}" for k in ("net", "ema") for n in "abc"} | {
        f"{k}.{n}" for k in ("adam1", "adam2") for n in "ab"
    } | {"loss", "taken"}
    for name, tensor in whole.items():
        np.testing.assert_allclose(part[name], tensor, rtol=1e-5, err_msg=name)


def broken_at(*steps):
    """A code that is not a number at these steps."""
    calls = iter(range(1000))
    return lambda x: x * (math.nan if next(calls) in steps else 1.0)


@pytest.mark.parametrize("broken", [(2,), (5,), (0, 3), (0, 1, 2, 3)])
def test_two_parts_are_one_training_with_steps_that_are_not_finite(broken):
    """Such a step moves nothing, does not count for Adam, and its loss says so."""
    common = {"build": Bend, "batch": 4, "lr": 0.1, "ema": 0.9, "resumable": True}
    whole = mechanism(**common, code=broken_at(*broken), steps=10)(some_rows(), OneStream(0))
    assert np.flatnonzero(np.isnan(whole["loss"])).tolist() == list(broken)
    assert whole["taken"] == 10 - len(broken)
    noise, code = OneStream(0), broken_at(*broken)
    part = mechanism(**common, code=code, steps=4)(some_rows(), noise)
    part = mechanism(**common, code=code, steps=6, state=part, first=False)(some_rows(), noise)
    assert set(part) == set(whole)
    for name, tensor in whole.items():
        np.testing.assert_allclose(part[name], tensor, rtol=1e-5, err_msg=name)


def test_later_parts_claim_nothing():
    """As in the paper, which composes nothing over its iterations."""
    assert mechanism(first=False).cost(Relation.REPLACE).event == ClaimEvent(0.0, 0.0)
    assert mechanism(first=False).cost(Relation.REPLACE).evidence is Evidence.REFUTED
    with pytest.raises(PrivacyError, match="mask is 2"):
        mechanism(mask=2)


def second_moment(response, *, epsilon, batches=3000):
    """The mean of R(v) R(v)^T over batches of 16 vectors in 3 dimensions, [3, 3]."""
    coins, total = np.random.default_rng(0), torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(batches):
        r = response(torch.from_numpy(coins.standard_normal((16, 3))), epsilon=epsilon, k=3, coins=coins)
        total += r.T @ r / (16 * batches)
    return total


def worst(moment):
    """The largest entry of |moment - I| in standard errors, had the vectors of a batch been drawn apart."""
    error = torch.full((3, 3), 1.0) + torch.eye(3)
    return float(((moment - torch.eye(3)).abs() / (error / (16 * 3000)).sqrt()).max())


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 10.0])
def test_the_response_leaves_the_law_of_its_vectors_alone(epsilon):
    """So the expected loss is that of plain score matching, whatever epsilon is.

    Answers of one batch may coincide, three at a time on average, so |z| < 2 * 5.3 (below 2e-6 over all entries).
    """
    assert worst(second_moment(nearest_response, epsilon=epsilon)) < 2 * 5.3


def test_a_response_that_looks_at_lengths_is_caught():
    def longest(v, *, epsilon, k, coins):
        near = (v @ v.T).topk(k, dim=1).indices  # by product instead of angle
        del epsilon
        return v[near[torch.arange(len(v)), torch.from_numpy(coins.integers(k, size=len(v)))]]

    assert worst(second_moment(longest, epsilon=0.0)) > 2 * 5.3
