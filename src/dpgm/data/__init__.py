"""Reading of data, and nothing else: sources are opened by their public facts and read only on demand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dpgm.data.base import GIB, DataSet, Part, PartName, Split
from dpgm.data.declared import Declared
from dpgm.data.errors import DataError
from dpgm.data.folder import class_folders, open_folder
from dpgm.data.idx import is_idx, open_idx
from dpgm.data.named import NAMED, NamedSet, open_named, same_source
from dpgm.data.npz import open_npz
from dpgm.data.pixels import Shaping
from dpgm.data.table_files import SUFFIXES, is_table
from dpgm.schema import ImageSchema, TableSchema

__all__ = ["NAMED", "DataError", "DataSet", "NamedSet", "open_data", "same_source"]


def open_data(
    source: str | Path,
    *,
    data_dir: str | Path | None = None,
    schema: ImageSchema | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    classes: Sequence[str] | int | None = None,
    size: int | None = None,
    resize: int | None = None,
    grey: bool | None = None,
    test_fraction: float | None = None,
    labels: Path | None = None,
    unlabelled: bool = False,
    max_gib: float = 16.0,
) -> DataSet:
    """Open a set of labelled images without reading a row: only names, keys and headers are looked at.

    Sources are a name of `NAMED`; a `.npz` file (x_train, y_train [, x_test, y_test], or x, y, or images, labels, or
    joined JPEG files); a folder of idx files or one such file; a folder ROOT/train/CLASS/* with ROOT/test/CLASS/*, or
    ROOT/CLASS/*. A name goes before a path of the same spelling (write ./mnist for the path).

    The public facts of an own source must be declared, by `schema` or by `image_size`, `channels` and `classes`: they
    are published with the result, and what is inferred from private rows would be published without protection.

    Args:
        source: name or path.
        data_dir: folder with the files of named sets; by default the environment variable DPGM_DATA.
        schema: public facts of an own source, instead of the next three.
        image_size: side, or (height, width), of the stored images in pixels; not needed beside `resize`.
        channels: 1 (grey) or 3 (colour) of the stored images; not needed beside `grey`.
        classes: names of the classes in the order of the labels 0, 1, ..., or their number.
        size: declared number of train records, a public round figure; it goes before a named set's official one.
        resize: side of the square images wanted, in pixels; the central square of others is taken.
        grey: True turns colour to grey, False grey to colour, None leaves it.
        test_fraction: share to hold out where the source has no test part, more than 0 and less than 1; each record
            is assigned by a hash of itself alone, so that no other record's presence matters.
        labels: file of labels beside a single idx file of images.
        unlabelled: drop the labels and take all records as one class, "all"; an own .npz file, idx
            files or a folder need no labels, classes or class folders then.
        max_gib: memory in GiB above which a source is refused by its headers.

    Raises:
        DataError: the source is absent, damaged, undeclared or at odds with its declaration.
    """
    if isinstance(schema, TableSchema):
        raise DataError(
            f"the schema describes a table, but {source} would be opened as images; give a table whose name ends in "
            f"{', '.join(SUFFIXES)}, or the schema of the images"
        )
    declared = Declared(
        schema=schema,
        image_size=image_size,
        channels=channels,
        classes=classes,
        size=size,
        resize=resize,
        grey=grey,
    )
    split = None if test_fraction is None else Split(fraction=test_fraction)
    name = source.lower().replace("_", "-") if isinstance(source, str) else ""
    if name in NAMED:
        known = NAMED[name]
        parts, facts, note = open_named(name, None if data_dir is None else Path(data_dir))
        facts = declared.agreeing(name, facts)
        stored, cut, terms = known.stored, known.cut, known.terms
    else:
        path = Path(source)
        parts, facts = _open_own(path, declared, labels, unlabelled)
        name, stored, cut, note, terms = path.resolve().name, declared.stored(facts), None, "", ""
    if unlabelled:
        facts = dataclasses.replace(facts, classes=("all",))
    shaping = Shaping(target=facts.shape, source=stored, cut=cut)
    return DataSet(
        name=name,
        schema=facts,
        parts=parts,
        shaping=shaping,
        split=split,
        limit=max_gib * GIB,
        terms=terms,
        note=note,
        unlabelled=unlabelled,
    )


def _open_own(
    path: Path, declared: Declared, labels: Path | None, unlabelled: bool
) -> tuple[dict[PartName, Part], ImageSchema]:
    if not path.exists():
        raise DataError(
            f"{path} is neither an existing file or folder nor a named set; the named sets are {', '.join(NAMED)}"
        )
    if path.is_file() and is_table(path):
        raise DataError(
            f"{path} is a table; declare its columns, their kinds and bounds in the schema of a table "
            "(schema=TableSchema(...), or --schema FILE), instead of what describes images"
        )
    if unlabelled and declared.names is None:
        declared = dataclasses.replace(declared, classes=("all",))
    hint = {"image-size": "28", "channels": "1", "classes": "cat,dog"}
    if is_idx(path):
        parts = open_idx(path, labels=labels, unlabelled=unlabelled)
    elif path.is_file() and path.suffix.lower() == ".npz":
        parts = open_npz(path, unlabelled=unlabelled)
    elif path.is_dir():
        folders = class_folders(path, declared.names or ())
        facts = declared.facts(path.name, {**hint, "classes": ",".join(folders) or hint["classes"]})
        return open_folder(path, facts.classes, unlabelled=unlabelled), facts
    else:
        raise DataError(
            f"{path} is of no known kind; allowed are .npz, idx files (*-ubyte, *-ubyte.gz), a folder of idx files, "
            "a folder with one folder of images for each class, and tables with a schema of their own: "
            + ", ".join(SUFFIXES)
        )
    return parts, declared.facts(path.name, hint)
