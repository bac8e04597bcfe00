"""Files of the idx format of MNIST: a magic number, the dimensions, then the bytes."""

from __future__ import annotations

import gzip
import math
import re
import struct
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dpgm.data.base import ArrayImages, Images, Part, PartName, labels_from
from dpgm.data.errors import DataError
from dpgm.data.pixels import array_shape, as_bytes

_NAME = re.compile(r"(?P<stem>.*?)(?P<part>train|t10k|test)-images[-.]idx[34]-ubyte(\.gz)?")
_PARTS: dict[str, PartName] = {"train": "train", "t10k": "test", "test": "test"}


def is_idx(path: Path) -> bool:
    """Whether the name is that of an idx file, or the folder holds such image files."""
    if path.is_dir():
        return any(_NAME.fullmatch(p.name) for p in path.iterdir())
    return path.name.removesuffix(".gz").endswith("-ubyte")


def open_idx(path: Path, *, labels: Path | None = None, unlabelled: bool = False) -> dict[PartName, Part]:
    """The parts of a folder with train-images-idx3-ubyte[.gz] and so on, or of one file of images.

    Args:
        path: the folder or the file of images.
        labels: the file of labels of a single file; by default its name with "labels-idx1" for "images-idx3".
        unlabelled: need no labels, and read none; every label is 0.

    Raises:
        DataError: a file is missing, not idx, or images and labels differ in length.
    """
    if path.is_file():
        return {"train": _part(path, None if unlabelled else labels or _labels_of(path))}
    parts: dict[PartName, Part] = {}
    for file in sorted(path.iterdir()):
        if match := _NAME.fullmatch(file.name):
            name = _PARTS[match["part"]]
            if name in parts:
                raise DataError(f"{path} holds several files of {name} images; leave one or give the file itself")
            parts[name] = _part(file, None if unlabelled else _labels_of(file))
    if "train" not in parts:
        raise DataError(f"{path} holds no train-images-idx3-ubyte[.gz]; add it or give the file of images itself")
    return parts


def _labels_of(images: Path) -> Path:
    name = re.sub(r"images([-.])idx[34]", r"labels\1idx1", images.name)
    plain = name.removesuffix(".gz")
    for candidate in (name, plain, f"{plain}.gz"):
        if name != images.name and (images.parent / candidate).is_file():
            return images.parent / candidate
    raise DataError(f"the labels of {images} are missing; {name} was looked for beside it; add it or give --labels")


def _part(images: Path, labels: Path | None) -> Part:
    shape = _shape(images)
    size = array_shape(shape, np.dtype(np.uint8), str(images))
    label_shape = shape[:1] if labels is None else _shape(labels)
    if len(label_shape) != 1:
        raise DataError(f"{labels}: labels must have one dimension (idx1), this file has {len(label_shape)}")
    if labels is not None and shape[0] != label_shape[0]:
        raise DataError(f"{images} and {labels.name} differ in length; give one label to every image")

    def load() -> tuple[Images, NDArray[np.int64]]:
        pixels = ArrayImages(as_bytes(_read(images, shape), str(images)))
        if labels is None:
            return pixels, np.zeros(shape[0], np.int64)
        return pixels, labels_from(_read(labels, label_shape), str(labels))

    return Part(where=str(images), load=load, shape=size, count=shape[0], nbytes=math.prod(shape))


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise DataError(f"{path} is not a file; give an idx file of labels with --labels")
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _shape(path: Path) -> tuple[int, ...]:
    try:
        with _open(path) as stream:
            zero, kind, dims = struct.unpack(">HBB", stream.read(4))
            if zero or kind != 8 or not 1 <= dims <= 4:
                raise DataError(f"{path}: not an idx file of bytes (its first bytes must be 0, 0, 8, dimensions)")
            return struct.unpack(f">{dims}I", stream.read(4 * dims))
    except DataError:
        raise
    except Exception as error:  # gzip, zlib and struct each have their own kinds
        raise _damaged(path) from error


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = math.prod(shape)
    try:
        with _open(path) as stream:
            stream.read(4 + 4 * len(shape))
            data = stream.read(size + 1)  # never more than the header states, whatever the file unpacks to
    except Exception as error:
        raise _damaged(path) from error
    if len(data) != size:
        raise _damaged(path)
    return np.frombuffer(data, np.uint8).reshape(shape).copy()  # a view of bytes could not be written to


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: damaged or cut short, it does not hold what its header states; copy it again")
