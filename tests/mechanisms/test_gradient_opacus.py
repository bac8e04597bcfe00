"""The clipped gradient sum against an independent implementation."""

import warnings

import pytest
import torch
from torch import nn

from dpgm.mechanisms.per_record import clipped_gradient_sum


def test_opacus_gives_the_same_sum():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grad_sample = pytest.importorskip("opacus.grad_sample")
    rng = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=rng))
    x, y = torch.rand(9, 1, 6, 6, generator=rng), torch.randn(9, 5, generator=rng)

    def loss(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (net(x) - y).square().sum(1)

    mine = clipped_gradient_sum(loss, net, (x, y), clip_norm=8.0, chunk=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = grad_sample.GradSampleModule(net, loss_reduction="sum")
        loss(theirs, x, y).sum().backward()
    each = torch.cat([p.grad_sample.flatten(1) for p in theirs.parameters()], 1)
    norms = each.norm(dim=1)
    assert norms.min() < 8 < norms.max()  # some are clipped and some are not
    torch.testing.assert_close(mine.float(), (each * (8 / norms).clamp(max=1)[:, None]).sum(0), rtol=1e-4, atol=1e-4)
