"""The price of the slicing mechanism in time and memory: projecting, storing and noise over the bare matrix product.

python benchmarks/projection.py [rows] [dimensions] [directions] [bare,projected,released]

"bare" is X U in one call on float64 rows, "projected" the mechanism with all of its clipping, blocks, random order and
storing but without noise, "released" the mechanism as it runs. Memory is what each adds to the resident rows, files
mapped to memory left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpgm.mechanisms.projection import SlicedProjection
from dpgm.privacy.mechanism import NoiseSource
from dpgm.schema import Rows


class Silent(NoiseSource):
    """No noise, but the random order and the directions."""

    def normal(self, shape: int | tuple[int, ...], std: float = 1.0) -> NDArray[np.float64]:
        return np.zeros(shape) if std == SILENT else super().normal(shape, std)


SILENT = 0.3


def x_of(rows: Rows) -> NDArray[Any]:
    return rows["x"]


def resident() -> float:
    """Anonymous memory of this process in MB."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def measure(kind: str, n: int, dim: int, width: int) -> tuple[float, float]:
    """Seconds, and the memory in MB that was still held at the end, with the release in hand."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, dim)) / (1.3 * np.sqrt(dim))
    mechanism = SlicedProjection(vectors=x_of, dim=dim, noise_std=SILENT, slices=width, slice_dim=1)
    before, start = resident(), time.perf_counter()
    held: Any
    if kind == "bare":
        held = x @ rng.normal(size=(dim, width))
    else:
        held = mechanism(Rows(x=x), Silent() if kind == "projected" else NoiseSource())
    seconds = time.perf_counter() - start
    added = resident() - before
    del held
    return seconds, added


if __name__ == "__main__":
    given = [*sys.argv[1:], *["1000000", "100", "200", "bare,projected,released"][len(sys.argv) - 1 :]]
    n, dim, width = map(int, given[:3])
    print(f"{dim} dimensions, {width} directions\nrows       kind       seconds  over bare  memory added (MB)")
    for rows in (n // 4, n):
        bare = 0.0
        for kind in given[3].split(","):
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process, so that memory is its own
                seconds, added = pool.apply(measure, (kind, rows, dim, width))
            bare = bare or seconds
            print(f"{rows:9}  {kind:9} {seconds:8.2f} {seconds / bare:10.2f} {added:10.0f}", flush=True)
