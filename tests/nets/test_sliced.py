"""Sliced features and losses, the mixture of products, the table generator: norms, laws, and known traps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dpgm.nets.mixture import ProductMixture, Targets, fit_mixture
from dpgm.nets.sliced import SlicedHistogram, cosines, density_ratio, noisy_characteristic, ridge, wasserstein
from dpgm.nets.table_generator import TableGenerator


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=rng(seed))


def test_histograms_are_shares_of_norm_at_most_one() -> None:
    features = SlicedHistogram(height=8, width=8, channels=1, slices=20, bins=5)
    x = torch.rand(6, 1, 8, 8, generator=rng())
    x[0], x[1] = 0, 1e3
    phi = features(x) * math.sqrt(20)
    assert phi.shape == (6, 100)
    assert phi.min() >= 0
    assert torch.allclose(phi.view(6, 20, 5).sum(2), torch.ones(6, 20), atol=1e-4)
    assert (features(x).norm(dim=1) <= 1 + 1e-6).all()
    x.requires_grad_()
    features(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad[2:].abs().sum() > 0


def test_cosines_are_orthonormal() -> None:
    basis = cosines(9, 9)
    assert torch.allclose(basis @ basis.T, torch.eye(9), atol=1e-5)


def released(kind: str, x: Tensor, std: float) -> tuple[Tensor, Tensor | None]:
    """Noisy rows of x, whole or behind random directions."""
    d = x.shape[1]
    if kind == "whole":
        return x + std * normal(len(x), d, 1), None
    u = normal(d, 6, 2) / math.sqrt(d)
    return x @ u + std * normal(len(x), 6, 1), u


@pytest.mark.parametrize("kind", ["whole", "sliced"])
@pytest.mark.parametrize("name", ["cf", "wasserstein", "chi2", "kl", "ridge"])
def test_a_match_scores_better_than_a_shift_and_than_running_away(kind: str, name: str) -> None:
    """Sending most of the mass far away must not pay, as it does for t ln t on ratios that are not normalised."""
    std, x = 0.5, normal(6000, 4, 0)
    values, directions = released(kind, x, std)
    loss: Any
    if name == "cf":
        loss = noisy_characteristic(values, directions, std, count=300, rng=rng())
    elif name == "wasserstein":
        loss = wasserstein(values, directions, std, slices=3, slice_dim=2)
    elif name == "ridge":
        loss = ridge(values, directions, std, slices=3, slice_dim=2, rng=rng())
    else:
        loss = density_ratio(
            values, directions, std, divergence="chi2" if name == "chi2" else "kl", slices=3, slice_dim=2
        )
    fake = normal(256, 4, 5)
    away = fake.clone()
    away[: int(0.63 * 256)] += 30.0
    match, shifted, leaked = (
        sum(float(loss(v, rng(s))) for s in range(5)) / 5 for v in (normal(256, 4, 6), fake + 1.0, away)
    )
    assert match < shifted
    assert match < leaked


@pytest.mark.parametrize("kind", ["whole", "sliced"])
def test_noisy_characteristic_vanishes_at_the_truth_without_synthetic_noise(kind: str) -> None:
    std, x = 1.0, normal(20_000, 4, 0)
    values, directions = released(kind, x, std)
    loss = noisy_characteristic(values, directions, std, count=200, rng=rng())
    assert float(loss(x, rng())) < 1e-3
    assert float(loss(x + normal(20_000, 4, 9) * std, rng())) > 5 * float(loss(x, rng()))  # noise must not be added


@pytest.mark.parametrize("kind", ["whole", "sliced"])
def test_ridge_counts_the_noise_in_closed_form(kind: str) -> None:
    std, x = 1.0, normal(20_000, 4, 0)
    values, directions = released(kind, x, std)
    loss = ridge(values, directions, std, slices=3, slice_dim=2, rng=rng())
    truth = float(loss(normal(20_000, 4, 7), rng()))
    assert truth < 0.02
    assert float(loss(x + normal(20_000, 4, 9) * std, rng())) > 5 * truth  # the twin: noise counted twice


def test_half_precision_is_enough_for_noisy_rows() -> None:
    x = normal(3000, 4, 0)
    values, directions = released("sliced", x, 0.5)
    for make in (
        lambda v: noisy_characteristic(v, directions, 0.5, count=30, rng=rng()),
        lambda v: wasserstein(v, directions, 0.5, slices=2, slice_dim=2),
        lambda v: ridge(v, directions, 0.5, slices=2, slice_dim=2, rng=rng()),
    ):
        whole, half = (float(make(v)(x[:500] + 0.5, rng())) for v in (values, values.half()))
        assert half == pytest.approx(whole, rel=0.02)


def test_losses_have_gradients() -> None:
    values, directions = released("sliced", normal(500, 4, 0), 0.5)
    for loss in (
        noisy_characteristic(values, directions, 0.5, count=30, rng=rng()),
        wasserstein(values, directions, 0.5, slices=2, slice_dim=2),
        density_ratio(values, directions, 0.5, divergence="chi2", slices=2, slice_dim=2),
        density_ratio(values, directions, 0.5, divergence="kl", slices=2, slice_dim=2),
        ridge(values, directions, 0.5, slices=2, slice_dim=2, rng=rng()),
    ):
        x = (normal(64, 4, 3) + 0.5).requires_grad_()
        loss(x, rng()).backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().sum() > 0


# --- the mixture of products -----------------------------------------------------------------------------------------


def mixture(classes: int = 2, components: int = 6) -> ProductMixture:
    return ProductMixture([2, 3], classes, components, rng=rng())


def test_moments_are_those_of_the_samples() -> None:
    net = mixture()
    first, second = (m.detach() for m in net.moments())
    assert float(first[:, :2].sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(second[:, :2, 2:].sum(2), first[:, :2], atol=1e-6)
    n = 40_000
    y = torch.multinomial(net.shares()[0].sum(1).detach(), n, replacement=True, generator=rng(1))
    x = net.sample(y, rng=rng(2))
    for c in range(2):
        for a in range(2):
            for b in range(3):
                found = ((y == c) & (x[:, 0] == a) & (x[:, 1] == b)).float().mean()
                p = float(second[c, a, 2 + b])
                assert float(found) == pytest.approx(p, abs=5 * math.sqrt(p / n) + 1e-4)


def targets(second: Tensor, precision: float) -> Targets:
    full = torch.zeros(len(second), 5, 5)
    full[:, :2, 2:], full[:, 2:, :2] = second, second.transpose(1, 2)
    weight = torch.zeros(5, 5)
    weight[:2, 2:] = weight[2:, :2] = precision
    first = torch.cat([second.sum(2), second.sum(1)], 1)
    zero = torch.zeros(5, 5)
    return Targets(
        first=first,
        first_precision=torch.full((5,), precision),
        second=full,
        second_precision=weight,
        pooled=full.sum(0),
        pooled_precision=zero,
    )


def test_a_fit_meets_possible_targets_and_stays_possible_on_noisy_ones() -> None:
    second = torch.tensor([[[0.3, 0.0, 0.1], [0.0, 0.1, 0.0]], [[0.05, 0.05, 0.1], [0.1, 0.1, 0.1]]])
    net = mixture()
    goal = targets(second, 1e5)
    net.start(goal.first)
    assert fit_mixture(net, goal, steps=400) < 1.0  # within 0.003 each
    assert torch.allclose(net.moments()[1][:, :2, 2:], second, atol=5e-3)
    noisy = targets(second + 0.05 * torch.randn(2, 2, 3, generator=rng(3)), 400.0)
    net = mixture()
    net.start(noisy.first)
    fit_mixture(net, noisy, steps=200)
    found = net.moments()[1].detach()
    assert found.min() >= 0
    assert float(found[:, :2, 2:].sum()) == pytest.approx(1.0, abs=1e-4)


def test_nothing_known_of_a_class_is_no_fault() -> None:
    net = mixture()
    goal = targets(torch.zeros(2, 2, 3), 1e-3)
    net.start(goal.first)
    fit_mixture(net, goal, steps=5)
    assert all(torch.isfinite(p).all() for p in net.parameters())


# --- the generator network -------------------------------------------------------------------------------------------


def test_generated_vectors_lie_where_real_ones_do() -> None:
    net = TableGenerator(
        [(3, True), (0, False), (0, True), (2, False)], label=3, n_classes=2, latent=4, hidden=8, rng=rng()
    )
    y = torch.tensor([0, 1] * 50)
    vectors, values = net.draw(y, rng=rng(1))
    assert vectors.shape == (100, 4 + 2 + 3 + 2)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(100), atol=1e-5)
    assert (vectors >= -1e-6).all()
    assert torch.equal(values[:, 3], y.float())
    codes = values[:, 0][~values[:, 0].isnan()]
    assert set(codes.tolist()) <= {0.0, 1.0, 2.0}
    assert ((values[:, 1] >= 0) & (values[:, 1] <= 1)).all()
    vectors[:, 0].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
