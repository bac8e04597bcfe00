"""Several runs that differ in nothing but the seed, as one result: means with 95 % t-intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from dpgm.artefact import METRICS, read_json, read_run
from dpgm.evaluation.utility import summarise
from dpgm.schema import SchemaError

Json: TypeAlias = dict[str, Any]

_SAME = ("method", "config", "data", "schema")
_PROMISE = ("epsilon", "delta", "relation", "unit", "evidence")
_TERMS = ("sizes", "epochs", "n", "features", "reference")
"""Keys of metrics that say how they were measured: a mean over measurements of different kinds says nothing."""
_FIXED = (*_TERMS, "exposures", "figures", "low", "high", "beside")
"""Keys of metrics that are no measurements: kept where all runs agree, and left out where they do not."""


def over_seeds(folders: Sequence[Path]) -> Json:
    """One result of several run folders.

    Args:
        folders: of finished, evaluated runs with the same method, options, data and promise, each with a seed of its
            own; a run that failed must not be left out by hand, as that would be a choice made on results.

    Returns:
        `method`, `config`, `data`, `guarantee`, `seeds`, `metrics`, `seconds`, `cpu_seconds`, `peak_memory_mb`; each
        number of metrics and costs as `summarise` gives it: {`mean`, `low`, `high`, `n`} from five seeds on.

    Raises:
        SchemaError: no folder, folders that differ in more than the seed or were evaluated differently, or a seed that
            occurs twice.
    """
    if not folders:
        raise SchemaError("there are no run folders; give at least one, better five: dpgm seeds run0 run1 ... run4")
    runs = [read_run(folder) for folder in folders]
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        if different := [k for k in _SAME if run.get(k) != first.get(k)] + _other_promise(run, first):
            raise SchemaError(
                f"{folder.name} differs from {folders[0].name} in {', '.join(different)}; only runs that differ in "
                "nothing but the seed have a common mean"
            )
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise SchemaError(f"the seeds are {seeds}; give each run once, and runs of different seeds")
    return {
        **{k: first.get(k) for k in ("method", "config", "data", "guarantee")},
        "seeds": seeds,
        "metrics": _merge([read_json(folder / METRICS) for folder in folders]),
        **{k: _merge([run.get(k, {}) for run in runs]) for k in ("seconds", "cpu_seconds")},
        "peak_memory_mb": summarise([run["peak_memory_mb"] for run in runs]),
    }


def _other_promise(run: Json, first: Json) -> list[str]:
    """Keys in which two guarantees differ; neither is there for real records."""
    a, b = run.get("guarantee") or {}, first.get("guarantee") or {}
    return [k for k in _PROMISE if a.get(k) != b.get(k)]


def _merge(values: Sequence[Mapping[str, Any]]) -> Json:
    """Numbers to summaries, tables of numbers to tables of summaries."""
    found: Json = {}
    for key, value in values[0].items():
        every = [v.get(key) for v in values]
        if key in _FIXED:
            if all(v == value for v in every):
                found[key] = value
            elif key in _TERMS:
                raise SchemaError(
                    f"the runs were evaluated differently: '{key}' is {' and '.join(map(str, _different(every)))}; "
                    "evaluate them alike (dpgm sample, dpgm evaluate), then take their mean"
                )
        elif isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in every):
            found[key] = _merge([v for v in every if v is not None])
        elif all(isinstance(v, int | float) and not isinstance(v, bool) for v in every):
            found[key] = summarise([float(v) for v in every if v is not None])
    return found


def _different(values: Sequence[Any]) -> list[Any]:
    return [v for i, v in enumerate(values) if v not in values[:i]]


def lines(result: Json) -> list[str]:
    """The main numbers for a person."""
    return [f"{len(result['seeds'])} seeds: {', '.join(map(str, result['seeds']))}", *_lines(result["metrics"], ())]


def _lines(value: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    if "mean" in value:
        reach = f" ({value['low']:.4g} to {value['high']:.4g})" if "low" in value else ""
        return [f"{' '.join(names)}: {value['mean']:.4g}{reach}"]
    tables = {k: v for k, v in value.items() if isinstance(v, Mapping) and k not in ("seconds", *_FIXED)}
    return [line for k, v in tables.items() for line in _lines(v, (*names, *(() if k == "value" else (_seen(k, v),))))]


def _seen(name: str, value: Mapping[str, Any]) -> str:
    """A metric's name with the features it is seen through and the number of records."""
    if "features" not in value:
        return name
    return f"{name}[{value['features']}]" + (f" on {value['n']} records each" if value.get("n") else "")
