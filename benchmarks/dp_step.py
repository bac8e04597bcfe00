"""One step of DP-SGD against the plain step of the same net, beside other ways to get clipped gradients.

python benchmarks/dp_step.py [--rounds 7] [--nets dense decoder unet] [--memory]

Seconds are processor time of one thread, so that other work on the machine counts little. In every round all ways run
in random order; what is printed is the median over the rounds of the ratio to the plain float32 step *of that round*,
with its quartiles. A step is: gradient of the (clipped) sum, then a plain update; noise is the same for all and left
out. The distance of each way's clipped sum from ours is shown. "plain, chunks" splits the plain step as ours is split:
small pieces stay in the processor's cache.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpgm.mechanisms.per_record import Engine, clipped_gradient_sum
from dpgm.nets.generators import initialise

CLIP = 1.0


class Dense(nn.Module):
    """784-512-512-784: 1.07 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 784))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def records(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(n, 784, generator=rng)
        return x, x


class Decoder(nn.Module):
    """A vector of 64 to 28 x 28 by upsampling and 3 x 3 convolutions with GroupNorm: 0.27 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(64, 64 * 49)
        self.layers = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.Conv2d(64, 1, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.dense(z).unflatten(1, (64, 7, 7)))

    def records(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 64, generator=rng), torch.rand(n, 1, 28, 28, generator=rng)


class Block(nn.Module):
    """Residual: norm, SiLU, convolution, twice."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, outside), nn.SiLU(), nn.Conv2d(outside, outside, 3, padding=1))
        self.skip = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.second(self.first(x))


class UNet(nn.Module):
    """28-14-7 with 32, 64 and 128 channels: 1.1 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 32, 3, padding=1)
        self.down = nn.ModuleList([Block(32, 32), Block(32, 64), Block(64, 128)])
        self.middle = Block(128, 128)
        self.up = nn.ModuleList([Block(256, 128), Block(192, 64), Block(96, 32)])
        self.leave = nn.Sequential(nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h, kept = self.enter(x), []
        for i, block in enumerate(self.down):
            h = block(h if i == 0 else functional.avg_pool2d(h, 2))
            kept.append(h)
        h = self.middle(h)
        for i, block in enumerate(self.up):
            h = block(torch.cat([h if i == 0 else functional.interpolate(h, scale_factor=2.0), kept.pop()], 1))
        return self.leave(h)

    def records(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 1, 28, 28, generator=rng)
        return x, torch.randn(n, 1, 28, 28, generator=rng)


NETS: dict[str, tuple[type[Any], int]] = {"dense": (Dense, 1024), "decoder": (Decoder, 256), "unet": (UNet, 64)}
"""Net, and the batch that the ways are compared at."""


def loss(net: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return (net(x) - target).float().square().flatten(1).sum(1)


def made(kind: type[Any]) -> Any:
    return initialise(kind(), torch.Generator().manual_seed(0))


# --- ways to the clipped sum: each returns a function of the records -----------------------------------------------

Step = Callable[[tuple[Tensor, ...]], Tensor]


def plain(kind: type[Any], dtype: torch.dtype, chunk: int = 10**9) -> Step:
    """The step without privacy: the gradient of the sum, nothing clipped."""
    net = made(kind)

    def step(records: tuple[Tensor, ...]) -> Tensor:
        found = torch.zeros(())
        for part in zip(*(r.split(chunk) for r in records), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                total = loss(net, *part).sum()
            gradients = torch.autograd.grad(total, list(net.parameters()))
            found = found + torch.cat([g.flatten() for g in gradients])
        return found

    return step


def ours(kind: type[Any], dtype: torch.dtype, engine: Engine) -> Step:
    net = made(kind)
    return lambda records: clipped_gradient_sum(loss, net, records, clip_norm=CLIP, engine=engine, dtype=dtype)


def opacus(kind: type[Any], mode: str) -> Step:
    """Opacus: "hooks" (its default), or "ghost" (norms first, then a second backward pass)."""
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    if mode == "hooks":
        net = GradSampleModule(made(kind), loss_reduction="sum")

        def step(records: tuple[Tensor, ...]) -> Tensor:
            net.zero_grad(set_to_none=True)
            loss(net, *records).sum().backward()
            each: list[Tensor] = [p.grad_sample for p in net.parameters()]  # pyright: ignore
            norms = torch.stack([g.flatten(1).norm(dim=1) for g in each]).norm(dim=0)
            weights = (CLIP / norms).clamp(max=1)
            return torch.cat([torch.einsum("n,n...->...", weights, g).flatten() for g in each])

        return step
    ghost = GradSampleModuleFastGradientClipping(
        made(kind), loss_reduction="sum", max_grad_norm=CLIP, use_ghost_clipping=True
    )

    def twice(records: tuple[Tensor, ...]) -> Tensor:
        ghost.zero_grad(set_to_none=True)
        losses = loss(ghost, *records)
        losses.sum().backward(retain_graph=True)
        weights = ghost.get_clipping_coef().detach()
        ghost.zero_grad(set_to_none=True)
        ghost.disable_hooks()
        (losses * weights).sum().backward()
        ghost.enable_hooks()
        return torch.cat([p.grad.flatten() for p in ghost.parameters() if p.grad is not None])

    return twice


def ways(kind: type[Any], *, others: bool) -> dict[str, Step]:
    found: dict[str, Step] = {
        "plain, float32": plain(kind, torch.float32),
        "plain, chunks": plain(kind, torch.float32, 1024 if kind is Dense else 32),
        "plain, bfloat16": plain(kind, torch.bfloat16),
        "ours, float32": ours(kind, torch.float32, "layers"),
        "ours, bfloat16": ours(kind, torch.bfloat16, "layers"),
    }
    if others:
        found["vmap"] = ours(kind, torch.float32, "vmap")
        found["Opacus, hooks"] = opacus(kind, "hooks")
        found["Opacus, ghost"] = opacus(kind, "ghost")
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


def compare(name: str, rounds: int, *, others: bool) -> None:
    kind, batch = NETS[name]
    rng, order = torch.Generator().manual_seed(1), np.random.default_rng(2)
    records = made(kind).records(batch, rng)
    steps = ways(kind, others=others)
    sums = {w: step(records) for w, step in steps.items()}
    first = sums["ours, float32"]
    apart = {w: float((s - first).norm() / first.norm()) for w, s in sums.items() if not w.startswith("plain")}
    seconds: dict[str, list[float]] = {w: [] for w in steps}
    for _ in range(rounds):
        for w in order.permutation(list(steps)):
            start = time.process_time()
            steps[w](records)
            seconds[w].append(time.process_time() - start)
    base = np.array(seconds["plain, float32"])
    size = sum(p.numel() for p in made(kind).parameters())
    print(f"\n{name}: {size:,} parameters, batch {batch}, {rounds} rounds; plain step {np.median(base):.3f} s")
    print(f"{'way':18} {'ratio':>6} {'quartiles':>14}  distance of the sums")
    for w, s in seconds.items():
        low, mid, high = np.quantile(np.array(s) / base, (0.25, 0.5, 0.75))
        print(f"{w:18} {mid:6.2f} {low:6.2f} to {high:4.2f}" + (f"  {apart[w]:.1e}" if w in apart else ""), flush=True)


def peak(name: str, batch: int, way: str) -> float:
    """MB that one step adds to the process."""
    torch.set_num_threads(1)
    kind, _ = NETS[name]
    records = made(kind).records(batch, torch.Generator().manual_seed(1))
    step = ways(kind, others=way.startswith(("vmap", "Opacus")))[way]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(records)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory(names: list[str]) -> None:
    print("\nMB that one step adds to a fresh process, beside the records themselves")
    print(f"{'net':8} {'batch 32':>10} {'batch 4096':>11} {'difference':>11}")
    for name in names:
        found: list[float] = []
        for batch in (32, 4096):
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process, so that peaks are its own
                found.append(pool.apply(peak, (name, batch, "ours, float32")))
        print(f"{name:8} {found[0]:10.0f} {found[1]:11.0f} {found[1] - found[0]:11.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--ours-only", action="store_true", help="leave Opacus and vmap out")
    words = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if words.memory:
        memory(words.nets)
    else:
        for chosen in words.nets:
            compare(chosen, words.rounds, others=not words.ours_only)
