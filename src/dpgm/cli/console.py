"""What a run shows while it works: progress on standard error, one JSON object on standard output where asked."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpgm.methods.base import Note
from dpgm.privacy.guarantee import ceil_digits

_UNIT = 1024 if sys.platform != "darwin" else 1024**2


class Screen:
    """Lines and progress bars on standard error; results on standard output.

    Args:
        as_json: print the result as one JSON object, and nothing else on standard output.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = Console(stderr=True, highlight=False)
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    def say(self, line: str) -> None:
        """One line for a person."""
        self.console.print(line, markup=False)

    def result(self, value: dict[str, Any], text: str) -> None:
        """What the command found: JSON for machines, text for people."""
        print(json.dumps(value, indent=2) if self.as_json else text)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a stage under `name`, by the clock and in seconds of all cores; stages of one name add up."""
        start, busy = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.process_time() - busy

    @contextmanager
    def progress(self, epsilon: float | None) -> Generator[Callable[[Note], None]]:
        """A bar that shows notes, with the epsilon that is reserved (None: nothing private), the time gone and left."""
        price = "nothing private" if epsilon is None else f"epsilon {ceil_digits(epsilon)} reserved"
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn(price),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,  # in a log it would leave blank lines
        ) as bars:
            tasks: dict[str, Any] = {}

            def show(note: Note) -> None:
                if note.stage not in tasks:
                    tasks[note.stage] = bars.add_task(note.stage, total=note.total)
                bars.update(tasks[note.stage], completed=note.step)

            yield show


def peak_memory_mb() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT / 1024**2
