"""One self-contained page about a run: what is promised, on what evidence, at what cost, and how good samples are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

import jinja2

from dpgm.evaluation import wording
from dpgm.evaluation.curve import HEIGHT, WIDTH, curves
from dpgm.evaluation.folder import Folder, Json, ReportError, evidence_of, read_folder
from dpgm.evaluation.table_figures import figures
from dpgm.privacy.guarantee import Evidence, Source, ceil_digits

__all__ = ["ReportError", "render", "write_report"]

_STAGES = ("read", "release", "train", "sample", "evaluate")
_NAMES: Mapping[str, str] = {
    "cnn": "CNN",
    "logreg": "Logistic regression",
    "mlp": "Multilayer perceptron",
    "boosting": "Gradient boosting",
    "labeller": "Private labeller",
    "dp_cnn": "CNN trained privately (DP-SGD)",
}
_RIVALS = ("labeller", "dp_cnn")
"""Private classifiers trained on real records: they stand beside the samples and use none."""


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    It reads `run.json`, and where they are there `ledger.jsonl`, `metrics.json`, `training.json` and `samples.npz` or
    `samples.png`. The page holds everything it needs: it asks nothing of any other file or host. Where run.json and
    ledger disagree, it shows the larger epsilon and the weaker evidence.

    Raises:
        ReportError: there is no `run.json`, or a JSON file is damaged.
    """
    target = Path(folder) / "report.html"
    target.write_text(render(read_folder(Path(folder))), "utf-8")
    return target


def render(folder: Folder) -> str:
    """The page as text."""
    template = resources.files("dpgm.evaluation").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "percent": _percent}
    return environment.from_string(template).render(view(folder))


