"""The options of the commands, as dataclasses; the parser is generated from them and from the method's own fields."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import tyro

from dpgm import methods
from dpgm.methods.base import Method
from dpgm.methods.options import check_forms
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.together import shared
from dpgm.schema import AnySchema, SchemaError, TableSchema, default_delta, schema_from_json

T = TypeVar("T")
_WRITE_IT = (
    "write it by hand, or have one drafted from a *public* file of the same columns: "
    "dpgm schema draft PUBLIC_FILE --from-public"
)
_OF_NAMES, _OF_MANY = {"--classes", "--rows"}, {"--rows"}
"""Options whose values are names that a person chose, and those that take several words."""
_DIRECTORY = re.compile(r"^((?:\w+:)?(?:[\w.-]+=)?).*[/\\]", re.DOTALL)  # after a kind, as in torchvision:NAME=FILE
_ABSOLUTE = re.compile(r"(?<![\w.)])[/\\](?=\S)(?:.*[/\\])?", re.DOTALL)  # as in "cat,/a/b", not in "n/a"
RELATIONS = {"add-remove": Relation.ADD_REMOVE, "replace": Relation.REPLACE}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the records are, and the public facts about them.

    Attributes:
        data: a named set (digits, mnist, fashion-mnist, cifar10, celeba, ...), a .npz file, a folder of images by
            class, idx files, or a table (.csv, .csv.gz, .tsv, .parquet) with its --schema.
        data_dir: folder with the files of named sets; otherwise the environment variable DPGM_DATA.
        schema: JSON file with the public facts; a table needs one, for images it stands instead of the next four.
        image_size: side of the stored images in pixels.
        channels: 1 (grey) or 3 (colour).
        classes: names of the classes, or their number: "cat,dog" or "10".
        size: declared number of train records, a public round figure.
        resize: side of the images wanted.
        colour: turn images to grey or to rgb.
        unlabelled: all records are one class; a .npz file, idx files or a folder of images then need no labels.
        test_fraction: share of records to hold out where there is no test part.
        test: file of the held-out part of a table.
        public: the table's records are public, as a benchmark's are: scores beside real train records may be shown.
        labels: file of the labels of an idx file, where it is not found beside it.
        max_gib: refuse images that would take more memory, in GiB, than this; their headers tell before they are read.
    """

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    data_dir: Path | None = None
    schema: Path | None = None
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    classes: str | None = None
    size: int | None = None
    resize: int | None = None
    colour: Literal["grey", "rgb"] | None = None
    unlabelled: bool = False
    test_fraction: float | None = None
    test: Path | None = None
    public: bool = False
    labels: Path | None = None
    max_gib: float = 16.0

    def open(self, of_run: AnySchema | None = None) -> Any:
        """The data set, by its public facts; no row is read.

        Args:
            of_run: facts that a run has published already; they count where nothing is declared of own records.
        """
        from dpgm.artefact import read_json
        from dpgm.data import NAMED, open_data
        from dpgm.data.table_files import is_table

        if self.schema is not None and not self.schema.is_file():
            raise SchemaError(f"the schema {self.schema} does not exist; correct --schema, or {_WRITE_IT}")
        if self.data_dir is not None and not self.data_dir.is_dir():
            raise SchemaError(f"the data folder {self.data_dir} does not exist; correct --data-dir")
        schema: Any = None if self.schema is None else schema_from_json(read_json(self.schema))
        declared = (self.image_size, self.channels, self.classes, self.resize, self.colour)
        if schema is None and set(declared) == {None} and self.data.lower().replace("_", "-") not in NAMED:
            schema = of_run
        if is_table(self.data):
            of_images = ("image_size", "channels", "classes", "resize", "colour", "unlabelled", "labels", "max_gib")
            self._refuse("images", *of_images)
            return self._open_table(schema)
        self._refuse("tables", "test", "public")
        names: int | list[str] | None = None
        if self.classes is not None:
            names = int(self.classes) if self.classes.isdecimal() else [c.strip() for c in self.classes.split(",")]
        return open_data(
            self.data,
            data_dir=self.data_dir,
            schema=schema,
            image_size=self.image_size,
            channels=self.channels,
            classes=names,
            size=self.size,
            resize=self.resize,
            grey=None if self.colour is None else self.colour == "grey",
            test_fraction=self.test_fraction,
            labels=self.labels,
            max_gib=self.max_gib,
            unlabelled=self.unlabelled,
        )

    def _refuse(self, kind: str, *names: str) -> None:
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        if given := [f"--{n.replace('_', '-')}" for n in names if getattr(self, n) != usual[n]]:
            raise SchemaError(f"{', '.join(given)} goes with {kind}; leave it out, as {self.data} holds none")

    def _open_table(self, schema: Any) -> Any:
        from dpgm.data.tables import TableSet

        if not Path(self.data).is_file():
            raise SchemaError(f"{self.data} does not exist; give the path of a table")
        if not isinstance(schema, TableSchema):
            raise SchemaError(
                f"{self.data} is a table; give --schema FILE with its columns, kinds and bounds: {_WRITE_IT}"
            )
        schema = schema if self.size is None else dataclasses.replace(schema, size=self.size)
        fraction = self.test_fraction
        terms = "declared public" if self.public else ""
        return TableSet(path=Path(self.data), schema=schema, test_path=self.test, test_fraction=fraction, terms=terms)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What may be promised away.

    Attributes:
        epsilon: privacy loss allowed.
        delta: slack allowed; by default 1/size rounded down to a power of ten; 0 asks for pure privacy.
        relation: which data sets are neighbours.
        allow: run a method although its evidence is as weak as this, for study; every artefact will say so.
        bounds_share: share of the budget for the bounds of columns that the schema marks as "private_bounds".
        ledger: file of a ledger that several runs on the same records share; a run is refused that would bring their
            total above its cap.
        cap: largest epsilon of all runs on that ledger together, at the delta of the first one, which must state it.
    """

    epsilon: float = 1.0
    delta: float | None = None
    relation: Literal["add-remove", "replace"] = "add-remove"
    allow: Literal["unsupported", "refuted"] | None = None
    bounds_share: float = 0.05
    ledger: Path | None = None
    cap: float | None = None

    def budget(self, schema: AnySchema) -> Budget:
        """The budget, with the default delta of the declared size."""
        if self.delta is None and schema.size is None:
            raise PrivacyError(
                "there is no delta: add --delta 1e-5, or --size with the declared number of records, from which the "
                "default is derived"
            )
        delta = default_delta(schema.size or 2) if self.delta is None else self.delta
        return Budget(epsilon=self.epsilon, delta=delta)

    def shared(self, budget: Budget, *, create: bool = True) -> Ledger | None:
        """The account that `ledger` names, opened; None where it names none.

        Args:
            budget: of this run.
            create: make a new file; otherwise a new account stays in memory.
        """
        if self.ledger is None:
            if self.cap is not None:
                raise PrivacyError("--cap holds for several runs on one account; name its file: --ledger study.ledger")
            return None
        if self.ledger.is_dir():
            raise SchemaError(f"{self.ledger} is a folder; --ledger takes a file that several runs share")
        cap = None if self.cap is None else Budget(epsilon=self.cap, delta=budget.delta)
        if cap and not self.ledger.exists():
            if cap.epsilon < budget.epsilon:
                raise PrivacyError(f"--cap {cap.epsilon:g} is less than --epsilon {budget.epsilon:g} of one run alone")
            if not create:
                return Ledger(None, cap=cap, relation=RELATIONS[self.relation])
        found = shared(self.ledger, cap=cap, relation=RELATIONS[self.relation])
        if cap and cap.epsilon != found.cap.epsilon:
            found.close()
            raise PrivacyError(
                f"the cap of {self.ledger.name} is epsilon {found.cap.epsilon:g}; it was stated before its first run "
                "and does not change: leave --cap out"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the results go.

    Attributes:
        out: the run folder; it must be new, or hold an interrupted run of the same plan.
        seed: of the public randomness (initial weights, latent vectors); privacy noise is never seeded.
    """

    out: Path
    seed: int = 0


