"""The command `audit`: attacks on what a method, a published mechanism, a broken twin or a finished run claims."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from dpgm import methods
from dpgm.artefact import RUN
from dpgm.cli.console import Screen
from dpgm.cli.options import RELATIONS, parse
from dpgm.evaluation.audit import TWINS, Audit, audit_canaries, audit_method, one_step, suite, tie, trained
from dpgm.evaluation.audit.canaries import FAULTS
from dpgm.evaluation.audit.methods import stages
from dpgm.evaluation.audit.suite import BRISK, Job, outcome
from dpgm.methods.base import Method
from dpgm.privacy.guarantee import Budget, Evidence
from dpgm.schema import SchemaError

BEATEN = 5
"""Exit code: something proved was beaten, a folder contradicts itself, or a broken twin got away."""


@dataclass(frozen=True, kw_only=True)
class _Audit:
    """What the command takes. What would change nothing in the audit that is asked for is refused.

    Attributes:
        name: a method (every mechanism of its plan is audited, on tiny pictures and tables), "twins" for all broken
            twins or the name of one of them, or "all" for everything there is; or the folder of a finished run, which
            has options of its own: dpgm audit RUN --help.
        privacy: the method's form, where it has several; "published" runs the counterexample to the paper's.
        mode: slicing: what is released of a record.
        shuffled: slicing, full-rank: the form whose price counts on the random order of the rows.
        kind: "mechanism" draws every mechanism many times; "canary" trains and guesses which canaries took part (by
            DP-SGD once, beside its broken twins; pge published by many small networks).
        epsilon: privacy loss claimed; by default 1, and 0.2 for the published form of pge.
        delta: slack.
        relation: which data sets are neighbours; twins, canaries and the published form of pge have their own.
        trials: runs on each of two neighbouring data sets, at most; trainings, for pge published with --kind canary.
        canaries: canaries in a run, by default 500.
        runs: runs with canaries.
        weakest: look for the weakest broken twin of each mechanism that the runs catch.
        quick: with "all", only what takes seconds.
        jobs: with "all", processes at work.
        json: print one JSON object.
    """

    name: tyro.conf.Positional[str]
    privacy: str | None = None
    mode: str | None = None
    shuffled: bool = False
    kind: Literal["mechanism", "canary"] | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    relation: Literal["add-remove", "replace"] = "add-remove"
    trials: int | None = None
    canaries: int | None = None
    runs: int = 1
    weakest: bool = True
    quick: bool = False
    jobs: int = 1
    json: bool = False


def audit_command(words: list[str]) -> int:
    """Attack a claim.

    Returns:
        0 all came out as it must; 5 something did not.
    """
    if words and (Path(words[0]) / RUN).is_file():
        from dpgm.cli.audit_folder import audit_folder

        stands, text, value, screen = audit_folder(words)
        screen.result(value, text)
        return 0 if stands else BEATEN
    options = parse("audit", _Audit, words, about="Attack a claimed epsilon. An audit can refute; it cannot confirm.")
    if options.trials is not None and options.trials < 2:
        raise SchemaError(f"trials is {options.trials}; allowed is 2 or more, usually 1,000 to 1,000,000")
    _refuse_idle(options, words)
    screen = Screen(as_json=options.json)
    if options.name == "all":
        return _everything(options, screen)
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
    word = f"{beaten} beaten, nothing proved among them" if beaten else "none beaten"
    return f"{count}, {word}. Not beaten is no proof."


# ---------------------------------------------------------------------------------------------------------------------
# Options

_OF_METHODS = ("privacy", "mode", "shuffled", "kind", "epsilon", "delta", "weakest")


def _published(options: _Audit) -> bool:
    return options.name == "pge" and options.privacy == "published"


def _canary(options: _Audit) -> bool:
    return options.kind == "canary" or (options.kind is None and options.canaries is not None)


def _heard(options: _Audit) -> tuple[str, tuple[str, ...], str]:
    """What is attacked, the options that change something there, and what to do about the others."""
    if options.name == "all":
        return "all", ("quick", "jobs"), "to set more, name one thing"
    if options.name == "twins" or options.name in TWINS:
        return options.name, ("epsilon", "delta", "trials"), "twins have a relation and an attack of their own"
    if _published(options):
        advice = "claim and data sets are given. --kind canary trains networks, --trials says how many on each side"
        return "pge --privacy published", ("privacy", "kind", "epsilon", "trials"), advice
    if _canary(options):
        return f"{options.name} on canaries", (*_OF_METHODS, "canaries", "runs"), "the others go with --kind mechanism"
    return options.name, (*_OF_METHODS, "relation", "trials"), "--canaries and --runs go with --kind canary"


def _refuse_idle(options: _Audit, words: list[str]) -> None:
    """An option that is not heard would let one believe that something else had been attacked."""
    what, heard, advice = _heard(options)
    given = [w.partition("=")[0].replace("_", "-") for w in words if w.startswith("--")]
    names = {w: w.removeprefix("--").removeprefix("no-") for w in given}
    idle = [w for w, name in names.items() if name not in (*heard, "json")]
    if not idle:
        return
    rest = "it" if len(idle) == 1 else "them"
    values = {w: getattr(options, names[w]) for w in idle}
    told = ", ".join(w if isinstance(v, bool) else f"{w} {v}" for w, v in values.items())
    allowed = ", ".join(f"--{name}" for name in (*heard, "json"))
    raise SchemaError(
        f"{told} would change nothing in an audit of '{what}'; allowed are {allowed}. Leave {rest} out; {advice}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# One thing


def _audits(options: _Audit) -> list[Audit]:
    trials: dict[str, Any] = {} if options.trials is None else {"trials": options.trials}
    epsilon = 1.0 if options.epsilon is None else options.epsilon
    budget = Budget(epsilon=epsilon, delta=options.delta)
    if options.name == "twins" or options.name in TWINS:
        chosen = TWINS.values() if options.name == "twins" else [TWINS[options.name]]
        return [a for twin in chosen for a in twin(budget, **trials)]
    published = options.privacy == "published"
    canary = _canary(options)
    if _published(options):
        claimed = 0.2 if options.epsilon is None else epsilon
        return [trained(epsilon=claimed, **trials) if canary else one_step(epsilon=claimed, **trials)]
    method = _method(options)
    if canary:
        return _canaries(method, options, budget)
    attack: list[Audit] = []
    if options.name == "dp2vae" and options.privacy in (None, "published", "local"):
        attack = [tie("published" if published else "local", epsilon=epsilon, delta=options.delta, **trials)]
    relation = RELATIONS[options.relation]
    terms = {"budget": budget, "relation": relation, "weakest": options.weakest and not published, **trials}
    return [*attack, *(a for schema in stages(method) for a in audit_method(method, schema=schema, **terms))]


def _canaries(method: Method, options: _Audit, budget: Budget) -> list[Audit]:
    """The method, and its broken twins under the same attack."""
    method = dataclasses.replace(method, **BRISK.get(method.name, {}))
    terms: dict[str, Any] = {"budget": budget, "canaries": options.canaries or 500, "runs": options.runs}
    found = [audit_canaries(method, weakest=options.weakest, **terms)]
    for fault, broken in FAULTS.items():
        found.append(audit_canaries(method, broken=broken, fault=fault, weakest=False, **terms))
    return found


def _method(options: _Audit) -> Method:
    name, form = options.name, {"privacy": options.privacy, "mode": options.mode, "shuffled": options.shuffled or None}
    try:
        kind = methods.get(name)
    except KeyError as error:
        known = ", ".join([*methods.names(), "twins", *TWINS, "all"])
        raise SchemaError(
            f"there is nothing called '{name}' to audit, and no finished run; there are {known}"
        ) from error
    chosen = {k: v for k, v in form.items() if v is not None}
    if unknown := sorted(chosen.keys() - {f.name for f in dataclasses.fields(kind)}):
        raise SchemaError(f"method '{name}' has no such forms; leave --{' and --'.join(unknown)} out")
    return kind.from_json(chosen)


# ---------------------------------------------------------------------------------------------------------------------
# Everything


def _everything(options: _Audit, screen: Screen) -> int:
    """Every audit there is, a line each."""
    jobs = suite(quick=options.quick)
    lines: list[str] = []
    values: list[dict[str, Any]] = []
    wrong: list[str] = []
    skipped: dict[str, str] = {}
    with screen.stage("audit"):
        for job, found, seconds in _worked(jobs, quick=options.quick, processes=options.jobs):
            audits: list[Audit] = []
            if isinstance(found, str):
                skipped[job] = found
            else:
                audits = found
            for audit in audits:
                result = outcome(audit)
                wrong += [audit.name] * (result != "as it must be")
                lines.append(_line(job, audit, result))
                values.append({"job": job, "outcome": result, **audit.to_json()})
            told = (
                f"{len(audits)} audits, {seconds:.0f} s" if audits else skipped.get(job, "promises nothing of the kind")
            )
            screen.say(f"{job}: {told}")
    total = screen.seconds["audit"]
    beaten = sum(v["beaten"] for v in values)
    closing = f"{len(values)} audits, {beaten} beaten; "
    closing += f"{len(skipped)} jobs were not done ({'; '.join(skipped)}); " if skipped else ""
    if wrong:
        closing += f"NOT AS IT MUST BE: {', '.join(wrong)}."
    else:
        closing += "each came out as it must. Not beaten is no proof."
    header = f"{'claim':>22}  {'found':>9}  {'at most':>7}  {'trials':>9}  verdict, and the weakest broken twin caught"
    screen.result(
        {"audits": values, "wrong": wrong, "skipped": skipped, "seconds": total},
        "\n".join([header, *lines, "", f"{closing} {total:.0f} s."]),
    )
    return BEATEN if wrong else 0


def _line(job: str, audit: Audit, result: str) -> str:
    """One audit in two lines."""
    one = audit.best if audit.best.beaten and not audit.stated.beaten else audit.stated
    claim = f"{one.claimed:.4g} at {one.delta:.2g}"
    verdict = ("BEATEN" if audit.beaten else "not beaten") + (f"; {audit.twin}" if audit.twin else "")
    flag = "" if result == "as it must be" else f"   <-- {result}"
    return (
        f"{job}: {audit.name} ({audit.evidence.word})\n"
        f"{claim:>22}  {one.found:>9.3g}  {audit.ceiling:>7.3g}  {audit.trials:>9,}  {verdict}{flag}"
    )


def _worked(jobs: list[Job], *, quick: bool, processes: int) -> Any:
    """(name, audits, seconds) of each job, in order."""
    if processes <= 1:
        for number in range(len(jobs)):
            yield _work(number, quick)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_work, range(len(jobs)), [quick] * len(jobs))


def _work(number: int, quick: bool) -> tuple[str, list[Audit] | str, float]:
    """Do one job; another process makes the same list of them. A missing package is a reason in words."""
    job = suite(quick=quick)[number]
    start = time.perf_counter()
    try:
        found: list[Audit] | str = job.run()
    except SchemaError as error:
        found = f"not done: {error}"
    return job.name, found, time.perf_counter() - start
