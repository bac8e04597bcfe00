"""Marginal and row-wise methods on one table: all scores, several seeds, as a Markdown table.

python experiments/tables.py train.csv.gz --schema table.json --test test.csv.gz --epsilon 0.2 1 5.1 --seeds 3

Reads the test part only for the scores; settings are the methods' defaults, which were chosen on other tables.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from dpgm.data.tables import TableSet
from dpgm.evaluation.tables import fidelity, utility
from dpgm.evaluation.utility import summarise
from dpgm.methods import get
from dpgm.methods.base import privatise
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.schema import TableSchema

METHODS: dict[str, tuple[str, dict[str, Any], Relation]] = {
    "aggregated": ("slicing", {}, Relation.ADD_REMOVE),
    "full-rank": ("slicing", {"mode": "full-rank"}, Relation.REPLACE),
    "paper": ("slicing", {"mode": "paper"}, Relation.REPLACE),
    "mst": ("mst", {}, Relation.ADD_REMOVE),
}


def scores(table: Any, test: Any, schema: TableSchema, seed: int) -> dict[str, float]:
    found = dict(fidelity(test, table, schema))
    if schema.label:
        for name, values in utility(table, test, schema, seed=seed).items():
            found |= {f"{name} {k}": v for k, v in values.items() if k != "accuracy"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("--schema", type=Path, required=True)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0])
    parser.add_argument("--delta", type=float, default=1e-6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["aggregated", "full-rank", "paper"])
    parser.add_argument("--samples", type=int, default=10_000)
    words = parser.parse_args()
    schema = TableSchema.from_json(json.loads(words.schema.read_text("utf-8")))
    fraction = None if words.test else 0.25
    data = TableSet(path=words.train, schema=schema, test_path=words.test, test_fraction=fraction)
    rows, test = data.train(), data.test()["table"]
    facts: Any = schema
    real = scores(rows["table"], test, schema, 0)
    print("| method | epsilon | s | " + " | ".join(real) + " |")
    print("|---|---|---|" + "---|" * len(real))
    print("| real, not private | - | - | " + " | ".join(f"{v:.3f}" for v in real.values()) + " |", flush=True)
    for epsilon in words.epsilon:
        for label in words.methods:
            name, options, relation = METHODS[label]
            method, budget, runs = get(name)(**options), Budget(epsilon=epsilon, delta=words.delta), []
            start = time.perf_counter()
            for seed in range(words.seeds):
                plan = method.plan(facts, relation=relation, budget=budget)
                with Ledger(None, relation=relation, cap=budget) as book:
                    curator = Curator(lambda: rows, schema=facts, ledger=book)
                    release = privatise(method, curator, plan, seed=seed)
                model: Any = method.train(release, seed=seed)
                runs.append(scores(model.sample(words.samples, seed=seed).table, test, schema, seed))
            mean = [summarise([r[k] for r in runs])["mean"] for k in real]
            seconds = (time.perf_counter() - start) / words.seeds
            print(
                f"| {label} | {epsilon:g} | {seconds:.0f} | " + " | ".join(f"{v:.3f}" for v in mean) + " |", flush=True
            )


if __name__ == "__main__":
    main()
