"""The command `bench`: many runs under one protocol, and a leaderboard of them."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from dpgm.artefact import read_json, write_json, write_whole
from dpgm.cli.console import Screen
from dpgm.cli.options import parse, printable
from dpgm.cli.pipeline import price
from dpgm.evaluation.bench import board, collect, text
from dpgm.evaluation.bench.cell import Workshop, end_all
from dpgm.evaluation.bench.executor import Executor, LocalExecutor, RayExecutor
from dpgm.evaluation.bench.spec import Cell, read_spec
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
        limit: run at most this many cells now.
        dry_run: show the cells and what they are expected to take; run none.
        json: print one JSON object.
    """

    experiment: tyro.conf.Positional[Path]
    out: Path | None = None
    data_dir: Path | None = None
    jobs: int = 1
    executor: Literal["local", "ray"] = "local"
    limit: int | None = None
    dry_run: bool = False
    json: bool = False


def bench_command(words: list[str]) -> int:
    """Run what is missing, then write results and leaderboard.

    Returns:
        0 every cell is there; 1 a cell failed.
    """
    options = parse("bench", _Bench, words, about="Run an experiment's cells, each as 'dpgm run' would, and rank them.")
    if options.jobs < 1:
        raise SchemaError(f"jobs is {options.jobs}; allowed is 1 or more")
    screen = Screen(as_json=options.json)
    workshop = _workshop(options)
    cells = workshop.spec.cells()
    if options.dry_run:
        return _dry_run(workshop, cells, screen)
    if options.out is None:
        raise SchemaError("give --out FOLDER for the results, or --dry-run to see the cells")
    with _alone(workshop.out):
        workshop.check(cells)
        write_whole(workshop.out / "experiment.toml", lambda p: p.write_bytes(options.experiment.read_bytes()))
        try:
            _run(workshop, cells, _executor(options, workshop), options, screen)
        except KeyboardInterrupt:
            end_all()
            raise
        finally:
            results = _write(workshop, cells, options, ["bench", *words])
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


def _executor(options: _Bench, workshop: Workshop) -> Executor:
    return RayExecutor(workshop.threads) if options.executor == "ray" else LocalExecutor(options.jobs)


def _run(workshop: Workshop, cells: list[Cell], executor: Executor, options: _Bench, screen: Screen) -> None:
    todo = [c for c in cells if not workshop.finished(c)]
    screen.say(f"{len(cells)} cells, {len(cells) - len(todo)} of them finished")
    todo = todo[: options.limit]
    start = time.perf_counter()
    for i, (name, code) in enumerate(executor.map(workshop, todo), 1):
        gone = time.perf_counter() - start
        word = "done" if code == 0 else f"FAILED with code {code}"
        screen.say(f"{i}/{len(todo)} {name}: {word}; {gone:.0f} s gone, about {gone / i * (len(todo) - i):.0f} s left")
        _write(workshop, cells, options, [])


def _write(workshop: Workshop, cells: list[Cell], options: _Bench, words: list[str]) -> dict[str, Any]:
    """Write results.json, the table and the leaderboard from the folders; a killed bench loses none of it."""
    found = collect.records(workshop, cells)
    path = workshop.out / "results.json"
    before = read_json(path) if path.exists() else {}
    results = {
        "title": workshop.spec.title,
        "about": workshop.spec.about,
        "command": printable(words) if words else before.get("command", ""),
        "machine": collect.machine(workshop.threads, options.jobs),
        "samples": workshop.spec.samples,
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


def _dry_run(workshop: Workshop, cells: list[Cell], screen: Screen) -> int:
    """Show the cells, priced by their methods' own plans; no row is read."""
    prices: dict[tuple[Any, ...], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for cell in cells:
        key = (cell.row.name, cell.data, cell.epsilon)
        if key not in prices:
            prices[key] = {"seconds": 0.0} if cell.row.is_real else price(workshop.words(cell)[1:])
        rows.append({"cell": cell.id, "finished": workshop.finished(cell), **prices[key]})
    total = sum(r["seconds"] for r in rows if not r["finished"])
    width = max(len(r["cell"]) for r in rows)
    lines = [f"{r['cell']:{width}}  {_expected(r)}" for r in rows]
    lines += [f"{len(rows)} cells; about {total / 60:.0f} minutes on two CPU cores, before evaluation"]
    screen.result({"cells": rows, "seconds": total}, "\n".join(lines))
    return 1 if any("error" in r for r in rows) else 0


def _expected(row: dict[str, Any]) -> str:
    if row["finished"]:
        return "finished"
    return row.get("error") or f"about {row['seconds']:.0f} s; {row.get('headline', 'not private')}"
