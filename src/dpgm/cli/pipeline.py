"""The commands that privatise: plan, fit, run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpgm import artefact
from dpgm.artefact import (
    REPORT,
    RUN,
    write_json,
)
from dpgm.cli import afterwards
from dpgm.cli.console import Screen
from dpgm.cli.job import Job, of_cap
from dpgm.cli.ledgers import promise_of
from dpgm.cli.options import RELATIONS, Data, Flat, Output, Privacy, method_named, parse, with_method
from dpgm.cli.training import DEFAULT_METHOD
from dpgm.evaluation.utility import CLASSIFIERS
from dpgm.methods import bounds
from dpgm.methods.base import Method
from dpgm.methods.fit import check_public, check_split
from dpgm.methods.options import LabelMode, check_count, check_takes
from dpgm.privacy.guarantee import PrivacyError, check_allowed, large_delta
from dpgm.schema import SchemaError, TableSchema


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What every method takes.

    Attributes:
        method: the method; 'dpgm methods' lists them.
        labeller: share of the budget for a classifier that corrects the labels of the samples, above 0 and below 1.
        labeller_mode: what it does with samples: filter (draw again until it agrees; the default), soft (filter, and
            hand on its class probabilities for the CNN to learn from) or relabel (keep every sample, as what it reads).
        labeller_features: public features that it reads, as for mepf, e.g. trained:F.safetensors+scattering; scattering
            by default.
        json: print one JSON object and nothing else on standard output.
    """

    data: Flat[Data]
    privacy: Flat[Privacy]
    method: str = DEFAULT_METHOD
    labeller: float | None = None
    labeller_mode: LabelMode | None = None
    labeller_features: str | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class Fit(PlanOptions):
    """What every method takes."""

    output: Flat[Output]


@dataclass(frozen=True, kw_only=True)
class Run(Fit):
    """What every method takes.

    Attributes:
        samples: how many synthetic records to draw.
        evaluate: train classifiers on the samples and test them on real test records; by default for public named sets
            only, as the scores of own records are not private.
        classifiers: those to train; cnn is the one that was named beforehand, the others stand beside it.
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
    data = options.data.open()
    schema = data.schema
    check_takes(method, schema)
    check_public(method, data.name)
    budget = options.privacy.budget(schema)
    plan = method.plan(schema, relation=RELATIONS[options.privacy.relation], budget=budget)
    check_split(plan, data.facts()["held out"])
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
        *([f"with all that {options.privacy.ledger} holds: {of_cap(whole, total)}"] if whole else []),
        *(f"{k}: {_shown(v)}" for k, v in plan.details.items()),
        f"expected: about {max(1, plan.seconds):.0f} s and at most {plan.memory_mb:.0f} MB on two CPU cores, before "
        "evaluation",
    ]
    screen.result(value, "\n".join(lines))
    return 0


def price(words: list[str]) -> dict[str, Any]:
    """What the command `run` with these words would promise and take: {seconds, memory_mb, headline}, or {error}."""
    try:
        options, method = _parse("run", Run, words, "")
        data = options.data.open()
        schema: Any = data.schema
        check_takes(method, schema)
        _check_scored(data)
        _check_judges(options, data)
        privacy = options.privacy
        plan = method.plan(schema, relation=RELATIONS[privacy.relation], budget=privacy.budget(schema))
        check_allowed(plan.guarantee(), privacy.allow)
        check_split(plan, data.facts()["held out"])
    except (SchemaError, PrivacyError) as error:
        return {"seconds": 0.0, "error": str(error)}
    except SystemExit:  # the parser has said what is wrong
        return {"seconds": 0.0, "error": "an option is wrong; see above"}
    return {"seconds": plan.seconds, "memory_mb": plan.memory_mb, "headline": plan.guarantee().headline()}


def settings(words: list[str]) -> dict[str, Any]:
    """The method that the command `run` with these words would fit, with all its options; run.json says `config`."""
    return _parse("run", Run, words, "")[1].to_json()


def check_scored(words: list[str]) -> None:
    """Refuse data on which the command `run` with these words could score nothing; no row is read."""
    _check_scored(_parse("run", Run, words, "")[0].data.open())


def _check_scored(data: Any) -> None:
    if not data.has_test:
        raise SchemaError(f"{data.name} has no test part to score on; give one (test) or hold one out (test_fraction)")
    if (data.schema.label is None) if isinstance(data.schema, TableSchema) else data.schema.n_classes < 2:
        raise SchemaError(f"{data.name} has no label of two or more classes; scores are those of classifiers: name one")


def _check_judges(options: Any, data: Any) -> None:
    seed, features = options.output.seed, options.fid_features
    afterwards.check_judges(data, options.classifiers, options.reference, features, seed=seed)


def fit_command(words: list[str]) -> int:
    """Privatise and train."""
    options, method = _parse("fit", Fit, words, "Privatise once and train a generator.")
    screen = Screen(as_json=options.json)
    job = Job(method, options, screen, ["fit", *words])
    model = job.fit()
    screen.result(job.facts(model), f"{model.guarantee.headline()}\nmodel in {options.output.out}")
    return 0


def run_command(words: list[str]) -> int:
    """Everything, into one folder."""
    about = "Read, plan, privatise once, train, sample, evaluate and report, all in one folder."
    options, method = _parse("run", Run, words, about)
    screen, out = Screen(as_json=options.json), options.output.out
    check_count(options.samples, "--samples")
    job = Job(method, options, screen, ["run", *words])
    _check_judges(options, job.data)
    model = job.fit(last=REPORT)
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
                ledger=options.privacy.ledger,
            )
    elif wanted:
        screen.say("not evaluated: the data have no test part; hold one out with --test-fraction 0.1")
    promise = promise_of(model, out)
    run = {**job.facts(model), "guarantee": promise.to_json()}
    write_json(out / RUN, run)
    if metrics:
        metrics |= {"seconds": sum(screen.seconds.values()), "peak_memory_mb": run["peak_memory_mb"]}
        write_json(out / artefact.METRICS, metrics)
    report = afterwards.report(out)
    lines = [promise.headline()]
    lines += afterwards.score_lines(metrics)
    lines += [f"{sum(screen.seconds.values()):.0f} s, {run['peak_memory_mb']:.0f} MB; report: {report}"]
    screen.result({**run, "metrics": metrics}, "\n".join(lines))
    return 0


# ---------------------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> str:
    """A number of a plan with as many digits as mean something; names before numbers that belong together."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parse(command: str, options: type[Any], words: list[str], about: str) -> tuple[Any, Method]:
    method = method_named(words, DEFAULT_METHOD)
    about += f" The group 'options' ends with those of the method {method.name}; see others by '--method NAME --help'."
    parsed = parse(command, with_method(options, method()), words, about=about)
    share, mode = parsed.common.labeller, parsed.common.labeller_mode
    seen = parsed.common.labeller_features
    for word, value in (("mode", mode), ("features", seen)):
        if share is None and value is not None:
            needs = f"--labeller-{word} {value} needs a labeller"
            raise SchemaError(f"{needs}; give its share of the budget too: --labeller 0.3")
    if share is None:
        return parsed.common, parsed.config
    from dpgm.methods.labelled import Labelled
    from dpgm.methods.labeller import Labeller

    labeller = Labeller() if seen is None else Labeller(features=seen)
    return parsed.common, Labelled(generator=parsed.config, share=share, mode=mode or "filter", labeller=labeller)
