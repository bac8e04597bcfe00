"""Noise: the laws are what the prices say, and a broken twin for every guard.

Statistical tests state H0, the number of trials, the false-alarm rate (1e-6 for each test) and the weakest twin that
they catch; the noise is drawn anew in every run, so a test that fails by luck fails once in a million runs.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpgm.mechanisms import noise as noise_module
from dpgm.mechanisms.noise import DiscreteGaussian, Gaussian, KNorm, Laplace
from dpgm.mechanisms.queries import ClippedSum, Histogram, total
from dpgm.privacy.guarantee import Evidence, PrivacyError, Relation
from dpgm.privacy.mechanism import (
    Array,
    Cost,
    DiscreteGaussianEvent,
    GaussianEvent,
    NoiseSource,
    PoissonGaussianEvent,
    PureEvent,
    SeededNoise,
    ZeroConcentratedEvent,
)
from dpgm.schema import Rows
from dpgm.testing import Law, check_mechanism, vectors

ALARM = 1e-6
ADD, REPLACE = Relation.ADD_REMOVE, Relation.REPLACE
ROWS = vectors(6, n_classes=4)(20, np.random.default_rng(0))
SUM = ClippedSum(vectors=lambda rows: rows["x"], dim=6, clip_norm=2.5)
COUNTS = Histogram(column="label", bins=4)

SOUND = {
    "gaussian": Gaussian(query=SUM, noise_std=3.0),
    "gaussian, little noise": Gaussian(query=SUM, noise_std=1e-4),
    "gaussian, much noise": Gaussian(query=SUM, noise_std=1e9),
    "laplace": Laplace(query=SUM, scale=2.0),
    "laplace of counts": Laplace(query=COUNTS, scale=0.5),
    "k-norm": KNorm(query=SUM, scale=0.7),
    "discrete gaussian": DiscreteGaussian(query=COUNTS, sigma=2.5),
    "discrete gaussian, little noise": DiscreteGaussian(query=COUNTS, sigma=0.8),
}


@pytest.mark.parametrize("name", SOUND)
def test_mechanisms_keep_the_contract(name: str) -> None:
    check_mechanism(SOUND[name], ROWS)


# --- broken twins: each differs from a sound mechanism in one line ----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HalfNoise(Gaussian):
    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        return total(self.query, rows) + noise.normal(self.query.shape, self.noise_std / 2)


@dataclass(frozen=True, kw_only=True)
class LyingCost(Gaussian):
    """States a smaller price than its noise buys."""

    def cost(self, relation: Relation) -> Cost:
        cost = super().cost(relation)
        assert isinstance(cost.event, GaussianEvent)
        return dataclasses.replace(cost, event=GaussianEvent(1.5 * cost.event.noise_multiplier))


@dataclass(frozen=True, kw_only=True)
class TypedSensitivity(Gaussian):
    """The sensitivity typed by hand instead of asked: the clip norm was changed since."""

    def cost(self, relation: Relation) -> Cost:
        return dataclasses.replace(super().cost(relation), event=GaussianEvent(self.noise_std / 1.0))


@dataclass(frozen=True, kw_only=True)
class WrongRelation(Gaussian):
    def cost(self, relation: Relation) -> Cost:
        return super().cost(ADD)


@dataclass(frozen=True, kw_only=True)
class SameNoiseTwice(Gaussian):
    """A seed inside: every call has the same noise."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        noise.bits(1)
        return total(self.query, rows) + np.random.default_rng(0).normal(0, self.noise_std, self.query.shape)


@dataclass(frozen=True, kw_only=True)
class OneNumberForAll(Gaussian):
    """One draw added to every coordinate."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        return total(self.query, rows) + noise.normal(1, self.noise_std)


@dataclass(frozen=True, kw_only=True)
class OwnStream(Gaussian):
    """Noise from a stream of its own beside the source."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        return total(self.query, rows) + np.random.default_rng().normal(0, self.noise_std, self.query.shape)


@dataclass(frozen=True, kw_only=True)
class NoiseByTrueCount(Gaussian):
    """Noise scaled by the true number of rows."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        return total(self.query, rows) + noise.normal(self.query.shape, self.noise_std * 20 / max(1, len(rows)))


@dataclass(frozen=True, kw_only=True)
class LaplaceAsStd(Laplace):
    """Takes the scale for the standard deviation: sqrt(2) too little noise."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        difference = np.log(noise.uniform(6)) - np.log(noise.uniform(6))
        return total(self.query, rows) + self.scale / math.sqrt(2) * difference


