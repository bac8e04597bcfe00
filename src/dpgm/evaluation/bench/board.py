"""The leaderboard: one self-contained page about an experiment's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeAlias

import jinja2

from dpgm.evaluation.bench.charts import Point, chart, colours
from dpgm.evaluation.bench.collect import FAILED, PENDING
from dpgm.evaluation.bench.spec import REAL

Json: TypeAlias = dict[str, Any]

NAME = "leaderboard.html"
_CLASSIFIERS = ("labeller", "dp-cnn", "dp-logreg")
"""Methods that make no samples: private classifiers trained on real records, a generator's rivals."""
_SOUND = {"yes": "sound", "fault": "open fault", "refuted": "refuted"}


def render(results: Mapping[str, Any]) -> str:
    """The page as text; it asks nothing of any other file or host."""
    template = resources.files("dpgm.evaluation.bench").joinpath("board.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(view(results))


def view(results: Mapping[str, Any]) -> Json:
    """What the template shows."""
    lines: list[Json] = results["summary"]
    names = list(dict.fromkeys(line["row"] for line in lines))
    paint = colours(names)
    cells: list[Json] = results["cells"]
    return {
        "title": results["title"],
        "about": results["about"],
        "command": results["command"],
        "machine": results["machine"],
        "sizes": sizes(results),
        "taken_over": results.get("taken_over", 0),
        "wall": duration(results["wall_seconds"]),
        "sets": [
            {**_set(data, lines, results["papers"], paint), "larger": of_other_sizes(data, results)}
            for data in dict.fromkeys(x["data"] for x in lines)
        ],
        "failed": [c for c in cells if c["status"] == FAILED],
        "pending": sum(c["status"] == PENDING for c in cells),
        "done": sum(c["status"] == "done" for c in cells),
        "resumed": sum(c["status"] == "done" and c["attempts"] > 1 for c in cells),
    }


def sizes(results: Mapping[str, Any]) -> str:
    """How many synthetic records there are, row by row where one has its own number."""
    own = results.get("other_samples", {})
    rest = [f"{n:,} in the row {name}" for name, n in own.items()]
    return ", ".join([f"{results['samples']:,} synthetic records a run", *rest])


def of_other_sizes(data: str, results: Mapping[str, Any]) -> str:
    """What as many real records give as a row with its own number of samples has; "" where none has."""
    found: dict[str, str] = {}
    for line in results["summary"]:
        if line["data"] == data and line["row"] in results.get("other_samples", {}) and "accuracy_real_cnn" in line:
            found[line["row"]] = percent(line["accuracy_real_cnn"])
    each = "; ".join(f"{row} {score} %" for row, score in found.items())
    return f"Beside rows with their own number of samples, the CNN on as many real records, or all: {each}." * bool(
        each
    )


@dataclass(frozen=True)
class Closeness:
    """How close samples are: which number says so, its head, and on how many records most rows have it."""

    key: str
    head: str
    n: int | None = None

    def of(self, line: Json) -> str:
        """The mean, with the number of records where it is another than most rows': an FID falls with it."""
        n = line.get("fid_n") if self.n else None
        return number(line.get(self.key)) + (f" (n = {n:,})" if n not in (None, self.n) else "")


def closeness(lines: Sequence[Json]) -> Closeness:
    """FID for pictures, PairSimilarity for tables; or none."""
    if features := next((line["features"] for line in lines if line.get("features")), ""):
        sizes = Counter(line["fid_n"] for line in lines if line.get("fid_n"))
        n = max(sizes, key=sizes.__getitem__) if sizes else None
        return Closeness("fid", f"FID[{features}]" + (f", n = {n:,}" if n else ""), n)
    name = "PairSimilarity"
    there = any(f"fidelity_{name}" in line for line in lines)
    return Closeness(f"fidelity_{name}", name) if there else Closeness("", "")


def terms(line: Mapping[str, Any]) -> str:
    """Of which neighbours and delta an epsilon speaks; only rows of equal ones are compared."""
    delta = "" if line.get("delta") is None else f", delta {line['delta']:g}".replace("e-0", "e-")
    return f"{line['relation']}{delta}"


def _set(data: str, every: Sequence[Json], papers: Sequence[Json], paint: Mapping[str, str]) -> Json:
    """Tables and charts of one data set."""
    own = [line for line in every if line["data"] == data and line["n"]]
    epsilons = sorted({line["epsilon"] for line in own if line["epsilon"] is not None})
    real = [line for line in own if line["method"] == REAL]
    private = [line for line in own if line["method"] != REAL]
    shape = {e: i for i, e in enumerate(epsilons)}
    against_epsilon: dict[str, list[Point]] = {}
    against_seconds: dict[str, list[Point]] = {}
    for line in private:
        score, title = line["score"], f"{line['row']}, epsilon {line['epsilon']:g}: {100 * line['score']['mean']:.2f} %"
        place = {"y": score["mean"], "low": score.get("low"), "high": score.get("high"), "title": title}
        against_epsilon.setdefault(line["row"], []).append(Point(x=line["epsilon"], **place))
        seconds = Point(x=max(0.1, line["cpu_seconds"]["mean"]), shape=shape[line["epsilon"]], **place)
        against_seconds.setdefault(line["row"], []).append(seconds)
    rivals = [line["row"] for line in private if line["method"] in _CLASSIFIERS]
    at = {e: [line for line in private if line["epsilon"] == e] for e in epsilons}
    level = real[0]["score"]["mean"] if real else None
    close = closeness(own)
    tables = [
        {"epsilon": f"{e:g}", "rows": _rows(lines, real, paint, close), "alone": alone(lines)}
        for e, lines in at.items()
    ]
    empty = {"rows": _rows([], real, paint, close), "epsilon": None, "alone": ""}
    return {
        "data": data,
        "judge": _judges(private, real),
        "close": close.head,
        "level": level is not None,
        "tables": tables or [empty],
        "by_epsilon": chart(
            against_epsilon, paint, label="epsilon", joined=True, ticks=epsilons, dashed=rivals, level=level
        ),
        "by_seconds": chart(
            against_seconds, paint, label="seconds of CPU, from data to samples", joined=False, level=level
        ),
        "legend": [(name, paint[name]) for name in against_epsilon],
        "shapes": list(zip([f"{e:g}" for e in epsilons], ("circle", "square", "triangle", "diamond"), strict=False)),
        "papers": _papers(data, papers, epsilons),
        "missing": sorted({x["row"] for x in every if x["data"] == data and not x["n"]}),
    }


def _judges(private: Sequence[Json], real: Sequence[Json]) -> str:
    """What the scores are: soft labels are named where a row has them."""
    lines = [line for line in private if line["method"] not in _CLASSIFIERS] or private or real
    return " or ".join(dict.fromkeys(str(line["judge"]).replace("_", " ") for line in lines))


def _rows(private: Sequence[Json], real: Sequence[Json], paint: Mapping[str, str], close: Closeness) -> list[Json]:
    """Rows of a table, best first; real records, which are no competitor, stand on top."""
    alike: dict[str, list[Json]] = {}
    for x in sorted(private, key=_mean, reverse=True):
        alike.setdefault(terms(x), []).append(x)
    return [
        {
            "row": x["row"],
            "colour": paint[x["row"]],
            "kind": "real" if x["method"] == REAL else "classifier" if x["method"] in _CLASSIFIERS else "generator",
            "score": percent(x["score"]),
            "note": interval(x["score"], scale=100, unit="%"),
            **_standing(x, alike),
            "close": close.of(x),
            "close_note": interval(x.get(close.key)),
            "seconds": "" if x["method"] == REAL else duration(x["seconds"]["mean"]),
            "cpu": "" if x["method"] == REAL else f"{duration(x['cpu_seconds']['mean'])} of CPU",
            "memory": f"{x['peak_memory_mb']['mean']:.0f} MB",
            "evidence": x["evidence"],
            "relation": x["relation"],
            "delta": "" if x["delta"] is None else f"{x['delta']:g}".replace("e-0", "e-"),
            "n": x["n"],
            "of": x["of"],
            "failed": x["failed"],
        }
        for x in [*real, *sorted(private, key=_mean, reverse=True)]
    ]


def _standing(line: Json, alike: Mapping[str, Sequence[Json]]) -> Json:
    """Whether a generator is the best of its like, and what its score means beside theirs; nothing of other rows."""
    fellows = alike.get(terms(line), ())
    makers = [x for x in fellows if x["method"] not in _CLASSIFIERS]
    if line not in makers:
        return {"best": False, "remarks": []}
    rival = next((x for x in fellows if x["method"] in _CLASSIFIERS), None)
    said = [_first(makers)] if line is makers[0] else []
    said += [_beside(line, rival)] if rival is not None else []
    among = f"among rows of {terms(line)}: " if len(alike) > 1 else ""
    return {"best": _mean(line) == _mean(makers[0]), "remarks": [among + s for s in said if s]}


def alone(lines: Sequence[Json]) -> str:
    """Which generators have no private classifier of their epsilon, relation and delta beside them; "" for none."""
    private = [x for x in lines if x["n"] and x["method"] != REAL]
    rivals = {(x["epsilon"], terms(x)) for x in private if x["method"] in _CLASSIFIERS}
    makers = [x for x in private if x["method"] not in _CLASSIFIERS]
    bare = dict.fromkeys(x["row"] for x in makers if (x["epsilon"], terms(x)) not in rivals)
    if not bare:
        return ""
    return (
        f"No private classifier of the same epsilon, relation and delta was run beside {', '.join(bare)}: whether it "
        'would serve classification better is not known. A row with method = "labeller" or "dp-cnn" (on tables '
        '"dp-logreg") tells.'
    )


def _mean(line: Json) -> float:
    return line["score"]["mean"]


def _n(line: Json) -> int:
    return line["score"]["n"]


def _apart(one: Json, other: Json) -> bool | None:
    """Whether two scores' intervals are disjoint; None where one has no interval."""
    a, b = one["score"], other["score"]
    return a["low"] > b["high"] or b["low"] > a["high"] if "low" in a and "low" in b else None


def _first(makers: Sequence[Json]) -> str:
    """How sure it is that the first of the generators is the best; "" where all others are told apart from it."""
    first, *rest = makers
    if any(_apart(first, x) is False for x in rest):
        return "best by the mean; intervals of others overlap"
    bare = [x for x in rest if _apart(first, x) is None]
    return f"best by the mean ({_seeds(first, min(bare, key=_n))})" if bare else ""


def _beside(line: Json, rival: Json) -> str:
    """How a generator does beside the best private classifier; "" where it is better by the intervals."""
    apart, them = _apart(line, rival), "a private classifier on real records"
    if apart is False:
        return f"not told apart from {them}: the intervals overlap"
    below = _mean(line) < _mean(rival)
    if apart:
        return f"loses to {them}" if below else ""
    return f"by the mean {'below' if below else 'not below'} {them} ({_seeds(line, rival)})"


def _seeds(one: Json, other: Json) -> str:
    """What a comparison of bare means rests on."""
    return f"{_n(one)} seed{'s' * (_n(one) != 1)} against {_n(other)}"


def _papers(data: str, papers: Sequence[Json], epsilons: Sequence[float]) -> Json:
    own = [p for p in papers if data in p]
    shown = sorted({float(e) for p in own for e in p[data]} | set(epsilons)) if own else []
    rows = [
        {
            **{k: p[k] for k in ("name", "classifier", "note", "source")},
            "word": _SOUND[p["sound"]],
            "sound": p["sound"],
            "values": [p[data].get(f"{e:g}") for e in shown],
        }
        for p in own
    ]
    return {"epsilons": [f"{e:g}" for e in shown], "rows": rows}


# ---------------------------------------------------------------------------------------------------------------------


def percent(value: Mapping[str, Any]) -> str:
    """The mean of a share, in per cent."""
    return f"{100 * value['mean']:.2f}"


def interval(value: Mapping[str, Any] | None, *, scale: float = 1, unit: str = "") -> str:
    """What stands below a mean: its interval, or how many seeds there are."""
    if value is None:
        return ""
    if "low" in value and value["low"] == value["high"]:  # an interval without width would claim to know it all
        return f"{value['n']} seeds, all alike"
    if "low" in value:
        return f"{scale * value['low']:.4g} to {scale * value['high']:.4g}{unit and ' ' + unit}, {value['n']} seeds"
    return f"{value['n']} seeds" if value["n"] != 1 else "1 seed"


def number(value: Mapping[str, Any] | None) -> str:
    """The mean of any number."""
    return "" if value is None else f"{value['mean']:.3g}"


def duration(seconds: float) -> str:
    """Seconds for reading."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
