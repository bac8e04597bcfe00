"""NumPy `.npz` files: images as arrays, or as JPEG files joined into one array."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dpgm.data.base import ArrayImages, Images, Part, PartName, labels_from
from dpgm.data.errors import DataError
from dpgm.data.pixels import array_shape, as_bytes, decode

LAYOUTS = (
    "x_train, y_train [, x_test, y_test]; x, y; images, labels; "
    "or x_train_jpeg, x_train_offsets, y_train (JPEG files joined)"
)


@dataclass(frozen=True)
class Header:
    """Shape and type of one array, by its header."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize  # object: no overflow in a forged header


@dataclass(frozen=True)
class JpegImages:
    """Image files joined into one byte array; image i is `data[offsets[i]:offsets[i + 1]]`."""

    data: NDArray[np.uint8] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    where: str = ""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return decode(io.BytesIO(self.identity(i)), f"{self.where}, an image")

    def identity(self, i: int) -> bytes:
        """The bytes of the image file."""
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()


def keys_of(path: Path) -> list[str]:
    """Names of the arrays in the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
    except Exception as error:  # zip has several kinds, and the file system its own
        raise DataError(f"{path}: not a readable .npz file (a zip of arrays); write it with numpy.savez") from error


def open_npz(path: Path, *, labels: str = "y", unlabelled: bool = False) -> dict[PartName, Part]:
    """The parts of a `.npz` file, from the headers of its arrays; objects (pickles) are refused.

    Args:
        path: the file.
        labels: stem of the keys that hold the labels: `y` for y_train and y_test.
        unlabelled: need no labels, and read none; every label is 0.

    Raises:
        DataError: not a zip, no known keys, or arrays of the wrong type or shape.
    """
    keys = keys_of(path)

    def part(x: str, y: str) -> Part:
        return _part(path, keys, x, None if unlabelled else y)

    if {"x_train", "x_train_jpeg"} & set(keys):
        parts: dict[PartName, Part] = {"train": part("x_train", f"{labels}_train")}
        if {"x_test", "x_test_jpeg"} & set(keys):
            parts["test"] = part("x_test", f"{labels}_test")
        return parts
    for x, y in (("x", labels), ("images", "labels")):
        if {x, f"{x}_jpeg"} & set(keys):
            return {"train": part(x, y)}
    raise DataError(f"{path}: no images under a known key; it holds {_list(keys)}; allowed are {LAYOUTS}")


def _part(path: Path, keys: list[str], x: str, y: str | None) -> Part:
    packed = x not in keys
    needed = (*((f"{x}_jpeg", f"{x}_offsets") if packed else (x,)), *([] if y is None else [y]))
    if missing := [k for k in needed if k not in keys]:
        raise DataError(f"{path}: {_list(missing)} missing; it holds {_list(keys)}; allowed are {LAYOUTS}")
    header = {k: _header(path, k) for k in needed}
    for key, h in header.items():
        if not h.shape:
            raise DataError(f"{path}, {key}: a single value; allowed are arrays with one entry for each record")
    nbytes = sum(h.nbytes for h in header.values())
    if y is not None:
        labels_from(np.empty((0, *header[y].shape[1:]), header[y].dtype), f"{path}, {y}")  # type and shape only
    if packed:
        count = header[needed[1]].shape[0] - 1
        _check_packed(path, header[needed[0]], header[needed[1]], x)
    else:
        count = header[x].shape[0]
    if y is not None and count != header[y].shape[0]:
        raise DataError(f"{path}: {x} and {y} differ in length; give one label to every image")

    def load() -> tuple[Images, NDArray[np.int64]]:
        arrays = _load(path, needed)
        labels = np.zeros(count, np.int64) if y is None else labels_from(arrays[y], f"{path}, {y}")
        if not packed:
            return ArrayImages(as_bytes(arrays[x], f"{path}, {x}")), labels
        data, offsets = arrays[needed[0]], arrays[needed[1]].astype(np.int64)
        if len(offsets) and (offsets[0] < 0 or offsets[-1] > len(data) or not bool((np.diff(offsets) > 0).all())):
            raise DataError(
                f"{path}, {needed[1]}: offsets must increase from 0 or more to at most the length of {needed[0]}; "
                "image i is the bytes from offsets[i] to offsets[i + 1]; write the file again"
            )
        return JpegImages(data, offsets, f"{path}, {needed[0]}"), labels

    shape = None if packed else array_shape(header[x].shape, header[x].dtype, f"{path}, {x}")
    return Part(where=f"{path}, {x}", load=load, shape=shape, count=count, nbytes=nbytes)


def _check_packed(path: Path, data: Header, offsets: Header, x: str) -> None:
    if data.dtype != np.uint8 or len(data.shape) != 1:
        raise DataError(f"{path}, {x}_jpeg: joined JPEG files must be uint8 of one dimension; write the file again")
    if offsets.dtype.kind not in "iu" or len(offsets.shape) != 1 or offsets.shape[0] < 1:
        raise DataError(f"{path}, {x}_offsets: offsets must be integers, one more than images; write the file again")


def _header(path: Path, key: str) -> Header:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as stream:
            read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
    except Exception as error:  # zip, zlib and header parser each have their own kinds
        raise _damaged(path, key, error) from error
    if dtype.hasobject:
        raise DataError(
            f"{path}, {key}: an array of Python objects (a pickle) could run code and is refused; "
            "store plain numbers of one shape"
        )
    return Header(shape, dtype)


def _load(path: Path, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for key in keys:
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays[key] = archive[key]
        except Exception as error:
            raise _damaged(path, key, error) from error
    return arrays


def _damaged(path: Path, key: str, error: Exception) -> DataError:
    return DataError(f"{path}, {key}: damaged or cut short ({type(error).__name__}); copy it again")


def _list(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys)) or "nothing"
