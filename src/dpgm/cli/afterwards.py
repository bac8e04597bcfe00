"""The commands that follow a run: sample, evaluate, seeds, report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import tyro

from dpgm import artefact
from dpgm.artefact import JUDGES, LEDGER, METRICS, RUN, SAMPLES, write_json, write_whole
from dpgm.cli.console import Screen
from dpgm.cli.ledgers import ledger_of, promise_of
from dpgm.cli.options import Data, Flat, parse
from dpgm.data import DataSet
from dpgm.data.tables import TableSet
from dpgm.evaluation import seeds
from dpgm.evaluation.fidelity import open_view
from dpgm.evaluation.folder import read_ledger
from dpgm.evaluation.grid import png, sample_grid
from dpgm.evaluation.report import write_report
from dpgm.evaluation.scores import RIVALS
from dpgm.evaluation.utility import CLASSIFIERS, evaluate_images, public_door
from dpgm.evaluation.wording import HELD_OUT, shown
from dpgm.methods.base import Model
from dpgm.methods.labelled import LabelledModel
from dpgm.methods.table_batch import TableBatch
from dpgm.nets.judges import Judges
from dpgm.schema import AnySchema, Rows, SchemaError, TableSchema

Features: TypeAlias = Annotated[str, tyro.conf.arg(aliases=["--features"])]
Classifiers: TypeAlias = tuple[Literal["cnn", "logreg", "mlp"], ...]


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """What the command takes.

    Attributes:
        folder: a run folder.
        n: how many records.
        labels: classes to draw, in turn, by name or number, e.g. 3,5 or ">50K"; by default pictures of all classes in
            equal numbers, and records of a table as frequent as released.
        seed: makes the draw reproducible.
        out: the file to write, .npz for images, .csv, .tsv or .parquet for tables; by default samples.npz (samples.csv)
            of the run folder is written anew, which its scores and report then no longer describe.
        json: print one JSON object.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    n: int = 10_000
    labels: str | None = None
    seed: int | None = None
    out: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class _Evaluate:
    """What the command takes.

    Attributes:
        folder: a run folder with samples; the data may be left out when the run names a public set.
        seed: of the classifiers.
        classifiers: those to train; cnn is the one that was named beforehand, the others stand beside it.
        reference: folder of 'dpgm reference', instead of training the same classifiers on real records again.
        beside: run folder of a private classifier of the same data (method labeller, dp-cnn or dp-logreg), whose score
            the report is to show beside those of the samples.
        fid_features: what FID and its kin look through: lenet, inception:FILE with local weights, or none.
        ledger: the ledger that the run shares with others, if it does; a look at private records is written there, too.
        json: print one JSON object.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    data: Flat[Data]
    seed: int = 0
    classifiers: Classifiers = CLASSIFIERS
    reference: Path | None = None
    beside: Path | None = None
    fid_features: Features = "lenet"
    ledger: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class _Seeds:
    """What the command takes.

    Attributes:
        folders: finished runs that differ in nothing but the seed.
        out: file to write the result to.
        json: print one JSON object.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class _Report:
    """What the command takes.

    Attributes:
        folder: a run folder.
        json: print one JSON object.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    json: bool = False


def sample_command(words: list[str]) -> int:
    """Draw synthetic records."""
    options = parse("sample", _Sample, words, about="Draw synthetic records from a finished run; it is free.")
    model = artefact.load_model(options.folder)
    labels = None
    if options.labels is not None:
        labels = _classes(options.labels, model.schema, options.n)
    out = artefact.samples_file(model.schema, options.out or options.folder / SAMPLES)
    batch = model.sample(options.n, labels=labels, seed=options.seed)
    out = artefact.save_samples(batch, model.schema, out)
    promise = promise_of(model, options.folder)
    value = {"file": str(out), "n": len(batch), "guarantee": promise.to_json()}
    Screen(as_json=options.json).result(value, f"{len(batch)} records in {out}\n{promise.headline()}")
    return 0


def _classes(given: str, schema: AnySchema, n: int) -> Any:
    """The class of each of n records: names, or numbers where they are none; pictures by number alone."""
    number = {name: i for i, name in enumerate(schema.classes)}
    words = [given] if given in number else [v.strip() for v in given.split(",")]
    if not all(w.isdecimal() or w in number for w in words):
        raise SchemaError(f"--labels is '{given}'; allowed are class numbers like 3,5 or class names")
    if isinstance(schema, TableSchema) and any(w in number for w in words):
        return np.resize(np.array(words), n)
    return np.resize(np.array([number[w] if w in number else int(w) for w in words]), n)


def evaluate_command(words: list[str]) -> int:
    """Score the samples of a run."""
    about = "Train classifiers on the samples of a run and test them on real test records, which is not private."
    if words and not words[0].startswith("-") and (len(words) == 1 or words[1].startswith("-")):
        words = [words[0], artefact.read_run(Path(words[0]))["data"], *words[1:]]
    options = parse("evaluate", _Evaluate, words, about=about)
    screen = Screen(as_json=options.json)
    model = artefact.load_model(options.folder)
    data = options.data.open(model.schema)
    if not (isinstance(data, TableSet) and data.test_path and not is_public(data)):  # else no train records are read
        check_held_out(options.folder, data)
    check_judges(data, options.classifiers, options.reference, options.fid_features, seed=options.seed)
    rival = None if options.beside is None else _rival(options.beside, data.name)
    if rival is not None and rival[1] == model.reader and isinstance(model, LabelledModel):
        raise SchemaError(f"the run has a {model.reader} of its own; leave out --beside {options.beside}")
    metrics = measure(
        model,
        options.folder,
        data,
        seed=options.seed,
        classifiers=options.classifiers,
        reference=options.reference,
        features=options.fid_features,
        ledger=options.ledger,
    )
    if rival is not None:
        kind, name, score, headline = rival
        metrics[kind] = {**metrics.get(kind, {}), name: score}
        metrics["beside"] = {name: headline}
    write_json(options.folder / METRICS, metrics)
    report(options.folder)
    screen.result(metrics, "\n".join(score_lines(metrics)))
    return 0


def check_held_out(folder: Path, data: DataSet | TableSet) -> None:
    """Refuse to hold out others of the run's records than it did: it was trained on them."""
    name, here = data.facts()["data"], data.facts()["held out"]
    for entry in read_ledger(folder / LEDGER)[0] or []:
        was = entry["facts"] if entry.get("kind") == "about" else {}
        then = was.get("held out", here)
        if was.get("data") == name and then != here:
            todo = f"give --test-fraction {then}" if then else "leave out --test-fraction, and give a test part"
            raise SchemaError(
                f"the run in {folder} held out {_share(then)} of {name}, here it is {_share(here)}; it was trained on "
                f"all others, which cannot test it: {todo}; other records go into a file of another name"
            )


