"""From run folders to a table: a record for each cell, a line for each row, and nothing left out that failed."""

from __future__ import annotations

import csv
import math
import os
import platform
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from dpgm.artefact import METRICS, RUN, read_json, write_whole
from dpgm.evaluation.bench.cell import Workshop, processor
from dpgm.evaluation.bench.spec import Cell
from dpgm.evaluation.folder import without_paths
from dpgm.evaluation.utility import summarise

Json: TypeAlias = dict[str, Any]

DONE, FAILED, PENDING = "done", "failed", "pending"
EVIDENCE = ("refuted", "unsupported", "claimed", "proved", "not private")
"""How well a guarantee is founded, the weakest first."""
QUALITY = ("fid", "kid", "inception_score", "precision", "recall", "density", "coverage")
"""Metrics of the form {value, low, high, features, n, reference}."""


def records(workshop: Workshop, cells: Sequence[Cell]) -> list[Json]:
    """A flat record for every cell, whatever became of it."""
    return [_record(workshop, cell) for cell in cells]


def _record(workshop: Workshop, cell: Cell) -> Json:
    note = read_json(workshop.note(cell)) if workshop.note(cell).exists() else {"attempts": []}
    attempts = note["attempts"]
    found: Json = {
        "cell": cell.id,
        "data": cell.data,
        "row": cell.row.name,
        "method": cell.row.method,
        "epsilon": cell.epsilon,
        "seed": cell.seed,
        "status": PENDING,
        "attempts": len(attempts),
        "wall_seconds": math.fsum(a.get("seconds", 0.0) for a in attempts),
    }
    if workshop.finished(cell):
        folder = workshop.folder(cell)
        found |= {"status": DONE, "processor": attempts[-1].get("processor") if attempts else None}
        return {**found, **_facts(read_json(folder / RUN)), **_scores(read_json(folder / METRICS))}
    if attempts and attempts[-1]["code"]:
        return {**found, "status": FAILED, "code": attempts[-1]["code"], "error": attempts[-1]["error"]}
    return found


def _facts(run: Mapping[str, Any]) -> Json:
    promise = run.get("guarantee") or {}
    seconds: Mapping[str, float] = run["seconds"]
    return {
        "spent_epsilon": promise.get("epsilon"),
        "delta": promise.get("delta"),
        "relation": promise.get("relation", "none: not private"),
        "evidence": promise.get("evidence", "not private"),
        "seconds": round(math.fsum(v for k, v in seconds.items() if k != "evaluate"), 3),
        "cpu_seconds": round(math.fsum(v for k, v in run.get("cpu_seconds", {}).items() if k != "evaluate"), 3),
        **{f"seconds_{k}": v for k, v in seconds.items()},
        "peak_memory_mb": run["peak_memory_mb"],
        "command": run["command"],
        "config": without_paths(run.get("config", {})),
    }


def _scores(metrics: Mapping[str, Any]) -> Json:
    """Numbers under flat names; `score` is the one that the row is judged by."""
    accuracy = metrics.get("accuracy", {})
    found: Json = {f"accuracy_{k}": v for k, v in accuracy.items()}
    for name, values in metrics.get("utility", {}).items():
        found |= {f"{name}_{k}": v for k, v in values.items()}
    close = metrics.get("fidelity") or metrics.get("real_fidelity", {})  # real train records have no samples
    found |= {f"fidelity_{k}": v for k, v in close.items()}
    found |= {"entropy": metrics["entropy"]} if "entropy" in metrics else {}
    for name in QUALITY:
        if name in metrics:
            found |= {name: float(metrics[name]["value"])}
            found |= {f"{name}_{end}": float(metrics[name][end]) for end in ("low", "high")}
            seen_by = {k: metrics[name][k] for k in ("features", "reference") if k in metrics[name]}
            found |= {**seen_by, f"{name}_n": metrics[name]["n"]}
    name = _judge(metrics)
    return {**found, "score": found[name], "judge": name}


def _judge(metrics: Mapping[str, Any]) -> str:
    """The protocol's named score: the CNN's accuracy, boosting's ROC AUC on tables, a private classifier's own."""
    accuracy, utility = metrics.get("accuracy", {}), metrics.get("utility", {})
    if accuracy:
        own = [k for k in accuracy if not k.startswith("real_")]
        named = next((k for k in ("cnn", "cnn_soft") if k in accuracy), None)
        return f"accuracy_{named or (own[0] if own else 'real_cnn')}"
    own = [k for k in utility if not k.startswith("real_")]
    return f"{'boosting' if 'boosting' in utility else own[0] if own else 'real_boosting'}_auc"


# ---------------------------------------------------------------------------------------------------------------------


def summary(found: Sequence[Json]) -> list[Json]:
    """A line for each set, row and epsilon: every number over the finished seeds as `summarise` gives it."""
    groups: dict[tuple[Any, ...], list[Json]] = {}
    for record in found:
        groups.setdefault((record["data"], record["row"], record["epsilon"]), []).append(record)
    return [_line(group) for group in groups.values()]


def _line(group: list[Json]) -> Json:
    done = [_float_ends(r) for r in group if r["status"] == DONE]
    line: Json = {k: group[0][k] for k in ("data", "row", "method", "epsilon")}
    line |= {"n": len(done), "failed": sum(r["status"] == FAILED for r in group), "of": len(group)}
    if not done:
        return line
    line |= {k: done[0].get(k) for k in ("delta", "relation", "judge", "features", "fid_n")}
    line["evidence"] = min((r["evidence"] for r in done), key=EVIDENCE.index)
    numbers = [k for k, v in done[0].items() if isinstance(v, float) and k not in ("epsilon", "delta")]
    line |= {k: summarise([r[k] for r in done]) for k in numbers if all(isinstance(r.get(k), float) for r in done)}
    return line


def _float_ends(record: Json) -> Json:
    """The record with all ends of intervals as floats: a file may hold a bare 0 there."""
    ends = {k: float(v) for k, v in record.items() if k.endswith(("_low", "_high")) and isinstance(v, int)}
    return {**record, **ends}


def papers() -> list[Json]:
    """Lines that others have printed, with source and soundness."""
    text = resources.files("dpgm.evaluation.bench").joinpath("papers.toml").read_text("utf-8")
    return tomllib.loads(text)["line"]


def machine(threads: int, jobs: int) -> Json:
    """What the timings were taken on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "jobs": jobs,
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        **{p: version(p) for p in ("dpgm", "torch", "numpy", "scikit-learn")},
    }


def write_table(found: Sequence[Json], folder: Path) -> Path:
    """Write results.parquet, or results.csv where pyarrow is missing; returns the file."""
    names = list(dict.fromkeys(k for record in found for k in record if k != "config"))  # a table has flat values
    if find_spec("pyarrow") is None:
        path = folder / "results.csv"
        write_whole(path, lambda p: _write_csv(p, names, found))
        return path
    import pyarrow as pa  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    path = folder / "results.parquet"
    table = pa.table({k: pa.array([r.get(k) for r in found]) for k in names})
    write_whole(path, lambda p: pq.write_table(table, p))
    return path


def _write_csv(path: Path, names: Sequence[str], found: Sequence[Json]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
