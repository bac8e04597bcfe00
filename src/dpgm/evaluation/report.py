"""One self-contained page about a run: what is promised, on what evidence, at what cost, and how good samples are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from dpgm.artefact import REPORT, write_whole
from dpgm.evaluation import wording
from dpgm.evaluation.curve import HEIGHT, WIDTH, curves
from dpgm.evaluation.folder import Folder, Json, ReportError, called, evidence_of, read_folder
from dpgm.evaluation.scores import BESIDE_PRIVATE, is_number, items, mapping, others, panels, percent, show
from dpgm.evaluation.table_figures import figures
from dpgm.privacy.guarantee import Evidence, Guarantee, Source, ceil_digits

__all__ = ["ReportError", "render", "write_report"]

_STAGES = ("read", "release", "train", "sample", "evaluate")
_SELF = Source(
    key="dpgm",
    title="dpgm: differentially private generative models whose epsilon you can defend",
    authors="The dpgm authors",
    year=2026,
    where="software",
)


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder, whole or not at all, and return its path.

    It reads `run.json`, and where they are there `ledger.jsonl`, `metrics.json`, `training.json`, `audit.json` and
    `samples.npz` or `samples.png`. The page holds everything it needs: it asks nothing of any other file or host. Where
    run.json and ledger disagree, it shows the larger epsilon and the weaker evidence.

    Raises:
        ReportError: there is no `run.json`, or a JSON file is damaged.
    """
    target = Path(folder) / REPORT
    page = render(read_folder(Path(folder)))
    write_whole(target, lambda part: part.write_text(page, "utf-8"))
    return target


def render(folder: Folder) -> str:
    """The page as text."""
    template = resources.files("dpgm.evaluation").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"show": show, "percent": percent}
    return environment.from_string(template).render(view(folder))