def _share(fraction: float | None) -> str:
    return "none" if fraction is None else f"a share of {fraction}"


def check_judges(
    data: DataSet | TableSet, classifiers: Sequence[str], reference: Path | None, features: str, *, seed: int
) -> None:
    """Refuse, before anything is paid or read, what scores of these data could not use."""
    if isinstance(data, TableSet):
        given = {"--classifiers": tuple(classifiers) != tuple(CLASSIFIERS), "--fid-features": features != "lenet"}
        if useless := [name for name, said in given.items() if said]:
            raise SchemaError(f"{', '.join(useless)} goes with images; leave it out, as {data.name} holds none")
    else:
        kind, _, file = features.partition(":")
        if features not in ("lenet", "none") and not (kind == "inception" and Path(file).is_file()):
            raise SchemaError(
                f"--fid-features is '{features}'; allowed are lenet, none and inception:FILE, a local file"
            )
    if reference is not None:
        _kept(reference, data.name, seed)


def _rival(folder: Path, data: str) -> tuple[str, str, Any, str]:
    """Kind, name and value of the score of a private classifier's run, and what its guarantee says."""
    run, metrics = artefact.read_run(folder), artefact.read_json(folder / METRICS)
    name = run["method"].replace("-", "_")
    found = [(kind, name, metrics[kind][name]) for kind in ("accuracy", "utility") if name in metrics.get(kind, {})]
    if name not in RIVALS or not found or run["data"] != data:
        raise SchemaError(
            f"{folder} is a run of {run['method']} on {run['data']}; "
            f"give one of labeller, dp-cnn or dp-logreg on {data}, with its score"
        )
    return *found[0], run["guarantee"]["headline"]


