"""The command `audit`: attacks on what a method, a published mechanism or a broken twin claims."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from dpgm import methods
from dpgm.cli.console import Screen
from dpgm.cli.options import RELATIONS, parse
from dpgm.evaluation.audit import TWINS, Audit, audit_method, one_step, tie
from dpgm.methods.base import Method
from dpgm.privacy.guarantee import Budget, Evidence
from dpgm.schema import SchemaError

BEATEN = 5
"""Exit code: something proved was beaten, so there is a fault in a proof or in the code."""


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """What the command takes.

    Attributes:
        name: a method (every mechanism of its plan is audited, on tiny pictures), "twins" for all broken twins, or the
            name of one of them.
        privacy: the method's form, where it has several; "published" runs the counterexample to the paper's.
        epsilon: privacy loss claimed; by default 1, and 0.2 for the published form of pge.
        delta: slack.
        relation: which data sets are neighbours; twins and counterexamples have their own.
        trials: runs on each of two neighbouring data sets, at most.
        weakest: look for the weakest broken twin of each mechanism that the runs catch.
        json: print one JSON object.
    """

    name: tyro.conf.Positional[str]
    privacy: str | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    relation: Literal["add-remove", "replace"] = "add-remove"
    trials: int | None = None
    weakest: bool = True
    json: bool = False


def audit_command(words: list[str]) -> int:
    """Attack a claim.

    Returns:
        0 nothing proved was beaten; 5 something proved was.
    """
    options = parse("audit", _Audit, words, about="Attack a claimed epsilon. An audit can refute; it cannot confirm.")
    if options.trials is not None and options.trials < 2:
        raise SchemaError(f"trials is {options.trials}; allowed is 2 or more, usually 1,000 to 1,000,000")
    screen = Screen(as_json=options.json)
    with screen.stage("audit"):
        found = _audits(options)
    seconds = screen.seconds["audit"]
    # A claim that is known to be void is expected to fall; one that is proved must stand.
    fallen = [a for a in found if a.beaten and a.evidence is Evidence.PROVED]
    text = "\n\n".join(a.text() for a in found) + f"\n\n{_summary(found, fallen)} {seconds:.0f} s."
    value = {"audits": [a.to_json() for a in found], "proved_and_beaten": [a.name for a in fallen], "seconds": seconds}
    screen.result(value, text)
    return BEATEN if fallen else 0


def _summary(found: list[Audit], fallen: list[Audit]) -> str:
    if fallen:
        return f"PROVED, BUT BEATEN: {', '.join(a.name for a in fallen)}. Do not use it; please report this."
    beaten = sum(a.beaten for a in found)
    count = "1 audit" if len(found) == 1 else f"{len(found)} audits"
    return f"{count}, {beaten} beaten, nothing proved among them. Not beaten is no proof."


def _audits(options: _Audit) -> list[Audit]:
    trials: dict[str, Any] = {} if options.trials is None else {"trials": options.trials}
    epsilon = 1.0 if options.epsilon is None else options.epsilon
    budget = Budget(epsilon=epsilon, delta=options.delta)
    if options.name == "twins" or options.name in TWINS:
        chosen = TWINS.values() if options.name == "twins" else [TWINS[options.name]]
        return [a for twin in chosen for a in twin(budget, **trials)]
    published = options.privacy == "published"
    if options.name == "pge" and published:
        return [one_step(epsilon=0.2 if options.epsilon is None else epsilon, **trials)]
    attack: list[Audit] = []
    if options.name == "dp2vae" and options.privacy in (None, "published", "local"):
        attack = [tie("published" if published else "local", epsilon=epsilon, delta=options.delta, **trials)]
    method = _method(options.name, options.privacy)
    relation = RELATIONS[options.relation]
    weakest = options.weakest and not published
    return [*attack, *audit_method(method, budget=budget, relation=relation, weakest=weakest, **trials)]


def _method(name: str, privacy: str | None) -> Method:
    try:
        kind = methods.get(name)
    except KeyError as error:
        known = ", ".join([*methods.names(), "twins", *TWINS])
        raise SchemaError(f"there is nothing called '{name}' to audit; there are {known}") from error
    if privacy is None:
        return kind()
    if "privacy" not in {f.name for f in dataclasses.fields(kind)}:
        raise SchemaError(f"method '{name}' has one form only; leave --privacy out")
    return kind.from_json({"privacy": privacy})
