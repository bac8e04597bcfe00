"""Public data sets that are known by name: their facts, where they are looked for, and how they are fetched."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpgm.data.base import ArrayImages, Images, Part, PartName
from dpgm.data.errors import DataError
from dpgm.data.npz import keys_of, open_npz
from dpgm.schema import ImageSchema

_TEN = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class OpenML:
    """A set at openml.org: number, how many of its records, in order, are the official train part, layout of a row."""

    id: int
    train: int
    row: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """Public facts of a named set.

    Attributes:
        file: file name in the data folder; "" for the set that comes with scikit-learn.
        schema: the images as they are handed out by default, with the official number of train records.
        stored: (height, width, channels) of the stored images.
        cut: side of the central square that is kept before resizing; None keeps all.
        labels: stem of the keys that hold the labels.
        terms: licence or terms of use.
        note: what to say beside numbers.
        jpeg_size, jpeg_note: number of train records and note where the file holds joined JPEG files instead of arrays.
        openml: where to fetch it; None where the file must be given.
    """

    file: str
    schema: ImageSchema
    stored: tuple[int, int, int]
    cut: int | None = None
    labels: str = "y"
    terms: str
    note: str = ""
    jpeg_size: int | None = None
    jpeg_note: str = ""
    openml: OpenML | None = None


def _set(
    file: str, size: int, stored: tuple[int, int, int], classes: tuple[str, ...], *, side: int = 0, **more: Any
) -> NamedSet:
    height, width = (side, side) if side else stored[:2]
    schema = ImageSchema(height=height, width=width, channels=stored[2], classes=classes, size=size)
    return NamedSet(file=file, schema=schema, stored=stored, **more)


_CELEBA_TERMS = "CelebA agreement: non-commercial research only; images may not be published or passed on"
_CELEBA_NOTE = (
    "first 10,000 aligned images, own random split by gender, central 74x74 of the half-size crop; "
    "one person may be in both parts"
)

NAMED: Mapping[str, NamedSet] = MappingProxyType(
    {
        "digits": _set(
            "", 1498, (8, 8, 1), _TEN,
            terms="UCI Optical Recognition of Handwritten Digits, CC BY 4.0, as it comes with scikit-learn",
            note="values 0 to 16 scaled to 0 to 255; test part: records 5, 11, 17, ... (every sixth)",
        ),
        "mnist": _set(
            "mnist.npz", 60_000, (28, 28, 1), _TEN,
            terms="LeCun, Cortes and Burges; usually given as CC BY-SA 3.0",
            openml=OpenML(id=554, train=60_000, row=(28, 28, 1)),
        ),
        "fashion-mnist": _set(
            "fashion_mnist.npz", 60_000, (28, 28, 1),
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            terms="MIT (Zalando SE)",
            openml=OpenML(id=40996, train=60_000, row=(28, 28, 1)),
        ),
        "cifar10": _set(
            "cifar10.npz", 50_000, (32, 32, 3),
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
            terms="no explicit licence; research use, cite Krizhevsky 2009",
            jpeg_size=48_000,
            jpeg_note="JPEG-95 CIFAR-10: 48,000 of the 50,000 train images, coded as JPEG of quality 95",
            openml=OpenML(id=40927, train=50_000, row=(3, 32, 32)),
        ),
        "celeba": _set(
            "celeba_10k.npz", 9_000, (109, 89, 3), ("female", "male"), side=64, cut=74,
            terms=_CELEBA_TERMS, note=_CELEBA_NOTE,
        ),
        "celeba-hair": _set(
            "celeba_10k.npz", 9_000, (109, 89, 3), ("black", "blond", "brown", "gray", "none_or_several"), side=64,
            cut=74, labels="hair", terms=_CELEBA_TERMS, note=_CELEBA_NOTE,
        ),
        "usps": _set(
            "usps.npz", 7_291, (16, 16, 1), _TEN, terms="none stated; research use, cite Hull 1994"
        ),
        "pneumonia-mnist": _set(
            "pneumonia_mnist.npz", 4_708, (28, 28, 1), ("normal", "pneumonia"),
            terms="CC BY 4.0 (MedMNIST v2; images by Kermany et al. 2018)",
            note="the validation part is not used",
        ),
        "brain-mri": _set(
            "brain_mri_128.npz", 5_312, (128, 128, 1), ("glioma", "meningioma", "notumor", "pituitary"),
            terms="published as CC0 (M. Nickparvar; from Figshare, SARTAJ and Br35H)",
            note="JPEG, exact copies dropped; several slices of one patient may be in both parts",
        ),
        "cats-dogs": _set(
            "cats_dogs_256.npz", 700, (256, 256, 3), ("cat", "dog"),
            terms="Microsoft Asirra / Kaggle Dogs vs. Cats; research use",
            note="840 photos, central square; too few for a meaningful FID",
        ),
    }
)  # fmt: skip


def same_source(one: str, other: str) -> bool:
    """Whether two names stand for the same images: equal, or two label sets of one file."""
    files = [NAMED[n].file if n in NAMED and NAMED[n].file else n for n in (one, other)]
    return files[0] == files[1]


def open_named(name: str, data_dir: Path | None) -> tuple[dict[PartName, Part], ImageSchema, str]:
    """Parts, schema and note of a named set, from the data folder, the cache or OpenML.

    Args:
        name: a key of `NAMED`.
        data_dir: where its file lies; by default the environment variable DPGM_DATA.

    Raises:
        DataError: the file is absent and cannot be fetched.
    """
    known = NAMED[name]
    if not known.file:
        return _digits(), known.schema, known.note
    path = _find(name, known, data_dir)
    parts = open_named_file(path, known)
    if known.jpeg_size and "x_train_jpeg" in keys_of(path):
        facts = {k: v for k, v in known.schema.to_json().items() if k != "size"}
        return parts, ImageSchema.from_json({**facts, "size": known.jpeg_size}), known.jpeg_note
    return parts, known.schema, known.note


def open_named_file(path: Path, known: NamedSet) -> dict[PartName, Part]:
    """The parts of a named set's file; it must hold both of them."""
    parts = open_npz(path, labels=known.labels)
    if "test" not in parts:
        raise DataError(f"{path}: a named set needs a test part (x_test, y_test); open other files by their path")
    return parts


