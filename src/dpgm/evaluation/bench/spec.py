"""An experiment file: which methods, on which data, at which epsilon, how often. It is read strictly."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from dpgm.data.table_files import is_table
from dpgm.methods.options import LabelMode, parse
from dpgm.schema import SchemaError

Options: TypeAlias = Mapping[str, Any]

REAL = "real"
"""The method's name of a row of classifiers trained on real records."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_RELATIONS = ("add-remove", "replace")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a method with its options.

    Attributes:
        name: how the table calls it; by default the method's name, with "+labeller" where it has one, and its mode.
            Rows that share one, such as a method with other options at another epsilon, are one line of the table.
        method: a name of `dpgm methods`, or "real" for the same classifiers trained on real records (not private).
        options: the method's own options.
        on: further options on single sets, by public knowledge of the set: {"mnist": {"picture": "strokes"}}.
        labeller: share of the budget for a labeller.
        labeller_mode: what it does with the samples: "filter" (the default), "soft" or "relabel".
        relation: which data sets are neighbours; by default the experiment's.
        allow: run it although its evidence is weak.
        samples: synthetic records of its runs; by default the experiment's.
        data, epsilon: where it runs; by default wherever the experiment does.
    """

    name: str = ""
    method: str = ""
    options: Options = field(default_factory=dict)
    on: Mapping[str, Options] = field(default_factory=dict)
    labeller: float | None = None
    labeller_mode: LabelMode | None = None
    relation: str | None = None
    allow: str | None = None
    samples: int | None = None
    data: tuple[str, ...] | None = None
    epsilon: tuple[float, ...] | None = None

    @property
    def is_real(self) -> bool:
        """True for classifiers trained on real records."""
        return self.method == REAL


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the table.

    Attributes:
        row: what runs.
        data: on which set.
        epsilon: at which privacy loss; None for real records.
        seed: of the public randomness.
    """

    row: Row
    data: str
    epsilon: float | None
    seed: int

    @property
    def id(self) -> str:
        """Name of the run folder."""
        epsilon = "" if self.epsilon is None else f"_eps{self.epsilon:g}"
        return f"{self.data}_{self.row.name}{epsilon}_seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A whole experiment.

    Attributes:
        title: heading of the leaderboard.
        about: a sentence or two below it.
        data: names of sets, or keys of `sets`.
        epsilon: privacy losses, in the order in which they run.
        seeds: one run each; a number n stands for 0 to n - 1.
        delta: slack of every run; None takes each set's default.
        relation: which data sets are neighbours.
        samples: synthetic records of each run whose row says nothing else.
        classifiers: who judges: "cnn" first, "logreg" and "mlp" beside it.
        fid_features: what FID and its kin look through: "lenet", "inception:FILE" or "none".
        rows: what is compared.
        sets: own data: {name: {source, schema, test, ...}}, the options of `dpgm run`; files are looked for in the
            folder of the data, then beside the experiment file.
        folder: where the experiment file lies.
    """

    title: str = ""
    about: str = ""
    data: tuple[str, ...] = ()
    epsilon: tuple[float, ...] = (1.0,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    delta: float | None = None
    relation: str = "add-remove"
    samples: int = 10_000
    classifiers: tuple[str, ...] = ("cnn", "logreg", "mlp")
    fid_features: str = "lenet"
    rows: tuple[Row, ...] = ()
    sets: Mapping[str, Options] = field(default_factory=dict)
    folder: Path = Path()

    def cells(self) -> list[Cell]:
        """Every run, the most telling first: seed by seed, then epsilon by epsilon and row by row as listed."""
        found = [
            Cell(row=row, data=data, epsilon=None if row.is_real else epsilon, seed=seed)
            for seed in self.seeds
            for epsilon in dict.fromkeys([*self.epsilon, *(e for r in self.rows for e in r.epsilon or ())])
            for row in sorted(self.rows, key=lambda r: not r.is_real)
            for data in self.data
            if data in (row.data or self.data) and epsilon in (row.epsilon or self.epsilon)
        ]
        return list({cell.id: cell for cell in found}.values())

    def reference(self, cell: Cell) -> Cell | None:
        """The row of as many real records that belongs beside a cell."""
        like = (r for r in self.rows if r.is_real and self.size(r) == self.size(cell.row))
        row = next((r for r in like if cell.data in (r.data or self.data)), None)
        return None if row is None or cell.row.is_real else Cell(row=row, data=cell.data, epsilon=None, seed=cell.seed)

    def size(self, row: Row) -> int:
        """Synthetic records of a run of the row; of a row of real records, at most as many of them."""
        return row.samples or self.samples

    def words(self, cell: Cell, *, data_dir: Path | None, out: Path) -> list[str]:
        """The command line of a cell, after `dpgm`."""
        words = ["reference" if cell.row.is_real else "run", *self.data_words(cell.data, data_dir)]
        words += ["--seed", str(cell.seed), "--samples", str(self.size(cell.row)), "--out", str(out)]
        kind, colon, file = self.fid_features.partition(":")
        if not is_table(str(self.sets.get(cell.data, {}).get("source", cell.data))):  # they judge images
            words += ["--classifiers", *self.classifiers]
            words += ["--fid-features", kind + colon + (self._found(file, data_dir) if file else "")]
        row = cell.row
        if row.is_real:
            return words
        words += ["--method", row.method, "--epsilon", f"{cell.epsilon:g}", "--relation", row.relation or self.relation]
        words += ["--evaluate", "True"]
        labels = (("labeller", row.labeller), ("labeller_mode", row.labeller_mode))
        for name, value in (("delta", self.delta), *labels, ("allow", row.allow)):
            words += [] if value is None else option(name, value)
        options = {**row.options, **row.on.get(cell.data, {})}
        return [*words, *(w for name, value in options.items() for w in option(name, value))]

    def data_words(self, name: str, data_dir: Path | None) -> list[str]:
        """How a command line names a set."""
        own = dict(self.sets.get(name, {}))
        words = [self._found(str(own.pop("source", name)), data_dir) if own else name]
        words += ["--data-dir", str(data_dir)] if data_dir else []
        for key, value in own.items():
            words += option(key, self._found(value, data_dir) if key in ("schema", "test") else value)
        return words

    def _found(self, file: str, data_dir: Path | None) -> str:
        places = [folder / file for folder in (data_dir, self.folder) if folder]
        return str(next((p for p in places if p.exists()), file))


def option(name: str, value: Any) -> list[str]:
    """An option as words of the command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, Mapping):
        raise SchemaError(f"the option {name} is a table; give options of a row as plain values, e.g. {name} = 3")
    return [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_spec(path: Path) -> Spec:
    """Read and check an experiment file.

    Raises:
        SchemaError: it is absent or no TOML, a key is unknown, a value does not fit, or two rows share a run.
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SchemaError(f"{path} does not exist; give an experiment file, e.g. experiments/quick.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SchemaError(f"{path} is no TOML: {error}") from error
    rows = tuple(_row(value, f"row {i + 1}") for i, value in enumerate(raw.pop("row", [])))
    if isinstance(raw.get("seeds"), int):
        raw["seeds"] = list(range(raw["seeds"]))
    spec = _take(Spec, raw, path.name, rows=rows, folder=path.parent, title=raw.get("title", path.stem))
    _check(spec)
    return spec


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict) or not value.get("method"):
        raise SchemaError(f"{where} names no method; write [[row]] and below it method = 'merf', or 'real'")
    name = str(value["method"]) + ("+labeller" if value.get("labeller") else "")
    name += f"-{mode}" if (mode := value.get("labeller_mode")) not in (None, "filter") else ""
    return _take(Row, {"name": name, **value}, where)


def _take(kind: type[Any], raw: Mapping[str, Any], where: str, **known: Any) -> Any:
    hints = {
        "options": dict,
        "on": dict,
        "sets": dict,
        "labeller": float | None,
        "labeller_mode": LabelMode | None,
        "delta": float | None,
        "relation": str | None,
        "allow": str | None,
        "samples": int,
        "seeds": tuple[int, ...],
        "epsilon": tuple[float, ...],
        "data": tuple[str, ...],
        "classifiers": tuple[str, ...],
    }
    allowed = {f.name for f in fields(kind)} - {"folder", "rows"}
    if unknown := sorted(set(raw) - allowed):
        raise SchemaError(
            f"{where} has no key {unknown}; allowed are {sorted(allowed)}" + " and [[row]]" * (kind is Spec)
        )
    return kind(**{**{k: parse(v, hints.get(k, str), f"{where}: {k}") for k, v in raw.items()}, **known})


def _check(spec: Spec) -> None:
    if not spec.data or not spec.rows or not spec.seeds or not spec.epsilon:
        raise SchemaError("an experiment needs data = [...], at least one [[row]], one epsilon and one seed")
    runs = [(r.name, d, e) for r in spec.rows for d in r.data or spec.data for e in r.epsilon or spec.epsilon]
    if doubled := sorted({run[0] for run, times in Counter(runs).items() if times > 1}):
        raise SchemaError(
            f"two rows are called {doubled} and run on the same data at the same epsilon; give them different names: "
            "name = '...'"
        )
    if bad := [n for n in (*(r.name for r in spec.rows), *spec.data, *spec.sets) if not _NAME.fullmatch(n)]:
        raise SchemaError(f"{bad} cannot name a folder; allowed are letters, digits, dot, plus and hyphen")
    for relation in (spec.relation, *(r.relation for r in spec.rows if r.relation)):
        if relation not in _RELATIONS:
            raise SchemaError(f"relation is {relation!r}; allowed are {', '.join(_RELATIONS)}")
    for row in spec.rows:
        if missing := sorted({*(row.data or ()), *row.on} - set(spec.data)):
            raise SchemaError(f"row '{row.name}' runs on {missing}, which data = [...] does not list")
        if row.labeller_mode and not row.labeller and not row.is_real:
            raise SchemaError(f"row '{row.name}' has a labeller_mode and no labeller; give its share: labeller = 0.3")
        if row.is_real and (row.options or row.on or row.labeller or row.labeller_mode or row.epsilon):
            raise SchemaError(f"row '{row.name}' is of real records: it takes no options, labeller or epsilon")
    if any(not e > 0 for e in (*spec.epsilon, *(e for r in spec.rows for e in r.epsilon or ()))):
        raise SchemaError("epsilon must be above 0 everywhere")
    for samples in (spec.samples, *(r.samples for r in spec.rows if r.samples is not None)):
        if samples < 1:
            raise SchemaError(f"samples is {samples}; allowed is 1 or more")
