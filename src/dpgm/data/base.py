"""What every reader hands over: a data set that can be described before it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dpgm.data.errors import DataError
from dpgm.data.pixels import Shaping
from dpgm.schema import ImageSchema, Rows, SchemaError

PartName = Literal["train", "test"]
GIB = 2**30


class Images(Protocol):
    """Stored images, each of them decoded when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """Image `i` as uint8 [h, w, c]."""
        ...

    def identity(self, i: int) -> bytes:
        """Bytes that belong to record `i` alone; they decide its part when a split is drawn."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images of one size in one array, uint8 [n, h, w, c]."""

    array: NDArray[np.uint8] = field(repr=False)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return self.array[i]

    def identity(self, i: int) -> bytes:
        """The pixels."""
        return self.array[i].tobytes()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a source, known by its structure alone; `load` reads the rows.

    Attributes:
        where: file or folder, for messages.
        load: reads images and labels, int64 [n].
        shape: height, width and channels of every stored image; None when each image states its own.
        count: number of records by the file's header; None when only reading tells. Never printed.
        nbytes: memory that loading takes, in bytes.
    """

    where: str
    load: Callable[[], tuple[Images, NDArray[np.int64]]] = field(repr=False)
    shape: tuple[int, int, int] | None = None
    count: int | None = field(default=None, repr=False)
    nbytes: int = field(default=0, repr=False)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A held-out part drawn by a fixed rule: a record goes to the test part by a hash of itself alone.

    Adding or removing one record therefore moves no other record across the split, as neighbouring data sets need
    it (a rule by position, every k-th record, would move all that follow), and exact copies stay on one side.
    *Replacing* a record may move it across the split, so the number of train records is not public then
    (`dpgm.methods.fit.check_split`); sums over them move no further than with a record replaced in place.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise DataError(f"the test fraction is {self.fraction}; allowed is more than 0 and less than 1, e.g. 0.2")

    def select(self, images: Images, part: PartName) -> NDArray[np.intp]:
        """Positions of the records that belong to `part`."""
        bound = int(self.fraction * 2**64)
        digests = (hashlib.blake2b(images.identity(i), digest_size=8).digest() for i in range(len(images)))
        in_test = np.fromiter((int.from_bytes(d, "big") < bound for d in digests), dtype=bool, count=len(images))
        return np.flatnonzero(in_test if part == "test" else ~in_test)


@dataclass(frozen=True, kw_only=True, repr=False)
class DataSet:
    """Images with labels, opened but not read: only `train` and `test` touch rows.

    Opening checks what headers and names tell, so that most faults show before any privacy budget is reserved.

    Attributes:
        name: a set's name or the bare file or folder name, never a full path.
        schema: public facts, known or declared, of the images as `train` returns them.
        terms: licence or terms of a named set; "" for others.
        note: what must be said beside numbers measured on this set; "" when there is nothing.
        unlabelled: labels are dropped; all records are of the schema's one class.
    """

    name: str
    schema: ImageSchema
    parts: Mapping[PartName, Part]
    shaping: Shaping
    split: Split | None = None
    limit: float = 16 * GIB
    terms: str = ""
    note: str = ""
    unlabelled: bool = False

    def __post_init__(self) -> None:
        if self.split and "test" in self.parts:
            raise DataError(f"{self.name} has a test part of its own; leave out --test-fraction")
        for part in self.parts.values():
            if part.shape:
                self.shaping.check(part.shape, part.where)
            if part.count is not None:
                self._check_memory(part, part.count)

    def __repr__(self) -> str:
        return f"DataSet({self.name!r}, {self.schema}, has_test={self.has_test})"

    def facts(self) -> dict[str, Any]:
        """Public facts that tell these records from others, as plain JSON values."""
        held_out = None if self.split is None else self.split.fraction
        return {"data": self.name, "held out": held_out, "schema": self.schema.to_json()}

    @property
    def has_test(self) -> bool:
        """Whether there are held-out records."""
        return self.split is not None or "test" in self.parts

    def train(self) -> Rows:
        """Read the private rows: `image` uint8 [n, h, w, c] and `label` int64 [n].

        A declared class without any record is no error here: to say so would tell something about private rows.

        Raises:
            DataError: the rows cannot be read or do not fit the schema.
        """
        return self._read("train")

    def test(self) -> Rows:
        """Read the held-out rows, columns as in `train`; every declared class must occur.

        Raises:
            DataError: there is no held-out part, it cannot be read or does not fit the schema.
        """
        if not self.has_test:
            raise DataError(
                f"{self.name} has no test part; add one (x_test and y_test, a test folder, t10k files) "
                "or hold records out with --test-fraction 0.2"
            )
        rows = self._read("test")
        present = set(np.unique(rows["label"]).tolist())
        if absent := [c for k, c in enumerate(self.schema.classes) if k not in present]:
            raise DataError(
                f"{self.name}: the test part has no record of {', '.join(absent)}; accuracy would be meaningless for "
                "it; add records, raise --test-fraction or leave the class out of the declared classes"
            )
        return rows

    def _read(self, name: PartName) -> Rows:
        part = self.parts["train" if self.split else name]
        images, labels = part.load()
        index = self.split.select(images, name) if self.split else np.arange(len(images))
        self._check_memory(part, len(index))
        if isinstance(images, ArrayImages) and self.shaping.keeps(images.array.shape[1:]):
            pixels = images.array[index] if self.split else images.array
        else:
            pixels = np.empty((len(index), *self.schema.shape), np.uint8)
            for row, i in enumerate(index.tolist()):
                pixels[row] = self.shaping(images[i], part.where)
        try:
            rows = Rows(image=pixels, label=labels[index] * (not self.unlabelled))
            self.schema.check(rows)
        except SchemaError as error:
            raise DataError(f"{part.where}: {error}") from error
        if len(rows) < 2:
            raise DataError(f"{part.where}: too few records in the {name} part; at least 2 are needed")
        return rows

    def _check_memory(self, part: Part, count: int) -> None:
        needed = part.nbytes + count * int(np.prod(self.schema.shape, dtype=object))
        if needed > self.limit:
            raise DataError(
                f"{part.where} would take more than {self.limit / GIB:g} GiB of memory; if the file is to be trusted "
                "and the memory is there, raise the limit with --max-gib, or shrink the images with --resize"
            )


def labels_from(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Integer labels [n] or [n, 1] as int64 [n]."""
    if values.dtype.kind not in "iu" or values.ndim not in (1, 2) or values.shape[1:] not in ((), (1,)):
        shape = f"[n{''.join(f', {s}' for s in values.shape[1:])}]"
        raise DataError(
            f"{where}: labels are {values.dtype} of shape {shape}; allowed are "
            "integers of shape [n], numbered from 0 in the order of --classes; one-hot labels: take argmax(axis=1)"
        )
    return values.reshape(len(values)).astype(np.int64)
