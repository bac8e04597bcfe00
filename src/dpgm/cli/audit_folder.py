"""The command `audit` on a finished run: its promise derived anew, its mechanisms and its samples attacked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from dpgm import artefact
from dpgm.artefact import AUDIT, LEDGER, SAMPLES, TABLE, write_json
from dpgm.cli import afterwards
from dpgm.cli.console import Screen
from dpgm.cli.ledgers import ledger_of
from dpgm.cli.options import Data, Flat, parse, printable
from dpgm.data.errors import DataError
from dpgm.data.table_files import is_table
from dpgm.evaluation.audit import Audit, audit_membership, audit_method
from dpgm.evaluation.audit.consistency import Check, alike, check_folder
from dpgm.evaluation.audit.methods import stages
from dpgm.evaluation.folder import Json, called, read_folder, read_ledger
from dpgm.evaluation.scores import items
from dpgm.evaluation.utility import public_door
from dpgm.methods import bounds
from dpgm.privacy import accountant
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Evidence, Guarantee, PrivacyError, Relation
from dpgm.privacy.mechanism import Cost
from dpgm.schema import ImageSchema, Rows, SchemaError, schema_from_json

_STANDS = "Nothing contradicts the promise. That is no proof."
_SUSPECTED = (
    "MEMBERS WERE FOUND MORE OFTEN THAN THE CLAIM ALLOWS. If train and held-out part are a random split of one "
    "population, the promise does not stand; otherwise this is a reason to look."
)
_HELD_OUT = "membership inference compares with held-out records"
_FALLEN = "THE PROMISE DOES NOT STAND."


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """What the command takes.

    Attributes:
        folder: a run folder; the data may be left out when the run names a public set.
        kind: "consistency" derives the promise anew from ledger and plan, "mechanism" attacks every mechanism of the
            method, "membership" guesses which records the samples were made from; "all" does what it can of these.
        allow: "exposure" lets membership inference look at *private* records: the look is written in the ledger, and
            every report says so. Named public sets need no permission.
        pairs: pairs of a train and a held-out record, at most.
        trials: runs on each of two neighbouring data sets, at most.
        ledger: the ledger that the run shares with others, in which the look is written as well.
        json: print one JSON object.
    """

    folder: tyro.conf.Positional[Path]
    data: Flat[Data]
    kind: Literal["all", "consistency", "mechanism", "membership"] = "all"
    allow: Literal["exposure"] | None = None
    pairs: int = 2_000
    trials: int = 20_000
    ledger: Path | None = None
    json: bool = False


def audit_folder(words: list[str]) -> tuple[bool, str, dict[str, Any], Screen]:
    """Audit the run folder that `words` begin with; write the outcome to audit.json, and the report anew.

    Returns:
        whether nothing speaks against it, the text, the JSON value, and the screen.
    """
    given = words
    folder = Path(words[0])
    run, before = artefact.read_run(folder), read_folder(folder).audit
    if len(words) == 1 or words[1].startswith("-"):
        words = [words[0], run["data"], *words[1:]]
    options = parse("audit", _Folder, words, about="Attack what a finished run promises. It can refute, never confirm.")
    screen = Screen(as_json=options.json)
    checks: list[Check] = []
    audits: list[Audit] = []
    skipped: list[str] = []
    with screen.stage("audit"):
        if options.kind in ("all", "consistency"):
            checks = check_folder(folder)
        if options.kind in ("all", "mechanism"):
            try:
                attacked, doubts = _mechanisms(options, run)
                audits, skipped = audits + attacked, skipped + doubts
            except SchemaError as error:
                if options.kind == "mechanism":
                    raise
                skipped.append(f"mechanisms were not attacked: {error}")
        if options.kind in ("all", "membership"):
            try:
                audits.append(_membership(options, run))
            except (SchemaError, DataError, PrivacyError) as error:
                if options.kind == "membership":
                    raise
                skipped.append(f"membership was not looked at: {error}")
    faults = [c for c in checks if not c.passed]
    beaten = [a for a in audits if a.beaten and a.evidence is Evidence.PROVED]
    fallen = [a for a in beaten if a.kind != "membership"]  # that rests on a random split, which the data may not be
    value = {
        "command": printable(["audit", *given]),
        "consistent": not faults,
        "checks": [c.to_json() for c in checks],
        "audits": [a.to_json() for a in audits],
        "proved_and_beaten": [a.name for a in fallen],
        "skipped": "; ".join(skipped),
        "seconds": round(screen.seconds["audit"], 1),
    }
    tried = {"consistency"} if checks else set()
    tried |= {_way(a.to_json()) for a in audits}
    write_json(folder / AUDIT, _beside(value, before, tried))
    afterwards.report(folder)
    lines = [f"{'ok   ' if c.passed else 'FAULT'} {c.name}: {c.found}" for c in checks]
    blocks = ["\n".join(lines)] * bool(lines) + [a.text() for a in audits] + skipped
    closing = _FALLEN if faults or fallen else _SUSPECTED if beaten else _STANDS
    blocks += [f"{closing} {value['seconds']:.0f} s."]
    return not (faults or beaten), "\n\n".join(blocks), value, screen


def _way(audit: Json) -> str:
    return "membership" if audit.get("kind") == "membership" else "mechanism"


def _beside(value: Json, before: Json, tried: set[str]) -> Json:
    """`value`, and what an earlier audit of the folder found in ways that were not tried again."""
    old = [a for a in items(before.get("audits")) if _way(a) not in tried]
    names = {a["name"] for a in old}
    checks = value["checks"] if "consistency" in tried else items(before.get("checks"))
    return value | {
        "consistent": all(c["passed"] for c in checks),
        "checks": checks,
        "audits": [*old, *value["audits"]],
        "proved_and_beaten": [
            *(n for n in items(before.get("proved_and_beaten")) if n in names),
            *value["proved_and_beaten"],
        ],
    }


def _mechanisms(options: _Folder, run: dict[str, Any]) -> tuple[list[Audit], list[str]]:
    """The attacks, on a plan for few made-up records, and in what that plan is not the run's."""
    method = artefact.method_from_json(run["config"])
    if (options.folder / artefact.RELEASE).exists():
        method = method.reopened(artefact.load_release(options.folder).tensors)
    promise = run["guarantee"]
    budget = Budget(epsilon=promise["epsilon"], delta=promise["delta"])
    relation, kind = Relation(promise["relation"]), type(schema_from_json(run["schema"]))
    small: Any = next(s for s in stages(method) if isinstance(s, kind))  # pictures and tables are asked otherwise
    found = audit_method(method, budget=budget, relation=relation, schema=small, trials=options.trials)
    here = {cost.name: (cost, n) for cost, n in method.plan(small, relation=relation, budget=budget).costs()}
    other: list[str] = []
    absent: list[str] = []
    for cost, n in _costs(options.folder)[1]:
        if (beside := here.get(cost.name)) is None:
            absent.append(cost.name)
        elif n != beside[1] or not alike(cost.event, beside[0].event):
            other.append(cost.name)
    doubts = [f"of the run's mechanisms these were not attacked: {', '.join(absent)}"] if absent else []
    if other:
        doubts.append(
            f"attacked with another noise or number of calls than the run's: {', '.join(other)}; the attack's plan "
            f"is for {small.size or 'few'} made-up records and the whole budget"
        )
    return found, doubts


