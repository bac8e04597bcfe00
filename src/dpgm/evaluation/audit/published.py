"""Counterexamples to two published mechanisms, each with the sound form under the same attack.

Both are exact: the event is fixed beforehand, the data sets are neighbours under add/remove or replace one, and what
the attacker sees is what the method releases.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpgm.evaluation.audit.bound import Array, Audit, ceiling, examine
from dpgm.mechanisms.gradient import PoissonGradient
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import NoiseSource

# ---------------------------------------------------------------------------------------------------------------------
# DP2-VAE: one record tips the encoder, the encoder moves every record's gradient

_HALF, _LONG = 500, math.sqrt(0.999)
"""500 records (0.9995, 0) and 500 records (0, 1); one more of the first kind tips the principal direction."""


def tie(
    privacy: Literal["published", "local"],
    *,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    trials: int = 20_000,
    confidence: float = 0.999,
    steps: int = 100,
    rate: float = 0.1,
    lr: float = 0.02,
    noise: NoiseSource | None = None,
) -> Audit:
    """A linear VAE on two kinds of records in the plane, near a tie between its two principal directions.

    Published form: codes z = u.x, u the top eigenvector of sum x x^T, found without noise; then the decoder x = w z by
    DP-SGD. 500 records of length 0.9995 lie along the first axis and 500 of length 1 along the second, so u is the
    second axis; one more record along the first turns u, and with it every code. The attacker looks whether the
    released decoder has w_1 > w_2. "local": every visited record takes six steps on its own code instead.

    Args:
        privacy: which form.
        epsilon: nominal privacy loss of the decoder's DP-SGD.
        delta: its slack.
        trials: runs on each data set, at most.
        confidence: probability that a true claim is not beaten.
        steps: gradients.
        rate: probability of a record in each of them.
        lr: learning rate.
        noise: where noise and coins come from.
    """
    source = NoiseSource() if noise is None else noise
    relation = Relation.ADD_REMOVE

    def step(scale: float) -> PoissonGradient:
        evidence = Evidence.REFUTED if privacy == "published" else Evidence.PROVED
        return PoissonGradient(rate=rate, noise_multiplier=scale, size=2 * _HALF, evidence=evidence)

    budget = Budget(epsilon=epsilon, delta=delta)
    scale = accountant.calibrate(lambda s: [(step(s).cost(relation), steps)], budget, relation=relation)
    price = step(scale).cost(relation)
    kinds = np.array([[_LONG, 0.0], [0.0, 1.0]])
    scores: list[Array] = []
    for extra in (1, 0):
        counts = np.array([_HALF + extra, _HALF])
        direction = np.linalg.eigh(np.einsum("k,ki,kj->ij", counts, kinds, kinds))[1][:, -1]
        w = np.zeros((trials, 2))
        coins = source.generator()
        for _ in range(steps):
            z = np.tile(np.abs(kinds @ direction), (trials, 1)) if privacy == "published" else _own_codes(w, kinds)
            sums = source.normal(w.shape, scale)
            sums += _clipped_sums(w, kinds, z, coins.binomial(counts, rate, size=(trials, 2)))
            w -= lr * sums / (rate * _HALF)
        scores.append(w[:, 0] - w[:, 1])

    def claim(slack: float) -> float:
        return accountant.epsilon_of([(price, steps)], delta=slack, relation=relation)

    threshold = 0.0 if privacy == "published" else None
    stated, best, held_out = examine(*scores, claim=claim, delta=delta, confidence=confidence, threshold=threshold)
    return Audit(
        name=f"dp2vae, {privacy} form: a record that tips the encoder",
        relation=relation,
        evidence=price.evidence,
        stated=stated,
        best=best,
        trials=trials,
        held_out=held_out,
        confidence=confidence,
        ceiling=ceiling(held_out, delta, confidence),
        pair=f"{_HALF} records along one axis and {_HALF} along the other; one more along the first",
    )


def _clipped_sums(w: Array, kinds: Array, z: Array, counts: NDArray[np.int64]) -> Array:
    """Sum over records of clip_1 of the gradient of |x - w z|^2 / 2, [runs, 2].

    Args:
        w: decoders [runs, 2].
        kinds: the two records that occur, [2, 2].
        z: code of each kind, [runs, 2].
        counts: drawn records of each kind, [runs, 2].
    """
    gradient = -(kinds - w[:, None, :] * z[:, :, None]) * z[:, :, None]
    norm = np.linalg.norm(gradient, axis=2)
    return np.einsum("rki,rk->ri", gradient, counts / np.maximum(norm, 1.0))


def _own_codes(w: Array, kinds: Array, *, steps: int = 6, step_size: float = 0.5) -> Array:
    """Codes [runs, 2] by gradient steps on |x - w z|^2 / 2 + z^2 / 20 from the public start x.(1, 1) / sqrt(2)."""
    z = np.tile(kinds.sum(1) / math.sqrt(2), (len(w), 1))
    along, size = w @ kinds.T, (w**2).sum(1, keepdims=True)
    for _ in range(steps):
        z = z - step_size * (size * z - along + 0.1 * z)
    return z


# ---------------------------------------------------------------------------------------------------------------------
# PGE: noise on vectors that never saw the data


def randomised_response(v: NDArray[Any], epsilon: float, k: int, coins: np.random.Generator) -> NDArray[Any]:
    """The paper's perturbation of projection vectors: R(v_i) is v_i with probability e^eps / (e^eps + k - 1), otherwise
    one of the k - 1 other vectors of the batch that are nearest to v_i in angle.

    **Source**: Liu et al. 2024, equation (6).

    Args:
        v: projection vectors of a batch, for many runs, [runs, n, d].
        epsilon: the claimed privacy loss.
        k: size of the neighbourhood, v_i itself included, at most n.
        coins: source of the response.
    """
    unit = v / np.linalg.norm(v, axis=2, keepdims=True)
    near = np.argsort(-(unit @ unit.transpose(0, 2, 1)), axis=2)[:, :, :k]
    keep = coins.random(v.shape[:2]) < math.exp(epsilon) / (math.exp(epsilon) + k - 1)
    other = coins.integers(1, k, v.shape[:2]) if k > 1 else np.zeros(v.shape[:2], np.int64)
    index = np.take_along_axis(near, np.where(keep, 0, other)[:, :, None], 2)
    return np.take_along_axis(v, index, 1)


def printed_slope(theta: float, x: Array, v: Array, r: Array) -> Array:
    """Derivative by theta of the paper's loss for the linear score q(x) = -theta x, averaged over the batch, [runs].

    loss = r^T (grad q) r + (v^T q(x))^2 / 2 = -theta |r|^2 + theta^2 (v.x)^2 / 2.

    **Source**: Liu et al. 2024, equation (8).

    Args:
        theta: the score's only parameter.
        x: the batch, [n, d].
        v: projection vectors [runs, n, d].
        r: the perturbed ones [runs, n, d].
    """
    return (-(r**2).sum(2) + theta * np.einsum("rnd,nd->rn", v, x) ** 2).mean(1)


def one_step(
    *,
    epsilon: float = 0.2,
    trials: int = 20_000,
    confidence: float = 0.999,
    n: int = 10,
    dim: int = 64,
    k: int = 10,
    noise: NoiseSource | None = None,
) -> Audit:
    """One gradient step of PGE as published, on n black images, or on n - 1 of them and a white one.

    For black images the slope is -mean |r|^2 < 0, so theta can only grow: theta_1 < theta_0 has probability exactly 0.
    The white image adds theta_0 (v.x)^2 / n, which turns the step around in most runs. The perturbation of v never
    meets x, so the claimed epsilon has no influence at all.

    Args:
        epsilon: the claimed, pure privacy loss.
        trials: runs on each data set, at most.
        confidence: probability that a true claim is not beaten.
        n: images in the batch, which is the whole data set.
        dim: pixels.
        k: size of the neighbourhood in the randomised response.
        noise: where vectors and coins come from.
    """
    if not epsilon > 0:
        raise PrivacyError(f"epsilon is {epsilon}; allowed is a number above 0, e.g. 0.2")
    coins = (NoiseSource() if noise is None else noise).generator()
    theta, rate = 1000.0, 1e-3
    black, white = np.zeros((n, dim)), np.zeros((n, dim))
    white[0] = 1.0
    scores: list[Any] = []
    for x in (white, black):
        parts: list[Array] = []
        for size in np.diff(np.append(np.arange(0, trials, 2000), trials)):
            v = coins.standard_normal((size, n, dim))
            moved = -rate * printed_slope(theta, x, v, randomised_response(v, epsilon, k, coins))
            parts.append(-moved)
        scores.append(np.concatenate(parts))
    stated, best, held_out = examine(*scores, claim=lambda _: epsilon, delta=0.0, confidence=confidence, threshold=0.0)
    return Audit(
        name="pge, published form: does one step lower the parameter?",
        relation=Relation.REPLACE,
        evidence=Evidence.REFUTED,
        stated=stated,
        best=best,
        trials=trials,
        held_out=held_out,
        confidence=confidence,
        ceiling=ceiling(held_out, 0.0, confidence),
        pair=f"{n} black images; one of them replaced by a white one",
    )
