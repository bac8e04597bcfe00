"""Everything at once: what is proved must stand, every broken twin and every refuted form must fall."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from dpgm import methods
from dpgm.evaluation.audit.bound import Audit
from dpgm.evaluation.audit.canaries import FAULTS, audit_canaries
from dpgm.evaluation.audit.memoriser import memoriser
from dpgm.evaluation.audit.methods import audit_method, stages
from dpgm.evaluation.audit.published import one_step, tie
from dpgm.evaluation.audit.trained import trained
from dpgm.evaluation.audit.twins import TWINS
from dpgm.methods.base import Method
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.schema import AnySchema, SchemaError, TableSchema

SURE = 0.99999
"""Confidence of each audit: among the hundred or so of a whole run, one false alarm in a thousand runs."""
BUDGETS = (Budget(epsilon=1.0, delta=1e-5), Budget(epsilon=1.0, delta=0.0))
BRISK: dict[str, dict[str, Any]] = {
    "dp2vae": {"hidden": 100, "steps": 20, "rate": 1.0},
    "dp-cnn": {"steps": 20, "rate": 1.0},
    "labeller": {"steps": 40, "rate": 0.5},
}
"""Options under which canaries are told apart best: few steps, in which most or all of the records take part."""
_MORE: dict[str, tuple[dict[str, Any], ...]] = {
    "dp2vae": ({"warm_start": "components"},),
    "pge": ({"features": "scattering", "directions": 8},),
    "slicing": ({"mode": "paper"}, {"mode": "full-rank"}, {"mode": "full-rank", "shuffled": True}),
}
_FORM = "privacy"

Outcome = Literal["as it must be", "BEATEN THOUGH PROVED", "NOT BEATEN THOUGH BROKEN"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A group of audits that run one after the other.

    Attributes:
        name: of what.
        run: makes them.
        quick: whether it is a matter of seconds.
    """

    name: str
    run: Callable[[], list[Audit]]
    quick: bool = False


def outcome(audit: Audit) -> Outcome:
    """Whether an audit came out as it must: proved claims stand, refuted ones fall."""
    if audit.beaten and audit.evidence is Evidence.PROVED:
        return "BEATEN THOUGH PROVED"
    if not audit.beaten and audit.evidence is Evidence.REFUTED:
        return "NOT BEATEN THOUGH BROKEN"
    return "as it must be"


def suite(*, quick: bool) -> list[Job]:
    """All jobs, or those of seconds."""
    jobs = [*_counterexamples(quick=quick), *_twins(), *_canaries(), *_methods(quick=quick)]
    return [job for job in jobs if job.quick or not quick]


def forms(kind: type[Method]) -> Iterator[dict[str, Any]]:
    """The options that choose a method's forms: the values of its field `privacy`, and what else changes its asking."""
    hint = typing.get_type_hints(kind).get(_FORM)
    yield from ({_FORM: value} for value in typing.get_args(hint)) if hint else ({},)
    yield from _MORE.get(kind.name, ())


def attack_method(
    kind: type[Method], options: dict[str, Any], relation: Relation, budget: Budget, schema: AnySchema, **terms: Any
) -> list[Audit]:
    """Audits of everything that a method asks; none where it makes no such promise.

    Args:
        kind: the method.
        options: its form.
        relation: which data sets are neighbours.
        budget: what it may spend.
        schema: public facts about the made-up records.
        terms: of `audit_method`.
    """
    method: Method = kind(**options)
    facts: Any = schema
    try:
        plan = method.plan(facts, relation=relation, budget=budget)
    except (PrivacyError, SchemaError):  # a promise that is refused cannot be broken
        return []
    if plan.guarantee().evidence is Evidence.REFUTED:  # the counterexamples attack these
        return []
    return audit_method(method, relation=relation, budget=budget, schema=schema, **terms)


def _methods(*, quick: bool) -> Iterator[Job]:
    terms: dict[str, Any] = {"confidence": SURE, "weakest": not quick}
    for name in methods.names():
        kind = methods.get(name)
        for options, schema, relation, budget in itertools.product(forms(kind), stages(kind), Relation, BUDGETS):
            form = [k if v is True else f"{v}" for k, v in options.items()]
            table = ["tables"] * (isinstance(schema, TableSchema) and len(stages(kind)) > 1)
            words = [*form, *table, relation.value, *["pure"] * (budget.delta == 0)]
            first = name in _QUICK and relation is Relation.ADD_REMOVE and budget.delta > 0
            # Noise of pure privacy is drawn call by call, in hundreds of dimensions.
            trials = 10_000 if quick else 100_000 if budget.delta else 300
            run = partial(attack_method, kind, options, relation, budget, schema, trials=trials, **terms)
            yield Job(name=f"{name}, {', '.join(words)}", run=run, quick=first)


_QUICK = ("merf", "pge", "slicing", "mst")


def _counterexamples(*, quick: bool) -> Iterator[Job]:
    few: dict[str, Any] = {"confidence": SURE, **({"trials": 4_000} if quick else {})}
    yield Job(name="pge published, one step", run=lambda: [one_step(**few)], quick=True)
    yield Job(name="dp2vae published, a tie", run=lambda: [tie("published", **few), tie("local", **few)], quick=True)
    yield Job(name="membership, a memoriser", run=lambda: list(memoriser(confidence=SURE)), quick=True)
    yield Job(name="pge published, trained networks", run=lambda: [trained(trials=200, confidence=0.999)])
    own = partial(audit_method, budget=BUDGETS[0], confidence=SURE, weakest=False)
    yield Job(
        name="dp2vae published, its own code", run=lambda: own(methods.get("dp2vae").from_json({_FORM: "published"}))
    )


def _twins() -> Iterator[Job]:
    for name, twin in TWINS.items():
        yield Job(name=f"twin {name}", run=partial(_pair, twin), quick=True)


def _pair(twin: Callable[..., tuple[Audit, Audit]]) -> list[Audit]:
    return list(twin(BUDGETS[0], confidence=SURE))


def _canaries() -> Iterator[Job]:
    for name, options in BRISK.items():
        method = methods.get(name)(**options)
        terms: dict[str, Any] = {"budget": BUDGETS[0], "canaries": 300, "runs": 5 if name == "dp2vae" else 3}
        for fault, broken in FAULTS.items():  # that a twin falls by chance once in a thousand times does no harm
            more = {"broken": broken, "fault": fault, "weakest": False, **terms}
            yield Job(name=f"canaries, {name}, {fault}", run=partial(_canary, method, more))
        # Its power is what the twins above show; the weakest of them is looked for by `dpgm audit NAME --canaries`.
        yield Job(
            name=f"canaries, {name}", run=partial(_canary, method, {"confidence": SURE, "weakest": False, **terms})
        )


def _canary(method: Method, terms: dict[str, Any]) -> list[Audit]:
    return [audit_canaries(method, **terms)]
