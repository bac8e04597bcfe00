"""The ledger of a finished run, opened for a look at records that no epsilon covers."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dpgm.artefact import LEDGER
from dpgm.evaluation.folder import read_ledger
from dpgm.methods.base import Model
from dpgm.privacy.guarantee import Guarantee, PrivacyError
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.together import Part, reopen, shared_name, stands_in


@contextmanager
def ledger_of(folder: Path, above: Path | None) -> Generator[Ledger]:
    """The run's ledger, within the one that it shares with others, if it does.

    Args:
        folder: of the run.
        above: file of the shared ledger, where there is one.

    Raises:
        PrivacyError: the run shares a ledger and its file is not given.
    """
    with reopen(folder / LEDGER) as own:
        name, terms = shared_name(own.entries), {"cap": own.cap, "relation": own.relation}
        if name is None:
            yield own
            return
    if above is None or above.name != name:
        raise PrivacyError(
            f"the run shares the ledger {name}, which must know of the look, too: give its file, --ledger"
        )
    with reopen(folder / LEDGER) as own, reopen(above) as whole:
        if not stands_in(own, whole):
            raise PrivacyError(f"{above} holds no run with the plans of {folder}; give the ledger that it shares")
    with reopen(above) as whole, Part(folder / LEDGER, **terms, whole=whole, name=folder.resolve().name) as part:
        yield part


def promise_of(model: Model, folder: Path) -> Guarantee:
    """The model's promise, and the looks that the folder's ledger has seen since it was made."""
    entries, doubts = read_ledger(folder / LEDGER)
    if doubts:
        raise PrivacyError(f"{folder}: {doubts[0]} Looks that it may have named are lost; restore it from a copy")
    looks = [f"{e['reason']} (seen by {e['audience']})" for e in entries or [] if e.get("kind") == "expose"]
    promise = model.guarantee
    return dataclasses.replace(promise, exposures=tuple(dict.fromkeys([*promise.exposures, *looks])))
