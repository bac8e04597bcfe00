"""One release, ever more samples: rows of full_size.toml with 240,000 or 400,000 synthetic records in place of 60,000.

python experiments/draw_many.py run --data-dir DATA --out RUNS   # goes on where it stopped
python experiments/draw_many.py show > experiments/draw_many.md  # the runs that are there, as Markdown

Each run is `dpgm run` with the options of its row, noise included, and one look at the test part. The protocol's CNN
makes 5 or 3 epochs, as many steps as 20 on 60,000: what is gained comes of other samples, not of longer training.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dpgm.artefact import SAMPLES, load_samples
from dpgm.data import open_data
from dpgm.evaluation.bench.spec import Cell, read_spec
from dpgm.evaluation.utility import evaluate_images, summarise

HERE = Path(__file__).parent


class Row(NamedTuple):
    """A row of full_size.toml, options beside its own, and how many samples the CNN sees how often."""

    source: str
    options: Sequence[str] = ()
    samples: int = 240_000
    epochs: int = 5


SCATTERING = "pge-scattering+labeller-soft"
ROWS = {
    SCATTERING: Row(SCATTERING, ["--copies", "4"]),
    f"{SCATTERING}-16": Row(SCATTERING, ["--copies", "16"]),
    "mepf+labeller-soft": Row("mepf+labeller-soft"),
    "mepf+labeller-soft-ensemble": Row("mepf+labeller-soft", ["--ensemble", "4"]),
    "mepf+labeller-soft-ensemble-400k": Row("mepf+labeller-soft", ["--ensemble", "4"], samples=400_000, epochs=3),
    "slicing+labeller-soft": Row("slicing+labeller-soft"),
    "dp2vae+labeller-soft": Row("dp2vae+labeller-soft"),
}
TARGETS = {
    ("fashion-mnist", SCATTERING): {0.2: 82, 1.0: 86.5, 10.0: 89},
    ("fashion-mnist", "mepf+labeller-soft"): {1.0: 86},
    ("fashion-mnist", "dp2vae+labeller-soft"): {1.0: 85, 10.0: 87},
    ("mnist", SCATTERING): {0.2: 95.5, 1.0: 97.5, 10.0: 98.5},
    ("mnist", "mepf+labeller-soft"): {1.0: 97.3},
    ("mnist", "dp2vae+labeller-soft"): {1.0: 97, 10.0: 97.8},
}


def run(words: argparse.Namespace) -> None:
    spec = read_spec(HERE / "full_size.toml")
    rows = {row.name: row for row in spec.rows}
    done = [r["key"] for r in results(words.results)]
    for seed, epsilon, data, name in itertools.product(words.seeds, words.epsilon, words.data, words.rows):
        key = [data, name, epsilon, seed]
        if key not in done:
            row = ROWS[name]
            line = dataclasses.replace(spec, samples=row.samples).words
            cell = Cell(row=dataclasses.replace(rows[row.source], name=name), data=data, epsilon=epsilon, seed=seed)
            found = one(line, cell, row, words)
            with words.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **found}) + "\n")
            (words.out / cell.id / SAMPLES).unlink()  # they take much room, and can be drawn again
            print(key, f"{found['accuracy']:.4f}", flush=True)


def one(line: Any, cell: Cell, row: Row, words: argparse.Namespace) -> dict[str, Any]:
    """Release, draw and score one cell; a run that was finished before is only scored."""
    folder = words.out / cell.id
    command = line(cell, data_dir=words.data_dir, out=folder)
    command[command.index("--evaluate") + 1] = "False"
    if not (folder / SAMPLES).exists():
        subprocess.run(["dpgm", *command, *row.options], check=True)
    data, samples = open_data(cell.data, data_dir=words.data_dir), load_samples(folder)
    start = time.process_time()
    found = evaluate_images(
        samples, data.test(), schema=data.schema, seed=cell.seed, classifiers=("cnn",), epochs=row.epochs
    )
    trained = time.process_time() - start
    about = json.loads((folder / "run.json").read_text("utf-8"))
    return {
        "accuracy": found["accuracy"]["cnn_soft"],
        "samples": len(samples.images),
        "cpu_seconds": sum(about["cpu_seconds"].values()),
        "seconds": sum(about["seconds"].values()),
        "memory_mb": about["peak_memory_mb"],
        "cpu_seconds_cnn": trained,
    }


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def show(words: argparse.Namespace) -> None:
    """One line a row and epsilon: the mean over the seeds that were run, and each of them."""
    head = ["data", "row", "epsilon", "CNN %", "seeds", "target", "gap", "minutes", "CPU minutes", "memory"]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    found = results(words.results)
    for data, name, epsilon in itertools.product(words.data, ROWS, sorted(words.epsilon)):
        mine = [r for r in found if r["key"][:3] == [data, name, epsilon]]
        if not mine:
            continue
        values = [100 * r["accuracy"] for r in mine]
        mean, target = summarise(values)["mean"], TARGETS.get((data, ROWS[name].source), {}).get(epsilon)
        cells = [data, name, f"{epsilon:g}", f"{mean:.2f}", f"{len(mine)}: " + " ".join(f"{v:.2f}" for v in values)]
        cells += [target or "-", f"{mean - target:+.2f}" if target else "-"]
        cells += [f"{max(r[kind] for r in mine) / 60:.0f}" for kind in ("seconds", "cpu_seconds")]
        print("| " + " | ".join(map(str, [*cells, f"{max(r['memory_mb'] for r in mine):.0f} MB"])) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("draw-many"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=HERE / "draw_many.jsonl")
    parser.add_argument("--data", nargs="+", default=["fashion-mnist", "mnist"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--epsilon", nargs="+", type=float, default=[1.0, 10.0, 0.2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    words = parser.parse_args()
    (run if words.what == "run" else show)(words)


if __name__ == "__main__":
    main()
