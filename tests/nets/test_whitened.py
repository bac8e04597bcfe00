"""Public features fitted on made-up pictures: reproducible, bounded, flattened."""

import numpy as np
import pytest
import torch

from dpgm.nets.classifiers import to_unit
from dpgm.nets.features import Scattering
from dpgm.nets.procedural import procedural_images
from dpgm.nets.whitened import Whitened, signed_alike


def pictures(n, seed, channels=1):
    return procedural_images(n, height=8, width=8, channels=channels, rng=np.random.default_rng(seed))


def build(**kw):
    base = Scattering(height=8, width=8, channels=1)
    return Whitened(base, height=8, width=8, channels=1, groups=3, **{"dim": 40, "pictures": 300, **kw})


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_reproducible_and_varied(channels):
    a, b, c = pictures(40, 0, channels), pictures(40, 0, channels), pictures(40, 1, channels)
    assert a.shape == (40, 8, 8, channels)
    assert a.dtype == np.uint8
    assert (a == b).all()
    assert not (a == c).all()
    assert len({image.tobytes() for image in a}) == 40
    assert a.std() > 20


def test_the_same_arguments_give_the_same_features_of_norm_at_most_one():
    x = to_unit(pictures(20, 5))
    x[0] = 0
    one, two = build()(x), build()(x)
    assert torch.equal(one, two)
    assert one.shape == (20, 40)
    assert torch.isfinite(one).all()
    assert (one.norm(dim=1) <= 1).all()
    torch.testing.assert_close(build()(x[:3]), one[:3])


@pytest.mark.parametrize("count", [100, 300])  # fewer pictures than features, and more
def test_without_a_ridge_the_covariance_is_flat(count):
    flat = build(ridge=0.0, pictures=count, dim=20)
    x = to_unit(pictures(count, 0))
    u = (flat._raw(x) - flat.mean) @ flat.basis
    torch.testing.assert_close(u.T @ u / count, torch.eye(20), atol=2e-2, rtol=0)


def test_a_large_ridge_leaves_the_proportions_alone():
    x = to_unit(pictures(300, 0))
    steep = build(ridge=1e6, dim=20)
    variances = ((steep._raw(x) - steep.mean) @ steep.basis).square().mean(0)
    assert variances[0] > 5 * variances[-1]


def test_too_many_directions_are_refused():
    with pytest.raises(ValueError, match="allow 1 to"):
        build(dim=100, pictures=50)


def test_directions_have_one_sign_on_any_machine():
    axes = torch.tensor([[3.0, -1.0], [-4.0, 2.0]])
    torch.testing.assert_close(signed_alike(axes), signed_alike(-axes))
    assert (build().basis.gather(0, build().basis.abs().argmax(0, keepdim=True)) > 0).all()
