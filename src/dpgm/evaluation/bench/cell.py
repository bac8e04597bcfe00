"""One cell: a process of its own, a run folder, a log, and a note of every attempt."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpgm.artefact import METRICS, RUN, read_json, write_json
from dpgm.evaluation.bench.spec import Cell, Spec
from dpgm.schema import SchemaError

RUNS, NOTES, LOGS = "runs", "cells", "logs"
_CHILDREN: set[subprocess.Popen[bytes]] = set()
_LAST = ("report.html", METRICS, RUN)
"""What a finished run holds; a killed one lacks the report, which is written last."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Runs cells of one experiment into one folder. It is pickled to other machines, so it holds plain values only.

    Attributes:
        spec: the experiment.
        out: folder of the results.
        data_dir: folder of the named sets.
        program: how `dpgm COMMAND` is started, as words; the process must end when its standard input closes.
        threads: of each process.
    """

    spec: Spec
    out: Path
    data_dir: Path | None
    program: tuple[str, ...]
    threads: int = 1

    def folder(self, cell: Cell) -> Path:
        """The cell's run folder."""
        return self.out / RUNS / cell.id

    def note(self, cell: Cell) -> Path:
        """Where the cell's attempts are written down."""
        return self.out / NOTES / f"{cell.id}.json"

    def words(self, cell: Cell) -> list[str]:
        """The cell's command line."""
        return self.spec.words(cell, data_dir=self.data_dir, out=self.folder(cell))

    def finished(self, cell: Cell) -> bool:
        """True when nothing is left to do."""
        needed = _LAST[1:] if cell.row.is_real else _LAST
        return all((self.folder(cell) / name).exists() for name in needed)

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse folders whose cells were begun with another command: their results would not be this experiment's.

        Raises:
            SchemaError: options of a row, the number of samples or the like have changed since.
        """
        for cell in cells:
            if self.note(cell).exists() and (was := lasting(read_json(self.note(cell))["words"])) != lasting(
                self.words(cell)
            ):
                changed = sorted(set(was) ^ set(lasting(self.words(cell))))
                raise SchemaError(
                    f"{cell.id} was begun with other options ({' '.join(changed)}); give the row another name, or the "
                    "experiment another --out"
                )

    def __call__(self, cell: Cell) -> tuple[str, int]:
        """Run the cell to its end, or further where an earlier attempt stopped; returns its id and exit code."""
        words = self.words(cell)
        note = read_json(self.note(cell)) if self.note(cell).exists() else {"words": _public(words), "attempts": []}
        attempt: dict[str, Any] = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "code": None}
        note["attempts"].append(attempt)
        write_json(self.note(cell), note)  # an attempt that is killed leaves its beginning
        start = time.perf_counter()
        code, error = self._process(cell, [*words, *self._reference(cell)])
        attempt |= {"code": code, "seconds": round(time.perf_counter() - start, 1), "processor": processor()}
        if code:
            attempt["error"] = error
        write_json(self.note(cell), note)
        return cell.id, code

    def _reference(self, cell: Cell) -> list[str]:
        """Classifiers trained on real records serve all cells of a set and a seed."""
        real = self.spec.reference(cell)
        return ["--reference", str(self.folder(real))] if real and self.finished(real) else []

    def _process(self, cell: Cell, words: list[str]) -> tuple[int, str]:
        log = self.out / LOGS / f"{cell.id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = {k: str(self.threads) for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "COLUMNS": "120", **threads}
        with log.open("ab") as file:
            begin = file.tell()
            # Standard input is a pipe that nobody writes to: it closes when this process dies, however it dies
            with subprocess.Popen(
                [*self.program, *words], stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, env=environment
            ) as child:
                _CHILDREN.add(child)
                try:
                    code = child.wait()
                finally:
                    _CHILDREN.discard(child)
        return code, _last_line(log, begin)


def end_all() -> None:
    """End every cell that this process runs; what they have paid for and released stays on disk."""
    for child in list(_CHILDREN):
        child.kill()


def processor() -> str:
    """The name of this machine's processor: times of several are no comparison."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.machine()


def lasting(words: Sequence[str]) -> list[str]:
    """What decides a cell's result: the words of its command without places, read or written."""
    places = {i + j for i, word in enumerate(words) if word in ("--data-dir", "--out", "--reference") for j in (0, 1)}
    return [w for i, w in enumerate(_public(words)) if i not in places]


def _public(words: Sequence[str]) -> list[str]:
    """Words with every path cut down to its last name."""
    return [Path(w).name if os.sep in w and Path(w).is_absolute() else w for w in words]


def _last_line(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:500] if said else "it said nothing"