Flat = Annotated[T, tyro.conf.OmitArgPrefixes]


def parse(command: str, options: type[T], words: list[str], *, about: str) -> T:
    """Parse `words` into `options`; a field named `config` is a method with its own options.

    Raises:
        SchemaError: an option of the method was given that its chosen form does not read.
    """
    parsed = tyro.cli(options, args=words, prog=f"dpgm {command}", description=about)
    if isinstance(method := getattr(parsed, "config", None), Method):
        fields: dict[str, Any] = {f.name: f for f in dataclasses.fields(cast("Any", options))}
        check_forms(method, fields["config"].default)
    return parsed


def with_method(options: type[Any], method: Method) -> type[Any]:
    """`options` with a field `config` that holds the method's own options, listed after those of every method; those of
    a form within keep its prefix.
    """
    return dataclasses.make_dataclass(
        "Options",
        [
            ("common", Annotated[options, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]),
            ("config", Annotated[type(method), tyro.conf.arg(name="")], dataclasses.field(default=method)),
        ],
        kw_only=True,
    )


def method_named(words: list[str], default: str) -> type[Method]:
    """The class behind `--method NAME` in `words`.

    Raises:
        SchemaError: there is none of that name.
    """
    name = default
    for i, word in enumerate(words):
        if word == "--method" and i + 1 < len(words):
            name = words[i + 1]
        elif word.startswith("--method="):
            name = word.partition("=")[2]
    try:
        found = methods.get(name)
    except KeyError as error:
        raise SchemaError(str(error.args[0])) from error
    if any(
        isinstance(f.default_factory, type) and issubclass(f.default_factory, Method) for f in dataclasses.fields(found)
    ):
        raise SchemaError(f"'{name}' wraps another method; name that one, and add --labeller 0.3")
    return found


def printable(words: list[str]) -> str:
    """A command line as an artefact may show it: paths are cut down to their last name.

    What is given to an option of names is a text, in which only absolute paths are cut; every other word may be a path.
    """
    import shlex

    option, shown = "", list[str]()
    names = {*_OF_NAMES, "--labels"} if words[:1] == ["sample"] else _OF_NAMES  # elsewhere a file
    for word in words:
        key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        option = key or option
        if option in names:
            short = _ABSOLUTE.sub("", value)
        elif option.endswith("features"):  # joined by +, each file after its kind
            short = "+".join(map(_last_name, value.split("+")))
        else:
            short = _last_name(value)
        shown.append(f"{key}{equals}{short}")
        if equals or not (key or option in _OF_MANY):  # what comes next belongs to no option
            option = ""
    return shlex.join(["dpgm", *shown])


def _last_name(path: str) -> str:
    return _DIRECTORY.sub(r"\1", path.rstrip("/\\"))
