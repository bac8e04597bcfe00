"""The command `train`, and what it shares with those that privatise: the free half of a run."""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dpgm import artefact, methods
from dpgm.artefact import LEDGER, MODEL, RELEASE, RUN, TRAINING, write_json
from dpgm.cli import afterwards
from dpgm.cli.console import Screen, peak_memory_mb
from dpgm.cli.ledgers import promise_of
from dpgm.cli.options import Flat, Output, parse, printable, with_method
from dpgm.methods.base import Model, Note, Release
from dpgm.methods.options import check_count, check_seed, check_trained
from dpgm.schema import SchemaError

DEFAULT_METHOD = "merf"


@dataclass(frozen=True, kw_only=True)
class _Train:
    """What the command takes.

    Attributes:
        release: a release file, or the run folder that holds it.
        samples: how many synthetic records to draw.
        json: print one JSON object and nothing else on standard output.
    """

    release: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RELEASE")]
    output: Flat[Output]
    samples: int = 10_000
    json: bool = False


def train_command(words: list[str]) -> int:
    """Train again on a release: same guarantee, nothing added to the ledger."""
    source = next((Path(w) for w in words if not w.startswith("-") and Path(w).exists()), None)
    if source is None and "--help" not in words and "-h" not in words:
        raise SchemaError("give a release: dpgm train RUN/release.safetensors --out NEW [--steps ...]")
    release = artefact.load_release(source) if source else None
    method = release.method if release else methods.get(DEFAULT_METHOD)()
    about = "Train again on a release, for free. The group 'options' ends with those of the release's method."
    options = parse("train", with_method(_Train, method), words, about=about)
    assert release is not None
    assert source is not None
    common, method = options.common, release.method.retrained(options.config)
    screen, out = Screen(as_json=common.json), common.output.out
    must_be_new(out)
    check_count(common.samples, "--samples")
    check_seed(common.output.seed)
    home = source if source.is_dir() else source.parent
    release = dataclasses.replace(release, method=method)
    model, curve = train_release(release, common.output.seed, screen)
    artefact.save_model(model, out)
    ledger = home / LEDGER
    if ledger.exists():
        artefact.write_whole(out / LEDGER, lambda p: p.write_bytes(ledger.read_bytes()))
    with screen.stage("sample"):
        afterwards.draw(model, out, n=common.samples, seed=common.output.seed)
    data = artefact.read_run(home)["data"] if (home / RUN).exists() else ""
    run = facts(model, data=data, seed=common.output.seed, command=["train", *words], screen=screen)
    promise = promise_of(model, out)
    run["guarantee"] = promise.to_json()
    write_json(out / TRAINING, curve)
    write_json(out / RUN, run)
    report = afterwards.report(out)
    screen.result(run, f"{promise.headline()}\nnothing was added to the ledger; report: {report}")
    return 0


def facts(model: Model, *, data: str, seed: int, command: list[str], screen: Screen) -> dict[str, Any]:
    """The public facts of a run, as run.json keeps them."""
    from importlib.metadata import version

    packages = ("numpy", "scipy", "torch", "dp-accounting", "scikit-learn")
    return {
        "method": model.release.method.name,
        "config": model.release.method.to_json(),
        "data": data,
        "schema": model.schema.to_json(),
        "guarantee": model.guarantee.to_json(),
        "sources": [vars(source).copy() for source in model.release.method.sources],
        "plan": dict(model.release.details),
        "seed": seed,
        "command": printable(command),
        "versions": {"dpgm": version("dpgm"), "python": platform.python_version(), **{p: version(p) for p in packages}},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": "cpu",
        "seconds": {k: round(v, 3) for k, v in screen.seconds.items()},
        "cpu_seconds": {k: round(v, 3) for k, v in screen.cpu_seconds.items()},
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }


def train_release(release: Release, seed: int, screen: Screen) -> tuple[Model, dict[str, Any]]:
    """The free half, with its curve."""
    curve: dict[str, list[float]] = {"step": []}
    with screen.stage("train"), screen.progress(release.guarantee.epsilon) as show:

        def on_note(note: Note) -> None:
            show(note)
            if note.values:
                curve["step"].append(note.step)
                for name, value in note.values.items():
                    curve.setdefault(name, []).append(value)

        model = release.method.train(release, seed=seed, on_note=on_note)
        check_trained(model.tensors())
    return model, curve


def must_be_new(out: Path, last: str = MODEL) -> None:
    """Refuse a folder with a finished run (one that holds `last`) or with other files; let an interrupted one go on."""
    if (out / RUN).exists() and (out / last).exists():
        raise SchemaError(
            f"{out} holds a finished run; give another --out, or train again on its release for free: "
            f"dpgm train {out / RELEASE} --out NEW"
        )
    if out.exists() and not out.is_dir():
        raise SchemaError(f"{out} is a file; --out takes a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / LEDGER).exists():
        raise SchemaError(f"{out} holds other files; --out takes a new or empty folder")
