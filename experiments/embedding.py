"""Mean-embedding runs over several seeds, as rows of a Markdown table: accuracy of the protocol's CNN, and seconds.

python experiments/embedding.py mnist --features scattering --epsilon 1 0.2 --seeds 3 [--labeller 0.5] [--holdout]

Each seed is the whole pipeline, noise included. With `--holdout` a tenth of the *train* part stands for the test part:
the way settings were chosen. `--keep FOLDER` keeps releases, models and sample grids.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import dataclasses
import time
import typing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpgm import artefact
from dpgm.data import open_data
from dpgm.evaluation.grid import png, sample_grid
from dpgm.evaluation.utility import summarise
from dpgm.methods.base import Method, privatise
from dpgm.methods.labelled import Labelled
from dpgm.methods.options import parse
from dpgm.methods.perceptual import DPMEPF
from dpgm.nets.classifiers import predict, train_classifier
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import Rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--features", default="scattering+rff")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="options of the method")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--labeller", type=float)
    parser.add_argument("--mode", choices=("filter", "relabel"), default="filter")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--resize", type=int)
    parser.add_argument("--unlabelled", action="store_true", help="one class for all records")
    parser.add_argument("--holdout", action="store_true")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--keep", type=Path)
    return parser.parse_args()


def method(words: argparse.Namespace) -> Method:
    base: Any = DPMEPF(features=words.features)
    hints: dict[str, Any] = {f.name: f for f in dataclasses.fields(base)}
    types = typing.get_type_hints(type(base))
    given: dict[str, Any] = {}
    for item in words.set:
        name, _, text = item.partition("=")
        assert name in hints, f"no option {name}"
        value: Any = tuple(map(float, text.split(","))) if name == "weights" else text
        if isinstance(value, str):
            for kind in (int, float):
                try:
                    value = kind(text)
                    break
                except ValueError:
                    continue
        given[name] = parse(value, types[name], name)
    base = dataclasses.replace(base, **given)
    return base if words.labeller is None else Labelled(generator=base, share=words.labeller, mode=words.mode)


def accuracy(train: Rows, test: Rows, classes: int, seed: int, epochs: int) -> float:
    rng = torch.Generator().manual_seed(seed)
    net = train_classifier(train["image"], train["label"], n_classes=classes, rng=rng, epochs=epochs)
    return float((predict(net, test["image"]).argmax(1) == test["label"]).mean())


def main() -> None:
    words = arguments()
    data = open_data(words.data, resize=words.resize, unlabelled=words.unlabelled)
    rows, facts = data.train(), data.schema
    test = data.test() if not words.holdout else None
    if test is None:
        held = np.arange(len(rows)) % 10 == 0
        rows, test = rows.take(~held), rows.take(held)
    asked = method(words)
    for epsilon in words.epsilon:
        scores, labels, spent = list[float](), list[float](), list[dict[str, float]]()
        for seed in range(words.first, words.first + words.seeds):
            budget = Budget(epsilon=epsilon, delta=words.delta)
            marks = [(time.perf_counter(), time.process_time())]
            plan = asked.plan(facts, relation=Relation.ADD_REMOVE, budget=budget)
            with Ledger(None, relation=Relation.ADD_REMOVE, cap=budget) as book:
                release = privatise(asked, Curator(lambda: rows, schema=facts, ledger=book), plan, seed=seed)
            marks.append((time.perf_counter(), time.process_time()))
            model = asked.train(release, seed=seed)
            marks.append((time.perf_counter(), time.process_time()))
            batch = model.sample(words.samples, seed=seed)
            marks.append((time.perf_counter(), time.process_time()))
            names = ("release", "train", "sample")
            spent.append({n: b[1] - a[1] for n, a, b in zip(names, marks, marks[1:], strict=False)})
            if words.keep:
                folder = words.keep / f"{words.data}-{epsilon:g}-{seed}"
                artefact.save_model(model, folder)
                grid = png(sample_grid(batch.images, batch.labels, classes=range(facts.n_classes)))
                (folder / "samples.png").write_bytes(grid)
            if facts.n_classes > 1:
                drawn = Rows(image=batch.images, label=batch.labels)
                scores.append(accuracy(drawn, test, facts.n_classes, seed, words.epochs))
            odds = model.classify(test["image"])
            if odds is not None:
                labels.append(float((odds.argmax(1) == test["label"]).mean()))
            print(f"# seed {seed}: {scores[-1:]} labeller {labels[-1:]} cpu s {spent[-1]}", flush=True)
        if scores:
            seconds = {n: round(float(np.mean([s[n] for s in spent]))) for n in spent[0]}
            extra = f" | labeller {100 * np.mean(labels):.2f}" if labels else ""
            print(
                f"| {words.data} | {words.features} | {epsilon:g} | {100 * summarise(scores)['mean']:.2f} "
                f"({', '.join(f'{100 * s:.2f}' for s in scores)}) | {seconds}{extra} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
