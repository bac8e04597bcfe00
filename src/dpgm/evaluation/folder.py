"""A run folder as the report reads it: tolerant of what is missing, suspicious of what is there, and read-only."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dpgm.evaluation.grid import data_uri, png, sample_grid
from dpgm.privacy.guarantee import Evidence
from dpgm.schema import SchemaError

Json: TypeAlias = dict[str, Any]

_NAME = r"""[^\s"',;:)\]/\\]+"""
_ABSOLUTE = re.compile(rf"""(^|[\s="'(,:\[])(?:~|[A-Za-z]:)?(?![/\\]{{2}})[/\\](?:{_NAME}[/\\])*({_NAME})""")
_ROWS, _WIDTH = 20, 900


class ReportError(SchemaError):
    """A run folder from which no report can be made."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The contents of a run folder; machine paths in its texts are cut down to their last name.

    Attributes:
        run, metrics, training: `run.json`, `metrics.json` and `training.json` (or the key `training` of `run.json`).
        audit: `audit.json`, what attacks on the run found.
        ledger: the entries of `ledger.jsonl`; None without that file.
        doubts: reasons why the ledger cannot be trusted.
        grid: a sample grid as a data URI; "" without samples.
        grid_classes: the class names of its rows, from top to bottom; empty when they are not known.
    """

    run: Json
    metrics: Json = field(default_factory=dict)
    training: Json = field(default_factory=dict)
    audit: Json = field(default_factory=dict)
    ledger: list[Json] | None = None
    doubts: tuple[str, ...] = ()
    grid: str = ""
    grid_classes: tuple[str, ...] = ()

    def of(self, kind: str) -> list[Json]:
        """The ledger's entries of one kind, in order."""
        return [e for e in self.ledger or [] if e.get("kind") == kind]


def called(run: Mapping[str, Any]) -> str:
    """What a reader knows a run's method by: a generator with a labeller bears the generator's name."""
    config = run.get("config")
    generator = config.get("generator") if isinstance(config, Mapping) else None
    if run.get("method") == "labelled" and isinstance(generator, Mapping) and generator.get("name"):
        return f"{generator['name']} with a labeller"
    return str(run.get("method", "unknown method"))


def read_folder(path: Path) -> Folder:
    """Everything that a report can show.

    Raises:
        ReportError: there is no `run.json`, or a JSON file is damaged.
    """
    run = _object(path / "run.json")
    if run is None:
        raise ReportError(f"{path.name} holds no run.json; give the folder that a run wrote, e.g. dpgm report run/")
    training = run.pop("training", None)
    training = _object(path / "training.json") or (training if isinstance(training, dict) else {})
    ledger, doubts = read_ledger(path / "ledger.jsonl")
    grid, rows = _grid(path, run)
    return Folder(
        run=without_paths(run),
        metrics=without_paths(_object(path / "metrics.json") or {}),
        training=training,
        audit=without_paths(_object(path / "audit.json") or {}),
        ledger=without_paths(ledger),
        doubts=doubts,
        grid=grid,
        grid_classes=rows,
    )


def without_paths(value: Any) -> Any:
    """The value with every absolute path in its texts cut down to the last name: a report may be published."""
    if isinstance(value, str):
        return _ABSOLUTE.sub(r"\1\2", value)
    if isinstance(value, Mapping):
        return {without_paths(k): v if k == "sources" else without_paths(v) for k, v in value.items()}
    return [without_paths(v) for v in value] if isinstance(value, list) else value


def evidence_of(word: Any) -> Evidence:
    """The evidence that `word` names; a word that nobody knows supports nothing."""
    return Evidence.__members__.get(str(word).upper(), Evidence.UNSUPPORTED)


def _object(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ReportError(f"{path.name} is not JSON ({error}); restore or remove it") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path.name} holds a {type(value).__name__}, not an object; restore it or remove it")
    return value


def read_ledger(path: Path) -> tuple[list[Json] | None, tuple[str, ...]]:
    """Entries and doubts, without the lock, the truncation and the appending that belong to a running `Ledger`."""
    if not path.is_file():
        return None, ()
    entries: list[Json] = []
    previous = "0" * 64
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            stated = entry.pop("hash")
            digest = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
            if (entry["previous"], stated) != (previous, digest):
                raise ValueError("hash")
        except (ValueError, KeyError, TypeError, AttributeError):
            return entries, (f"Line {number} of ledger.jsonl breaks the hash chain: the file was changed or damaged.",)
        previous = stated
        entries.append(entry)
    return entries, ()


def _grid(path: Path, run: Json) -> tuple[str, tuple[str, ...]]:
    classes = (run.get("schema") or {}).get("classes")
    names = tuple(str(c) for c in classes) if isinstance(classes, list) else ()
    samples = path / "samples.npz"
    if samples.is_file():
        try:
            held = np.load(samples, allow_pickle=False)
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise ReportError(f"{samples.name} is damaged ({error}); draw again: dpgm sample {path.name}") from error
        with held:
            if {"images", "labels"} <= set(held.files):
                images, labels = held["images"], held["labels"]
                shown = list(range(len(names))) if names else sorted(set(labels.tolist()))
                rows = tuple(names[k] if names else str(k) for k in shown[:_ROWS])
                if images.ndim == 4 and images.dtype == np.uint8 and rows:
                    columns = max(4, min(10, _WIDTH // images.shape[2]))
                    return data_uri(png(sample_grid(images, labels, classes=shown[:_ROWS], columns=columns))), rows
    picture = path / "samples.png"
    return (data_uri(picture.read_bytes()), ()) if picture.is_file() else ("", ())
