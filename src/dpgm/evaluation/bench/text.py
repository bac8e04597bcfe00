"""Results as a page of Markdown that stands in a repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpgm.evaluation.bench.board import alone, closeness, duration, interval, of_other_sizes, percent, sizes, terms
from dpgm.evaluation.bench.collect import EVIDENCE, FAILED

NAME = "results.md"


def markdown(results: Mapping[str, Any]) -> str:
    """A table for each data set, a row for each line of the leaderboard, a column for each epsilon."""
    machine, cells = results["machine"], results["cells"]
    done = f"{sum(c['status'] == 'done' for c in cells)} of {len(cells)} runs are finished"
    if taken := results.get("taken_over", 0):
        done += f" ({taken} taken over from other benches, with the times of their own machines)"
    out = [f"# {results['title']}", ""]
    out += [results["about"], ""] if results["about"] else []
    out += [
        f"    {results['command']}",
        "",
        f"{machine['processor']}, {_count(machine['cores'], 'core')}, {_count(machine['jobs'], 'run')} at a time with "
        f"{_count(machine['threads'], 'thread')} each; Python {machine['python']}, dpgm {machine['dpgm']}, "
        f"torch {machine['torch']}. {done}; together they took {duration(results['wall_seconds'])}. {sizes(results)}; "
        "train on synthetic, test on real. Time is from reading the data to having the samples, without what a killed "
        "attempt has spent; seconds of CPU count all cores.",
        "",
    ]
    for data in dict.fromkeys(line["data"] for line in results["summary"]):
        out += _table(data, [line for line in results["summary"] if line["data"] == data])
        out += [larger, ""] if (larger := of_other_sizes(data, results)) else []
    failed = [f"- {c['cell']}: exit code {c['code']}: {c['error']}" for c in cells if c["status"] == FAILED]
    return "\n".join([*out, *(["## Failed", "", *failed, ""] if failed else [])])


def _table(data: str, lines: list[dict[str, Any]]) -> list[str]:
    epsilons = sorted({x["epsilon"] for x in lines if x["epsilon"] is not None})
    if not any(x["n"] for x in lines):
        return []
    rows: dict[str, dict[Any, dict[str, Any]]] = {}
    for line in lines:
        if line["n"]:
            rows.setdefault(line["row"], {})[line["epsilon"]] = line
    there = sorted({x["epsilon"] for x in lines if x["n"] and x["epsilon"] is not None})
    shown = 1.0 if 1.0 in there else there[0] if there else None
    close = closeness(lines)
    seen = [close.head] if close.head else []
    head = ["row", *(f"epsilon {e:g}" for e in epsilons), *seen, "time", "CPU", "memory", "evidence", "guarantee"]
    out = [f"## {data}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, at in rows.items():
        scores = [_score(at.get(e) or at.get(None)) for e in epsilons]
        first = at.get(None) or at.get(shown) or {}  # a row without a run at this epsilon shows scores only
        timed = first if first.get("epsilon") else {}
        costs = [duration(timed[k]["mean"]) if k in timed else "" for k in ("seconds", "cpu_seconds")]
        memory = f"{first['peak_memory_mb']['mean']:.0f} MB" if first else ""
        cells = [name, *scores, *(close.of(first) for _ in seen), *costs, memory, _evidence(at), _terms(at)]
        out.append(f"| {' | '.join(cells)} |")
    notes = [] if shown is None else [f"Whatever is no score is at epsilon {shown:g}."]
    notes += [lone] if (lone := alone(lines)) else []
    return [*out, "", *(line for note in notes for line in (note, ""))]


def _evidence(at: Mapping[Any, Mapping[str, Any]]) -> str:
    """The weakest of a row's epsilons, and where it holds, if not at all."""
    weakest = min((x["evidence"] for x in at.values()), key=EVIDENCE.index)
    where = [f"{e:g}" for e, x in sorted(at.items()) if x["evidence"] == weakest] if len(at) > 1 else []
    return weakest if len(where) == len(at) or not where else f"{weakest} (at {', '.join(where)})"


def _terms(at: Mapping[Any, Mapping[str, Any]]) -> str:
    """Neighbours and delta of a row; nothing of real records, which are not private."""
    return "; ".join(dict.fromkeys(terms(x) for e, x in at.items() if e is not None))


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _score(line: dict[str, Any] | None) -> str:
    return "" if line is None else f"{percent(line['score'])} ({interval(line['score'], scale=100)})"