def _find(name: str, known: NamedSet, data_dir: Path | None) -> Path:
    folder = data_dir or (Path(os.environ["DPGM_DATA"]) if os.environ.get("DPGM_DATA") else None)
    if folder is not None and not folder.is_dir():
        raise DataError(f"the data folder {folder} does not exist; correct --data-dir or the variable DPGM_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpgm"
    places = [p for p in (folder, cache) if p is not None]
    for place in places:
        if (place / known.file).is_file():
            return place / known.file
    looked = " and ".join(map(str, places))
    advice = f"put {known.file} into a folder and give it with --data-dir FOLDER or the variable DPGM_DATA"
    if known.openml is None:
        raise DataError(f"{name} is not fetched by itself and {known.file} is not in {looked}; {advice}")
    try:
        arrays = fetch(known.openml)
    except Exception as error:  # network, server, parser or a missing package: the advice is the same
        raise DataError(
            f"{known.file} is not in {looked} and fetching {name} from openml.org failed ({type(error).__name__}); "
            f"connect to the network, or {advice}"
        ) from error
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".{os.getpid()}-{known.file}"
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    return partial.replace(cache / known.file)  # a fetch cut short leaves no half file under the real name


def fetch(source: OpenML) -> dict[str, NDArray[np.uint8]]:
    """Fetch a set from openml.org by scikit-learn: official train part first, then test."""
    from sklearn.datasets import fetch_openml  # late: slow to import, seldom needed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each retry; what comes of them is raised
        table: Any = fetch_openml(data_id=source.id, as_frame=False, cache=False, n_retries=2)
    images = np.asarray(table.data, dtype=np.uint8).reshape(-1, *source.row)
    if source.row[0] == 3:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    labels = np.asarray(table.target).astype(np.uint8)
    cut = source.train
    return {"x_train": images[:cut], "y_train": labels[:cut], "x_test": images[cut:], "y_test": labels[cut:]}


def _digits() -> dict[PartName, Part]:
    def part(test: bool) -> Part:
        def load() -> tuple[Images, NDArray[np.int64]]:
            from sklearn.datasets import load_digits  # late: slow to import

            table: Any = load_digits()
            chosen = (np.arange(len(table.target)) % 6 == 5) == test
            pixels = np.rint(table.images[chosen] * (255 / 16)).astype(np.uint8)[..., None]
            return ArrayImages(pixels), table.target[chosen].astype(np.int64)

        return Part(where="digits", load=load, shape=(8, 8, 1))

    return {"train": part(test=False), "test": part(test=True)}
