"""Folders of image files, one folder for each class, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpgm.data.base import Images, Part, PartName
from dpgm.data.errors import DataError
from dpgm.data.pixels import decode

_CLUTTER = {"thumbs.db", "desktop.ini"}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class FileImages:
    """Image files below `root`, decoded one by one."""

    root: Path
    paths: Sequence[Path] = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return decode(self.paths[i], str(self.paths[i]))

    def identity(self, i: int) -> bytes:
        """Class folder, if there is one, and file name, however the way to them is written."""
        return self.paths[i].relative_to(self.root).as_posix().encode(errors="surrogateescape")


def class_folders(root: Path, classes: Sequence[str] = ()) -> list[str]:
    """Names of the class folders below `root` or `root/train`; they are structure, not records."""
    return _folders(_train_root(root, classes))


def open_folder(root: Path, classes: Sequence[str], *, unlabelled: bool = False) -> dict[PartName, Part]:
    """The parts of root/train/CLASS/* with root/test/CLASS/*, or of root/CLASS/*.

    Args:
        root: the folder.
        classes: names of the class folders.
        unlabelled: take all image files as one class: those of any folders, and those that lie in none.

    Raises:
        DataError: the folders are not those of the declared classes; when read: a file that is no image.
    """
    base = _train_root(root, classes)
    if unlabelled and base == root and (root / "test").is_dir():
        raise DataError(f"{root} has a folder test but none called train; move the others there, or rename test")
    names: dict[PartName, Path] = {"train": base}
    if base != root and (root / "test").is_dir():
        names["test"] = root / "test"
    return {name: _all_of(place) if unlabelled else _part(place, classes) for name, place in names.items()}


def _train_root(root: Path, classes: Sequence[str]) -> Path:
    return root / "train" if (root / "train").is_dir() and "train" not in classes else root


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _part(root: Path, classes: Sequence[str]) -> Part:
    found = _folders(root)
    missing, extra = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
    if missing or extra:
        faults = [f"no folder for the class {', '.join(missing)}"] if missing else []
        faults += [f"a folder for no declared class: {', '.join(extra)}"] if extra else []
        raise DataError(
            f"{root}: {' and '.join(faults)}; declared are {', '.join(classes)}; make the folders (one may be empty), "
            "move others away or correct --classes"
        )

    def load() -> tuple[Images, NDArray[np.int64]]:
        files = [(p, k) for k, name in enumerate(classes) for p in _files(root / name)]
        return FileImages(root, [p for p, _ in files]), np.array([k for _, k in files], dtype=np.int64)

    return Part(where=str(root), load=load)


def _all_of(root: Path) -> Part:
    def load() -> tuple[Images, NDArray[np.int64]]:
        files = [p for p in _files(root) if p.is_file() and p.suffix.lower() in _SUFFIXES]  # a README is no record
        files += [p for name in _folders(root) for p in _files(root / name)]
        return FileImages(root, files), np.zeros(len(files), np.int64)

    return Part(where=str(root), load=load)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in _CLUTTER)
