"""Run by test_crash.py: a process that is killed, by SIGKILL, at one chosen point of its run.

Arguments: folder, twin, stride. For stage 0, stride, 2 stride, ... a fork opens a ledger of its own, runs a plan of one
single call and one repeated call, and kills itself at that stage; then it is started again, three times, and ends.
Printed is, for each stage, how often each item was drawn from the rows, how often its answer got out, what the ledger
says, and whether a resumed run ended. Draws and answers are counted in a file of their own, outside what is tested.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from dpgm.mechanisms.noise import Gaussian
from dpgm.mechanisms.queries import Histogram
from dpgm.privacy import curator as curator_module
from dpgm.privacy import ledger as ledger_module
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.together import Part, reopen, shared
from dpgm.schema import ImageSchema, Rows

SCHEMA = ImageSchema(height=1, width=1, channels=1, classes=("a", "b"))
SINGLE, MANY, COUNT = "single", "many", 3
OWN, SHARED = "ledger.jsonl", "shared.jsonl"
TERMS: dict[str, Any] = {"relation": Relation.ADD_REMOVE, "cap": Budget(epsilon=5.0, delta=1e-5)}


class Kill:
    """Kills the process at the given visit of any marked point."""

    def __init__(self, stage: int) -> None:
        self.left = stage

    def visit(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def around(kill: Kill, fn: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        kill.visit()
        out = fn(*args, **kwargs)
        kill.visit()
        return out

    return wrapped


class TornFile:
    """A file that writes the first half of what it is given, then the rest; a kill may fall between."""

    def __init__(self, file: Any, kill: Kill) -> None:
        self.file, self.kill = file, kill

    def write(self, data: bytes) -> int:
        if len(data) < 2:
            return self.file.write(data)
        half = self.file.write(data[: len(data) // 2])
        self.kill.visit()
        return half

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def run(folder: Path, stage: int | None, twin: str) -> None:
    kill = Kill(-1 if stage is None else stage)
    tally = (folder / "tally").open("ab", buffering=0)

    class Counting(Gaussian):
        def __call__(self, rows: Rows, noise: Any) -> Any:
            out = super().__call__(rows, noise)
            tally.write(f"draw {self.name}\n".encode())
            kill.visit()
            return out

    if stage is not None:
        ledger_module.os = type("os", (), {**vars(os), "fsync": staticmethod(around(kill, os.fsync))})  # type: ignore
    if twin == "charges after the call":
        curator_module.Curator.answer = late_answer  # type: ignore
    if twin == "repeats what got out":
        Ledger.deliver = lambda self, label, item: None  # type: ignore
    if twin == "forgets blocks":
        Ledger.used = lambda self, label, item: 0  # type: ignore
    with ExitStack() as stack:
        ledger = stack.enter_context(opened(folder, stack, kill) if twin == "shared" else Ledger(folder / OWN, **TERMS))
        ledger._file = TornFile(ledger._file, kill)  # type: ignore
        kill.visit()
        rows = Rows(image=np.zeros((3, 1, 1, 1), np.uint8), label=np.array([0, 1, 1]))
        curator = Curator(lambda: rows, schema=SCHEMA, ledger=ledger)
        query = Histogram(column="label", bins=2)
        single, many = (Counting(query=query, noise_std=5.0, name=name) for name in (SINGLE, MANY))
        used = curator.reserve("fit", [(single, 1), (many, COUNT)])
        for mechanism, left in ((single, 1), (many, COUNT - used[1])):
            for _ in range(left):
                try:
                    answer = curator.answer(mechanism)
                except PrivacyError as error:
                    tally.write(f"refused {mechanism.name} {error}\n".encode())
                    break
                assert answer.shape == (2,)
                tally.write(f"answer {mechanism.name}\n".encode())
                kill.visit()
    tally.write(b"end\n")
    if kill.left >= 0:
        os._exit(3)  # the stage was never reached: there are no more
    os._exit(0)


def opened(folder: Path, stack: ExitStack, kill: Kill) -> Part:
    """The run's ledger within a shared one, both with torn writes."""
    whole = stack.enter_context(shared(folder / SHARED, cap=Budget(epsilon=9.0, delta=1e-5)))
    whole._file = TornFile(whole._file, kill)  # type: ignore
    return Part(folder / OWN, **TERMS, whole=whole, name="run")


def late_answer(self: Curator, mechanism: Any) -> Any:
    """The twin: touch first, pay later."""
    answer = self._door(lambda rows: mechanism(rows, self._noise))
    label, costs = self._plan  # type: ignore
    item = [c for c, _ in costs].index(mechanism.cost(self.ledger.relation))
    self._pay(label, item, costs[item][1])
    return answer


def start(folder: Path, stage: int | None, twin: str) -> int:
    child = os.fork()
    if child == 0:
        run(folder, stage, twin)
    return os.waitpid(child, 0)[1]


def main(folder: Path, twin: str, stride: int) -> None:
    out: list[dict[str, Any]] = []
    stage = 0
    while True:
        mine = folder / str(stage)
        mine.mkdir()
        code = start(mine, stage, twin)
        if os.WIFEXITED(code):
            assert os.WEXITSTATUS(code) == 3, f"stage {stage} failed"
            break
        again = [start(mine, stage // 2, twin), start(mine, None, twin), start(mine, None, twin)]
        lines = (mine / "tally").read_text().splitlines()
        with ExitStack() as stack:
            own = stack.enter_context(Ledger(mine / OWN, **TERMS))
            counted, label = own, "fit"
            if twin == "shared":  # it must stand its ground alone, too
                counted, label = stack.enter_context(reopen(mine / SHARED)), "run/fit"
            own_used, ledger = [own.used("fit", 0), own.used("fit", 1)], counted
            kinds = [e["kind"] for e in ledger.entries]
            out.append(
                {
                    "draws": {name: lines.count(f"draw {name}") for name in (SINGLE, MANY)},
                    "answers": {name: lines.count(f"answer {name}") for name in (SINGLE, MANY)},
                    "used": [ledger.used(label, 0), ledger.used(label, 1)],
                    "own": own_used,
                    "repeats": kinds.count("repeat"),
                    "epsilon": ledger.guarantee().epsilon,
                    "assumptions": ledger.guarantee().assumptions,
                    "ended": os.WIFEXITED(again[-1]) and "end" in lines,
                }
            )
        stage += stride
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
