"""DP-SGD rows on images: labeller, private CNN, dp2vae alone and with a labeller; accuracy on real test images.

python experiments/private_learning.py labeller --data mnist fashion-mnist --epsilon 0.2 1 --seeds 3 --data-dir DIR
python experiments/private_learning.py dp2vae --data mnist --epsilon 1 10 --labeller 0.3 --out pictures

A row is a whole run, noise included: read, privatise, train, draw 10,000 records, train the protocol's CNN on them and
test it once. `--set name=value` changes an option of the method. A line of JSON a run goes to standard output.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from dpgm import methods, open_data
from dpgm.evaluation.grid import png, sample_grid
from dpgm.evaluation.utility import evaluate_images
from dpgm.methods.base import Method, Model, privatise
from dpgm.methods.labelled import Labelled
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger


def fitted(method: Method, rows: Any, schema: Any, *, epsilon: float, delta: float, seed: int) -> Model:
    budget, relation = Budget(epsilon=epsilon, delta=delta), Relation.ADD_REMOVE
    plan = method.plan(schema, relation=relation, budget=budget)
    with Ledger(None, relation=relation, cap=budget) as ledger:
        curator = Curator(lambda: rows, schema=schema, ledger=ledger)
        release = privatise(method, curator, plan, seed=seed)
    return method.train(release, seed=seed)


def scores(model: Model, test: Any, *, seed: int, samples: int, picture: Path | None) -> dict[str, float]:
    odds = model.classify(test["image"])
    found = {} if odds is None else {model.reader: float((odds.argmax(1) == test["label"]).mean())}
    if not model.generates:
        return found
    batch = model.sample(samples, seed=seed)
    if picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(png(sample_grid(batch.images, batch.labels, classes=range(model.schema.n_classes))))
    metrics = evaluate_images(batch, test, schema=model.schema, seed=seed, classifiers=("cnn",))
    return {**metrics["accuracy"], **found}


def value_of(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=methods.names())
    parser.add_argument("--data", nargs="+", default=["mnist", "fashion-mnist"])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--labeller", type=float, help="share of the budget for a labeller")
    parser.add_argument("--labeller-mode", default="filter", choices=("filter", "soft", "relabel"))
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, help="folder for pictures of the samples")
    words = parser.parse_args()
    options = {k: value_of(v) for k, _, v in (w.partition("=") for w in words.set)}
    method: Method = methods.get(words.method).from_json(options)
    if words.labeller:
        method = Labelled(generator=method, share=words.labeller, mode=words.labeller_mode)
    for name in words.data:
        data: Any = open_data(name, data_dir=words.data_dir)
        rows, test = data.train(), data.test()
        for epsilon in words.epsilon:
            every: dict[str, list[float]] = {}
            for seed in range(words.first_seed, words.first_seed + words.seeds):
                start, cpu = time.perf_counter(), time.process_time()
                model = fitted(method, rows, data.schema, epsilon=epsilon, delta=words.delta, seed=seed)
                took, cpu = time.perf_counter() - start, time.process_time() - cpu
                label = f"{words.method}{'+labeller' * bool(words.labeller)}-{name}-{epsilon:g}-{seed}"
                picture = words.out / f"{label}.png" if words.out else None
                found = scores(model, test, seed=seed, samples=words.samples, picture=picture)
                line = {"row": label, **{k: round(100 * v, 2) for k, v in found.items()}}
                line |= {"seconds": round(took), "cpu_seconds": round(cpu), "epsilon": model.guarantee.epsilon}
                print(json.dumps({**line, "set": options}), flush=True)
                for k, v in found.items():
                    every.setdefault(k, []).append(100 * v)
            means = {k: f"{np.mean(v):.2f} ({min(v):.2f} to {max(v):.2f}, {len(v)} seeds)" for k, v in every.items()}
            print(f"{words.method} {name} epsilon {epsilon:g}: {means}", flush=True)


if __name__ == "__main__":
    main()
