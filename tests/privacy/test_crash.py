"""Kill -9 at every point between two writes: whatever happens, nothing is drawn or handed out that is not paid for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHILD = Path(__file__).with_name("crash_child.py")
SRC = Path(__file__).parents[2] / "src"
RESERVED = {"single": 1, "many": 3}


def crashed(folder: Path, twin: str = "none", stride: int = 1) -> list[dict[str, Any]]:
    path = os.pathsep.join([str(SRC), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(CHILD), str(folder), twin, str(stride)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def faults(stages: list[dict[str, Any]]) -> list[str]:
    """What went wrong, one line each."""
    out: list[str] = []
    for i, s in enumerate(stages):
        for name, reserved in RESERVED.items():
            if s["answers"][name] > reserved:
                out.append(f"{i}: {s['answers'][name]} answers of '{name}' got out; {reserved} are reserved")
        if s["draws"]["many"] > min(s["used"][1], RESERVED["many"]):
            out.append(f"{i}: {s['draws']['many']} draws of 'many', {s['used'][1]} charged")
        if s["draws"]["single"] > s["used"][0] + s["repeats"]:
            out.append(f"{i}: {s['draws']['single']} draws of 'single', {s['repeats']} repeats recorded")
        if s["repeats"] and not any("crash interrupted" in a for a in s["assumptions"]):
            out.append(f"{i}: a repeat that the guarantee does not mention")
        if not s["ended"] or s["epsilon"] != stages[0]["epsilon"]:
            out.append(f"{i}: the resumed run did not end, or ended with another price")
    return out


def test_killed_anywhere_a_run_resumes_without_overdrawing(tmp_path: Path) -> None:
    stages = crashed(tmp_path)
    assert len(stages) > 40  # each write is cut in half, each sync has a before and an after
    assert not faults(stages)
    assert any(s["repeats"] for s in stages), "no kill fell into the single call: the test does not see it"
    assert any(s["draws"]["many"] < RESERVED["many"] for s in stages), "no kill burnt a call: the test does not see it"


def test_a_shared_ledger_alone_never_under_counts_either(tmp_path: Path) -> None:
    stages = crashed(tmp_path, "shared", 6)
    assert len(stages) > 12  # twice as many writes, every sixth point
    assert not faults(stages)
    assert not [s for s in stages if s["draws"]["many"] > s["own"][1]]


@pytest.mark.parametrize(
    ("twin", "message"),
    [
        ("charges after the call", "draws of 'many'"),
        ("repeats what got out", "answers of 'single' got out"),
        ("forgets blocks", "charged"),
    ],
)
def test_broken_twin_is_caught(tmp_path: Path, twin: str, message: str) -> None:
    assert any(message in fault for fault in faults(crashed(tmp_path, twin, stride=5)))
