"""Law of the initial velocity (the paper's figure 8)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from common import Bench, Row, kernel, published, show

from dpgm.methods.pge import PGE
from dpgm.samplers import Kernel, unadjusted_hmc
from dpgm.samplers.hamiltonian import VelocityLaw


def rows(bench: Bench) -> Iterator[Row]:
    for law in get_args(VelocityLaw):
        yield f"published, {law}", bench.row(published(bench.words, velocity=law), 10.0)
    for law in get_args(VelocityLaw):

        def made(frame: Any, h: float, law: VelocityLaw = law) -> Kernel:
            return unadjusted_hmc(frame.score, step_size=0.3 * h, n_leapfrog=20, velocity=law)

        yield (
            f"one-shot, 12 rounds of 20 at 0.3 times the tuned step, every move kept, {law}",
            bench.row(PGE(rounds=12), 10.0, change=kernel(made)),
        )
    yield "one-shot, as shipped (exact: Gaussian)", bench.row(PGE(), 10.0)


show(
    "Law of the initial velocity, epsilon 10",
    "FID on LSUN at 256 pixels: Gaussian best, then Rayleigh, then uniform, with small differences (figure 8; no "
    "numbers are given).",
    rows,
)
