"""Nets that look at images for an evaluation: a small LeNet, and the Inception net of the FID with weights from a file.

Both give features `[b, d]` and class logits `[b, k]` of images `[b, c, h, w]` in [0, 1]. They are blind to privacy: who
trained them on what stands in the metric's name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.classifiers import to_unit
from dpgm.nets.generators import initialise

CLASSES = 1008
"""Outputs of the Inception net that the FID is defined with; ImageNet's common one has 1000 and gives other values."""
_WIDEST = 32


class Judge(nn.Module):
    """Features and, from them, class logits."""

    fc: nn.Linear

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Features `[b, d]` of images `[b, c, h, w]` in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """Class logits `[b, k]`."""
        return self.fc(self.features(x))

    @torch.no_grad()
    def look(self, images: NDArray[np.uint8], *, batch: int = 250) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Features `[n, d]` and class probabilities `[n, k]` of 8-bit images `[n, h, w, c]`."""
        seen, odds = [], []
        for start in range(0, len(images), batch):
            z = self.features(to_unit(images[start : start + batch]))
            seen.append(z.double())
            odds.append(self.fc(z).double().softmax(1))
        return torch.cat(seen).numpy(), torch.cat(odds).numpy()


class LeNet(Judge):
    """LeNet-5 with ReLU: two 5x5 convolutions of 6 and 16 channels, then 120, 84 and k units; 84 features.

    Sides above 32 pixels are averaged down to 32 first.

    Args:
        height: of the images in pixels.
        width: of the images.
        channels: 1 or 3.
        n_classes: number of classes k.
        rng: source of the initial weights.
    """

    def __init__(self, *, height: int, width: int, channels: int, n_classes: int, rng: torch.Generator) -> None:
        super().__init__()
        self.size = (min(height, _WIDEST), min(width, _WIDEST))
        side = [-(-s // 4) for s in self.size]
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5, padding=2), nn.Conv2d(6, 16, 5, padding=2)
        self.fc1, self.fc2 = nn.Linear(16 * side[0] * side[1], 120), nn.Linear(120, 84)
        self.fc = nn.Linear(84, n_classes)
        initialise(self, rng)

    def features(self, x: Tensor) -> Tensor:
        """The 84 activations before the last layer."""
        if tuple(x.shape[2:]) != self.size:
            x = functional.adaptive_avg_pool2d(x, self.size)
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(conv(x - 0.5 if conv is self.conv1 else x).relu(), 2, ceil_mode=True)
        return self.fc2(self.fc1(x.flatten(1)).relu()).relu()


class Judges:
    """Nets that have learnt from a set's real test part, by name: what one evaluation trained, the next ones take over.

    Attributes:
        tensors: their weights, `NAME/PARAMETER`, as a file keeps them.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.tensors = dict(tensors or {})

    @classmethod
    def read(cls, path: Path) -> Judges:
        """The nets that `write` left there; none, where there is no such file or it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return cls(load_file(path))
        except (OSError, SafetensorError):
            return cls()

    def write(self, path: Path) -> None:
        """Keep them in a .safetensors file."""
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in self.tensors.items()}, path)

    def net(self, name: str, blank: nn.Module, train: Callable[[], nn.Module]) -> nn.Module:
        """The net of that name; where it is not known, or of another shape, it is trained and known from then on.

        Args:
            name: says what decides the weights: data, seed, steps.
            blank: a net of its shape, for the known weights.
            train: makes it.
        """
        found = {k.removeprefix(f"{name}/"): v for k, v in self.tensors.items() if k.startswith(f"{name}/")}
        shapes = {k: v.shape for k, v in blank.state_dict().items()}
        if {k: v.shape for k, v in found.items()} == shapes:
            blank.load_state_dict(found)
            return blank.eval()
        net = train()
        self.tensors |= {f"{name}/{k}": v for k, v in net.state_dict().items()}
        return net


# ---------------------------------------------------------------------------------------------------------------------
# Inception


class _Conv(nn.Module):
    def __init__(self, ins: int, outs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        a, b = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (a // 2, b // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(ins, outs, (a, b), stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


def _mean(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, ins: int, pool: int, w: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(ins, 64 // w, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(ins, 48 // w, 1), _Conv(48 // w, 64 // w, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(ins, 64 // w, 1), _Conv(64 // w, 96 // w, 3)
        self.branch3x3dbl_3 = _Conv(96 // w, 96 // w, 3)
        self.branch_pool = _Conv(ins, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean(x))], 1)


class _B(nn.Module):
    def __init__(self, ins: int, w: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(ins, 384 // w, 3, stride=2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(ins, 64 // w, 1), _Conv(64 // w, 96 // w, 3)
        self.branch3x3dbl_3 = _Conv(96 // w, 96 // w, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, stride=2)], 1)


class _C(nn.Module):
    def __init__(self, ins: int, mid: int, w: int) -> None:
        super().__init__()
        out = 192 // w
        self.branch1x1 = _Conv(ins, out, 1)
        self.branch7x7_1, self.branch7x7_2 = _Conv(ins, mid, 1), _Conv(mid, mid, (1, 7))
        self.branch7x7_3 = _Conv(mid, out, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Conv(ins, mid, 1), _Conv(mid, mid, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Conv(mid, mid, (1, 7)), _Conv(mid, mid, (7, 1))
        self.branch7x7dbl_5 = _Conv(mid, out, (1, 7))
        self.branch_pool = _Conv(ins, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean(x))], 1)


class _D(nn.Module):
    def __init__(self, ins: int, w: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(ins, 192 // w, 1)
        self.branch3x3_2 = _Conv(192 // w, 320 // w, 3, stride=2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(ins, 192 // w, 1), _Conv(192 // w, 192 // w, (1, 7))
        self.branch7x7x3_3 = _Conv(192 // w, 192 // w, (7, 1))
        self.branch7x7x3_4 = _Conv(192 // w, 192 // w, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, stride=2)], 1)


class _E(nn.Module):
    def __init__(self, ins: int, w: int, *, largest: bool) -> None:
        super().__init__()
        mid, self.largest = 384 // w, largest
        self.branch1x1 = _Conv(ins, 320 // w, 1)
        self.branch3x3_1 = _Conv(ins, mid, 1)
        self.branch3x3_2a, self.branch3x3_2b = _Conv(mid, mid, (1, 3)), _Conv(mid, mid, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(ins, 448 // w, 1), _Conv(448 // w, mid, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Conv(mid, mid, (1, 3)), _Conv(mid, mid, (3, 1))
        self.branch_pool = _Conv(ins, 192 // w, 1)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pool = functional.max_pool2d(x, 3, stride=1, padding=1) if self.largest else _mean(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pool)]
        return torch.cat(parts, 1)


class Inception(Judge):
    """The Inception net whose 2,048 pooled features the FID is defined with; its names are those of the weight file.

    **Source**: Szegedy et al. 2016 (the net); Heusel et al. 2017 (the FID).
    **Differs from the paper**: images are resized to 299 x 299 bilinearly, without antialiasing, as in the common
    torch translations; values agree with theirs rather than with the first TensorFlow graph to the last digit.

    Args:
        narrower: divides every inner width; 1 is the real net, more a stand-in for tests.
    """

    def __init__(self, narrower: int = 1) -> None:
        super().__init__()
        w = narrower
        self.Conv2d_1a_3x3 = _Conv(3, 32 // w, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = _Conv(32 // w, 32 // w, 3, pad=False)
        self.Conv2d_2b_3x3 = _Conv(32 // w, 64 // w, 3)
        self.Conv2d_3b_1x1 = _Conv(64 // w, 80 // w, 1)
        self.Conv2d_4a_3x3 = _Conv(80 // w, 192 // w, 3, pad=False)
        for name, (ins, pool) in {"5b": (192, 32), "5c": (256, 64), "5d": (288, 64)}.items():
            self.add_module(f"Mixed_{name}", _A(ins // w, pool // w, w))
        self.Mixed_6a = _B(288 // w, w)
        for name, mid in {"6b": 128, "6c": 160, "6d": 160, "6e": 192}.items():
            self.add_module(f"Mixed_{name}", _C(768 // w, mid // w, w))
        self.Mixed_7a = _D(768 // w, w)
        self.Mixed_7b, self.Mixed_7c = _E(1280 // w, w, largest=False), _E(2048 // w, w, largest=True)
        self.fc = nn.Linear(2048 // w, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """The pooled features `[b, 2048]`; grey images are repeated over three channels."""
        x = functional.interpolate(x.expand(-1, 3, -1, -1), (299, 299), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, stride=2)))
        x = functional.max_pool2d(x, 3, stride=2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))


def load_inception(path: Path) -> Inception:
    """The net with the weights of a local file: a state dict as .pth (read without running code) or .safetensors.

    Raises:
        ValueError: the file is absent, damaged, or of another net.
    """
    state = _weights(path)
    first, last = state.get("Conv2d_1a_3x3.conv.weight"), state.get("fc.weight")
    if first is None or last is None or last.shape[0] != CLASSES or 32 % first.shape[0]:
        raise ValueError(
            f"{path.name} does not hold the Inception weights of the FID: it needs the names of torchvision's "
            f"inception_v3 and {CLASSES} outputs, as in pt_inception-2015-12-05-6726825d.pth"
        )
    net = Inception(narrower=32 // first.shape[0])
    known = {k: v for k, v in state.items() if not k.startswith("AuxLogits.")}
    known |= {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked") and k not in known}
    try:
        net.load_state_dict(known)
    except RuntimeError as error:
        raise ValueError(f"{path.name} does not fit the Inception net of the FID: {error}") from error
    return net.eval().requires_grad_(False)


def _weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a local file of Inception weights (nothing is downloaded)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read as weights ({type(error).__name__}); restore it") from error