def view(folder: Folder) -> Json:
    """What the template shows; every part may be empty."""
    run, metrics = folder.run, folder.metrics
    promise = _promise(folder)
    guarantee = mapping(run.get("guarantee"))
    exposures = _exposures(guarantee, folder)
    looks = [_exposure(e) for e in items(metrics.get("exposures"))]
    tables = panels(metrics, "" if promise["void"] else promise["epsilon"])
    attacks = _attacks(folder.audit)
    return {
        "method": called(run),
        "data": run.get("data", ""),
        "time": (folder.ledger or [{}])[0].get("time", "")[:10] if folder.ledger else "",
        **promise,
        "guarantee": guarantee,
        "headline": _headline(guarantee),
        "summary": wording.summary(promise["void"], promise["evidence"], _accesses(folder), metrics, exposures),
        "exposures": exposures,
        "looks": looks,
        "shown": wording.shown(metrics),
        "edges": wording.edges(guarantee, run, metrics, exposures, attacked=bool(attacks)),
        "spent": _spent(folder),
        "ledger": folder.ledger,
        "incidents": _incidents(folder),
        "attacks": attacks,
        "checks": _checks(folder.audit),
        "skipped": folder.audit.get("skipped", ""),
        "sources": _sources(run, guarantee),
        "grid": folder.grid,
        "grid_classes": folder.grid_classes,
        "curves": curves(folder.training),
        "figures": figures(metrics.get("figures")),
        "box": (WIDTH, HEIGHT),
        "panels": tables,
        "rivals_only": bool(tables) and all(panel.title == BESIDE_PRIVATE for panel in tables),
        "ranges": any("low" in str(metrics.get(k)) for k in ("accuracy", "utility", "fidelity")),
        "others": others(metrics),
        "costs": _costs(run),
        "machine": {k: run[k] for k in ("cores", "device") if run.get(k) is not None},
        "memory": run.get("peak_memory_mb"),
        "config": {k: v for k, v in mapping(run.get("config")).items() if k != "name"},
        "plan": mapping(run.get("plan")),
        "schema": _schema(mapping(run.get("schema"))),
        "command": str(run.get("command") or "").split(),
        "seed": run.get("seed"),
        "versions": mapping(run.get("versions")),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The promise


def _headline(guarantee: Json) -> str:
    """The line that the stored values make; a stored line could say anything."""
    try:
        return Guarantee.from_json(guarantee).headline()
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""


def _promise(folder: Folder) -> Json:
    """Evidence and epsilon as far as run.json *and* ledger support them."""
    guarantee = mapping(folder.run.get("guarantee"))
    doubts = list(folder.doubts)
    evidence = evidence_of(guarantee.get("evidence"))
    if not guarantee:
        doubts.append("run.json states no guarantee.")
    elif folder.ledger is None:
        doubts.append("There is no ledger.jsonl beside run.json: what was spent cannot be checked.")
    costs = [mapping(item.get("cost")) for e in folder.of("reserve") for item in items(e.get("plan"))]
    weakest = min((evidence_of(c.get("evidence")) for c in costs), default=evidence)
    if folder.of("seeded-noise") or folder.doubts:
        weakest = min(weakest, Evidence.UNSUPPORTED)
    if weakest < evidence and guarantee:
        doubts.append(f"run.json says “{evidence.word}”, the ledger supports no more than “{weakest.word}”.")
    epsilon, delta = guarantee.get("epsilon"), guarantee.get("delta", 0.0)
    reserved = max((e["epsilon"] for e in folder.of("reserve") if is_number(e.get("epsilon"))), default=None)
    if reserved is not None and is_number(epsilon) and reserved > epsilon * (1 + 1e-6):
        doubts.append(f"run.json states epsilon {ceil_digits(epsilon)}, the ledger reserved {ceil_digits(reserved)}.")
        epsilon = reserved
    units = [str(e.get("unit")) for e in (folder.ledger or [])[:1]]
    if guarantee and units and (unit := guarantee.get("unit", "record")) != units[0]:
        doubts.append(f"run.json protects the unit “{unit}”, the ledger “{units[0]}”.")
    for attack in _attacks(folder.audit):
        if attack["beaten"] and attack["kind"] == "membership":  # rests on a random split, which the data may not be
            doubts.append(f"Members were found more often than the claim allows: {attack['name']}.")
        elif attack["beaten"]:
            weakest = Evidence.REFUTED  # whatever was proved: there is a fault in the proof or in the code
            doubts.append(f"An attack on this run beat its claim: {attack['name']}.")
    doubts += [f"{c['name']}: {c.get('found', '')}." for c in _checks(folder.audit) if not c.get("passed")]
    evidence = min(evidence, weakest)
    sign, sentence = wording.VERDICTS[evidence]
    meaning: list[str] = []
    shown = ("", "")
    if is_number(epsilon) and is_number(delta):
        shown = (ceil_digits(epsilon), wording.exponent(delta))
        relation, unit = guarantee.get("relation", ""), guarantee.get("unit", "record")
        meaning = wording.meaning(epsilon, delta, str(relation), str(unit))
        meaning = meaning if evidence >= Evidence.CLAIMED else meaning[:2]  # the rest would read like a promise
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
    return list(dict.fromkeys(map(_exposure, [*items(guarantee.get("exposures")), *folder.of("expose")])))


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
        plan = [mapping(i) for i in items(entry.get("plan"))]
        for number, item in enumerate(plan):
            cost = mapping(item.get("cost"))
            rows.append(
                {
                    "label": entry.get("label", ""),
                    "name": cost.get("name", ""),
                    "event": wording.event(cost),
                    "proof": wording.proof(cost),
                    "planned": item.get("count", 0),
                    "used": used.get((entry.get("label"), number), 0),
                    "evidence": evidence_of(cost.get("evidence")).word,
                    "epsilon": ceil_digits(entry["epsilon"])
                    if number == len(plan) - 1 and is_number(entry.get("epsilon"))
                    else "",
                }
            )
    return rows


def _incidents(folder: Folder) -> list[str]:
    found = [f"“{e.get('label')}”, item {e.get('item')}: asked again after a crash" for e in folder.of("repeat")]
    return found + ["the noise was drawn from a seed: whoever knows it can remove it"] * bool(folder.of("seeded-noise"))


def _accesses(folder: Folder) -> int | None:
    """How often private records were read, by the ledger."""
    return sum(row["used"] for row in _spent(folder)) if folder.ledger is not None else None


def _attacks(audit: Json) -> list[Json]:
    """A row for each attack of `audit.json`, the successful ones first."""
    rows = [mapping(a) for a in items(audit.get("audits"))]
    keys = ("name", "kind", "verdict", "pair", "trials", "how", "weakest_twin")
    found = [{**dict.fromkeys(keys), **row, "beaten": bool(row.get("beaten"))} for row in rows if row.get("name")]
    return sorted(found, key=lambda row: not row["beaten"])


def _checks(audit: Json) -> list[Json]:
    """The questions of `audit.json` to the folder itself."""
    return [mapping(c) for c in items(audit.get("checks")) if mapping(c).get("name")]


def _sources(run: Json, guarantee: Json) -> list[Json]:
    """What to cite: the method's literature, that of its mechanisms, and this tool."""
    found: list[Json] = []
    tool = vars(_SELF) | {"where": f"version {mapping(run.get('versions')).get('dpgm', 'unknown')}"}
    listed = {mapping(s).get("key"): mapping(s) for s in [*items(run.get("sources")), *items(guarantee.get("sources"))]}
    for source in [*listed.values(), tool] if listed else []:
        try:
            bibtex = Source(**source).bibtex()
        except TypeError:  # a source of another version: its fields are still worth reading
            bibtex = ""
        found.append({**dict.fromkeys(("title", "authors", "year", "where", "part"), ""), **source, "bibtex": bibtex})
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The run


def _costs(run: Json) -> list[Json]:
    """Seconds per stage, in the order of the run, with their share of the whole."""
    seconds = {k: float(v) for k, v in mapping(run.get("seconds")).items() if is_number(v) and math.isfinite(v)}
    total = math.fsum(seconds.values())
    names = [s for s in _STAGES if s in seconds] + [s for s in seconds if s not in _STAGES]
    rows = [{"name": s, "seconds": _seconds(seconds[s]), "share": seconds[s] / (total or 1)} for s in names]
    return [*rows, {"name": "in all", "seconds": _seconds(total), "share": None}] if rows else []


def _schema(schema: Json) -> str:
    if schema.get("kind") == "table":
        kinds = [str(mapping(c).get("kind")) for c in items(schema.get("columns"))]
        parts = [f"{len(kinds)} columns ({', '.join(f'{kinds.count(k)} {k}' for k in dict.fromkeys(kinds))})"]
        parts += ["their names, bounds and categories"]
        parts += [f"label {schema['label']}"] * bool(schema.get("label"))
        parts += [f"{show(schema['size'])} records declared"] * bool(schema.get("size"))
        return ", ".join(parts)
    if not {"height", "width"} <= set(schema):
        return ""
    colour = "grey" if schema.get("channels") == 1 else "colour"
    parts = [f"{schema['height']} x {schema['width']} pixels, {colour}", f"{len(items(schema.get('classes')))} classes"]
    if schema.get("size"):
        parts.append(f"{show(schema['size'])} records declared")
    return ", ".join(parts)


def _seconds(value: float) -> str:
    minutes, rest = divmod(round(value), 60)
    return f"{value:.1f} s" if value < 60 else f"{minutes} min {rest} s" if minutes < 60 else f"{value / 3600:.1f} h"
