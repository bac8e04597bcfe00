"""The commands that privatise: plan, fit, run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpgm import artefact
from dpgm.artefact import (
    CHECKPOINT,
    LEDGER,
    MODEL,
    RELEASE,
    REPORT,
    RUN,
    SCHEMA,
    TRAINING,
    read_json,
    write_json,
)
from dpgm.cli import afterwards
from dpgm.cli.console import Screen
from dpgm.cli.options import RELATIONS, Data, Flat, Output, Privacy, method_named, parse, with_method
from dpgm.cli.training import DEFAULT_METHOD, facts, must_be_new, train_release
from dpgm.evaluation.utility import CLASSIFIERS
from dpgm.methods import bounds
from dpgm.methods.base import Method, Model, Note, Plan, Release, check_allowed, privatise
from dpgm.methods.fit import check_public
from dpgm.methods.options import LabelMode, check_count, check_seed, check_takes
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, PrivacyError, ceil_digits, large_delta
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.together import Part
from dpgm.schema import Rows, SchemaError, schema_from_json

WAITS = (1.0, 5.0, 20.0, 60.0, 120.0, 240.0, 480.0)
"""Seconds between tries to write an answer that is paid for."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the command takes.

    Attributes:
        method: the method; 'dpgm methods' lists them, and '--method NAME --help' its options.
        labeller: share of the budget for a classifier that corrects the labels of the samples, above 0 and below 1.
        labeller_mode: what it does with samples: filter (draw again until it agrees; the default), soft (filter, and
            hand on its class probabilities for the CNN to learn from) or relabel (keep every sample, as what it reads).
        json: print one JSON object and nothing else on standard output.
    """

    data: Flat[Data]
    privacy: Flat[Privacy]
    method: str = DEFAULT_METHOD
    labeller: float | None = None
    labeller_mode: LabelMode | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class Fit(PlanOptions):
    """What the command takes.

    Attributes:
        method: the method; 'dpgm methods' lists them, and '--method NAME --help' its options.
        labeller: share of the budget for a classifier that corrects the labels of the samples, above 0 and below 1.
        labeller_mode: what it does with samples: filter (draw again until it agrees; the default), soft (filter, and
            hand on its class probabilities for the CNN to learn from) or relabel (keep every sample, as what it reads).
        json: print one JSON object and nothing else on standard output.
    """

    output: Flat[Output]


@dataclass(frozen=True, kw_only=True)
class Run(Fit):
    """What the command takes.

    Attributes:
        method: the method; 'dpgm methods' lists them, and '--method NAME --help' its options.
        labeller: share of the budget for a classifier that corrects the labels of the samples, above 0 and below 1.
        labeller_mode: what it does with samples: filter (draw again until it agrees; the default), soft (filter, and
            hand on its class probabilities for the CNN to learn from) or relabel (keep every sample, as what it reads).
        json: print one JSON object and nothing else on standard output.
        samples: how many synthetic records to draw.
        evaluate: train classifiers on them and test these on real test records; by default only for public named sets,
            as the scores of own records are not private.
        classifiers: which; the first, cnn, is the one that is named beforehand.
        reference: folder of 'dpgm reference', instead of training the same classifiers on real records again.
        fid_features: what FID and its kin look through: lenet, inception:FILE with local weights, or none.
    """

    samples: int = 10_000
    evaluate: bool | None = None
    classifiers: afterwards.Classifiers = CLASSIFIERS
    reference: Path | None = None
    fid_features: str = "lenet"


def plan_command(words: list[str]) -> int:
    """Print noise, epsilon, expected time and memory without reading a row."""
    options, method = _parse("plan", PlanOptions, words, "What a run would promise and cost; no row is read.")
    schema = options.data.open().schema
    check_takes(method, schema)
    budget = options.privacy.budget(schema)
    plan = method.plan(schema, relation=RELATIONS[options.privacy.relation], budget=budget)
    guarantee, screen = plan.guarantee(), Screen(as_json=options.json)
    if warning := large_delta(budget.delta, schema.size):
        screen.say(f"warning: {warning}")
    asks = [{"mechanism": cost.name, "times": n} for cost, n in plan.costs()]
    if bounds.private_columns(schema):
        words_of_it = f"bounds ({options.privacy.bounds_share:.0%} of the budget; the rest is the method's)"
        asks.insert(0, {"mechanism": words_of_it, "times": 1})
    with options.privacy.shared(budget, create=False) or nullcontext() as whole:
        share = options.privacy.bounds_share
        total = whole.afford("plan", bounds.prices(method, plan, share=share)) if whole else None
    value = {
        "method": method.to_json(),
        "schema": schema.to_json(),
        "guarantee": guarantee.to_json(),
        "shared": {"epsilon": total, "cap": whole.cap.epsilon, "delta": whole.cap.delta} if whole else None,
        "plan": dict(plan.details),
        "asks": asks,
        "seconds": plan.seconds,
        "memory_mb": plan.memory_mb,
    }
    lines = [
        guarantee.headline(),
        *(f"asks {a['times']} x {a['mechanism']}" for a in asks),
        *([f"with all that {options.privacy.ledger} holds: {_of_cap(whole, total)}"] if whole else []),
        *(f"{k}: {v:.6g}" if isinstance(v, float) else f"{k}: {v}" for k, v in plan.details.items()),
        f"expected: about {plan.seconds:.0f} s and {plan.memory_mb:.0f} MB on two CPU cores, before evaluation",
    ]
    screen.result(value, "\n".join(lines))
    return 0


def price(words: list[str]) -> dict[str, Any]:
    """What the command `run` with these words would promise and take: {seconds, memory_mb, headline}, or {error}."""
    try:
        options, method = _parse("run", Run, words, "")
        schema: Any = options.data.open().schema
        check_takes(method, schema)
        privacy = options.privacy
        plan = method.plan(schema, relation=RELATIONS[privacy.relation], budget=privacy.budget(schema))
        check_allowed(plan.guarantee(), privacy.allow)
    except (SchemaError, PrivacyError) as error:
        return {"seconds": 0.0, "error": str(error)}
    except SystemExit:  # the parser has said what is wrong
        return {"seconds": 0.0, "error": "an option is wrong; see above"}
    return {"seconds": plan.seconds, "memory_mb": plan.memory_mb, "headline": plan.guarantee().headline()}


def fit_command(words: list[str]) -> int:
    """Privatise and train."""
    options, method = _parse("fit", Fit, words, "Privatise once and train a generator.")
    screen = Screen(as_json=options.json)
    job = _Job(method, options, screen, ["fit", *words])
    model = job.fit()
    screen.result(job.facts(model), f"{model.guarantee.headline()}\nmodel in {options.output.out}")
    return 0


def run_command(words: list[str]) -> int:
    """Everything, into one folder."""
    about = "Read, plan, privatise once, train, sample, evaluate and report, all in one folder."
    options, method = _parse("run", Run, words, about)
    screen, out = Screen(as_json=options.json), options.output.out
    check_count(options.samples, "--samples")
    job = _Job(method, options, screen, ["run", *words])
    model = job.fit(whole=True)
    with screen.stage("sample"):
        metrics = afterwards.draw(model, out, n=options.samples, seed=options.output.seed)
    data = job.data
    wanted = afterwards.is_public(data) if options.evaluate is None else options.evaluate
    if wanted and data.has_test:
        screen.say("evaluating on real test records")
        with screen.stage("evaluate"):
            metrics = afterwards.measure(
                model,
                out,
                data,
                seed=options.output.seed,
                classifiers=options.classifiers,
                reference=options.reference,
                features=options.fid_features,
            )
    elif wanted:
        screen.say("not evaluated: the data have no test part; hold one out with --test-fraction 0.1")
    run = job.facts(model)
    write_json(out / RUN, run)
    if metrics:
        metrics |= {"seconds": sum(screen.seconds.values()), "peak_memory_mb": run["peak_memory_mb"]}
        write_json(out / artefact.METRICS, metrics)
    report = afterwards.report(out)
    lines = [model.guarantee.headline()]
    lines += afterwards.score_lines(metrics)
    lines += [f"{sum(screen.seconds.values()):.0f} s, {run['peak_memory_mb']:.0f} MB; report: {report}"]
    screen.result({**run, "metrics": metrics}, "\n".join(lines))
    return 0


# ---------------------------------------------------------------------------------------------------------------------


class _Job:
    """One run folder from plan to model; a killed job goes on where it stopped."""

    def __init__(self, method: Method, options: Fit, screen: Screen, words: list[str]) -> None:
        self.method, self.options, self.screen, self.words = method, options, screen, words
        self.data = options.data.open()
        self.plan: Plan | None = None

    def fit(self, *, whole: bool = False) -> Model:
        """Plan, privatise, train; write release, model, training curve and run.json.

        Args:
            whole: the job goes on after the model, so a folder is finished only when it holds a report.
        """
        out, seed = self.options.output.out, self.options.output.seed
        check_seed(seed)
        must_be_new(out, last=REPORT if whole else MODEL)
        schema: Any = self.data.schema
        check_takes(self.method, schema)
        check_public(self.method, self.data.name)
        privacy = self.options.privacy
        relation, budget = RELATIONS[privacy.relation], privacy.budget(schema)
        if warning := large_delta(budget.delta, schema.size):
            self.screen.say(f"warning: {warning}")
        plan = self.plan = self.method.plan(schema, relation=relation, budget=budget)
        check_allowed(plan.guarantee(), privacy.allow)
        self.screen.say(f"plan: {plan.guarantee().headline()}")
        with ExitStack() as stack:
            ledger = self._ledger(stack, budget)
            artefact.sweep(out)
            if bounds.private_columns(schema):
                schema, plan = self._bounded(ledger, budget)
            curator = Curator(self._reader, schema=schema, ledger=ledger)
            used = curator.reserve("fit", plan.items)  # refuses a changed plan
            if left := [n for n in (RELEASE, CHECKPOINT) if (out / n).exists() and not any(used.values())]:
                raise PrivacyError(
                    f"{out} holds {left[0]}, but its ledger knows no call for it: the ledger was cut or exchanged; "
                    "restore it from a copy, or start in another folder"
                )
            if (out / RELEASE).exists():
                release = artefact.load_release(out / RELEASE)
                if release.schema != schema:
                    raise PrivacyError(f"the release in {out} is of other records than {self.data.name} as given")
                try:  # equal prices do not make equal releases
                    release = dataclasses.replace(release, method=release.method.retrained(self.method))
                except SchemaError as error:
                    raise PrivacyError(f"the release in {out} was made by another plan: {error}") from error
                self.screen.say("the release is there already; nothing private is read")
            else:
                release = self._privatise(curator, plan, seed)
        if (model := self._trained()) is not None:
            self.screen.say("the model is there already")
            return model
        model, curve = train_release(release, seed, self.screen)
        artefact.save_model(model, out)
        write_json(out / TRAINING, curve)
        write_json(out / RUN, self.facts(model))
        return model

    def _ledger(self, stack: ExitStack, budget: Budget) -> Ledger:
        """The run's ledger, and the shared one above it; where that has no room for the run, nothing is written."""
        out, privacy = self.options.output.out, self.options.privacy
        path, terms = out / LEDGER, {"relation": RELATIONS[privacy.relation], "cap": budget}
        if privacy.ledger and privacy.ledger.resolve() == path.resolve():
            raise SchemaError(f"{path} is the ledger of this run alone; --ledger takes another file")
        if whole := privacy.shared(budget):
            stack.enter_context(whole)
            assert self.plan
            prices = bounds.prices(self.method, self.plan, share=privacy.bounds_share)
            ledger = Part(path, **terms, whole=whole, name=out.resolve().name, prices=prices)
            stack.callback(lambda: self.screen.say(f"all runs of {privacy.ledger}: {_of_cap(whole)}"))
        else:
            ledger = Ledger(path, **terms)
        stack.enter_context(ledger)
        ledger.describe({**self.data.facts(), "shared ledger": privacy.ledger and privacy.ledger.name})
        return ledger

    def _trained(self) -> Model | None:
        """The model that an interrupted run has left, if the same options and seed made it."""
        out = self.options.output.out
        if not (out / RUN).exists() or not (out / MODEL).exists():
            return None
        before = artefact.read_run(out)
        if (before["config"], before["seed"]) != (self.method.to_json(), self.options.output.seed):
            return None
        for clock in ("seconds", "cpu_seconds"):
            kept = {k: v for k, v in before.get(clock, {}).items() if k in ("read", "release", "train")}
            getattr(self.screen, clock).update(kept)
        return artefact.load_model(out)

    def _bounded(self, ledger: Ledger, budget: Budget) -> tuple[Any, Plan]:
        """The schema with the bounds that were paid for, kept in the folder, and the plan for what is left."""
        path, share = self.options.output.out / SCHEMA, self.options.privacy.bounds_share
        curator = Curator(self._reader, schema=self.data.schema, ledger=ledger)
        spent = bounds.price(curator, budget=budget, share=share)
        if not path.exists():
            with self.screen.stage("bounds"):
                found = bounds.find(curator, budget=budget, share=share).to_json()
                self._keep(lambda: write_json(path, found))
        schema: Any = schema_from_json(read_json(path))
        self.data = dataclasses.replace(self.data, schema=schema)
        self.screen.say(f"the bounds of {len(bounds.private_columns(curator.schema))} columns were found and charged")
        plan = self.plan = bounds.rest(self.method, schema, relation=ledger.relation, budget=budget, spent=spent)
        return schema, plan

    def _privatise(self, curator: Curator, plan: Plan, seed: int) -> Release:
        out = self.options.output.out
        with self.screen.stage("release"), self.screen.progress(plan.guarantee().epsilon) as show:

            def on_note(note: Note) -> None:
                show(note)
                artefact.save_checkpoint(note, out, self.method)

            state = artefact.load_checkpoint(out, self.method)
            release = privatise(
                self.method, curator, plan, seed=seed, on_note=on_note, state=state, allow=self.options.privacy.allow
            )
        for clock in (self.screen.seconds, self.screen.cpu_seconds):  # rows are read at the first answer
            clock["release"] -= clock.get("read", 0.0)
        self._keep(lambda: artefact.save_release(release, out / RELEASE))
        (out / CHECKPOINT).unlink(missing_ok=True)
        return release

    def _keep(self, write: Callable[[], object]) -> None:
        """Write what was paid for; as it cannot be drawn again, a full disk is waited for."""
        for wait in (*WAITS, None):
            try:
                write()
                return
            except OSError as error:
                if wait is None:
                    raise PrivacyError(
                        f"an answer was paid for and could not be written ({error}); unless a checkpoint holds it, it "
                        "is lost, and this ledger allows no second draw: make room, and run the same command again, or "
                        "start in another folder with what is left of your budget"
                    ) from error
                self.screen.say(f"paid for, but not written ({error}); make room: tried again in {wait:g} s")
                time.sleep(wait)

    def _reader(self) -> Rows:
        with self.screen.stage("read"):
            return self.data.train()

    def facts(self, model: Model) -> dict[str, Any]:
        """What run.json says so far."""
        seed = self.options.output.seed
        details = dict(self.plan.details) if self.plan else {}
        return {
            **facts(model, data=self.data.name, seed=seed, command=self.words, screen=self.screen),
            "plan": details,
        }


def _of_cap(whole: Ledger, total: float | None = None) -> str:
    total = whole.guarantee().epsilon if total is None else total
    return f"epsilon {ceil_digits(total)} of {whole.cap.epsilon:g}, delta {whole.cap.delta:g}"


def _parse(command: str, options: type[Any], words: list[str], about: str) -> tuple[Any, Method]:
    method = method_named(words, DEFAULT_METHOD)
    parsed = parse(command, with_method(options, method()), words, about=about)
    share, mode = parsed.common.labeller, parsed.common.labeller_mode
    if share is None and mode is not None:
        raise SchemaError(f"--labeller-mode {mode} needs a labeller; give its share of the budget too: --labeller 0.3")
    if share is None:
        return parsed.common, parsed.config
    from dpgm.methods.labelled import Labelled

    return parsed.common, Labelled(generator=parsed.config, share=share, mode=mode or "filter")
