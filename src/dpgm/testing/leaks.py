"""No private row in what is published: artefacts, logs, messages and representations."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Where: TypeAlias = "Path | str | bytes | NDArray[Any] | Mapping[str, Any] | Iterable[Any]"

_RUN = 16
"""Values in a row that are taken for the marker: chance makes 16 bytes once in 10^38."""


def check_no_rows(where: Where, marker: NDArray[Any] | int | str) -> None:
    """Raise if `marker`, planted in private rows beforehand, appears anywhere in `where`.

    Searched are names, bytes and text of files (all files of a folder), strings, and the arrays inside .npy, .npz,
    .safetensors and .png files, mappings and arrays; values as they are, divided by 255, scaled to [-1, 1], with
    channels first or last, as numbers in text and as float32 or float64 bytes.

    Args:
        where: folder, file, text, bytes, arrays, or a list or mapping of such things.
        marker: an array with at least 16 values of a kind that chance does not make (random bytes as one image); a
            whole number, e.g. an unusual number of rows, found in text, values and shapes; or a text.

    Raises:
        AssertionError: naming the place.
        ValueError: the marker could be there by chance.
    """
    look = _number(marker) if isinstance(marker, int) else _text(marker) if isinstance(marker, str) else _array(marker)
    for place, thing in _things(where, "the value"):
        if found := look(thing):
            raise AssertionError(f"the private marker appears in {place}: {found}")


def _things(where: Any, place: str) -> Iterator[tuple[str, bytes | NDArray[Any]]]:
    """Every piece of text or bytes, and every array, with the place it was found in."""
    if isinstance(where, Path):
        yield f"the name {where.name}", where.name.encode()
        if where.is_dir():
            for path in sorted(where.iterdir()):
                yield from _things(path, str(path.name))
        else:
            data = where.read_bytes()
            yield where.name, data
            yield from _decoded(data, where)
    elif isinstance(where, str):
        yield place, where.encode()
    elif isinstance(where, bytes | np.ndarray):
        yield place, where
    elif isinstance(where, Mapping):
        for key, value in cast("Mapping[Any, Any]", where).items():
            yield f"a key of {place}", str(key).encode()
            yield from _things(value, f"{place}[{key!r}]")
    elif isinstance(where, Iterable):
        for i, value in enumerate(cast("Iterable[Any]", where)):
            yield from _things(value, f"{place}[{i}]")
    else:
        yield place, str(where).encode()


def _decoded(data: bytes, path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    match path.suffix:
        case ".npy":
            yield path.name, np.load(io.BytesIO(data), allow_pickle=False)
        case ".npz":
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                yield from ((f"{path.name}[{key!r}]", file[key]) for key in file.files)
        case ".safetensors":
            from safetensors.numpy import load

            yield from ((f"{path.name}[{key!r}]", value) for key, value in load(data).items())
        case ".png":
            from PIL import Image

            with Image.open(io.BytesIO(data)) as image:
                yield path.name, np.asarray(image)
        case _:
            return


def _array(marker: NDArray[Any]) -> Any:
    orders = [marker.ravel()]
    if marker.ndim == 3:  # channels first
        orders.append(np.moveaxis(marker, 2, 0).ravel())
    runs = [o[i : i + _RUN].astype(np.float64) for o in orders for i in range(0, len(o) - _RUN + 1, _RUN)]
    runs = [r for r in runs if len(np.unique(r)) >= _RUN // 2]
    if not runs:
        raise ValueError(f"the marker needs {_RUN} values in a row of which half differ; use random bytes")
    scaled = [f(r) for r in runs for f in (lambda v: v, lambda v: v / 255, lambda v: v / 127.5 - 1)]
    raw = [r.astype(np.uint8).tobytes() for r in runs if marker.dtype == np.uint8]
    raw += [r.astype(t).tobytes() for r in scaled for t in (np.float32, np.float64)]
    words = [r.hex().encode() for r in raw]
    words += [
        ",".join(repr(v) for v in kind).encode() for r in scaled for kind in (r.tolist(), r.astype(np.float32).tolist())
    ]
    words += [",".join(str(int(v)) for v in r).encode() for r in runs if marker.dtype.kind in "iu"]

    def look(thing: bytes | NDArray[Any]) -> str:
        if isinstance(thing, bytes):
            if any(r in thing for r in raw):
                return "its bytes"
            flat = re.sub(rb"\s+", b"", re.sub(rb"(?<=\d)\s+(?=[\d-])", b",", thing))
            return "its values, as text" if any(w in flat for w in words) else ""
        if thing.dtype.kind not in "iufb":
            return ""
        flat = thing.astype(np.float64)
        kinds = [flat.ravel()] + ([np.moveaxis(flat, -1, -3).ravel()] if flat.ndim >= 3 else [])
        return "its values" if any(_holds(values, r) for values in kinds for r in scaled) else ""

    return look


def _holds(values: NDArray[np.float64], run: NDArray[np.float64]) -> bool:
    """Whether `run` stands in `values`, up to the rounding of float32."""
    if len(values) < len(run):
        return False
    tol = 1e-6 * float(np.abs(run).max())
    starts = np.flatnonzero(np.abs(values[: len(values) - len(run) + 1] - run[0]) <= tol)
    for k in range(1, len(run)):
        starts = starts[np.abs(values[starts + k] - run[k]) <= tol]
    return bool(len(starts))


def _number(marker: int) -> Any:
    if abs(marker) < 1000:
        raise ValueError(f"{marker} could be there by chance; plant a number of at least four digits")
    spelled = [f"{marker}", f"{marker:,}", f"{marker:_}", f"{marker:,}".replace(",", " ")]
    pattern = re.compile(rb"(?<![\d.])(" + b"|".join(re.escape(s.encode()) for s in spelled) + rb")(?!\d)")

    def look(thing: bytes | NDArray[Any]) -> str:
        if isinstance(thing, bytes):
            return "the number, as text" if pattern.search(thing) else ""
        if marker in thing.shape:
            return f"the number, in the shape {thing.shape}"
        return "the number, as a value" if thing.dtype.kind in "iuf" and bool((thing == marker).any()) else ""

    return look


def _text(marker: str) -> Any:
    if len(marker) < 8:
        raise ValueError(f"{marker!r} could be there by chance; plant a text of at least eight letters")
    forms = [marker.encode(), marker.encode("utf-16-le"), marker.encode().hex().encode()]

    def look(thing: bytes | NDArray[Any]) -> str:
        data = thing if isinstance(thing, bytes) else thing.tobytes() + str(thing).encode()
        return "the text" if any(f in data for f in forms) else ""

    return look