def seeds_command(words: list[str]) -> int:
    """Sum up runs that differ in the seed."""
    options = parse("seeds", _Seeds, words, about="Means and 95 % t-intervals over runs that differ in the seed only.")
    result = seeds.over_seeds(options.folders)
    if options.out is not None:
        write_json(options.out, result)
    Screen(as_json=options.json).result(result, "\n".join(seeds.lines(result)))
    return 0


def report_command(words: list[str]) -> int:
    """Write report.html."""
    options = parse("report", _Report, words, about="Write report.html of a run folder.")
    path = report(options.folder)
    Screen(as_json=options.json).result({"report": str(path)}, str(path))
    return 0


# ---------------------------------------------------------------------------------------------------------------------


def draw(model: Model, folder: Path, *, n: int, seed: int) -> dict[str, Any]:
    """Write samples.npz and samples.png, or samples.csv; returns what the report shows of them. A model that draws no
    records leaves nothing.
    """
    if not model.generates:
        return {}
    batch = model.sample(n, seed=seed)
    artefact.save_samples(batch, model.schema, folder / SAMPLES)
    if isinstance(batch, TableBatch):
        from dpgm.evaluation.table_figures import describe

        return {"figures": describe(batch.table, None, batch.schema)}
    picture = png(sample_grid(batch.images, batch.labels, classes=range(min(model.schema.n_classes, 20))))
    write_whole(folder / artefact.PICTURE, lambda p: p.write_bytes(picture))
    return {}


def measure(
    model: Model,
    folder: Path,
    data: DataSet | TableSet,
    *,
    seed: int,
    classifiers: Sequence[str] = CLASSIFIERS,
    reference: Path | None = None,
    features: str = "lenet",
    ledger: Path | None = None,
) -> dict[str, Any]:
    """The protocol's scores of the samples in a folder, beside real data where these are public; of a classifier that
    draws none, its own accuracy. Scores of held-out records that may be private are a look at them: before it is taken
    it is written down in the run's ledger, if the folder has one, and in one that the run shares (`ledger`).
    """
    look = {"reason": HELD_OUT, "audience": "readers of the metrics and the report"}
    if isinstance(data, TableSet):  # bounds may have been found on the way
        data = dataclasses.replace(data, schema=model.release.schema)  # pyright: ignore[reportArgumentType]

    def test() -> Rows:
        if data.has_test and not is_public(data) and (folder / LEDGER).exists():
            with ledger_of(folder, ledger) as book:
                book.expose(**look)
        return data.test()

    options: dict[str, Any] = {"classifiers": classifiers, "reference": reference, "features": features}
    metrics = _scores(model, folder, data, test, seed=seed, **options)
    if not is_public(data):
        metrics["exposures"] = [*metrics.get("exposures", []), look]
    return metrics


