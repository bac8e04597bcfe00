"""The command `total`: what several runs on the same records cost together."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro

from dpgm.artefact import LEDGER
from dpgm.cli.console import Screen
from dpgm.cli.options import parse
from dpgm.privacy.guarantee import PrivacyError
from dpgm.privacy.together import reopen, together


@dataclass(frozen=True, kw_only=True)
class _Total:
    """What the command takes.

    Attributes:
        runs: folders of runs, or their ledger files: all that was ever asked of the same records.
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
        whole = together(ledgers, delta=options.delta)
        parts = [ledger.guarantee() for ledger in ledgers]
    lines = [f"{run}: {part.headline()}" for run, part in zip(options.runs, parts, strict=True)]
    value = {**whole.to_json(), "runs": {str(r): p.to_json() for r, p in zip(options.runs, parts, strict=True)}}
    Screen(as_json=options.json).result(value, "\n".join([*lines, f"together: {whole.headline()}"]))
    return 0
