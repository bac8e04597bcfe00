"""The accept rule after each round: as printed, its sensible reading, and none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from common import Bench, Row, kernel, published, show

from dpgm.methods.pge import PGE
from dpgm.samplers import Kernel, unadjusted_hmc
from dpgm.samplers.hamiltonian import Metropolis

FLOORS = (0.05, 0.2)


def rows(bench: Bench) -> Iterator[Row]:
    for floor in FLOORS:
        for rule in get_args(Metropolis):
            method = published(bench.words, step_floor=floor, metropolis=rule)
            yield f"published, step floor {floor}, {rule}", bench.row(method, 10.0)
    for part in (0.3, 1.0):
        for rule in get_args(Metropolis):

            def made(frame: Any, h: float, rule: Metropolis = rule, part: float = part) -> Kernel:
                return unadjusted_hmc(frame.score, step_size=part * h, n_leapfrog=6, metropolis=rule)

            name = f"one-shot, {part:g} times the tuned step, {rule}"
            yield name, bench.row(PGE(rounds=12), 10.0, change=kernel(made))
    yield "one-shot, as shipped (exact)", bench.row(PGE(), 10.0)


show(
    "Accept rule, epsilon 10",
    "every 100 steps a move is accepted with probability min(1, q(x') / q(x)), a ratio of two vectors; not ablated.",
    rows,
    about="`printed`: the ratio pixel by pixel. `line_integral`: min(1, exp(-change of U + K)), U from Simpson's "
    "rule along the path. `none`: every finite move is kept. Chains of the one-shot form start at draws of the law.",
)
