"""The command `reference`: what synthetic records are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpgm.artefact import JUDGES, METRICS, RUN, write_json, write_whole
from dpgm.cli.afterwards import Classifiers, Features, check_judges, is_public, score_lines
from dpgm.cli.console import Screen, peak_memory_mb
from dpgm.cli.options import Data, Flat, parse, printable
from dpgm.data import DataSet
from dpgm.data.tables import TableSet
from dpgm.evaluation.fidelity import open_view, real_view
from dpgm.evaluation.utility import CLASSIFIERS, entropy_judge, public_door, reference_images
from dpgm.nets.judges import Judges
from dpgm.privacy.guarantee import PrivacyError
from dpgm.schema import SchemaError


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """What the command takes.

    Attributes:
        out: the folder to write.
        seed: of the classifiers and of the choice of records.
        samples: how many real train records they learn from: as many as the synthetic ones they are compared with.
        classifiers: those to train; cnn is the one that was named beforehand, the others stand beside it.
        fid_features: what FID and its kin look through: lenet, inception:FILE with local weights, or none.
        json: print one JSON object.
    """

    data: Flat[Data]
    out: Path
    seed: int = 0
    samples: int = 10_000
    classifiers: Classifiers = CLASSIFIERS
    fid_features: Features = "lenet"
    json: bool = False


def reference_command(words: list[str]) -> int:
    """Score classifiers that are trained on real records."""
    about = "Train the protocol's classifiers on public real records: what synthetic ones are compared with."
    options = parse("reference", _Reference, words, about=about)
    screen, data = Screen(as_json=options.json), options.data.open()
    if options.samples < 2:
        raise SchemaError(f"--samples is {options.samples}; allowed are 2 or more real records to learn from")
    if not is_public(data):
        raise PrivacyError(
            f"{data.name} is not known to be public, and a reference on real records is not private; use a named "
            "benchmark set, or say --public for a table whose records are"
        )
    check_judges(data, options.classifiers, None, options.fid_features, seed=options.seed)
    judges = Judges()
    with screen.stage("evaluate"):
        metrics = _scores(options, data, judges)
    facts = {
        "method": "real",
        "data": data.name,
        "schema": data.schema.to_json(),
        "guarantee": None,
        "seed": options.seed,
        "command": printable(["reference", *words]),
        "seconds": {k: round(v, 3) for k, v in screen.seconds.items()},
        "cpu_seconds": {k: round(v, 3) for k, v in screen.cpu_seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    if judges.tensors:
        write_whole(options.out / JUDGES, judges.write)
    write_json(options.out / RUN, facts)
    write_json(options.out / METRICS, metrics)
    screen.result({**facts, "metrics": metrics}, "not private\n" + "\n".join(score_lines(metrics)))
    return 0


def _scores(options: _Reference, data: DataSet | TableSet, judges: Judges) -> dict[str, Any]:
    """The protocol's scores of public real train records; `judges` takes in the nets that will judge samples."""
    door, test, seed = public_door(data.train), data.test(), options.seed
    if isinstance(data, TableSet):
        from dpgm.evaluation.tables import reference_table

        return reference_table(door, test, schema=data.schema, seed=seed)
    metrics = reference_images(
        door, test, schema=data.schema, seed=seed, n=options.samples, classifiers=options.classifiers
    )
    entropy_judge(test, schema=data.schema, seed=seed, judges=judges)
    view = open_view(options.fid_features, test, schema=data.schema, data=data.name, judges=judges)
    if view is None:
        return metrics
    found, exposure = real_view(view, door, n=options.samples, seed=seed)
    return {**metrics, **found, "exposures": [*metrics["exposures"], exposure]}