@dataclass(frozen=True, kw_only=True)
class KNormOneDimensionShort(KNorm):
    """The radius of a space of half the dimension."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        direction = noise.normal(self.query.shape)
        radius = noise.generator().gamma(direction.size / 2, self.scale)
        return total(self.query, rows) + direction * (radius / np.linalg.norm(direction))


@dataclass(frozen=True, kw_only=True)
class SameCountsNoise(DiscreteGaussian):
    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        noise.bits(1)
        return super().__call__(rows, SeededNoise(3))


@dataclass(frozen=True, kw_only=True)
class RoundedGaussian(DiscreteGaussian):
    """Rounded continuous noise of two thirds."""

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        return total(self.query, rows) + np.round(noise.normal(self.query.shape, self.sigma / 1.5))


@dataclass(kw_only=True)
class NotFrozen:
    query: ClippedSum = dataclasses.field(default_factory=lambda: SUM)


@dataclass(frozen=True, kw_only=True)
class FickleCost(Gaussian):
    """The price falls with every question."""

    asked: ClassVar[list[int]] = []

    def cost(self, relation: Relation) -> Cost:
        self.asked.append(1)
        return dataclasses.replace(super().cost(relation), event=GaussianEvent(self.noise_std * len(self.asked)))


BROKEN: dict[str, tuple[Any, str]] = {
    "half noise": (HalfNoise(query=SUM, noise_std=3.0), "not what"),
    "cost that lies": (LyingCost(query=SUM, noise_std=3.0), "not what"),
    "noise std typed": (TypedSensitivity(query=SUM, noise_std=3.0), "not what"),
    "wrong relation": (WrongRelation(query=SUM, noise_std=3.0), "under 'replace one' the noise"),
    "same noise twice": (SameNoiseTwice(query=SUM, noise_std=3.0), "used again"),
    "one number for all": (OneNumberForAll(query=SUM, noise_std=3.0), "used again"),
    "own stream": (OwnStream(query=SUM, noise_std=3.0), "takes no noise"),
    "noise by true count": (NoiseByTrueCount(query=SUM, noise_std=3.0), "not what"),
    "laplace by std": (LaplaceAsStd(query=SUM, scale=1.0), "not what"),
    "short radius": (KNormOneDimensionShort(query=SUM, scale=1.0), "not what"),
    "same noise on counts": (SameCountsNoise(query=COUNTS, sigma=3.0), "every call has the same noise"),
    "two thirds of the counts' noise": (RoundedGaussian(query=COUNTS, sigma=3.0), "not what"),
    "not frozen": (NotFrozen(), "must be frozen"),
    "cost that changes": (FickleCost(query=SUM, noise_std=3.0), "changes when it is asked again"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_mechanism_is_caught(name: str) -> None:
    mechanism, message = BROKEN[name]
    with pytest.raises(AssertionError, match=message):
        check_mechanism(mechanism, ROWS)


def test_check_without_power_fails_instead_of_passing() -> None:
    with pytest.raises(AssertionError, match="raise values above 60"):
        check_mechanism(SOUND["gaussian"], ROWS, values=60)


# --- sampled sums: a fresh batch in every call ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SampledSum:
    """The smallest Poisson-sampled Gaussian sum."""

    rate: float = 0.5
    noise_multiplier: float = 0.2
    name: str = "sampled-sum"
    kept: ClassVar[list[Any]] = []

    def cost(self, relation: Relation) -> Cost:
        return Cost(event=PoissonGaussianEvent(self.rate, self.noise_multiplier), name=self.name)

    def batch(self, rows: Rows, noise: NoiseSource) -> Any:
        return noise.coins(len(rows), self.rate)

    def __call__(self, rows: Rows, noise: NoiseSource) -> Array:
        chosen = rows["x"][self.batch(rows, noise)]
        return chosen.sum(axis=0) + noise.normal(1, self.noise_multiplier)


@dataclass(frozen=True, kw_only=True)
class BatchReused(SampledSum):
    def batch(self, rows: Rows, noise: NoiseSource) -> Any:
        if not self.kept or len(self.kept[-1]) != len(rows):
            self.kept.append(super().batch(rows, noise))
        return self.kept[-1]


@dataclass(frozen=True, kw_only=True)
class FixedBatchSize(SampledSum):
    """Exactly the first half, shuffled: no amplification by Poisson sampling."""

    def batch(self, rows: Rows, noise: NoiseSource) -> Any:
        return np.argsort(noise.uniform(len(rows)))[: round(self.rate * len(rows))]


def sampled_law(n: int) -> Any:
    """H0: the sum over n unit records is binomial plus Gaussian noise."""

    def of(relation: Relation) -> Law:
        weights = stats.binom.pmf(np.arange(n + 1), n, 0.5)
        return lambda z, factor: sum(
            (w * stats.norm.cdf(z / factor, loc=k, scale=0.2) for k, w in enumerate(weights.tolist())),
            start=np.zeros_like(z),
        )

    return of


def test_sampled_sums_draw_a_fresh_batch() -> None:
    def check(mechanism: SampledSum, n: int = 3) -> None:
        rows = Rows(x=np.ones((n, 1)))
        # the contract pools calls on all, one and no rows; the law of a sample depends on their number
        found = np.array([mechanism(rows, NoiseSource()) for _ in range(4000)])
        p = stats.kstest(sampled_law(n)(ADD)(found, 1.0).ravel(), "uniform").pvalue
        assert p >= ALARM, f"p = {p:.2g}"

    check(SampledSum())
    for twin in (BatchReused(), FixedBatchSize()):
        with pytest.raises(AssertionError, match="p ="):
            check(twin)


# --- laws -------------------------------------------------------------------------------------------------------------


def test_normal_noise_is_normal_and_independent() -> None:
    # H0: N(0, 1), 200,000 draws. Power: a scale off by 5 % (KS distance 0.012) is rejected with 1 - 1e-6.
    z = NoiseSource().normal((2, 100_000))
    assert stats.kstest(z.ravel(), "norm").pvalue >= ALARM
    assert stats.kstest(1.05 * z.ravel(), "norm").pvalue < ALARM
    # H0: neighbours in the stream are uncorrelated: r ~ N(0, 1/n); 4.9 standard deviations are 1e-6.
    for a, b in ((z[0], z[1]), (z[0, :-1], z[0, 1:]), (np.abs(z[0]), np.abs(z[1]))):
        assert abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a)) < 4.9
    # Tails: P(|z| > 4) = 6.33e-5; H0 binomial.
    assert stats.binomtest(int((np.abs(z) > 4).sum()), z.size, 2 * stats.norm.sf(4)).pvalue >= ALARM


def test_uniform_and_coins() -> None:
    u = NoiseSource().uniform(200_000)
    assert stats.kstest(u, "uniform").pvalue >= ALARM
    # H0: Binomial(200,000, 0.3); a rate of 0.31 is rejected with power > 1 - 1e-6
    heads = int(NoiseSource().coins(200_000, 0.3).sum())
    assert stats.binomtest(heads, 200_000, 0.3).pvalue >= ALARM
    assert stats.binomtest(heads, 200_000, 0.315).pvalue < ALARM
    assert not NoiseSource().coins(1000, 0.0).any()
    assert NoiseSource().coins(1000, 1.0).all()


class Stuck(NoiseSource):
    """A source whose words are all the same."""

    def __init__(self, word: int) -> None:
        self.word = word

    def bits(self, n: int) -> Any:
        return np.full(n, self.word, dtype=np.uint64)


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_noise_is_finite_at_the_ends_of_the_unit_interval(word: int) -> None:
    source = Stuck(word)
    assert 0 < source.uniform(1)[0] < 1
    assert np.isfinite(source.normal(3)).all()
    assert np.isfinite(Laplace(query=SUM, scale=1.0)(ROWS, source)).all()
    assert Stuck(0).uniform(1)[0] == 1 - Stuck(2**64 - 1).uniform(1)[0]


class Unproved:
    """A query of a stranger, who says how far a record moves it."""

    shape = (6,)

    def partial(self, rows: Rows) -> Array:
        return SUM.partial(rows)

    def sensitivity(self, relation: Relation, norm: int = 2) -> float:
        return SUM.sensitivity(relation, norm)

    def assumptions(self) -> tuple[str, ...]:
        return ()


class Stated(Unproved):
    evidence = Evidence.UNSUPPORTED


@pytest.mark.parametrize("make", [lambda q: Gaussian(query=q, noise_std=1.0), lambda q: KNorm(query=q, scale=1.0)])
def test_noise_on_an_unproved_sensitivity_proves_nothing(make: Any) -> None:
    for query, evidence in ((SUM, Evidence.PROVED), (Unproved(), Evidence.CLAIMED), (Stated(), Evidence.UNSUPPORTED)):
        assert make(query).cost(ADD).evidence is evidence
    assert Laplace(query=Unproved(), scale=1.0).cost(ADD).evidence is Evidence.CLAIMED


class NoGenerator(NoiseSource):
    """Refuses the generator, whose draws tell one another: noise that is known beside a known record tells the rest."""

    def generator(self) -> np.random.Generator:
        raise AssertionError("noise from a generator")


@pytest.mark.parametrize("name", SOUND)
def test_every_bit_of_noise_is_the_operating_systems(name: str) -> None:
    SOUND[name](ROWS, NoGenerator())
    with pytest.raises(AssertionError, match="from a generator"):
        KNormOneDimensionShort(query=SUM, scale=1.0)(ROWS, NoGenerator())


def test_gamma_variates_have_their_law() -> None:
    # H0: sums of exponentials are Gamma(shape, 1), also where they are made in pieces; 4,000 variates of each shape.
    class Pieces(NoiseSource):
        _CHUNK = 4

    for source, shape in ((NoiseSource(), 1), (NoiseSource(), 7), (Pieces(), 9)):
        assert stats.kstest(source.gamma(shape, 4000), stats.gamma(shape).cdf).pvalue >= ALARM
        assert stats.kstest(source.gamma(shape + 1, 4000), stats.gamma(shape).cdf).pvalue < ALARM  # the twin


def test_a_generator_has_all_bits_of_its_seed() -> None:
    # Sequences of numpy keep 128 bits of a longer seed unless they are told.
    assert NoiseSource().generator().bit_generator.seed_seq.pool_size == 8  # type: ignore[attr-defined]


def test_k_norm_direction_is_uniform() -> None:
    # H0: each coordinate of the direction in 3 dimensions is uniform on (-1, 1) (Archimedes); 4,000 calls.
    mechanism = KNorm(query=ClippedSum(vectors=lambda r: r["x"], dim=3, clip_norm=1.0), scale=1.0)
    nothing = Rows(x=np.zeros((0, 3)))
    z = np.array([mechanism(nothing, NoiseSource()) for _ in range(4000)])
    for unit in (z / np.linalg.norm(z, axis=1, keepdims=True)).T:
        assert stats.kstest(unit, "uniform", (-1, 2)).pvalue >= ALARM
    cube = np.random.default_rng(0).uniform(-1, 1, (4000, 3))  # the twin: points of a cube, normalised
    assert stats.kstest((cube / np.linalg.norm(cube, axis=1, keepdims=True))[:, 0], "uniform", (-1, 2)).pvalue < ALARM


def chi_square(draws: np.ndarray, variance: float) -> float:
    """p-value of integers against the exact mass of the discrete Gaussian; cells with 20 or more expected."""
    reach = np.arange(-60, 61)
    mass = np.exp(-(reach**2) / (2 * variance))
    expected = len(draws) * mass / mass.sum()
    counts = np.bincount(draws.astype(int) + 60, minlength=121).astype(float)
    inner = expected >= 20
    seen = np.append(counts[inner], counts[~inner].sum())
    wanted = np.append(expected[inner], expected[~inner].sum())
    keep = wanted > 5
    seen = np.append(seen[keep], seen[~keep].sum()) if not keep.all() else seen
    wanted = np.append(wanted[keep], wanted[~keep].sum()) if not keep.all() else wanted
    ok = wanted > 0
    return float(stats.chi2.sf(((seen[ok] - wanted[ok]) ** 2 / wanted[ok]).sum(), ok.sum() - 1))


def test_discrete_noise_meets_its_count_as_a_whole_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float of the noise alone would be rounded first, and the count would be seen in the last bits of the sum."""
    monkeypatch.setattr(noise_module, "_discrete_gaussian", lambda variance, noise: 2**53 + 1)
    rows = Rows(label=np.array([0, 0, 0]))
    answer = DiscreteGaussian(query=Histogram(column="label", bins=2), sigma=2.0**54)(rows, NoiseSource())
    assert answer.tolist() == [2**53 + 4, 2**53]  # each rounded once, from 2^53 + 4 and 2^53 + 1


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(2), Fraction(121, 10)])
def test_discrete_gaussian_has_its_exact_mass(variance: Fraction) -> None:
    # H0: mass proportional to exp(-z^2 / 2 variance); 6,000 draws. Power: a third less variance is rejected (1 - 1e-6).
    draw = noise_module._discrete_gaussian
    z = np.array([draw(variance, NoiseSource()) for _ in range(6000)])
    assert chi_square(z, float(variance)) >= ALARM
    assert chi_square(z, 0.66 * float(variance)) < ALARM
    rounded = np.round(np.random.default_rng(0).normal(0, math.sqrt(variance), 6000))
    if variance < 1:  # rounding a continuous variate is another law, visible where the steps are large
        assert chi_square(rounded, float(variance)) < ALARM


