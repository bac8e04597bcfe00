"""Step size of the dynamics (the paper's figure 7)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common import Bench, Row, kernel, published, show

from dpgm.methods.pge import PGE
from dpgm.samplers import Kernel, hmc, pge_steps

N, M = 100, 10
"""Leapfrog steps in a round, and rounds: the paper's."""


def rows(bench: Bench) -> Iterator[Row]:
    def one(first: float, floor: float, name: str) -> Row:
        size = pge_steps(first, n_leapfrog=N, floor=floor)
        path = N * sum(size(m) for m in range(M))
        method = published(bench.words, rounds=M, n_leapfrog=N, step_size=first, step_floor=floor)
        told = f"published, {name}: steps {size(0):.2g} to {size(M - 1):.2g}, path {path:.2g}"
        return told, bench.row(method, 10.0, samples=bench.words.samples * 2 // 3)

    for first in (1e-4, 1e-5, 1e-6, 1e-7):
        yield one(first, 0.0, f"lambda0 = {first:g}")
    for floor in (0.02, 0.1):
        yield one(1e-5, floor, f"lambda0 = 1e-05, floor {floor}")
    for part in (0.03, 0.3, 1.0, 2.0):

        def made(frame: Any, h: float, part: float = part) -> Kernel:
            return hmc(frame.energy, score=frame.score, step_size=part * h, n_leapfrog=6, jitter=0.2)

        yield (
            f"one-shot, 12 rounds of 6, {part:g} times the tuned step",
            bench.row(PGE(rounds=12), 10.0, change=kernel(made)),
        )
    yield "one-shot, 3 rounds of 6 at the tuned step", bench.row(PGE(rounds=3), 10.0)


show(
    "Step size, epsilon 10",
    "FID on LSUN at 256 pixels falls weakly with lambda down to 1e-6 and rises slightly at 1e-7 (figure 7; no numbers "
    "are given).",
    rows,
    about="Published: M = 10 rounds of N = 100 steps of lambda0 (N / m)^2 in round m. `path` is N times the sum of the "
    "steps: how far a sample moves at unit velocity where the score is 0. Two thirds of the samples of the "
    "other tables.",
)
