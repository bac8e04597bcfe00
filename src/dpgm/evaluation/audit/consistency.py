"""Does a run folder say the same thing everywhere? Its promise, derived anew from ledger and plan.

Nothing private is read. A folder that is consistent may still be false: whoever writes all of its files can write
anything. What is found out is damage, edits, and files of different runs under one roof.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpgm import artefact
from dpgm.evaluation.folder import read_ledger
from dpgm.methods import bounds
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, Evidence, Guarantee, PrivacyError, Relation
from dpgm.privacy.mechanism import Cost
from dpgm.schema import SchemaError, schema_from_json

_CLOSE = 1e-6
"""Relative difference of two epsilons that is put down to another version of a library."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to a run folder.

    Attributes:
        name: what was asked.
        passed: whether the folder answers well.
        found: the answer in words.
    """

    name: str
    passed: bool
    found: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return vars(self).copy()


def check_folder(folder: Path) -> list[Check]:
    """All questions to a run folder, in order; a question whose ground is missing fails.

    Args:
        folder: a finished run.

    Raises:
        SchemaError: it holds no run.json.
    """
    run = artefact.read_run(folder)
    checks: list[Check] = []
    facts: dict[str, Any] = {"run": run, "folder": folder}
    for name, ask in _QUESTIONS.items():
        try:
            checks.append(Check(name=name, passed=True, found=ask(facts)))
        except _Fault as fault:
            checks.append(Check(name=name, passed=False, found=str(fault)))
        except (PrivacyError, SchemaError, KeyError, TypeError, ValueError, OSError) as error:
            checks.append(Check(name=name, passed=False, found=f"cannot be answered: {error}"))
    return checks


class _Fault(Exception):
    """What a folder does wrong."""


def _chain(facts: dict[str, Any]) -> str:
    """The hash chain; leaves the entries for the other questions."""
    entries, doubts = read_ledger(facts["folder"] / artefact.LEDGER)
    if not entries:
        raise _Fault("there is no ledger.jsonl, so nothing says what was spent")
    facts["entries"] = entries
    if doubts:
        raise _Fault(doubts[0])
    return f"{len(entries)} entries, each bound to the one before"


def _spending(facts: dict[str, Any]) -> str:
    """Every charge lies within what was reserved, and came after it."""
    counts: dict[tuple[str, int], int] = {}
    used: dict[tuple[str, int], int] = {}
    for entry in facts["entries"]:
        if entry["kind"] == "reserve":
            counts |= {(entry["label"], i): item["count"] for i, item in enumerate(entry["plan"])}
        elif entry["kind"] == "charge":
            key = (entry["label"], entry["item"])
            if key not in counts or not used.get(key, 0) < entry["until"] <= counts[key]:
                allowed = counts.get(key, 0)
                raise _Fault(f"item {key[1]} of '{key[0]}' was charged up to {entry['until']}; allowed is {allowed}")
            used[key] = entry["until"]
    return f"{sum(used.values()):,} of {sum(counts.values()):,} reserved calls were made"


def _price(facts: dict[str, Any]) -> str:
    """Epsilon recomputed from the reserved events, against what the ledger wrote and may at most allow."""
    opened, costs, plans = facts["entries"][0], list[tuple[Cost, int]](), dict[str, list[tuple[Cost, int]]]()
    relation = Relation(opened["relation"])
    total = 0.0
    for entry in facts["entries"]:
        if entry["kind"] == "reserve":
            plans[entry["label"]] = [(Cost.from_json(i["cost"]), i["count"]) for i in entry["plan"]]
            costs += plans[entry["label"]]
            total = accountant.epsilon_of(costs, delta=opened["delta"], relation=relation)
            if not _near(total, entry["epsilon"]):
                said = entry["epsilon"]
                raise _Fault(f"the events of '{entry['label']}' come to epsilon {total:.6g}; it says {said:.6g}")
    facts["costs"], facts["plans"], facts["relation"] = costs, plans, relation
    if total > opened["epsilon"] * (1 + _CLOSE):
        raise _Fault(f"epsilon {total:.6g} is above the cap {opened['epsilon']:g}")
    return f"epsilon {total:.6g} at delta {opened['delta']:g}, at most {opened['epsilon']:g}"


def _promise(facts: dict[str, Any]) -> str:
    """run.json against what the ledger supports."""
    stated = Guarantee.from_json(facts["run"]["guarantee"])
    _same(stated, facts, "run.json")
    line, said = stated.headline(), facts["run"]["guarantee"].get("headline")
    if said != line:
        raise _Fault(f"run.json has the headline '{said}'; what it states makes '{line}'")
    return line.split(", assuming")[0]


def _release(facts: dict[str, Any]) -> str:
    """The promise that travels with the release."""
    release = artefact.load_release(facts["folder"] / artefact.RELEASE)
    _same(release.guarantee, facts, "release.safetensors")
    facts["release"] = release
    return "the release carries the same promise"


def _plan(facts: dict[str, Any]) -> str:
    """The method's plan made anew: its events and its evidence are those of the ledger."""
    method = artefact.method_from_json(facts["run"]["config"])
    if "release" in facts:
        method = method.reopened(facts["release"].tensors)
    opened = facts["entries"][0]
    schema: Any = schema_from_json(facts["run"]["schema"])
    budget = Budget(epsilon=opened["epsilon"], delta=opened["delta"])
    before = facts["plans"].get("bounds")
    if before:  # bounds of columns were paid for first
        plan = bounds.rest(method, schema, relation=facts["relation"], budget=budget, spent=before[0])
    else:
        plan = method.plan(schema, relation=facts["relation"], budget=budget)
    fresh, held = plan.costs(), facts["plans"].get("fit", [])
    for (cost, n), (kept, m) in zip(fresh, held, strict=False):
        if (cost.name, cost.evidence, n) != (kept.name, kept.evidence, m) or not alike(cost.event, kept.event):
            raise _Fault(
                f"'{method.name}' would ask {n} x {cost.name}, {cost.event} ({cost.evidence.word}); the ledger holds "
                f"{m} x {kept.name}, {kept.event} ({kept.evidence.word})"
            )
    if len(fresh) != len(held):
        raise _Fault(f"'{method.name}' would ask {len(fresh)} mechanisms; the ledger reserved {len(held)}")
    return f"'{method.name}' asks what the ledger holds: " + ", ".join(f"{n} x {c.name}" for c, n in fresh)


