"""The command `total`: what several runs on the same records cost together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from dpgm.artefact import LEDGER
from dpgm.cli.console import Screen
from dpgm.cli.options import parse
from dpgm.privacy.guarantee import PrivacyError
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.together import reopen, runs, shared_name, stands_in, together


@dataclass(frozen=True, kw_only=True)
class _Total:
    """What the command takes.

    Attributes:
        runs: folders of runs, or ledgers that several runs share: name all that was ever asked of the same records.
        delta: slack of the whole; by default the largest of the runs' own.
        json: print one JSON object.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    delta: float | None = None
    json: bool = False


def total_command(words: list[str]) -> int:
    """What several runs on the same records cost together."""
    options = parse("total", _Total, words, about="What several runs on the same records cost together.")
    paths = [run / LEDGER if run.is_dir() else run for run in options.runs]
    if not paths:
        raise PrivacyError("no run is named; give the folders of all runs on the same records")
    if len({p.resolve() for p in paths}) < len(paths):
        raise PrivacyError("a run is named twice; name each once, or its price counts twice")
    with ExitStack() as stack:
        ledgers = [stack.enter_context(reopen(path)) for path in paths]
        _each_once(options.runs, ledgers)
        whole = together(ledgers, delta=options.delta)
        parts = [_part(ledger) for ledger in ledgers]
    lines = [_line(run, part) for run, part in zip(options.runs, parts, strict=True)]
    value = {**whole.to_json(), "runs": {str(r): p for r, p in zip(options.runs, parts, strict=True)}}
    Screen(as_json=options.json).result(value, "\n".join([*lines, f"together: {whole.headline()}"]))
    return 0


def _each_once(named: Sequence[Path], ledgers: Sequence[Ledger]) -> None:
    """Refuse a run beside a ledger that it shares with others: its price would count twice."""
    for path, ledger in zip(named, ledgers, strict=True):
        for above, whole in zip(named, ledgers, strict=True):
            if shared_name(ledger.entries) == above.name and stands_in(ledger, whole):
                raise PrivacyError(f"{path} stands in {above} already; leave it out, or its price counts twice")


def _part(ledger: Ledger) -> dict[str, Any]:
    found: dict[str, Any] = ledger.guarantee().to_json()
    if names := runs(ledger):
        found |= {"cap": ledger.cap.epsilon, "left": ledger.left(), "runs": list(names)}
    return found


def _line(path: Path, part: dict[str, Any]) -> str:
    line = f"{path}: {part['headline']}"
    if "runs" in part:
        line += f"\n  runs: {', '.join(part['runs'])}; cap: epsilon {part['cap']:g}; about {part['left']:.3g} is left"
    return line
