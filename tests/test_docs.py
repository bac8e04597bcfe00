"""The pages tell the truth: their Python runs, their commands and options exist, every method has its page."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
import re
import shlex
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tyro

from dpgm import artefact, cli, methods
from dpgm.schema import TableSchema, schema_from_json

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- Python ----------------------------------------------------------------------------------------------------------


def run(text: str) -> None:
    """Run a page's Python blocks one after the other, as a reader would in one session."""
    code = "\n\n".join(blocks(text, "python"))
    space: dict[str, Any] = {"__name__": "__page__"}
    exec(compile(code, "page", "exec", dont_inherit=True), space)


PYTHON = [
    pytest.param(p, id=named(p)) for p in PAGES if p.name != "README.md" and blocks(p.read_text("utf-8"), "python")
]


def make_people(folder: Path) -> None:
    """The table that the pages speak of: `people.json` as they show it, and made-up records that fit it."""
    [shown] = [b for b in blocks((DOCS / "tables.md").read_text("utf-8"), "json") if "people" in b or "columns" in b]
    (folder / "people.json").write_text(shown, "utf-8")
    schema = schema_from_json(json.loads(shown))
    assert isinstance(schema, TableSchema)
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {}
    for column in schema.columns:
        low, high = column.bounds
        if column.unit:
            values[column.name] = np.datetime64("1970-01-01", column.unit) + rng.integers(int(low), int(high), 400)
        elif column.kind in ("category", "boolean"):
            values[column.name] = rng.choice(np.array(column.values or ("false", "true")), 400)
        else:
            values[column.name] = rng.integers(int(low), int(high), 400)
    pd.DataFrame(values).to_csv(folder / "people.csv.gz", index=False)


@pytest.mark.parametrize("page", PYTHON)
def test_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_people(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "_ADDED", {})
    run(page.read_text("utf-8"))


def test_python_that_fails_is_noticed() -> None:
    with pytest.raises(ZeroDivisionError):
        run("```python\nx = 0\n```\ntext\n```python\n1 / x\n```\n")
    assert PYTHON


# --- methods ---------------------------------------------------------------------------------------------------------

PARTS = ("What the paper", "What we do.", "**Proof.**", "**Cost.**", "**Sharp edges**", "](../proofs/", "dpgm run ")


def lacking(text: str) -> list[str]:
    """The parts of a method's page that are not there."""
    return [part for part in PARTS if part.rstrip(".") not in text]


def test_every_method_has_a_page_and_a_line_in_the_table_of_choice() -> None:
    pages = {p.stem: p.read_text("utf-8") for p in (DOCS / "methods").glob("*.md")}
    choice = (DOCS / "choose.md").read_text("utf-8")
    for name in methods.names():
        if name == "labelled":  # what --labeller makes
            continue
        assert any(f"--method {name}" in page or f"`{name}`" in page for page in pages.values()), name
        assert f"`{name}" in choice, name


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=lambda p: p.stem)
def test_a_page_of_a_method_says_all_of_it(page: Path) -> None:
    text = page.read_text("utf-8")
    own = page.stem == "labeller"  # there is no paper about it
    assert [part for part in lacking(text) if not (own and part.startswith("What the paper"))] == []
    assert lacking(text.replace("**Proof.**", "")) != lacking(text)


# --- commands --------------------------------------------------------------------------------------------------------


class Parsed(BaseException):
    """Raised in place of the work, once the words of a command are understood."""


def commands(text: str) -> list[str]:
    """Every call of dpgm in the shell blocks and in the inline code of a page."""
    text = re.sub(r"\\\n\s*", " ", text)
    lines = [line for lang in ("console", "bash") for b in blocks(text, lang) for line in b.splitlines()]
    lines = [part for line in lines for part in line.removeprefix("$ ").split(" && ")]
    found = [re.sub(r"^\.venv/bin/", "", line.strip()) for line in lines]
    inline = re.findall(r"`(dpgm [a-z][^`]*)`", text)
    inline = [c + " --out x" * (" " in c[5:] and c.split()[1] in ("run", "fit", "train")) for c in inline]
    return [line for line in found if re.match(r"dpgm [a-z]", line)] + inline


