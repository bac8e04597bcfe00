"""The command `bench`: many runs under one protocol, and a leaderboard of them."""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from dpgm.artefact import RUN, read_json, write_json, write_whole
from dpgm.cli.console import Screen
from dpgm.cli.options import parse, printable
from dpgm.cli.pipeline import check_scored, price, settings
from dpgm.evaluation.bench import board, collect, text
from dpgm.evaluation.bench.cell import Workshop, end_all, lasting
from dpgm.evaluation.bench.executor import Executor, LocalExecutor, RayExecutor
from dpgm.evaluation.bench.spec import Cell, read_spec
from dpgm.evaluation.folder import without_paths
from dpgm.schema import SchemaError


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What the command takes.

    Attributes:
        experiment: a TOML file: data, epsilon, seeds and rows.
        out: folder of the results, needed unless --dry-run; the same command goes on where it stopped.
        data_dir: folder with the files of named sets; otherwise the environment variable DPGM_DATA.
        jobs: how many cells run at a time on this machine; each of them gets cores / jobs threads.
        executor: where they run: on this machine, or on a Ray cluster whose machines share the folders.
        rows: run only these rows now, one after the other; the table shows all.
        known: results.json of the same experiment from other machines or days: cells that are finished there stand in
            the table and are not run again.
        limit: run at most this many cells now; with 0 only the table is written.
        dry_run: show the cells and what they are expected to take; run none.
        json: print one JSON object.
    """

    experiment: tyro.conf.Positional[Path]
    out: Path | None = None
    data_dir: Path | None = None
    jobs: int = 1
    executor: Literal["local", "ray"] = "local"
    rows: tuple[str, ...] = ()
    known: tuple[Path, ...] = ()
    limit: int | None = None
    dry_run: bool = False
    json: bool = False


def bench_command(words: list[str]) -> int:
    """Run what is missing, then write results and leaderboard.

    Returns:
        0 every cell that was to run now is there; 1 a cell failed.
    """
    options = parse("bench", _Bench, words, about="Run an experiment's cells, each as 'dpgm run' would, and rank them.")
    if options.jobs < 1:
        raise SchemaError(f"jobs is {options.jobs}; allowed is 1 or more")
    screen = Screen(as_json=options.json)
    experiment = _Experiment(options, _workshop(options), screen)
    if options.dry_run:
        return experiment.dry_run()
    if options.out is None:
        raise SchemaError("give --out FOLDER for the results, or --dry-run to see the cells")
    workshop = experiment.workshop
    with _alone(workshop.out):
        experiment.check()
        write_whole(workshop.out / "experiment.toml", lambda p: p.write_bytes(options.experiment.read_bytes()))
        try:
            experiment.run()
        except KeyboardInterrupt:
            end_all()
            raise
        finally:
            results = experiment.write(["bench", *words])
    lines = [f"{r['cell']}: {r['error']}" for r in results["cells"] if r["status"] == collect.FAILED]
    states = (collect.DONE, collect.FAILED, collect.PENDING)
    count = {state: sum(r["status"] == state for r in results["cells"]) for state in states}
    lines += [", ".join(f"{n} {s}" for s, n in count.items()), f"leaderboard: {workshop.out / board.NAME}"]
    screen.result({"out": str(workshop.out), **count, "summary": results["summary"]}, "\n".join(lines))
    return 1 if count[collect.FAILED] else 0


def _workshop(options: _Bench) -> Workshop:
    data_dir = options.data_dir or (Path(os.environ["DPGM_DATA"]) if os.environ.get("DPGM_DATA") else None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Workshop(
        spec=read_spec(options.experiment),
        out=(options.out or Path("bench")).resolve(),
        data_dir=data_dir.resolve() if data_dir else None,
        program=(sys.executable, "-m", "dpgm.cli.cell"),
        threads=int(threads) if threads.isdigit() else max(1, cores // options.jobs),
    )


class _Experiment:
    """The cells of an experiment: which are there, be it from elsewhere, which run now, and the table of all."""

    def __init__(self, options: _Bench, workshop: Workshop, screen: Screen) -> None:
        self.options, self.workshop, self.screen = options, workshop, screen
        self.cells = workshop.spec.cells()
        self.settings: dict[tuple[Any, ...], dict[str, Any]] = {}
        names = sorted({row.name for row in workshop.spec.rows})
        if strange := sorted(set(options.rows) - set(names)):
            raise SchemaError(f"the experiment has no row {', '.join(strange)}; its rows are {', '.join(names)}")
        self.known = self._known()

    def finished(self, cell: Cell) -> bool:
        """Whether its result is there, be it from elsewhere."""
        return cell.id in self.known or self.workshop.finished(cell)

    def todo(self) -> list[Cell]:
        """What runs now. Real records are scored again where a cell that is left stands beside them."""
        rows = self.options.rows
        left = [c for c in self.cells if not self.finished(c) and (not rows or c.row.name in rows)]
        if rows:  # one row after the other, as they are asked for
            left.sort(key=lambda c: rows.index(c.row.name))
        real = [r for c in left if (r := self.workshop.spec.reference(c)) and not self.workshop.finished(r)]
        return list({c.id: c for c in [*real, *left]}.values())[: self.options.limit]

    def check(self) -> None:
        """Refuse a folder with results of other options or defaults, and data on which nothing can be scored.

        Raises:
            SchemaError: before any cell runs.
        """
        self.workshop.check(self.cells)
        for cell in self.cells:
            there = self.workshop.finished(cell)
            if there and (other := self._other(cell, read_json(self.workshop.folder(cell) / RUN))):
                raise SchemaError(f"{cell.id} was run with other defaults ({other}); give the experiment another --out")
        for cell in {c.data: c for c in self.todo() if not c.row.is_real}.values():
            check_scored(self.workshop.words(cell)[1:])

    def _other(self, cell: Cell, run: Mapping[str, Any]) -> str:
        """In what the method that was run differs from the one that the cell's words build now; "" if in nothing."""
        if cell.row.is_real:
            return ""
        key = (cell.row.name, cell.data, cell.epsilon)
        if key not in self.settings:
            self.settings[key] = without_paths(settings(self.workshop.words(cell)[1:]))
        if "config" not in run:
            return "unknown: none are recorded"
        return ", ".join(_differences(without_paths(run["config"]), self.settings[key]))

    def run(self) -> None:
        """Run what is to run now; the table is written after each cell."""
        todo, there = self.todo(), sum(map(self.finished, self.cells))
        self.screen.say(f"{len(self.cells)} cells, {there} of them finished, {len(todo)} to run now")
        start = time.perf_counter()
        for i, (name, code) in enumerate(self._executor().map(self.workshop, todo), 1):
            gone = time.perf_counter() - start
            word = "done" if code == 0 else f"FAILED with code {code}"
            left = f"about {gone / i * (len(todo) - i):.0f} s left"
            self.screen.say(f"{i}/{len(todo)} {name}: {word}; {gone:.0f} s gone, {left}")
            self.write()

    def write(self, words: list[str] | None = None) -> dict[str, Any]:
        """Write results.json, the table and the leaderboard from the folders; a killed bench loses none of it."""
        here = collect.records(self.workshop, self.cells)
        found = [r if r["status"] == collect.DONE else self.known.get(r["cell"], r) for r in here]
        workshop, path = self.workshop, self.workshop.out / "results.json"
        before = read_json(path) if path.exists() else {}
        results = {
            "title": workshop.spec.title,
            "about": workshop.spec.about,
            "command": printable(words) if words else before.get("command", ""),
            "machine": collect.machine(workshop.threads, self.options.jobs),
            "samples": workshop.spec.samples,
            "other_samples": {row.name: row.samples for row in workshop.spec.rows if row.samples and not row.is_real},
            "taken_over": sum(r["status"] != collect.DONE and r["cell"] in self.known for r in here),
            "wall_seconds": round(sum(r["wall_seconds"] for r in found), 1),
            "summary": collect.summary(found),
            "cells": found,
            "papers": collect.papers(),
        }
        write_json(path, results)
        collect.write_table(found, workshop.out)
        write_whole(workshop.out / text.NAME, lambda p: p.write_text(text.markdown(results), "utf-8"))
        write_whole(workshop.out / board.NAME, lambda p: p.write_text(board.render(results), "utf-8"))
        return results

    def dry_run(self) -> int:
        """Show the cells that are finished or would run now, priced by their methods' own plans; no row is read."""
        prices: dict[tuple[Any, ...], dict[str, Any]] = {}
        rows: list[dict[str, Any]] = []
        todo = {cell.id for cell in self.todo()}
        for cell in self.cells:
            if cell.id not in todo:
                rows += [{"cell": cell.id, "finished": True}] if self.finished(cell) else []
                continue
            key = (cell.row.name, cell.data, cell.epsilon)
            if key not in prices:
                prices[key] = {"seconds": 0.0} if cell.row.is_real else price(self.workshop.words(cell)[1:])
            rows.append({"cell": cell.id, "finished": False, **prices[key]})
        total = sum(r["seconds"] for r in rows if not r["finished"])
        width = max((len(r["cell"]) for r in rows), default=0)
        lines = [f"{r['cell']:{width}}  {_expected(r)}" for r in rows]
        lines += [f"{len(rows)} cells; about {total / 60:.0f} minutes on two CPU cores, before evaluation"]
        self.screen.result({"cells": rows, "seconds": total}, "\n".join(lines))
        return 1 if any("error" in r for r in rows) else 0

    def _executor(self) -> Executor:
        ray = self.options.executor == "ray"
        return RayExecutor(self.workshop.threads) if ray else LocalExecutor(self.options.jobs)

    def _known(self) -> dict[str, dict[str, Any]]:
        """Finished cells of other folders, by id; one that was run with other options is refused."""
        found: dict[str, dict[str, Any]] = {}
        for path in self.options.known:
            if not path.is_file():
                raise SchemaError(f"{path} does not exist; give the results.json that another bench has written")
            there = {c["cell"]: c for c in read_json(path)["cells"] if c["status"] == collect.DONE}
            for cell in self.cells:
                if record := there.get(cell.id):
                    ours = printable(self.workshop.words(cell))
                    was, now = (lasting(shlex.split(command)) for command in (record["command"], ours))
                    if was != now:
                        changed = " ".join(sorted(set(was) ^ set(now))) or "in another order"
                        raise SchemaError(f"{path}: {cell.id} was run with other options ({changed}); take it out")
                    if other := self._other(cell, record):
                        raise SchemaError(f"{path}: {cell.id} was run with other defaults ({other}); take it out")
                    found[cell.id] = record
        return found


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> list[str]:
    """The options in which two configurations of a method differ."""
    found: list[str] = []
    for name in dict.fromkeys([*was, *now]):
        one, other = was.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += _differences(one, other, f"{within}{name}.")
        elif one != other:
            found.append(f"{within}{name}: {one} then, {other} now")
    return found


def _expected(row: dict[str, Any]) -> str:
    if row["finished"]:
        return "finished"
    return row.get("error") or f"about {row['seconds']:.0f} s; {row.get('headline', 'not private')}"


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """One bench works in a folder at a time."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SchemaError(f"another bench is at work in {out}; wait for it, or give another --out") from error
        yield