def test_integer_sampling_is_exact() -> None:
    # H0: uniform on 0..4 and Bernoulli(exp(-x)); 4,000 draws each.
    source = NoiseSource()
    cells = np.bincount([noise_module._below(5, source) for _ in range(4000)], minlength=5)
    assert stats.chisquare(cells).pvalue >= ALARM
    for x in (Fraction(0), Fraction(1, 3), Fraction(1), Fraction(7, 2)):
        heads = sum(noise_module._bernoulli_exp(x, source) for _ in range(4000))
        assert stats.binomtest(heads, 4000, math.exp(-x)).pvalue >= ALARM
    assert noise_module._below(1, source) == 0
    assert 0 <= noise_module._below(2**200, source) < 2**200


# --- prices -----------------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_prices_ask_the_query(clip_norm: float, noise: float) -> None:
    query = ClippedSum(vectors=lambda r: r["x"], dim=4, clip_norm=clip_norm)
    for relation, moved in ((ADD, clip_norm), (REPLACE, 2 * clip_norm)):
        event = Gaussian(query=query, noise_std=noise).cost(relation).event
        assert event == GaussianEvent(noise / moved)
        assert Laplace(query=query, scale=noise).cost(relation).event == PureEvent(2 * moved / noise)
        assert KNorm(query=query, scale=noise).cost(relation).event == PureEvent(moved / noise)
    counts = DiscreteGaussian(query=COUNTS, sigma=noise)
    assert counts.cost(ADD).event == DiscreteGaussianEvent(noise, 1)
    replaced = counts.cost(REPLACE).event
    assert isinstance(replaced, ZeroConcentratedEvent)
    assert replaced.rho == pytest.approx(1 / noise**2)


