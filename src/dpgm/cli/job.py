"""One run folder, from plan to model: what `run` and `fit` share."""

from __future__ import annotations

import dataclasses
import errno
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpgm import artefact
from dpgm.artefact import (
    CHECKPOINT,
    LEDGER,
    MODEL,
    RELEASE,
    RUN,
    SCHEMA,
    TRAINING,
    read_json,
    write_json,
)
from dpgm.cli.console import Screen
from dpgm.cli.options import RELATIONS
from dpgm.cli.training import facts, must_be_new, train_release
from dpgm.data.errors import DataError
from dpgm.methods import bounds
from dpgm.methods.base import Method, Model, Note, Plan, Release, privatise
from dpgm.methods.fit import check_public, check_split
from dpgm.methods.options import check_seed, check_takes
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, PrivacyError, ceil_digits, check_allowed, large_delta
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.together import Part
from dpgm.schema import Rows, SchemaError, schema_from_json

if TYPE_CHECKING:
    from dpgm.cli.pipeline import Fit

WAITS = (1.0, 5.0, 20.0, 60.0, 120.0, 240.0, 480.0)
"""Seconds between tries to write an answer that is paid for."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk, or one's share of it, is called."""


class Job:
    """One run folder from plan to model; a killed job goes on where it stopped."""

    def __init__(self, method: Method, options: Fit, screen: Screen, words: list[str]) -> None:
        self.method, self.options, self.screen, self.words = method, options, screen, words
        self.data = options.data.open()
        self.plan: Plan | None = None

    def fit(self, *, last: str = MODEL) -> Model:
        """Plan, privatise, train; write release, model, training curve and run.json.

        Args:
            last: the file that a finished folder holds: what comes last, also after the model.
        """
        out, seed = self.options.output.out, self.options.output.seed
        check_seed(seed)
        must_be_new(out, last=last)
        schema: Any = self.data.schema
        check_takes(self.method, schema)
        check_public(self.method, self.data.name)
        privacy = self.options.privacy
        relation, budget = RELATIONS[privacy.relation], privacy.budget(schema)
        if warning := large_delta(budget.delta, schema.size):
            self.screen.say(f"warning: {warning}")
        plan = self.plan = self.method.plan(schema, relation=relation, budget=budget)
        check_allowed(plan.guarantee(), privacy.allow)
        check_split(plan, self.data.facts()["held out"])
        self.screen.say(f"plan: {plan.guarantee().headline()}")
        with ExitStack() as stack:
            ledger = self._ledger(stack, budget)
            artefact.check_writable(out)  # nothing is paid so far
            artefact.sweep(out)
            if bounds.private_columns(schema):
                schema, plan = self._bounded(ledger, budget)
            curator = Curator(self._reader, schema=schema, ledger=ledger)
            used = curator.reserve("fit", plan.items)  # refuses a changed plan
            if left := [n for n in (RELEASE, CHECKPOINT) if (out / n).exists() and not any(used.values())]:
                raise PrivacyError(
                    f"{out} holds {left[0]}, but its ledger knows no call for it: the ledger was cut or exchanged; "
                    "restore it from a copy, or start in another folder"
                )
            if (out / RELEASE).exists():
                release = artefact.load_release(out / RELEASE)
                if release.schema != schema:
                    raise PrivacyError(f"the release in {out} is of other records than {self.data.name} as given")
                try:  # equal prices do not make equal releases
                    release = dataclasses.replace(release, method=release.method.retrained(self.method))
                except SchemaError as error:
                    raise PrivacyError(f"the release in {out} was made by another plan: {error}") from error
                self.screen.say("the release is there already; nothing private is read")
            else:
                release = self._privatise(curator, plan, seed)
        if (model := self._trained()) is not None:
            self.screen.say("the model is there already")
            return model
        model, curve = train_release(release, seed, self.screen)
        artefact.save_model(model, out)
        write_json(out / TRAINING, curve)
        write_json(out / RUN, self.facts(model))
        return model

    def _ledger(self, stack: ExitStack, budget: Budget) -> Ledger:
        """The run's ledger, and the shared one above it; where that has no room for the run, nothing is written."""
        out, privacy = self.options.output.out, self.options.privacy
        path, terms = out / LEDGER, {"relation": RELATIONS[privacy.relation], "cap": budget}
        if privacy.ledger and privacy.ledger.resolve() == path.resolve():
            raise SchemaError(f"{path} is the ledger of this run alone; --ledger takes another file")
        if whole := privacy.shared(budget):
            stack.enter_context(whole)
            assert self.plan
            prices = bounds.prices(self.method, self.plan, share=privacy.bounds_share)
            ledger = Part(path, **terms, whole=whole, name=out.resolve().name, prices=prices)
            stack.callback(lambda: self.screen.say(f"all runs of {privacy.ledger}: {of_cap(whole)}"))
        else:
            ledger = Ledger(path, **terms)
        stack.enter_context(ledger)
        ledger.describe({**self.data.facts(), "shared ledger": privacy.ledger and privacy.ledger.name})
        return ledger

    def _trained(self) -> Model | None:
        """The model that an interrupted run has left, if the same options and seed made it."""
        out = self.options.output.out
        if not (out / RUN).exists() or not (out / MODEL).exists():
            return None
        before = artefact.read_run(out)
        if (before["config"], before["seed"]) != (self.method.to_json(), self.options.output.seed):
            return None
        for clock in ("seconds", "cpu_seconds"):
            kept = {k: v for k, v in before.get(clock, {}).items() if k in ("read", "release", "train")}
            getattr(self.screen, clock).update(kept)
        return artefact.load_model(out)

    def _bounded(self, ledger: Ledger, budget: Budget) -> tuple[Any, Plan]:
        """The schema with the bounds that were paid for, kept in the folder, and the plan for what is left."""
        path, share = self.options.output.out / SCHEMA, self.options.privacy.bounds_share
        curator = Curator(self._reader, schema=self.data.schema, ledger=ledger)
        spent = bounds.price(curator, budget=budget, share=share)
        if not path.exists():
            with self.screen.stage("bounds"):
                found, caution = bounds.find(curator, budget=budget, share=share)
                self._keep(path, lambda file: write_json(file, found.to_json()))
            if caution:
                self.screen.say(f"warning: {caution}")
        schema: Any = schema_from_json(read_json(path))
        self.data = dataclasses.replace(self.data, schema=schema)
        self.screen.say(f"the bounds of {len(bounds.private_columns(curator.schema))} columns were found and charged")
        plan = self.plan = bounds.rest(self.method, schema, relation=ledger.relation, budget=budget, spent=spent)
        return schema, plan

    def _privatise(self, curator: Curator, plan: Plan, seed: int) -> Release:
        out = self.options.output.out
        with self.screen.stage("release"), self.screen.progress(plan.guarantee().epsilon) as show:

            def on_note(note: Note) -> None:
                show(note)
                self._keep(out / CHECKPOINT, lambda file: artefact.save_checkpoint(note, file, self.method))

            state = artefact.load_checkpoint(out, self.method)
            release = privatise(
                self.method, curator, plan, seed=seed, on_note=on_note, state=state, allow=self.options.privacy.allow
            )
        for clock in (self.screen.seconds, self.screen.cpu_seconds):  # rows are read at the first answer
            clock["release"] -= clock.get("read", 0.0)
        self._keep(out / RELEASE, lambda file: artefact.save_release(release, file))
        (out / CHECKPOINT).unlink(missing_ok=True)
        return release

    def _keep(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write what was paid for and cannot be drawn again: a full disk is waited for, then another place is tried."""
        for wait in WAITS:
            try:
                write(path)
                return
            except OSError as error:
                if error.errno not in FULL:
                    break
                self.screen.say(
                    f"the disk is full, and {path.name} holds what was paid for: make room for {path}; it is tried "
                    f"again in {wait:g} s, and for {sum(WAITS) / 60:.0f} minutes in all"
                )
                time.sleep(wait)
        try:
            write(path)
        except OSError as error:
            elsewhere = self._elsewhere(path.name, write)
            what = f"what was paid for could not be written to {path} ({error.strerror or error})"
            raise PrivacyError(
                f"{what}; it is kept in {elsewhere}: mend that, move it there, and run the same command again"
                if elsewhere
                else f"{what}, nor anywhere else; unless a checkpoint holds it, it is lost, and this ledger allows no "
                "second draw: make room, and run the same command again, or start in another folder with what is left "
                "of your budget"
            ) from error

    def _elsewhere(self, name: str, write: Callable[[Path], object]) -> Path | None:
        """Write to a new folder where the system keeps what is passing; None where that fails as well."""
        try:
            path = Path(tempfile.mkdtemp(prefix="dpgm-")) / name
            write(path)
        except OSError:
            return None
        return path

    def _reader(self) -> Rows:
        with self.screen.stage("read"):
            try:
                return self.data.train()
            except DataError as error:  # it tells of the records, so its price stays
                raise DataError(
                    f"{error}. Nothing was released, and what the run may spend stays reserved in its ledger: mend the "
                    "data and give the same command again to use it; another schema is another run, which pays, too"
                ) from error

    def facts(self, model: Model) -> dict[str, Any]:
        """What run.json says so far."""
        seed = self.options.output.seed
        details = dict(self.plan.details) if self.plan else {}
        return {
            **facts(model, data=self.data.name, seed=seed, command=self.words, screen=self.screen),
            "plan": details,
        }


def of_cap(whole: Ledger, total: float | None = None) -> str:
    """How much of its cap a shared ledger has reserved, or would with `total`."""
    total = whole.guarantee().epsilon if total is None else total
    return f"epsilon {ceil_digits(total)} of {whole.cap.epsilon:g}, delta {ceil_digits(whole.cap.delta, 6)}"
