"""The classifier of the evaluation protocol: a small CNN trained on 8-bit images, hard or soft labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import follow, initialise, one_hot


def to_unit(x: NDArray[np.uint8] | Tensor) -> Tensor:
    """Turn 8-bit images `[n, h, w, c]` into float tensors `[n, c, h, w]` in [0, 1]."""
    return torch.as_tensor(x).permute(0, 3, 1, 2).float() / 255


def to_bytes(x: Tensor) -> NDArray[np.uint8]:
    """Turn images `[n, c, h, w]` in [0, 1] into 8-bit images `[n, h, w, c]`, rounded to the nearest level."""
    return (x.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


class SmallCNN(nn.Module):
    """Two 3x3 convolutions (three above 40 pixels), each halving the size, then two dense layers; logits `[b, k]`."""

    def __init__(self, *, height: int, width: int, channels: int, n_classes: int, rng: torch.Generator) -> None:
        super().__init__()
        self.n_classes = n_classes
        widths = [32, 64] if min(height, width) <= 40 else [32, 64, 64]
        layers: list[nn.Module] = []
        for a, b in pairwise([channels, *widths]):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]  # on a quarter
            height, width = -(-height // 2), -(-width // 2)
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * height * width, 128), nn.ReLU(), nn.Linear(128, n_classes)
        )
        initialise(self, rng)
        for part in self.convolutions:
            if isinstance(part, nn.Conv2d):
                part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` in [0, 1] to logits `[b, k]`."""
        return self.head(self.convolutions(x - 0.5))


class BoundedCNN(nn.Module):
    """Strided 5x5 convolutions and a dense layer with tanh, then logits `[b, k]`: small per-record gradients.

    Each convolution halves the side, until it is at most 8 pixels.
    """

    def __init__(self, *, height: int, width: int, channels: int, n_classes: int, rng: torch.Generator) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside, outside = channels, 16
        while max(height, width) > 8 or not layers:
            layers += [nn.Conv2d(inside, outside, 5, stride=2, padding=2), nn.Tanh()]
            height, width = -(-height // 2), -(-width // 2)
            inside, outside = outside, 32
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(inside * height * width, 32), nn.Tanh(), nn.Linear(32, n_classes)
        )
        initialise(self, rng)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[b, c, h, w]` in [0, 1] to logits `[b, k]`."""
        return self.head(self.convolutions(x - 0.5))


def train_classifier(
    x: NDArray[np.uint8] | Tensor,
    y: NDArray[np.generic] | Tensor,
    *,
    n_classes: int,
    rng: torch.Generator,
    epochs: int = 20,
    batch: int = 128,
    lr: float = 2e-3,
    average: float = 0.99,
    on_epoch: Callable[[int, float], None] | None = None,
    net: nn.Module | None = None,
) -> nn.Module:
    """Train the protocol's CNN, or another net, and return its averaged weights after the last epoch.

    AdamW with a cosine rate; the weights returned are the exponential moving average over the steps. No epoch is
    chosen by any data.

    Args:
        x: images `[n, h, w, c]`, uint8.
        y: labels `[n]`, or class probabilities `[n, k]`.
        n_classes: number of classes k.
        rng: source of the initial weights and of the order.
        epochs: passes over the data.
        batch: images a step.
        lr: highest learning rate.
        average: decay of the moving average per step.
        on_epoch: called with the epoch's number and its mean loss.
        net: what to train; by default the protocol's CNN with new weights.

    Raises:
        ValueError: if x and y differ in length or x is empty.
    """
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{len(x)} images and {len(y)} labels; give one label an image, and at least one")
    images = to_unit(x).contiguous(memory_format=torch.channels_last)
    targets = one_hot(torch.as_tensor(y), n_classes)
    _, c, h, w = images.shape
    net = net or SmallCNN(height=h, width=w, channels=c, n_classes=n_classes, rng=rng)
    mean = copy.deepcopy(net).requires_grad_(False)
    steps = epochs * -(-len(images) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    step = 0
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(images), generator=rng).split(batch):
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(images[index])
            loss = functional.cross_entropy(logits.float(), targets[index])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            follow(mean, net, min(average, step / (step + 10)))
            total += loss.item() * len(index)
        if on_epoch:
            on_epoch(epoch, total / len(images))
    return mean.eval()


@torch.no_grad()
def predict(net: nn.Module, x: NDArray[np.uint8] | Tensor, *, batch: int = 500) -> NDArray[np.float32]:
    """Class probabilities `[n, k]` for 8-bit images `[n, h, w, c]`; the class is their argmax."""
    parts = []
    for start in range(0, len(x), batch):
        images = to_unit(x[start : start + batch]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images)
        parts.append(logits.float().softmax(1))
    return torch.cat(parts).numpy()
