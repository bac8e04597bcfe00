"""Parts of a conditional variational autoencoder; every layer treats each record alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.nets.generators import LabelledGenerator, initialise, one_hot

SMALL = 1e-6


class DenseGenerator(LabelledGenerator):
    """Images from a latent vector and a class by two dense layers and a sigmoid.

    Per-record gradients of dense layers need no extra memory, which makes it the fast decoder.

    Args:
        height: image height in pixels.
        width: image width in pixels.
        channels: colour channels.
        n_classes: number of classes k.
        latent: length of the latent vector.
        hidden: units of the hidden layer.
        rng: source of the initial weights.
    """

    def __init__(
        self, *, height: int, width: int, channels: int, n_classes: int, latent: int, hidden: int, rng: torch.Generator
    ) -> None:
        super().__init__(n_classes, latent)
        self.shape = (channels, height, width)
        self.inner = nn.Linear(latent + n_classes, hidden)
        self.outer = nn.Linear(hidden, channels * height * width)
        initialise(self, rng)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Map latent vectors `[b, latent]` and labels `[b]` or `[b, k]` to images `[b, c, h, w]` in [0, 1]."""
        code = torch.cat([z, one_hot(y, self.n_classes)], 1)
        return torch.sigmoid(self.outer(functional.relu(self.inner(code)))).unflatten(1, self.shape)


class GaussianEncoder(nn.Module):
    """Mean and log standard deviation of a latent vector, from an image and its class, by two dense layers.

    Args:
        pixels: height x width x channels.
        n_classes: number of classes k.
        latent: length of the latent vector.
        hidden: units of the hidden layer.
        rng: source of the initial weights.
    """

    def __init__(self, *, pixels: int, n_classes: int, latent: int, hidden: int, rng: torch.Generator) -> None:
        super().__init__()
        self.n_classes, self.latent = n_classes, latent
        self.inner = nn.Linear(pixels + n_classes, hidden)
        self.outer = nn.Linear(hidden, 2 * latent)
        initialise(self, rng)
        with torch.no_grad():
            self.outer.weight.mul_(0.1)  # start near the prior

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[b, c, h, w]` and labels `[b]` to means and log standard deviations `[b, latent]`."""
        h = torch.cat([x.flatten(1) - 0.5, one_hot(y, self.n_classes)], 1)
        mean, log_std = self.outer(functional.relu(self.inner(h))).chunk(2, 1)
        return mean, log_std.clamp(-5, 2)


class Autoencoder(nn.Module):
    """Encoder and decoder as one module, to be trained together.

    Args:
        encoder: gives the code's law.
        decoder: makes the image.
    """

    def __init__(self, encoder: GaussianEncoder, decoder: LabelledGenerator) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def reconstruction_loss(decoder: nn.Module, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Cross-entropy between pixels and decoded pixels, summed over each image: `[b]`.

    Args:
        decoder: maps z and y to images.
        z: latent vectors `[b, latent]`.
        y: labels `[b]`.
        x: images `[b, c, h, w]` in [0, 1].
    """
    p = decoder(z, y).float()
    found = x * (p + SMALL).log() + (1 - x) * (1 - p + SMALL).log()
    return -found.flatten(1).sum(1)


def evidence_loss(model: Autoencoder, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """The negative evidence lower bound of each image with one given draw of the latent noise: `[b]`.

    reconstruction(z) + KL(N(mean, std²) || N(0, I)), z = mean + std * noise.

    Args:
        model: encoder and decoder.
        x: images `[b, c, h, w]` in [0, 1].
        y: labels `[b]`.
        noise: standard normal variates `[b, latent]`.
    """
    mean, log_std = model.encoder(x, y)
    penalty = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)
    return reconstruction_loss(model.decoder, mean + log_std.exp() * noise, y, x) + penalty.float()


def infer(decoder: nn.Module, z: Tensor, y: Tensor, x: Tensor, *, steps: int, step_size: float, cap: float) -> Tensor:
    """Move each record's code towards its posterior mode: gradient steps on reconstruction(z) + |z|² / 2.

    A record's gradient is scaled down to norm at most `cap`; no record sees another.

    Args:
        decoder: maps codes and labels to images; it is not changed.
        z: first codes `[b, latent]`.
        y: labels `[b]`.
        x: images `[b, c, h, w]` in [0, 1].
        steps: number of steps.
        step_size: length of a step for a gradient of norm 1.
        cap: largest gradient norm.
    """
    flags = [p.requires_grad for p in decoder.parameters()]
    decoder.requires_grad_(False)  # the codes alone are differentiated
    try:
        for _ in range(steps):
            z = z.detach().requires_grad_()
            with torch.enable_grad():
                p = decoder(z, y)
            q = p.detach()
            # The slope of the cross-entropy by p, without its logarithms, which would take half of the time.
            (g,) = torch.autograd.grad(p, z, (q - x) / (q * (1 - q)).clamp(min=SMALL))
            g = g + z.detach()
            z = z.detach() - step_size * g * (cap / g.norm(dim=1, keepdim=True).clamp(min=SMALL)).clamp(max=1)
    finally:
        for p, flag in zip(decoder.parameters(), flags, strict=True):
            p.requires_grad_(flag)
    return z.detach()


def train_autoencoder(
    model: Autoencoder,
    x: Tensor,
    y: Tensor,
    *,
    rng: torch.Generator,
    epochs: int = 15,
    batch: int = 100,
    lr: float = 2e-3,
) -> None:
    """Train encoder and decoder on *public* images, in place.

    Args:
        model: what to train.
        x: images `[n, c, h, w]` in [0, 1].
        y: labels `[n]`.
        rng: source of order and latent noise.
        epochs: passes over the images.
        batch: images a step.
        lr: learning rate.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for part in torch.randperm(len(x), generator=rng).split(batch):
            noise = torch.randn(len(part), model.encoder.latent, generator=rng)
            optimiser.zero_grad()
            evidence_loss(model, x[part], y[part], noise).mean().backward()
            optimiser.step()
