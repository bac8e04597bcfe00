"""The command line: `dpgm COMMAND ...`. Each command is one function that takes its words and returns an exit code."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

# Two torch threads that spin at barriers slow each other down tenfold on a shared machine; set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

COMMANDS = {
    "run": ("pipeline", "read, plan, privatise once, train, sample, evaluate, report: all in one folder"),
    "plan": ("pipeline", "what a run would promise and cost, without reading a row"),
    "fit": ("pipeline", "the part of a run up to the trained model"),
    "train": ("training", "train again on a release, for free"),
    "sample": ("afterwards", "draw synthetic records from a finished run"),
    "evaluate": ("afterwards", "train classifiers on the samples, test them on real test records"),
    "reference": ("reference", "the same classifiers trained on public real records"),
    "seeds": ("afterwards", "several runs of one command with different seeds, as means with intervals"),
    "bench": ("bench", "many runs under one protocol, and a leaderboard of them"),
    "report": ("afterwards", "write report.html of a run folder"),
    "features": ("features", "train public features: a small network on public images, for private ones later"),
    "schema": ("tables", "draft the public facts of a table, from a public file of the same columns"),
    "methods": ("facts", "the methods there are, with their sources"),
    "account": ("facts", "epsilon of a mechanism, or the noise that a budget needs"),
    "total": ("total", "what several runs on the same records cost together"),
    "audit": ("audit", "attack a claimed epsilon: of a method, a published mechanism, a broken twin"),
    "cite": ("facts", "BibTeX of everything a run or a method used"),
}

OK, FAILED, USAGE, BAD_INPUT, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done; 1 failed; 2 wrong usage; 3 data or options that do not fit; 4 refused for privacy; 130 interrupted.
    """
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a name of a class may be more than the terminal can show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        return _stop("dpgm: the command holds bytes that this locale cannot read; set LC_ALL=C.UTF-8", USAGE)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return OK if words else USAGE
    if words[0] == "--version":
        from dpgm import __version__

        print(f"dpgm {__version__}")
        return OK
    if words[0] not in COMMANDS:
        print(f"dpgm: there is no command '{words[0]}'; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return USAGE
    from dpgm.privacy.guarantee import PrivacyError
    from dpgm.schema import SchemaError

    try:
        return getattr(import_module(f"dpgm.cli.{COMMANDS[words[0]][0]}"), f"{words[0]}_command")(words[1:])
    except SchemaError as error:
        return _stop(f"dpgm: {error}", BAD_INPUT)
    except PrivacyError as error:
        return _stop(f"dpgm: refused: {error}", REFUSED)
    except KeyboardInterrupt:
        return _stop("dpgm: interrupted; the same command goes on where it stopped", INTERRUPTED)
    except BrokenPipeError:
        return FAILED
    except OSError as error:  # a full disk, a folder without rights: nothing that the ledger says is lost by it
        where = f"{error.filename}: " if error.filename else ""
        return _stop(f"dpgm: {where}{error.strerror or error}; mend that, then the same command goes on", FAILED)
    except MemoryError:
        return _stop("dpgm: out of memory; ask for fewer or smaller things, then the same command goes on", FAILED)


def _stop(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dpgm COMMAND [OPTIONS]        dpgm COMMAND --help says more",
            "",
            "Synthetic data with a differential-privacy guarantee that a stranger can check.",
            "",
            *lines,
            "",
            "first steps: dpgm run digits --method merf --epsilon 1 --out run",
        ]
    )