def view(folder: Folder) -> Json:
    """What the template shows; every part may be empty."""
    run, metrics = folder.run, folder.metrics
    promise = _promise(folder)
    guarantee = _mapping(run.get("guarantee"))
    exposures = _exposures(guarantee, folder)
    looks = [_exposure(e) for e in _list(metrics.get("exposures"))]
    return {
        "method": run.get("method", "unknown method"),
        "data": run.get("data", ""),
        "time": (folder.ledger or [{}])[0].get("time", "")[:10] if folder.ledger else "",
        **promise,
        "guarantee": guarantee,
        "headline": guarantee.get("headline", ""),
        "exposures": exposures,
        "looks": looks,
        "edges": wording.edges(guarantee, run, metrics, exposures),
        "spent": _spent(folder),
        "ledger": folder.ledger,
        "incidents": _incidents(folder),
        "sources": _sources(guarantee),
        "grid": folder.grid,
        "grid_classes": folder.grid_classes,
        "curves": curves(folder.training),
        "figures": figures(metrics.get("figures")),
        "box": (WIDTH, HEIGHT),
        "scores": _scores(_mapping(metrics.get("accuracy"))),
        "ranges": "low" in str(metrics.get("accuracy")),
        "others": _others(metrics),
        "sizes": _mapping(metrics.get("sizes")),
        "costs": _costs(run),
        "machine": {k: run[k] for k in ("cores", "device") if run.get(k) is not None},
        "memory": run.get("peak_memory_mb"),
        "config": {k: v for k, v in _mapping(run.get("config")).items() if k != "name"},
        "plan": _mapping(run.get("plan")),
        "schema": _schema(_mapping(run.get("schema"))),
        "command": run.get("command") or "",
        "seed": run.get("seed"),
        "versions": _mapping(run.get("versions")),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The promise


def _promise(folder: Folder) -> Json:
    """Evidence and epsilon as far as run.json *and* ledger support them."""
    guarantee = _mapping(folder.run.get("guarantee"))
    doubts = list(folder.doubts)
    evidence = evidence_of(guarantee.get("evidence"))
    if not guarantee:
        doubts.append("run.json states no guarantee.")
    elif folder.ledger is None:
        doubts.append("There is no ledger.jsonl beside run.json: what was spent cannot be checked.")
    costs = [_mapping(item.get("cost")) for e in folder.of("reserve") for item in _list(e.get("plan"))]
    weakest = min((evidence_of(c.get("evidence")) for c in costs), default=evidence)
    if folder.of("seeded-noise") or folder.doubts:
        weakest = min(weakest, Evidence.UNSUPPORTED)
    if weakest < evidence and guarantee:
        doubts.append(f"run.json says “{evidence.word}”, the ledger supports no more than “{weakest.word}”.")
    epsilon, delta = guarantee.get("epsilon"), guarantee.get("delta", 0.0)
    reserved = max((e["epsilon"] for e in folder.of("reserve") if _is_number(e.get("epsilon"))), default=None)
    if reserved is not None and _is_number(epsilon) and reserved > epsilon * (1 + 1e-6):
        doubts.append(f"run.json states epsilon {ceil_digits(epsilon)}, the ledger reserved {ceil_digits(reserved)}.")
        epsilon = reserved
    evidence = min(evidence, weakest)
    sign, sentence = wording.VERDICTS[evidence]
    meaning: list[str] = []
    shown = ("", "")
    if _is_number(epsilon) and _is_number(delta):
        shown = (ceil_digits(epsilon), wording.exponent(delta))
        relation, unit = guarantee.get("relation", ""), guarantee.get("unit", "record")
        meaning = wording.meaning(epsilon, delta, str(relation), str(unit))
    return {
        "evidence": evidence.word,
        "sign": sign,
        "verdict": sentence if guarantee else "No guarantee is recorded for this run.",
        "void": evidence < Evidence.CLAIMED,
        "epsilon": shown[0],
        "delta": shown[1],
        "doubts": doubts,
        "meaning": meaning,
    }


def _exposures(guarantee: Json, folder: Folder) -> list[str]:
    """Looks during the run that no epsilon covers, from run.json and the ledger, each once."""
    return list(dict.fromkeys(map(_exposure, [*_list(guarantee.get("exposures")), *folder.of("expose")])))


def _exposure(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    audience = entry.get("audience")
    return f"{entry.get('reason', 'no reason given')}" + (f" (seen by {audience})" if audience else "")


def _spent(folder: Folder) -> list[Json]:
    """A row for every item of every reserved plan, with the calls made so far."""
    used: dict[tuple[Any, Any], int] = {}
    for entry in folder.of("charge"):
        key = (entry.get("label"), entry.get("item"))
        used[key] = max(used.get(key, 0), int(entry.get("until", 0)))
    rows: list[Json] = []
    for entry in folder.of("reserve"):
        plan = [_mapping(i) for i in _list(entry.get("plan"))]
        for number, item in enumerate(plan):
            cost = _mapping(item.get("cost"))
            rows.append(
                {
                    "label": entry.get("label", ""),
                    "name": cost.get("name", ""),
                    "event": wording.event(cost),
                    "planned": item.get("count", 0),
                    "used": used.get((entry.get("label"), number), 0),
                    "evidence": evidence_of(cost.get("evidence")).word,
                    "epsilon": ceil_digits(entry["epsilon"])
                    if number == len(plan) - 1 and _is_number(entry.get("epsilon"))
                    else "",
                }
            )
    return rows


def _incidents(folder: Folder) -> list[str]:
    found = [f"“{e.get('label')}”, item {e.get('item')}: asked again after a crash" for e in folder.of("repeat")]
    return found + ["the noise was drawn from a seed: whoever knows it can remove it"] * bool(folder.of("seeded-noise"))


def _sources(guarantee: Json) -> list[Json]:
    found: list[Json] = []
    for source in map(_mapping, _list(guarantee.get("sources"))):
        try:
            bibtex = Source(**source).bibtex()
        except TypeError:  # a source of another version: its fields are still worth reading
            bibtex = ""
        found.append({**dict.fromkeys(("title", "authors", "year", "where", "part"), ""), **source, "bibtex": bibtex})
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def _scores(accuracy: Json) -> list[Json]:
    """A row for each classifier: trained on synthetic, and on real data where that is known."""
    names = dict.fromkeys(k.removeprefix("real_") for k in accuracy if k not in _RIVALS)
    return [
        {
            "name": _NAMES.get(k, k),
            "named": k == "cnn",
            "synthetic": _cell(accuracy.get(k)),
            "real": _cell(accuracy.get(f"real_{k}")),
        }
        for k in names
    ]


def _cell(value: Any) -> Json | None:
    """A share with its interval: {"mean", "note"}."""
    mean = wording.mean_of(value)
    if mean is None:
        return None
    note = ""
    if isinstance(value, Mapping):
        low, high, n = (value.get(k) for k in ("low", "high", "n"))
        if _is_number(low) and _is_number(high):
            note = f"{100 * low:.1f} to {_percent(high)}, {n} seeds".replace(" %", "\N{NO-BREAK SPACE}%")
        elif n:
            note = f"mean of {n} seeds" if n != 1 else "one seed"
    return {"mean": mean, "note": note}


def _others(metrics: Json) -> list[tuple[str, str]]:
    """Every other metric as a pair (name, value)."""
    accuracy = _mapping(metrics.get("accuracy"))
    cells = {k: _cell(accuracy.get(k)) for k in _RIVALS}
    rows = [
        (
            f"{_NAMES[k]}, on real records",
            f"{_percent(cell['mean'])} correct" + (f" ({cell['note']})" if cell["note"] else ""),
        )
        for k, cell in cells.items()
        if cell
    ]
    if (entropy := wording.mean_of(metrics.get("entropy"))) is not None:
        rows.append(("Label entropy of the samples", f"{entropy:.3f} nats"))
    fid = metrics.get("fid")
    if isinstance(fid, Mapping):
        extra = [f"{label} {show(fid[k])}" for k, label in (("n", "n ="), ("reference", "against")) if k in fid]
        rows.append((f"FID[{fid.get('features', '?')}]", ", ".join([show(fid.get("value")), *extra])))
    rows += _flat(metrics.get("utility"), ()) + _flat(metrics.get("fidelity"), ())
    return rows


def _flat(value: Any, names: tuple[str, ...]) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and "mean" not in value:
        return [row for k, v in value.items() for row in _flat(v, (*names, str(k)))]
    return [(" · ".join(names), show(value))] if names else []


def _costs(run: Json) -> list[Json]:
    """Seconds per stage, in the order of the run, with their share of the whole."""
    seconds = {k: float(v) for k, v in _mapping(run.get("seconds")).items() if _is_number(v) and math.isfinite(v)}
    total = math.fsum(seconds.values())
    names = [s for s in _STAGES if s in seconds] + [s for s in seconds if s not in _STAGES]
    rows = [{"name": s, "seconds": _seconds(seconds[s]), "share": seconds[s] / (total or 1)} for s in names]
    return [*rows, {"name": "in all", "seconds": _seconds(total), "share": None}] if rows else []


def _schema(schema: Json) -> str:
    if schema.get("kind") == "table":
        kinds = [str(_mapping(c).get("kind")) for c in _list(schema.get("columns"))]
        parts = [f"{len(kinds)} columns ({', '.join(f'{kinds.count(k)} {k}' for k in dict.fromkeys(kinds))})"]
        parts += ["their names, bounds and categories"]
        parts += [f"label {schema['label']}"] * bool(schema.get("label"))
        parts += [f"{show(schema['size'])} records declared"] * bool(schema.get("size"))
        return ", ".join(parts)
    if not {"height", "width"} <= set(schema):
        return ""
    colour = "grey" if schema.get("channels") == 1 else "colour"
    parts = [f"{schema['height']} x {schema['width']} pixels, {colour}", f"{len(_list(schema.get('classes')))} classes"]
    if schema.get("size"):
        parts.append(f"{show(schema['size'])} records declared")
    return ", ".join(parts)


def show(value: Any) -> str:
    """Any JSON value for reading."""
    if isinstance(value, Mapping):
        mean = wording.mean_of(value) if "mean" in value else None
        if mean is not None and _is_number(value.get("low")):
            return f"{mean:.4g} ({show(value['low'])} to {show(value['high'])}, {value.get('n')} seeds)"
        if mean is not None:
            return f"{mean:.4g} (mean of {value.get('n')})"
        return ", ".join(f"{k} {show(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(show, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return wording.number(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _seconds(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    return f"{value:.1f} s" if value < 60 else f"{minutes} min {rest} s" if minutes < 60 else f"{value / 3600:.1f} h"


def _mapping(value: Any) -> Json:
    return dict(value) if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else []


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
