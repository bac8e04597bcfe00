"""Gradients of single layers: every formula gives the numbers of differentiation, and no norm is too small."""

import pytest
import torch
from torch import nn

from dpgm.mechanisms import layers
from dpgm.mechanisms.layers import pair_norms, rule_of, weighted_sum


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def seen(layer, shape, records, draws):
    """What a layer reads, and a gradient of what it gives."""
    a = torch.randn(records * draws, *shape, generator=rng(1))
    with torch.no_grad():
        return a, torch.randn(layer(a).shape, generator=rng(2))


def true(layer, a, d, records):
    """Each record's gradients by automatic differentiation, in double precision."""
    twin = type(layer)(**arguments(layer)).double()
    out = []
    for x, y in zip(a.double().chunk(records), d.double().chunk(records), strict=True):
        twin.zero_grad()
        twin(x).backward(y)
        out.append(torch.cat([p.grad.flatten() for p in twin.parameters()]))
    return torch.stack(out)


def arguments(layer):
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {n: getattr(layer, n) for n in names} | {"bias": layer.bias is not None}


SMALL_MAPS = {
    "plain": (nn.Conv2d(64, 64, 3, padding=1), (64, 3, 3)),
    "no bias": (nn.Conv2d(64, 128, 3, padding=1, bias=False), (64, 3, 3)),
    "strided": (nn.Conv2d(128, 128, 3, stride=2, padding=1), (128, 3, 3)),
    "dilated": (nn.Conv2d(64, 256, (3, 2), padding=(2, 1), dilation=(2, 1)), (64, 3, 4)),
    "rows": (nn.Linear(60, 50), (4, 60)),
    "one row": (nn.Linear(9, 8), (9,)),
}
FORMED = {
    "large map": (nn.Conv2d(3, 8, 3, padding=1), (3, 12, 12)),
    "large map, groups": (nn.Conv2d(4, 8, 5, stride=(1, 2), padding=2, groups=2), (4, 12, 24)),
    "few channels": (nn.Conv2d(3, 2, 3, padding=1), (3, 12, 12)),
    "one place": (nn.Conv2d(6, 8, 1), (6, 3, 3)),
}


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("case", SMALL_MAPS)
def test_norms_and_sums_without_gradients_are_those_with(case, draws):
    layer, shape = SMALL_MAPS[case]
    a, d = seen(layer, shape, 5, draws)
    each = true(layer, a, d, 5)
    norms = pair_norms(layer, a, d, 5)
    assert norms is not None
    torch.testing.assert_close(norms, each.square().sum(1).float(), rtol=3e-4, atol=0)
    weights = torch.rand(5, generator=rng(3))
    total = torch.cat([g.flatten() for g in weighted_sum(layer, a, d, weights).values()])
    torch.testing.assert_close(total, (weights.double() @ each).float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("case", FORMED)
def test_formed_gradients_are_those_of_each_record(case, draws):
    layer, shape = FORMED[case]
    a, d = seen(layer, shape, 4, draws)
    assert pair_norms(layer, a, d, 4) is None, "forming them is cheaper"
    rule = rule_of(layer)
    assert rule is not None
    found = torch.cat([g.flatten(1) for g in rule(layer, a, d, 4).values()], 1)
    torch.testing.assert_close(found, true(layer, a, d, 4).float(), rtol=1e-4, atol=1e-3)


def cancelling():
    """Rows whose large products cancel, so that the gradient is far smaller than its parts."""
    layer = nn.Linear(40, 40)
    a = torch.randn(50, 2, 40, generator=rng(4))
    a[:, 1] = a[:, 0] + 1e-5 * torch.randn(50, 40, generator=rng(5))
    d = torch.randn(50, 1, 40, generator=rng(6)) * torch.tensor([1.0, -1.0])[:, None]
    return layer, a, d


def test_rounding_never_makes_a_norm_too_small(monkeypatch):
    layer, a, d = cancelling()
    exact = true(layer, a, d, 50).square().sum(1)
    norms = pair_norms(layer, a, d, 50)
    assert norms is not None
    assert (norms.double() >= exact * (1 - 1e-6)).all()
    monkeypatch.setattr(layers, "_ROUNDING", 0.0)  # the broken twin
    norms = pair_norms(layer, a, d, 50)
    assert norms is not None
    assert (norms.double() < exact * (1 - 1e-6)).any()