def _membership(options: _Folder, run: dict[str, Any]) -> Audit:
    schema: Any = schema_from_json(run["schema"])
    folder, data = options.folder, options.data.open(schema)
    if private := bounds.private_columns(data.schema):  # the run has paid for their bounds
        columns = [schema.columns[j] if j in private else c for j, c in enumerate(data.schema.columns)]
        data = dataclasses.replace(data, schema=dataclasses.replace(data.schema, columns=tuple(columns)))
    if data.schema.to_json() | {"size": None} != schema.to_json() | {"size": None}:
        raise SchemaError(f"the run was of other records than {data.name}; give the data options that the run had")
    afterwards.check_held_out(folder, data)
    if not data.has_test:
        todo = (
            "give other records of their kind with --test FILE"
            if is_table(data.name)
            else "a next run can hold some out"
        )
        raise SchemaError(f"the run held out none of {data.name} to compare with; {todo}")
    guarantee, costs = _costs(folder)

    def claim(delta: float) -> float:
        return accountant.epsilon_of(costs, delta=delta, relation=guarantee.relation)

    odds = None
    if isinstance(schema, ImageSchema):
        batch = artefact.load_samples(folder / SAMPLES)
        samples = Rows(image=batch.images, label=batch.labels)
        odds = artefact.load_model(folder).classify
    else:
        samples = Rows(table=artefact.load_table(folder / TABLE, schema).table)
    terms: dict[str, Any] = {
        "schema": schema,
        "guarantee": guarantee,
        "claim": claim,
        "odds": odds,
        "pairs": options.pairs,
        "name": f"{called(run)} on {run['data']}, members among the samples' sources",
    }
    if afterwards.is_public(data):
        return audit_membership(samples, data.test(), door=public_door(data.train), **terms)
    if options.allow != "exposure":
        raise PrivacyError(
            f"{data.name} may be private, and membership inference looks at its train records; what it prints is not "
            "covered by epsilon. To have the look written in the ledger and go on, add --allow exposure"
        )
    with ledger_of(folder, options.ledger) as ledger:
        ledger.expose(reason=_HELD_OUT, audience="readers of the audit and the report")  # before a record is read
        door = Curator(data.train, schema=schema, ledger=ledger).expose  # type: ignore[arg-type]
        return audit_membership(samples, data.test(), door=door, **terms)


def _costs(folder: Path) -> tuple[Guarantee, list[Any]]:
    """What the ledger promises, and its reserved costs."""
    entries, doubts = read_ledger(folder / LEDGER)
    if not entries or doubts:
        raise SchemaError(f"the ledger of {folder} is missing or damaged; restore it from a copy")
    costs = [(Cost.from_json(i["cost"]), i["count"]) for e in entries if e["kind"] == "reserve" for i in e["plan"]]
    opened = entries[0]
    guarantee = Guarantee(
        relation=Relation(opened["relation"]),
        unit=opened["unit"],
        epsilon=opened["epsilon"],
        delta=opened["delta"],
        evidence=min((c.evidence for c, _ in costs), default=Evidence.PROVED),
        mechanisms=(),
    )
    return guarantee, costs