def _scores(
    model: Model,
    folder: Path,
    data: DataSet | TableSet,
    held_out: Callable[[], Rows],
    *,
    seed: int,
    classifiers: Sequence[str],
    reference: Path | None,
    features: str,
) -> dict[str, Any]:
    kept = None if reference is None else _kept(reference, data.name, seed)
    drawn: Any = None
    if model.generates:  # what may be absent is asked for before real records are
        schema: Any = model.schema
        drawn = artefact.load_table(folder, schema) if isinstance(data, TableSet) else artefact.load_samples(folder)
    test = held_out()
    odds = None if isinstance(data, TableSet) else model.classify(test["image"])
    read = {} if odds is None else {model.reader: float((odds.argmax(1) == test["label"]).mean())}
    if not model.generates and isinstance(data, TableSet):
        from dpgm.evaluation.tables import scores_of

        odds = model.classify(test["table"])
        assert odds is not None
        return {
            "utility": {model.reader: scores_of(odds, data.schema.labels(test["table"]), data.schema)},
            "sizes": {"test": len(test)},
        }
    if not model.generates:
        return {"accuracy": read, "sizes": {"test": len(test)}}
    if model.schema.n_classes == 1 and not isinstance(data, TableSet):
        sizes = {"synthetic": len(drawn.images), "test": len(test)}  # no classes to tell apart, or to learn features of
        view = None if features == "lenet" else open_view(features, test, schema=model.schema, data=data.name)
        return {"sizes": sizes, **(view(drawn.images, seed=seed) if view else {})}
    real = public_door(data.train) if is_public(data) else None
    if isinstance(data, TableSet):
        from dpgm.evaluation.tables import evaluate_table

        return evaluate_table(drawn.table, test, schema=data.schema, seed=seed, real=real, reference=kept)
    judges = None if reference is None else Judges.read(reference / JUDGES)
    metrics = evaluate_images(
        drawn,
        test,
        schema=model.schema,
        seed=seed,
        classifiers=classifiers,
        real=real,
        reference=kept,
        judges=judges,
    )
    start = time.perf_counter()
    if view := open_view(features, test, schema=model.schema, data=data.name, judges=judges):
        metrics |= view(drawn.images, seed=seed)
    metrics["seconds"]["fidelity"] = time.perf_counter() - start
    metrics["accuracy"] |= read
    return metrics


def _kept(reference: Path, data: str, seed: int) -> dict[str, Any]:
    """The scores in a folder of `dpgm reference`, whose records, judges and seed must be the same."""
    if (other := artefact.read_json(reference / RUN).get("data")) != data:
        raise SchemaError(f"{reference} is a reference on {other}, the samples are of {data}; make one on {data}")
    kept = artefact.read_json(reference / METRICS)
    if (other := kept.get("seed")) != seed:
        raise SchemaError(f"the reference was made with seed {other}, the scores are of seed {seed}; make it again")
    return kept


def score_lines(metrics: dict[str, Any]) -> list[str]:
    """The main scores, a line each, and a warning where they are of private records."""
    lines = [f"accuracy {k}: {v:.3f}" for k, v in metrics.get("accuracy", {}).items()]
    lines += [f"{k}: AUC {v['auc']:.3f}, F1 {v['f1']:.3f}" for k, v in metrics.get("utility", {}).items()]
    if fid := metrics.get("fid"):
        low, high = fid["low"], fid["high"]
        lines.append(f"FID[{fid['features']}]: {fid['value']:.2f} ({low:.2f} to {high:.2f}) on {fid['n']} records each")
    lines += [f"{k}: {v:.3f}" for k, v in metrics.get("fidelity", {}).items()]
    if "sizes" in metrics and not lines:
        lines.append(
            "no scores: all records are one class, so there is nothing to classify; closeness of pictures needs "
            "features that learnt elsewhere: --fid-features inception:FILE"
        )
    if page := shown(metrics):
        what = "NOT PRIVATE: these scores, metrics.json and the report"
        lines.append(f"{what} are {page}; do not publish them as they are")
    return lines


def is_public(data: DataSet | TableSet) -> bool:
    """True for the named benchmark sets: their records may be looked at."""
    return bool(data.terms)


def report(folder: Path) -> Path:
    """Write report.html from what the folder holds."""
    return write_report(folder)
