"""The ablations of the PGE paper in reduced size: k, step size, law of the initial velocity, residual module.

python experiments/pge_ablations.py --table k step velocity residual [--data digits] [--seeds 2] [--steps 300]

Published form: the small network on scikit-learn's digits, trained for a few hundred steps, without the paper's
budget of GPU hours: it compares settings of one size and says nothing about the paper's level. `smooth` is noise
added to the pictures, which the paper does not have; without it the loss has no lower bound on pictures of 256 grey
levels, and the column `loss` shows where it went. Sound form: the same question to the one-shot field, where it
makes sense.

`FD` is the Frechet distance to real test pictures in pixels, `accuracy` that of a logistic regression trained on
the samples and tested on real test records, `entropy` that of the classes which a logistic regression trained on
the test part sees (2.303 at most). Options were not chosen by these numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from dpgm.data import open_data
from dpgm.evaluation.fidelity import fid
from dpgm.methods.base import Release, privatise
from dpgm.methods.pge import PGE
from dpgm.methods.published_pge import Published
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger

PAPER = {
    "k": "FID on CelebA and LSUN at 256 px, epsilon 10, rises slightly with k (figure 6, no numbers given)",
    "step": "FID on LSUN at 256 px falls weakly with lambda down to 1e-6 and rises slightly at 1e-7 (figure 7)",
    "velocity": "FID on LSUN at 256 px: Gaussian best, then Rayleigh, then uniform; differences small (figure 8)",
    "residual": "with the module, accuracy and entropy on MNIST and FashionMNIST are higher (table 4)",
}


class Bench:
    """One data set, its releases, and the scores of what is drawn from them."""

    def __init__(self, words: argparse.Namespace) -> None:
        self.words, self.data = words, open_data(words.data, data_dir=words.data_dir)
        test = self.data.test()
        self.test, self.labels = self._flat(test["image"]), test["label"]
        self.judge = LogisticRegression(max_iter=300).fit(self.test, self.labels)
        self.kept: dict[tuple[PGE, float, int], Release] = {}

    def _flat(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return images.reshape(len(images), -1) / 255

    def release(self, method: PGE, epsilon: float, seed: int) -> Release:
        key = (method, epsilon, seed)
        if key not in self.kept:
            budget = Budget(epsilon=epsilon, delta=1e-3)
            plan = method.plan(self.data.schema, relation=Relation.ADD_REMOVE, budget=budget)
            ledger = Ledger(None, relation=plan.relation, cap=budget)
            curator = Curator(self.data.train, schema=self.data.schema, ledger=ledger)
            self.kept[key] = privatise(method, curator, plan, seed=seed, allow="refuted")
        return self.kept[key]

    def row(self, trained: PGE, epsilon: float, sampled: PGE | None = None) -> str:
        """Mean scores over the seeds; `sampled` has other free options than `trained`."""
        found: list[tuple[float, ...]] = []
        for seed in range(self.words.seeds):
            release = self.release(trained, epsilon, seed)
            method = sampled or trained
            start = time.perf_counter()
            batch = method.train(dataclasses.replace(release, method=method), seed=seed).sample(
                self.words.samples, seed=seed
            )
            seconds = time.perf_counter() - start
            x = self._flat(batch.images)
            model = LogisticRegression(max_iter=300).fit(x, batch.labels)
            p = self.judge.predict_proba(x).mean(0)
            loss = release.tensors["loss"][-50:].mean() if "loss" in release.tensors else math.nan
            entropy = -float((p * np.log(p + 1e-12)).sum())
            accuracy = 100 * float(model.score(self.test, self.labels))
            found.append((fid(x, self.test), accuracy, entropy, float(loss), self.words.samples / seconds))
        fd, accuracy, entropy, loss, rate = np.mean(found, axis=0)
        shown = "" if math.isnan(loss) else f"{loss:,.0f}"
        return f"{fd:.2f} | {accuracy:.1f} | {entropy:.2f} | {shown} | {rate:,.0f}"


def published(words: argparse.Namespace, **options: Any) -> PGE:
    given = {"net": "small", "steps": words.steps, "label": "onehot", "lr": 2e-3, **options}
    return PGE(privacy="published", published=Published(**given))


def sampled(method: PGE, **options: Any) -> PGE:
    return dataclasses.replace(method, published=dataclasses.replace(method.published, **options))


def rows(table: str, bench: Bench) -> Iterable[tuple[str, str]]:
    """Name and scores of every row of a table."""
    words = bench.words
    long = {"rounds": 10, "n_leapfrog": 20, "step_floor": 0.05}
    if table == "k":
        for smooth in (0.0, 0.3):
            for k in (2, 5, 10, 30):
                method = published(words, k=k, smooth=smooth, residual="none", **long)
                yield f"published, smooth {smooth}, k = {k}", bench.row(method, 10.0)
    elif table == "step":
        base = published(words, smooth=0.3, residual="none", rounds=10, n_leapfrog=100, step_floor=0.0)
        for first in (1e-4, 1e-5, 1e-6, 1e-7):
            yield (
                f"published, lambda0 = {first:g}, N = 100, M = 10",
                bench.row(base, 10.0, sampled(base, step_size=first)),
            )
        for floor in (0.02, 0.1):
            yield (
                f"published, lambda0 = 1e-05, never below {floor}",
                bench.row(base, 10.0, sampled(base, step_floor=floor)),
            )
        for n in (3, 12):
            method = PGE(rounds=n)
            yield f"one-shot, {n} rounds of 6 at a tuned step", bench.row(method, 10.0)
    elif table == "velocity":
        base = published(words, smooth=0.3, residual="none", **long)
        for law in ("gaussian", "rayleigh", "uniform"):
            yield f"published, {law}", bench.row(base, 10.0, sampled(base, velocity=law))
        for rule in ("line_integral", "printed", "none"):
            yield f"published, gaussian, accept rule {rule}", bench.row(base, 10.0, sampled(base, metropolis=rule))
    else:
        for residual in ("none", "thumbnail", *([f"vq:{words.vq}"] if words.vq else [])):
            method = published(words, smooth=0.3, residual=residual, **long)
            yield f"published, residual {residual.partition(':')[0]}", bench.row(method, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", nargs="+", choices=PAPER, default=list(PAPER))
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--vq", help="a VQ model of public pictures, for the table residual")
    words = parser.parse_args()
    bench = Bench(words)
    for table in words.table:
        print(f"\n## {table}\n\nPaper: {PAPER[table]}.\n")
        print("| form | FD | accuracy | entropy | loss | samples a second |\n|---|---|---|---|---|---|", flush=True)
        for name, scores in rows(table, bench):
            print(f"| {name} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
