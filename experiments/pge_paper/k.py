"""Candidates k of the randomised response (the paper's figure 6)."""

from __future__ import annotations

from collections.abc import Iterator

from common import Bench, Row, published, show

from dpgm.methods.pge import PGE


def rows(bench: Bench) -> Iterator[Row]:
    for k in (2, 5, 10, 30):
        yield f"published, smooth 0.3, k = {k}", bench.row(published(bench.words, k=k), 10.0)
    for k in (2, 30):
        yield f"published, as printed (smooth 0), k = {k}", bench.row(published(bench.words, k=k, smooth=0.0), 10.0)
    yield "one-shot, which has no k", bench.row(PGE(), 10.0)


show(
    "Candidates k, epsilon 10",
    "FID on CelebA and LSUN at 256 pixels, epsilon 10, rises slightly with k (figure 6; no numbers are given).",
    rows,
)