def _looks(facts: dict[str, Any]) -> str:
    """Looks at the rows beside the guarantee; those at public records stand in the metrics alone."""
    path = facts["folder"] / artefact.METRICS
    scored = artefact.read_json(path).get("exposures", []) if path.exists() else []
    found = [f"{e['reason']} (seen by {e['audience']})" for e in facts["entries"] if e["kind"] == "expose"]
    others = [said for e in scored if (said := f"{e['reason']} (seen by {e['audience']})") not in found]
    words = [f"not private beside the promise: {'; '.join(found)}" if found else "the ledger records none"]
    words += [f"metrics.json names, of public records: {'; '.join(others)}"] if others else []
    return "; ".join(words)


_QUESTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "the ledger's chain holds": _chain,
    "no more was asked than reserved": _spending,
    "the events come to the stated epsilon": _price,
    "run.json promises what the ledger supports": _promise,
    "the release promises the same": _release,
    "the method's plan is what was reserved": _plan,
    "looks that no epsilon covers": _looks,
}


def _same(stated: Guarantee, facts: dict[str, Any], where: str) -> None:
    costs: list[tuple[Cost, int]] = facts["costs"]
    opened = facts["entries"][0]
    total = accountant.epsilon_of(costs, delta=opened["delta"], relation=facts["relation"]) if costs else 0.0
    weakest = min((c.evidence for c, _ in costs), default=Evidence.PROVED)
    if any(e["kind"] == "seeded-noise" for e in facts["entries"]):
        weakest = min(weakest, Evidence.UNSUPPORTED)
    for fault in _differences(stated, total, opened["delta"], facts["relation"], weakest):
        raise _Fault(f"{where} {fault}")
    if stated.unit != opened["unit"]:
        raise _Fault(f"{where} protects the unit '{stated.unit}'; the ledger's is '{opened['unit']}'")
    needed = dict.fromkeys(a for c, _ in costs for a in c.assumptions)
    if left_out := [a for a in needed if a not in stated.assumptions]:
        raise _Fault(f"{where} leaves out what the ledger assumes: {'; '.join(left_out)}")


def _differences(stated: Guarantee, total: float, delta: float, relation: Relation, weakest: Evidence) -> Iterator[str]:
    if stated.epsilon < total * (1 - _CLOSE):
        yield f"states epsilon {stated.epsilon:.6g}; the ledger reserved {total:.6g}"
    if (stated.delta, stated.relation) != (delta, relation):
        yield f"states delta {stated.delta:g}, {stated.relation.value}; the ledger's are {delta:g}, {relation.value}"
    if stated.evidence > weakest:
        yield f"says '{stated.evidence.word}'; the ledger supports '{weakest.word}'"


def alike(one: object, other: object) -> bool:
    """Events of one kind and, nearly, of the same numbers: another version may calibrate to other last digits."""
    numbers = [list(dataclasses.asdict(e).values()) for e in (one, other)]  # pyright: ignore[reportArgumentType]
    return type(one) is type(other) and all(_near(a, b) for a, b in zip(*numbers, strict=True))


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= _CLOSE * max(a, b, 1e-9)