def understood(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """ "" if the command line knows the command and all of its options; else what it says."""
    for part in pkgutil.iter_modules(cli.__path__):  # commands import late, and would keep a stand-in for good
        if part.name != "__main__":
            importlib.import_module(f"dpgm.cli.{part.name}")
    real = tyro.cli

    def parse_only(*args: Any, **more: Any) -> Any:
        raise Parsed(real(*args, **more))

    words = shlex.split(command.split(" #")[0])[1:]
    if words[0] not in cli.COMMANDS:
        return f"there is no command {words[0]!r}"
    if set("".join(words)) & set("[|") or "..." in command or words[1:] == [] or re.search(r"\b[A-Z]{3,}", command):
        return ""  # a pattern for the reader
    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", parse_only)
        said: list[str] = []
        for kind in map(methods.get, methods.names()):  # what `train` takes depends on the release
            patch.setattr(artefact, "load_release", lambda path, kind=kind: SimpleNamespace(method=kind()))
            patch.setattr(Path, "exists", lambda self: True)
            for reader in ("read_json", "read_run"):  # a run may lie where the tests are started
                patch.setattr(artefact, reader, lambda path: {"data": "digits", "kind": "image"})
            try:
                cli.main(words)
            except Parsed:
                return ""
            except SystemExit as end:
                said.append(f"exit {end.code}")
            if words[0] != "train":
                break
    return said[0] if said else "refused"


def test_commands_of_the_pages_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = {(named(p), c) for p in PAGES for c in commands(p.read_text("utf-8"))}
    assert len(checked) > 30
    assert not {c: fault for c in sorted(checked) if (fault := understood(c[1], monkeypatch))}


@pytest.mark.parametrize(
    "twin",
    [
        "dpgm bake digits",
        "dpgm run digits --method merf --epsilonn 1 --out run",
        "dpgm run digits --method merf --components 3 --out run",
        "dpgm run digits --method none --out run",
        "dpgm train run/release.safetensors --rounds-and-rounds 3 --out again",
        "dpgm account --noise-multiplier loud",
    ],
)
def test_commands_that_do_not_exist_are_noticed(twin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commands(f"```console\n$ {twin}\n```") == [twin]
    assert commands(f"`{twin}`")[0].startswith(twin)
    assert understood(twin, monkeypatch)


def options_of(command: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options that a command's help lists; for those with a method, the options of all methods."""
    found: set[str] = set()
    names = methods.names() if command in ("run", "plan", "fit") else [None]
    for name in names:
        words = [command, *(["--method", name] if name and name != "labelled" else []), "--help"]
        with pytest.raises(SystemExit):
            cli.main(words)
        found |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    return found


def undocumented(kind: type[Any]) -> list[str]:
    """Options of a class that its docstring, or one that it inherits, does not explain, or explains twice; groups of
    options are classes of their own.
    """
    hints = typing.get_type_hints(kind)
    told = [name for c in kind.__mro__ for name in re.findall(r"^        (\w+): ", c.__doc__ or "", re.MULTILINE)]
    names = [f.name for f in dataclasses.fields(kind) if not dataclasses.is_dataclass(hints[f.name])]
    return [name for name in names if told.count(name) != 1]


def test_every_option_is_explained_once() -> None:
    modules = [importlib.import_module(f"dpgm.cli.{m.name}") for m in pkgutil.iter_modules(cli.__path__)]
    kinds = {c for m in modules for c in vars(m).values() if isinstance(c, type) and dataclasses.is_dataclass(c)}
    kinds = {c for c in kinds if c.__module__.startswith("dpgm.cli")} | {methods.get(n) for n in methods.names()}
    assert len(kinds) > 30
    assert {c.__name__: found for c in kinds if (found := undocumented(c))} == {}

    @dataclasses.dataclass
    class Twin:
        """What.

        Attributes:
            samples: how many.
        """

        samples: int = 1
        json: bool = False

    Twin.__doc__ = "\n".join(line.removeprefix("    ") for line in (Twin.__doc__ or "").splitlines())
    assert undocumented(Twin) == ["json"]


def test_options_that_messages_advise_exist(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ("run", "train", "evaluate", "sample", "schema", "audit", "account", "bench", "features")
    known = set[str]().union(*(options_of(command, capsys) for command in commands))
    advised = {
        (p.name, option)
        for p in (ROOT / "src").rglob("*.py")
        for option in re.findall(r"(?<![\w(-])--[a-z][\w-]*\b(?!-)", p.read_text("utf-8"))
        if not option.startswith("--xla_")  # flags of a library
    }
    assert len(advised) > 20
    assert not {a for a in advised if a[1] not in known | {"--help", "--version"}}
    assert "--max-gigabytes" not in known