def test_options_are_checked() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        for make in (
            lambda v: Gaussian(query=SUM, noise_std=v),
            lambda v: Laplace(query=SUM, scale=v),
            lambda v: KNorm(query=SUM, scale=v),
            lambda v: DiscreteGaussian(query=COUNTS, sigma=v),
        ):
            with pytest.raises(PrivacyError, match="finite number above 0"):
                make(bad)
    with pytest.raises(PrivacyError, match="Histogram only"):
        DiscreteGaussian(query=SUM, sigma=1.0)  # pyright: ignore[reportArgumentType]


def test_extreme_scales_work() -> None:
    assert (DiscreteGaussian(query=COUNTS, sigma=1e-8)(ROWS, NoiseSource()) == total(COUNTS, ROWS)).all()
    assert np.abs(DiscreteGaussian(query=COUNTS, sigma=1e160)(ROWS, NoiseSource())).max() > 1e100


def test_seeded_noise_repeats_and_says_so() -> None:
    assert np.array_equal(SeededNoise(1).normal(5), SeededNoise(1).normal(5))
    assert not np.array_equal(SeededNoise(1).normal(5), SeededNoise(2).normal(5))
    assert SeededNoise(1).seeded
    assert not NoiseSource().seeded
    assert not np.array_equal(NoiseSource().normal(5), NoiseSource().normal(5))
