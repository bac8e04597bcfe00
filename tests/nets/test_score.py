"""Score networks and codes: what reaches the output, which sizes work, and a second derivative."""

import math

import numpy as np
import pytest
import torch

from dpgm.mechanisms.perturbed import perturbed_loss
from dpgm.nets.codes import VQCode, load_vq, make_code, save_vq, thumbnail, train_vq, vq_model
from dpgm.nets.procedural import procedural_images
from dpgm.nets.score import ScoreNet
from dpgm.nets.unet import ScoreUNet


def net(kind, *, seed=0, **kw):
    given = {"channels": 1, "n_classes": 3, "rng": torch.Generator().manual_seed(seed), **kw}
    return ScoreNet(**given) if kind == "small" else ScoreUNet(height=8, width=8, **given)


@pytest.mark.parametrize("label", ["painted", "onehot", "learned"])
@pytest.mark.parametrize("kind", ["small", "unet"])
def test_class_and_code_reach_the_field_and_records_stay_apart(kind, label):
    g = torch.Generator().manual_seed(1)
    q, x, code = (
        net(kind, label=label, code=2),
        torch.rand(2, 1, 8, 8, generator=g),
        torch.randn(2, 2, 4, 4, generator=g),
    )
    with torch.no_grad():
        base = q(x, torch.tensor([0, 1]), code)
        assert base.shape == x.shape
        assert not torch.allclose(base[0], q(x, torch.tensor([2, 1]), code)[0], atol=1e-4)
        assert not torch.allclose(base[0], q(x, torch.tensor([0, 1]), code.flip(0))[0], atol=1e-4)
        assert not torch.allclose(base, q(x, torch.tensor([0, 1])), atol=1e-4)
        torch.testing.assert_close(base[:1], q(x[:1], torch.tensor([0]), code[:1]), atol=1e-4, rtol=1e-4)
        again = net(kind, label=label, code=2)
        assert torch.equal(base, again(x, torch.tensor([0, 1]), code))
        assert not torch.equal(base, net(kind, label=label, code=2, seed=1)(x, torch.tensor([0, 1]), code))


@pytest.mark.parametrize(
    ("side", "channels", "weights"), [(28, 1, 1.67e6), (32, 3, 1.85e6), (64, 3, 2.01e6), (256, 3, 3.26e6)]
)
def test_sizes_of_the_unet(side, channels, weights):
    """DPDM states 1.75 million weights for 28 pixels and 1.80 for CelebA."""
    q = ScoreUNet(height=side, width=side, channels=channels, n_classes=2, rng=torch.Generator())
    assert sum(p.numel() for p in q.parameters()) == pytest.approx(weights, rel=0.01)


def test_the_unet_can_be_trained_on_its_own_slope():
    q, g = net("unet"), torch.Generator().manual_seed(0)
    x, v = torch.rand(2, 1, 8, 8, generator=g), torch.randn(2, 64, generator=g)
    perturbed_loss(lambda z: q(z, torch.tensor([0, 1])), x, v, v, loss="printed").backward()
    assert all(p.grad is not None for n, p in q.named_parameters() if "embed" not in n or "unet" in n)


def test_thumbnails_are_eight_levels_of_patches():
    x = torch.zeros(1, 3, 8, 8)
    x[:, :, :2, :2] = 1
    code = thumbnail(x)
    assert code.shape == (1, 1, 4, 4)
    assert code[0, 0, 0, 0] == 1
    assert code.sum() == 1 - 15


@pytest.mark.parametrize(("side", "places"), [(28, 7), (30, 8), (32, 8), (64, 8)])
def test_codes_are_codebook_vectors_on_a_coarse_grid(side, places):
    model = vq_model(channels=1, side=side, words=16, rng=torch.Generator().manual_seed(0))
    code = VQCode(model)(torch.rand(2, 1, side, side, generator=torch.Generator().manual_seed(0)))
    assert code.shape == (2, 4, places, places)
    words = model.quantize.embedding.weight / model.quantize.embedding.weight.square().mean().sqrt()
    gap = torch.cdist(code.permute(0, 2, 3, 1).reshape(-1, 4), words, compute_mode="donot_use_mm_for_euclid_dist")
    assert gap.min(1).values.max() < 1e-5
    assert not code.requires_grad


def test_a_vq_model_learns_and_comes_back_from_file_and_folder(tmp_path):
    images = procedural_images(32, height=16, width=16, channels=1, rng=np.random.default_rng(0))
    losses = []
    model = train_vq(images, steps=25, batch=8, on_step=lambda _, loss: losses.append(loss))
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    save_vq(model, tmp_path / "vq.safetensors", provenance="made-up pictures")
    model.save_pretrained(tmp_path / "folder")
    for place in ("vq.safetensors", "folder"):
        code = make_code(f"vq:{tmp_path / place}")
        assert code is not None
        assert torch.equal(code(x), VQCode(model)(x))
    assert math.isfinite(losses[-1])


def test_what_is_no_vq_model_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors is no VQ model"):
        load_vq(tmp_path / "other.safetensors")
    colours = VQCode(vq_model(channels=3, side=16, rng=torch.Generator()))
    assert colours(torch.rand(1, 1, 16, 16)).shape[0] == 1
    with pytest.raises(ValueError, match="2 channels"):
        colours(torch.rand(1, 2, 16, 16))
