"""The price of privacy in time and memory: a mean-embedding release over the bare feature pass, on made-up images.

python benchmarks/release.py [features: rff | scattering | trained:FILE] [largest number of rows]
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import multiprocessing
import resource
import sys
import time

import numpy as np

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.queries import BLOCK, MeanEmbedding
from dpgm.methods.perceptual import DPMEPF
from dpgm.privacy.mechanism import NoiseSource
from dpgm.schema import ImageSchema, Rows

SCHEMA = ImageSchema(height=28, width=28, channels=1, classes=tuple("0123456789"))


def measure(features: str, n: int) -> tuple[float, float, float]:
    """CPU seconds of the bare feature pass and of the release, the least of five turns, and the MB they added."""
    rng = np.random.default_rng(0)
    rows = Rows(image=rng.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8), label=rng.integers(0, 10, n))
    encoder = DPMEPF(features=features).encoder(SCHEMA)
    mechanism = Gaussian(query=MeanEmbedding(encoder=encoder, n_classes=10), noise_std=4.0)
    encoder(rows["image"][:100])
    before = 0
    bare, release = [], []
    for _ in range(5):  # in turns, as other work on the machine comes and goes
        start = time.process_time()
        for block in rows.blocks(BLOCK // 5):
            encoder(block["image"])
        bare.append(time.process_time() - start)
        before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        mechanism(rows, NoiseSource())
        release.append(time.process_time() - start)
    return min(bare), min(release), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    features = sys.argv[1] if len(sys.argv) > 1 else "rff"
    largest = int(sys.argv[2]) if len(sys.argv) > 2 else 32_000
    print("rows     features (CPU s)  release (CPU s)  ratio  memory added by the release (MB)")
    for n in (largest // 16, largest // 4, largest):
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process, so that peaks are its own
            bare, release, added = pool.apply(measure, (features, n))
        print(f"{n:7} {bare:16.2f} {release:16.2f} {release / bare:6.2f} {added:10.0f}")
