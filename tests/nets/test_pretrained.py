"""Other people's weights: read without running their code, folded right, refused where they are something else."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dpgm.nets.pretrained import MobileNetV2, SqueezeNet, network, read_network, read_torchvision, torchvision_file
from dpgm.nets.weights import read_arrays


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_come_back_as_they_were(protocol: int, tmp_path: Path) -> None:
    value = {
        "a": [rng().normal(size=(3, 4)).astype(np.float32), np.asfortranarray(rng().normal(size=(2, 5)))],
        "b": (np.arange(7, dtype=">i4"), 3, -2, None, True, "text", 0.5),
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    if protocol in (2, 5):  # bytes as encoded text; buffers beside the stream
        with pytest.raises(ValueError, match="allowed are plain"):
            read_arrays(path)
        return
    found = read_arrays(path)
    for old, new in zip(value["a"], found["a"], strict=True):
        np.testing.assert_array_equal(old, new)
        assert old.dtype == new.dtype
    np.testing.assert_array_equal(found["b"][0], np.arange(7))
    assert found["b"][1:] == [3, -2, None, True, "text", 0.5]


class _Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('this ran')",))


@pytest.mark.parametrize("value", [_Bomb(), {"w": _Bomb()}, np.array([_Bomb()], object), OrderedDict(a=1), {1, 2}])
def test_nothing_of_a_file_is_run(value: object, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps(value, 4))
    with pytest.raises(ValueError, match="allowed are plain"):
        read_arrays(path)


@pytest.mark.parametrize("cut", [0, 1, 30, 150])
def test_damaged_files_are_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.pkl"
    path.write_bytes(pickle.dumps({"a": np.arange(20.0)}, 4)[:cut])
    with pytest.raises(ValueError, match=r"damaged|early|exhausted|expected|not enough|pickle"):
        read_arrays(path)


def squeeze_state(net: SqueezeNet) -> dict[str, torch.Tensor]:
    """Our weights under the names of torchvision."""
    at = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))
    names = {"a": "squeeze", "b": "expand1x1", "c": "expand3x3"}
    out = {}
    for key, value in net.convolutions.state_dict().items():
        part, _, kind = key.partition(".")
        theirs = "features.0" if part == "conv1" else f"features.{at[int(part[4:-1])]}.{names[part[-1]]}"
        out[f"{theirs}.{kind}"] = value
    return out


def test_squeezenet_is_read_from_either_kind_of_file(tmp_path: Path) -> None:
    net = SqueezeNet("imagenet").eval()
    torch_file, keras_file = tmp_path / "s.pth", tmp_path / "s.pkl"
    torch.save(squeeze_state(net), torch_file)
    about, arrays = read_network(torch_file)
    assert about == {"network": "squeezenet", "style": "imagenet"}
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for a, b in zip(net(x), network(about, arrays)(x), strict=True):
        torch.testing.assert_close(a, b)
    keras: dict[str, list[np.ndarray]] = {"conv10": [np.zeros((1, 1, 512, 10), np.float32), np.zeros(10, np.float32)]}
    names = {"a": "squeeze1x1", "b": "expand1x1", "c": "expand3x3"}
    for part in net.convolutions:
        weight, bias = (net.convolutions[part].get_parameter(w).detach().numpy() for w in ("weight", "bias"))
        name = part if part == "conv1" else f"{part[:-1]}/{names[part[-1]]}"
        keras[name] = [weight.transpose(2, 3, 1, 0).copy(), bias]
    keras_file.write_bytes(pickle.dumps(keras, 3))
    about, again = read_network(keras_file)
    assert about["style"] == "caffe"
    for key, value in arrays.items():
        np.testing.assert_array_equal(value, again[key])
    assert not torch.allclose(network(about, again)(x)[0], net(x)[0]), "colours are prepared in another way"


def test_batch_normalisation_of_mobilenet_is_folded(tmp_path: Path) -> None:
    """A first block of the published layout, normalisation and all, against our folded convolutions."""
    draws = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    ours = MobileNetV2("imagenet")
    order = [("features.0.0", "features.0.1"), ("features.1.conv.0.0", "features.1.conv.0.1")]
    order += [("features.1.conv.1", "features.1.conv.2")]
    for i in range(2, 18):
        order += [(f"features.{i}.conv.{j}.0", f"features.{i}.conv.{j}.1") for j in (0, 1)]
        order += [(f"features.{i}.conv.2", f"features.{i}.conv.3")]
    for (convolution, norm), part in zip(order, ours.convolutions, strict=True):
        shape = part.get_parameter("weight").shape
        state[f"{convolution}.weight"] = torch.randn(shape, generator=draws) * (2 / shape[1:].numel()) ** 0.5
        for name, scale in (("weight", 1.0), ("bias", 0.1), ("running_mean", 0.1), ("running_var", 1.0)):
            state[f"{norm}.{name}"] = scale * (0.5 + torch.rand(shape[0], generator=draws))
    path = tmp_path / "m.pth"
    torch.save(state, path)
    about, arrays = read_network(path)
    assert about["network"] == "mobilenet-v2"
    net = network(about, arrays)
    assert isinstance(net, MobileNetV2)
    x = torch.rand(2, 3, 64, 64, generator=draws)

    def normed(
        z: torch.Tensor, pair: tuple[str, str], stride: int = 1, padding: int = 0, groups: int = 1
    ) -> torch.Tensor:
        convolution, norm = pair
        z = nn.functional.conv2d(z, state[f"{convolution}.weight"], stride=stride, padding=padding, groups=groups)
        mean, var, weight, bias = (state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return nn.functional.batch_norm(z, mean, var, weight, bias)

    stem = nn.functional.relu6(normed(net.colours(x), order[0], stride=2, padding=1))
    deep = nn.functional.relu6(normed(stem, order[1], padding=1, groups=32))
    found = net(x)
    torch.testing.assert_close(found[0], stem, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[1], normed(deep, order[2]), rtol=1e-3, atol=1e-4)
    assert len(found) == 18


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="neither"):
        read_network(path)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"w": np.zeros(3)}, 4))
    with pytest.raises(ValueError, match="not those of SqueezeNet"):
        read_network(path)
    path = tmp_path / "y.pth"
    path.write_bytes(pickle.dumps(_Bomb(), 2))
    with pytest.raises(ValueError, match="no plain file"):
        read_network(path)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is there")
def test_without_torchvision_the_error_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"dpgm\[vision\]"):
        torchvision_file("vgg19")


@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra 'vision'")
@pytest.mark.parametrize(("name", "layers"), [("vgg11", 8), ("resnet18", 17)])
def test_networks_of_torchvision_give_their_activations(name: str, layers: int, tmp_path: Path) -> None:
    from torchvision.models import get_model  # pyright: ignore[reportMissingImports]

    body = get_model(name, weights=None)
    path = tmp_path / f"{name}.pth"
    torch.save(body.state_dict(), path)
    net = network(*read_torchvision(name, path))
    maps = net(torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert len(maps) == layers
    assert all((m >= 0).all() for m in maps)
