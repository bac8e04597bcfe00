"""A run on disk: run.json, ledger.jsonl, release.safetensors, model.safetensors, samples, metrics, report.

Nothing is pickled, every file is written whole or not at all, and none holds a row, a count of rows, a hash of the
data or a path of the machine. Configuration, schema and guarantee travel inside the safetensors files, so a release
that is sent on alone still says what it promises.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpgm import methods
from dpgm.methods.base import Batch, Method, Model, Note, Release, Tensors
from dpgm.methods.table_batch import TableBatch, table_batch
from dpgm.privacy.guarantee import Guarantee, PrivacyError
from dpgm.schema import AnySchema, SchemaError, TableSchema, schema_from_json

RUN, LEDGER, RELEASE, MODEL, SAMPLES = (
    "run.json",
    "ledger.jsonl",
    "release.safetensors",
    "model.safetensors",
    "samples.npz",
)
TABLE = "samples.csv"
SCHEMA = "schema.json"
"""Bounds that were paid for complete a schema; this file keeps it."""
METRICS, TRAINING, CHECKPOINT, REPORT = "metrics.json", "training.json", "checkpoint.safetensors", "report.html"
AUDIT, PICTURE = "audit.json", "samples.png"
JUDGES = "judges.safetensors"
"""Of a folder of `dpgm reference`: nets that have learnt from the public test part, for the evaluations that use it."""
_KEY = "dpgm"


# ---------------------------------------------------------------------------------------------------------------------
# Whole files


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path`, flush it, then put it in place: a reader sees the old or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:])  # .csv.gz tells a writer more than .gz
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=suffix)
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise unless files can be put into the folder; it is better to know before anything is paid.

    Raises:
        SchemaError: they cannot.
    """
    probe = folder / "probe"
    try:
        write_whole(probe, lambda p: p.write_bytes(b"dpgm"))
        probe.unlink()
    except OSError as error:
        raise SchemaError(
            f"{folder} cannot be written to ({error.strerror or error}); nothing was paid: give it the rights or the "
            "room it needs, or another --out"
        ) from error


