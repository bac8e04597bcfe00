"""The nets that look at images: LeNet, and Inception with weights from a file (a narrow stand-in)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpgm.evaluation.fidelity import open_view
from dpgm.nets.generators import initialise
from dpgm.nets.judges import Inception, Judges, LeNet, load_inception
from dpgm.schema import ImageSchema, Rows

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (28, 1), (33, 3)])
def test_lenet_sees_images_of_any_size(side: int, channels: int) -> None:
    rng = torch.Generator().manual_seed(0)
    net = LeNet(height=side, width=side, channels=channels, n_classes=4, rng=rng)
    seen, odds = net.look(RNG.integers(0, 256, (5, side, side, channels)).astype(np.uint8), batch=2)
    assert (seen.shape, odds.shape) == ((5, 84), (5, 4))
    assert np.allclose(odds.sum(1), 1)


def test_a_judge_is_trained_once(tmp_path: Path) -> None:
    def net(seed: int = 0, side: int = 8) -> LeNet:
        return LeNet(height=side, width=side, channels=1, n_classes=2, rng=torch.Generator().manual_seed(seed))

    def never() -> LeNet:
        raise AssertionError

    images, judges = RNG.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8), Judges.read(tmp_path / "absent.safetensors")
    seen = net(seed=5).look(images)
    judges.net("a", net(), lambda: net(seed=5))
    judges.net("ab", net(), lambda: net(seed=6))
    judges.write(tmp_path / "judges.safetensors")
    again = Judges.read(tmp_path / "judges.safetensors").net("a", net(), never)
    assert isinstance(again, LeNet)
    assert all(map(np.array_equal, again.look(images), seen))
    assert judges.net("a", net(side=16), lambda: net(side=16)).state_dict()["fc1.weight"].shape == (120, 256)
    (tmp_path / "judges.safetensors").write_bytes(b"half")
    assert not Judges.read(tmp_path / "judges.safetensors").tensors


def test_the_whole_inception_net_has_the_published_size() -> None:
    with torch.device("meta"):
        net = Inception()
    # 21,785,568 up to the pooled features, as torchvision counts its own, and 1,008 outputs
    assert sum(p.numel() for p in net.parameters()) == 21_785_568 + 1008 * 2049
    assert not [k for k in net.state_dict() if not k.startswith(("Conv2d_", "Mixed_", "fc."))]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = Inception(narrower=16)
    initialise(net, torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({k: v for k, v in net.state_dict().items() if "tracked" not in k}, path)
    return path


def test_inception_looks_through_a_local_file(weights: Path, tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    net = load_inception(weights)
    seen, odds = net.look(images)
    assert (seen.shape, odds.shape) == ((3, 128), (3, 1008))
    again = tmp_path / "tiny.safetensors"
    save_file(net.state_dict(), again)
    assert np.array_equal(load_inception(again).look(images)[0], seen)
    grey = images[..., :1]
    assert np.allclose(net.look(grey)[0], net.look(grey.repeat(3, 3))[0], atol=1e-5)


def test_inception_names_the_metric(weights: Path) -> None:
    schema = ImageSchema(height=8, width=8, channels=1, classes=("a", "b"))
    test = Rows(image=RNG.integers(0, 256, (24, 8, 8, 1)).astype(np.uint8), label=np.arange(24) % 2)
    view = open_view(f"inception:{weights}", test, schema=schema, data="x")
    assert view is not None
    assert view.name == "inception-tiny"
    assert view.reference == "the real test part (24 records)"


def test_other_files_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    cases = {
        "imagenet": {**state, "fc.weight": torch.zeros(1000, 128)},
        "missing": {k: v for k, v in state.items() if not k.startswith("Mixed_6a")},
        "other": {"conv.weight": torch.zeros(3)},
    }
    for name, bad in cases.items():
        save_file(bad, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match="Inception"):
            load_inception(tmp_path / f"{name}.safetensors")
    torch.save({"code": Path("x")}, tmp_path / "code.pth")  # an object, whose making would run code
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for name in ("code", "broken"):
        with pytest.raises(ValueError, match="cannot be read"):
            load_inception(tmp_path / f"{name}.pth")
