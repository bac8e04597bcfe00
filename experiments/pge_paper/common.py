"""What the scripts of this folder share: the PGE paper's tables and ablations in reduced size, one script each.

python experiments/pge_paper/NAME.py [--data digits] [--seeds 2] [--steps 200] [--samples 150] [--keep FOLDER]

NAME is `small_epsilon` (tables 1 and 3), `k` (figure 6), `step` (figure 7), `velocity` (figure 8), `accept` (the accept
rule, which the paper does not ablate) or `residual` (table 4). Each prints Markdown; the output that lies beside it has
its command in the first line. Releases are kept in FOLDER, so scripts that ask the same of the private records share
one training.

Published form: the small network on scikit-learn's digits, trained for a few hundred steps, without the paper's budget
of GPU hours: it compares settings of one size and says nothing about the paper's level. `smooth` is noise added to the
pictures, which the paper does not have; without it the loss has no lower bound on pictures of 256 grey levels, and the
column `loss` shows where it went. Sound form: the same question to the one-shot field, where it makes sense.

`FD` is the Frechet distance to real test pictures in pixels, `accuracy` (%) that of a logistic regression trained on
the samples and tested on real test records, `entropy` that of the classes which a logistic regression trained on the
test part sees (2.303 at most), `loss` the mean of the last 50 training steps, `CPU s` what 1,000 samples cost. Means
over the seeds, and the accuracy of each. Options were not chosen by these numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from dpgm.artefact import load_release, save_release
from dpgm.data import open_data
from dpgm.evaluation.fidelity import fid
from dpgm.methods.base import Model, Release, privatise
from dpgm.methods.pge import PGE
from dpgm.methods.published_pge import AS_PRINTED, Published
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.samplers import Kernel

LONG = {"rounds": 10, "n_leapfrog": 20, "step_floor": 0.05}
"""Sampling of most rows: 200 evaluations at steps that move."""
DELTA = 1e-3
Change = Callable[[Model], Model]
Row = tuple[str, str]


class Bench:
    """One data set, its releases, and the scores of what is drawn from them."""

    def __init__(self, words: argparse.Namespace) -> None:
        self.words, self.data = words, open_data(words.data, data_dir=words.data_dir)
        test = self.data.test()
        self.test, self.labels = self._flat(test["image"]), test["label"]
        self.judge = LogisticRegression(max_iter=300).fit(self.test, self.labels)
        self.kept: dict[str, Release] = {}

    def _flat(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return images.reshape(len(images), -1) / 255

    def release(self, method: PGE, epsilon: float, seed: int) -> Release:
        """One release for all methods that differ in free options only."""
        fixed = {name: getattr(AS_PRINTED, name) for name in AS_PRINTED.free}
        plain = PGE(picture=method.picture, privacy=method.privacy, components=method.components, block=method.block)
        plain = dataclasses.replace(plain, published=dataclasses.replace(method.published, **fixed))
        told = json.dumps([self.words.data, plain.to_json(), epsilon, seed], sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        file = self.words.keep / f"{key}.safetensors" if self.words.keep else None
        if file and file.exists():
            self.kept[key] = load_release(file)
        if key not in self.kept:
            budget = Budget(epsilon=epsilon, delta=DELTA)
            plan = plain.plan(self.data.schema, relation=Relation.ADD_REMOVE, budget=budget)
            ledger = Ledger(None, relation=plan.relation, cap=budget)
            curator = Curator(self.data.train, schema=self.data.schema, ledger=ledger)
            self.kept[key] = privatise(plain, curator, plan, seed=seed, allow="refuted")
            if file:
                save_release(self.kept[key], file)
        return dataclasses.replace(self.kept[key], method=method)

    def row(self, method: PGE, epsilon: float, *, change: Change | None = None, samples: int | None = None) -> str:
        """Mean scores over the seeds; `change` does something to the model before it draws."""
        found: list[tuple[float, ...]] = []
        n = samples or self.words.samples
        for seed in range(self.words.seeds):
            release = self.release(method, epsilon, seed)
            model = method.train(release, seed=seed)
            start = time.process_time()
            batch = (change(model) if change else model).sample(n, seed=seed)
            seconds = time.process_time() - start
            x = self._flat(batch.images)
            learner = LogisticRegression(max_iter=300).fit(x, batch.labels)
            p = self.judge.predict_proba(x).mean(0)
            loss = release.tensors["loss"][-50:].mean() if "loss" in release.tensors else math.nan
            entropy = -float((p * np.log(p + 1e-12)).sum())
            accuracy = 100 * float(learner.score(self.test, self.labels))
            found.append((fid(x, self.test), accuracy, entropy, float(loss), 1000 * seconds / n))
        fd, accuracy, entropy, loss, cost = np.mean(found, axis=0)
        each = " ".join(f"{f[1]:.1f}" for f in found)
        shown = "-" if math.isnan(loss) else f"{loss:,.0f}"
        return f"{fd:.2f} | {accuracy:.1f} ({each}) | {entropy:.2f} | {shown} | {cost:.1f}"


def published(words: argparse.Namespace, **options: Any) -> PGE:
    """The published form at this size: without codes, and with noise on the pictures unless it is given as 0."""
    given = {"net": "small", "steps": words.steps, "label": "onehot", "lr": 2e-3, "residual": "none", "smooth": 0.3}
    return PGE(privacy="published", published=Published(**{**given, **LONG, **options}))


def kernel(make: Callable[[Any, float], Kernel]) -> Change:
    """Draw from a one-shot field by another kernel: `make` gets the field of a class and the tuned step size."""

    def change(model: Model) -> Model:
        vars(model)["_kernel"] = make
        return model

    return change


def show(title: str, paper: str, rows: Callable[[Bench], Iterable[Row]], *, about: str = "") -> None:
    """Read the command line and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--keep", type=Path, help="folder for releases, which cost privacy once")
    words = parser.parse_args()
    if words.keep:
        words.keep.mkdir(parents=True, exist_ok=True)
    given = [w for w in sys.argv[1:] if w != "--keep" and (not words.keep or Path(w) != words.keep)]
    command = " ".join(["python", f"experiments/pge_paper/{Path(sys.argv[0]).name}", *given])
    print(f"`{command}`\n\n## {title}\n\nPaper: {paper}\n")
    if about:
        print(f"{about}\n")
    print("| form | FD | accuracy (each seed) | entropy | loss | CPU s |\n|---|---|---|---|---|---|", flush=True)
    for name, scores in rows(Bench(words)):
        print(f"| {name} | {scores} |", flush=True)