def sweep(folder: Path) -> None:
    """Remove the parts of its files that a killed run has left; only the holder of the ledger may."""
    for name in (RELEASE, MODEL, CHECKPOINT, SAMPLES, TABLE, PICTURE, SCHEMA, TRAINING, METRICS, AUDIT, RUN, REPORT):
        stem, dot, suffix = name.partition(".")
        for part in folder.glob(f".{stem}-*{dot}{suffix}"):
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write plain JSON values; infinities and NaN are refused."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder, or one that a person wrote, in whose editor it may have got a byte order mark.

    Raises:
        SchemaError: the file is absent or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SchemaError(f"{path} does not exist; give the folder of a finished 'dpgm run' or 'dpgm fit'") from error
    except OSError as error:
        raise SchemaError(f"{path} cannot be read ({error.strerror}); give a file that can") from error
    except ValueError as error:
        raise SchemaError(f"{path} is not JSON ({error}); restore it or run again") from error


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says: at least `method`, `data` and `guarantee`.

    Raises:
        SchemaError: the file is absent or damaged.
    """
    run = read_json(folder / RUN)
    if not isinstance(run, dict) or not {"method", "data", "guarantee"} <= set(run):
        raise SchemaError(f"{folder / RUN} is not what a run wrote; restore it or run again")
    return run


def _write_tensors(path: Path, tensors: Tensors, about: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # safetensors writes memory as it lies: views must be made contiguous first, and scalars must stay scalars
    solid = {name: np.ascontiguousarray(t).reshape(t.shape) for name, t in tensors.items()}
    try:
        write_whole(path, lambda p: save_file(solid, p, {_KEY: json.dumps(about, allow_nan=False)}))
    except SafetensorError as error:  # its name for a full disk and the like
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def _read_tensors(path: Path, *keys: str) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a file, and what stands beside them, which has `keys`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise SchemaError(f"{path} does not exist; give a file that 'dpgm run', 'fit' or 'train' wrote")
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            if lacking := [k for k in keys if k not in about]:
                raise SchemaError(f"{path} says nothing of {', '.join(lacking)}, so it is not the kind of file meant")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a mapping)
    except SchemaError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{path} is not a file of this tool or is damaged ({error}); restore it from a copy"
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# Releases and models


def save_release(release: Release, path: Path) -> None:
    """Write a release with its method, schema and guarantee."""
    about = {
        "method": release.method.to_json(),
        "schema": release.schema.to_json(),
        "guarantee": release.guarantee.to_json(),
        "details": dict(release.details),
    }
    _write_tensors(path, release.tensors, about)


def load_release(path: Path | str) -> Release:
    """Read a release, with its method, schema and guarantee.

    Args:
        path: the file, or the run folder that holds it.

    Raises:
        SchemaError: there is none, or it is damaged, or its method is not installed.
    """
    path = Path(path)
    file = path / RELEASE if path.is_dir() else path
    tensors, about = _read_tensors(file, "method", "schema", "guarantee", "details")
    schema: Any = schema_from_json(about["schema"])
    return Release(
        method=method_from_json(about["method"]),
        schema=schema,
        guarantee=Guarantee.from_json(about["guarantee"]),
        tensors=tensors,
        details=about["details"],
    )


def method_from_json(value: Mapping[str, Any]) -> Method:
    """The method that `Method.to_json` described."""
    try:
        return methods.get(value["name"]).from_json(value)
    except KeyError as error:
        raise SchemaError(str(error.args[0])) from error


def save_model(model: Model, folder: Path | str) -> None:
    """Write release and model to a folder that `load_model` reads."""
    folder = Path(folder)
    save_release(model.release, folder / RELEASE)
    about = {"method": model.release.method.to_json(), "guarantee": model.guarantee.to_json()}
    _write_tensors(folder / MODEL, model.tensors(), about)


def load_model(folder: Path | str) -> Model:
    """Read the model of a run folder, which `Model.save` or the command line wrote.

    Args:
        folder: the run folder.

    Raises:
        SchemaError: the folder lacks a model, or a file is damaged.
    """
    folder = Path(folder)
    release = load_release(folder / RELEASE)
    tensors, about = _read_tensors(folder / MODEL, "method")
    method = method_from_json(about["method"])  # retraining may have changed its free options
    return method.restore(release, tensors)


# ---------------------------------------------------------------------------------------------------------------------
# Samples, progress, checkpoints


def samples_file(schema: AnySchema, path: Path) -> Path:
    """The file for synthetic records: `path` itself, or samples.csv for the samples.npz of a table.

    Raises:
        SchemaError: nothing can be written under this name; it is better to know before records are drawn.
    """
    if not isinstance(schema, TableSchema):
        if path.suffix.lower() != ".npz":
            raise SchemaError(f"{path} is to hold images, which are written as .npz; give --out a name that ends so")
        return path
    from dpgm.data.table_files import SUFFIXES, is_parquet, is_table, pyarrow_

    path = path.with_name(TABLE) if path.name == SAMPLES else path
    if not is_table(path):
        raise SchemaError(f"{path} is to hold a table; give --out a name that ends in {', '.join(SUFFIXES)}")
    if is_parquet(path):
        pyarrow_(path)
    return path


def save_samples(batch: Batch, schema: AnySchema, path: Path) -> Path:
    """Write synthetic records: images as .npz (images uint8 [n, height, width, channels], labels int64 [n],
    class_names; odds float32 [n, k], where a labeller gave class probabilities), a table as the name tells.

    Returns:
        the file that was written, as `samples_file` names it.
    """
    path = samples_file(batch.schema if isinstance(batch, TableBatch) else schema, path)
    if isinstance(batch, TableBatch):
        from dpgm.data.tables import write_table

        write_whole(path, lambda p: write_table(batch.table, batch.schema, p))
        return path

    arrays = {"images": batch.images, "labels": batch.labels, "class_names": np.array(schema.classes)}
    if batch.odds is not None:
        arrays["odds"] = batch.odds

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_whole(path, write)
    return path


def load_table(path: Path, schema: TableSchema) -> TableBatch:
    """Read synthetic records of a table; `path` is the file or the run folder that holds it."""
    from dpgm.data.tables import TableSet

    path = path / TABLE if path.is_dir() else path
    if not path.is_file():
        raise SchemaError(f"{path} does not exist; make samples with 'dpgm sample FOLDER'")
    return table_batch(TableSet(path=path, schema=schema).train()["table"], schema)


def load_samples(path: Path) -> Batch:
    """Read synthetic images; `path` is the file or the run folder that holds it."""
    path = path / SAMPLES if path.is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as file:
            odds = file.get("odds")
            return Batch(images=file["images"], labels=file["labels"].astype(np.int64), odds=odds)
    except FileNotFoundError as error:
        raise SchemaError(f"{path} does not exist; make samples with 'dpgm sample FOLDER'") from error
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise SchemaError(f"{path} is not a sample file of this tool ({error})") from error


def save_checkpoint(note: Note, path: Path, method: Method) -> None:
    """Keep the state of an unfinished private half, and whose it is; it is made of noisy answers only."""
    if note.state is not None:
        about = {"stage": note.stage, "step": note.step, "total": note.total, "method": method.to_json()}
        _write_tensors(path, note.state, about)


def load_checkpoint(folder: Path, method: Method) -> Tensors | None:
    """The state that `save_checkpoint` kept, or None.

    Raises:
        PrivacyError: `method` differs from the one that made it in more than free options.
    """
    if not (folder / CHECKPOINT).exists():
        return None
    state, about = _read_tensors(folder / CHECKPOINT, "method")
    try:  # equal prices do not make equal runs
        method_from_json(about["method"]).retrained(method)
    except SchemaError as error:
        raise PrivacyError(
            f"the unfinished run in {folder} began with other options: {error}; go back to the first ones, or start in "
            "another folder"
        ) from error
    return state
