"""Each bad input is refused in words that say what to do and hold no private values or numbers."""

from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpgm.data import DataError, open_data
from dpgm.schema import Column, ImageSchema, TableSchema

from .helpers import FACTS, encoded, folder, grey, idx, npz, open_arrays, packed, two

N = 4321  # the private number of records, which no message may tell


def image_with(value: float) -> np.ndarray:
    images = np.full((4, 6, 6), 0.5)
    images[2, 3, 3] = value
    return images


PACK = packed([encoded(g) for g in grey(3)])
OFFSETS = PACK["x_train_offsets"]
JUNK = packed([encoded(grey(1)[0]), b"junk", b"junk"])

# What is wrong, the arrays of the file, and the words of the error; all of these are seen when the file is opened.
AT_OPENING: list[tuple[str, dict[str, Any], str]] = [
    ("no known key", {"a": grey(), "b": two()}, "no images under a known key; it holds a, b; allowed are x_train"),
    ("nothing", {}, "it holds nothing"),
    ("no labels", {"x_train": grey()}, "y_train missing; it holds x_train; allowed"),
    ("no test labels", {"x_train": grey(), "y_train": two(), "x_test": grey()}, "y_test missing"),
    ("no offsets", {"x_train_jpeg": PACK["x_train_jpeg"], "y_train": two(3)}, "x_train_offsets missing"),
    ("lengths", {"x": grey(), "y": two(11)}, "x and y differ in length"),
    ("packed lengths", {**PACK, "y_train": two(4)}, "x_train and y_train differ in length"),
    ("integer images", {"x": grey().astype(np.int64), "y": two()}, "images are int64; allowed are uint8"),
    ("boolean images", {"x": grey() > 9, "y": two()}, "images are bool"),
    ("complex images", {"x": grey() * 1j, "y": two()}, "images are complex128"),
    ("text images", {"x": np.full((4, 6, 6), "a"), "y": two(4)}, "images are <U1"),
    ("flat images", {"x": grey(N).reshape(N, 36), "y": two(N)}, r"shape \[n, 36\]; allowed are \[n, height, width\]"),
    ("channels first", {"x": np.zeros((4, 3, 6, 6), np.uint8), "y": two(4)}, r"x\.transpose\(0, 2, 3, 1\)"),
    ("two channels", {"x": np.zeros((4, 6, 6, 2), np.uint8), "y": two(4)}, "width, 1 or 3"),
    ("no pixels", {"x": np.zeros((4, 0, 6), np.uint8), "y": two(4)}, "reshape them"),
    ("other size", {"x": grey(side=5), "y": two()}, "5 high, 5 wide with 1 channels; declared are height 6"),
    ("colour", {"x": np.zeros((4, 6, 6, 3), np.uint8), "y": two(4)}, "with 3 channels; declared .* --colour grey"),
    ("objects", {"x": grey(), "y": np.array([{}] * 12)}, "Python objects .a pickle. could run code and is refused"),
    ("float labels", {"x": grey(), "y": two() * 1.0}, r"labels are float64 of shape \[n\]; allowed are integers"),
    ("one-hot labels", {"x": grey(), "y": np.eye(2, dtype=int)[two()]}, r"shape \[n, 2\].*argmax"),
    ("text labels", {"x": grey(), "y": np.array(["cat", "dog"] * 6)}, "labels are <U3"),
    ("one label", {"x": grey(), "y": np.int64(3)}, "y: a single value"),
    ("float offsets", {**PACK, "x_train_offsets": np.zeros(4), "y_train": two(3)}, "offsets must be integers"),
    ("packed matrix", {**PACK, "x_train_jpeg": grey(1)[0], "y_train": two(3)}, "must be uint8 of one dimension"),
]  # fmt: skip

# These are seen only when the private rows are read.
AT_READING: list[tuple[str, dict[str, Any], str]] = [
    ("NaN", {"x": image_with(np.nan), "y": two(4)}, "NaN or infinite"),
    ("infinite", {"x": image_with(np.inf), "y": two(4)}, "NaN or infinite"),
    ("above 1", {"x": image_with(1.5), "y": two(4)}, "must lie in 0 to 1"),
    ("below 0", {"x": image_with(-0.1), "y": two(4)}, "must lie in 0 to 1"),
    ("0 to 255 as float", {"x": grey() * 1.0, "y": two()}, "store them as uint8 0 to 255"),
    ("label too high", {"x": grey(N), "y": two(N) + 1}, "a label lies outside the declared classes 0 to 1"),
    ("label below 0", {"x": grey(), "y": two() - 1}, "a label lies outside"),
    ("huge label", {"x": grey(), "y": two().astype(np.uint64) + 2**63}, "a label lies outside"),
    ("one record", {"x": grey(1), "y": two(1)}, "too few records in the train part; at least 2"),
    ("no record", {"x": grey(0), "y": two(0)}, "too few records"),
    ("offsets fall", {**PACK, "x_train_offsets": OFFSETS[[0, 2, 1, 3]], "y_train": two(3)}, "must increase"),
    ("offsets too far", {**PACK, "x_train_offsets": OFFSETS + 1, "y_train": two(3)}, "must increase"),
    ("offsets below 0", {**PACK, "x_train_offsets": OFFSETS - 1, "y_train": two(3)}, "must increase"),
    ("packed size", {**packed([encoded(g) for g in grey(3, 5)]), "y_train": two(3)}, "an image is of another shape"),
    ("packed junk", {**JUNK, "y_train": two(3)}, "x_train_jpeg, an image: not a readable"),
    ("cut JPEG", {**packed([encoded(grey(1, 6)[0], "JPEG")[:-60]] * 2), "y_train": two(2)}, "an image: not a readable"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "words"), [c[1:] for c in AT_OPENING], ids=[c[0] for c in AT_OPENING])
def test_seen_at_opening(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        open_arrays(tmp_path, **arrays)
    assert str(N) not in str(error.value)


@pytest.mark.parametrize(("arrays", "words"), [c[1:] for c in AT_READING], ids=[c[0] for c in AT_READING])
def test_seen_at_reading(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    data = open_arrays(tmp_path, **arrays)
    with pytest.raises(DataError, match=words) as error:
        data.train()
    assert str(N) not in str(error.value)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither an existing file or folder nor a named set; the named sets are dig"):
        open_data("mnits")
    with pytest.raises(DataError, match="neither an existing"):
        open_data(tmp_path / "none.npz")


def test_a_source_of_no_known_kind(tmp_path: Path) -> None:
    for name, message in (
        ("table.txt", r"of no known kind; allowed are \.npz, idx .* tables with a schema .*: \.csv"),
        ("table.CSV", r"is a table; declare its columns"),
    ):
        (tmp_path / name).write_text("a,b")
        with pytest.raises(DataError, match=message):
            open_data(tmp_path / name)


def test_a_table_s_schema_opens_no_images(tmp_path: Path) -> None:
    schema: Any = TableSchema(columns=(Column(name="a", kind="boolean"),))
    for source in (npz(tmp_path / "own.npz", x=grey(), y=two()), "digits", tmp_path / "table.txt"):
        with pytest.raises(DataError, match=r"describes a table, but .* ends in \.csv"):
            open_data(source, schema=schema)


def test_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    own = npz(tmp_path / "own.npz", x=grey(), y=two())
    assert len(open_data(own.rename(tmp_path / "OWN.NPZ"), **FACTS).train()) == 12


def test_npz_that_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(b"no zip at all")
    with pytest.raises(DataError, match=r"not a readable \.npz file .* numpy\.savez"):
        open_data(tmp_path / "own.npz", **FACTS)


def test_npz_of_an_unknown_version_of_zip(tmp_path: Path) -> None:
    path = npz(tmp_path / "own.npz", x=grey(), y=two())
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 6] = 98  # version needed to extract
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a readable"):
        open_data(path, **FACTS)


def test_npz_with_a_damaged_header(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x.npy", b"junk")
        archive.writestr("y.npy", b"junk")
    with pytest.raises(DataError, match="x: damaged or cut short"):
        open_data(tmp_path / "own.npz", **FACTS)


def test_npz_with_damaged_content(tmp_path: Path) -> None:
    path = npz(tmp_path / "own.npz", x=grey(9000), y=two(9000))
    data = bytearray(path.read_bytes())
    data[200_000:200_010] = bytes(10)  # within the pixels: the zip's checksum tells
    path.write_bytes(data)
    opened = open_data(path, **FACTS)
    with pytest.raises(DataError, match="x: damaged or cut short"):
        opened.train()


def forged(path: Path, shape: tuple[int, ...]) -> Path:
    """A file whose header claims far more than it holds."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, claim, kind in (("x", shape, "|u1"), ("y", shape[:1], "<i8")):
            with archive.open(f"{key}.npy", "w") as out:
                np.lib.format.write_array_header_1_0(
                    out,
                    {"descr": kind, "fortran_order": False, "shape": claim},  # type: ignore[arg-type]
                )
                out.write(bytes(100))
    return path


@pytest.mark.parametrize("count", [10**9, 10**18, 2**62])
def test_a_forged_size_is_refused_by_the_header(tmp_path: Path, count: int) -> None:
    path = forged(tmp_path / "own.npz", (count, 6, 6))
    with pytest.raises(DataError, match=r"more than 16 GiB of memory; .* --max-gib"):
        open_data(path, **FACTS)


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    arrays = {"x": grey(1000), "y": two(1000)}
    with pytest.raises(DataError, match=r"more than 1e-05 GiB"):
        open_arrays(tmp_path, {"max_gib": 1e-5}, **arrays)
    open_arrays(tmp_path, {"max_gib": 1e-3}, **arrays)
    with pytest.raises(DataError, match="GiB"):  # enlarging counts too
        open_arrays(tmp_path, {"max_gib": 1e-3, "resize": 100}, **arrays)
    files = open_data(folder(tmp_path / "f", grey()), max_gib=1e-7, **FACTS)
    with pytest.raises(DataError, match="GiB"):
        files.train()


# --- idx -------------------------------------------------------------------------------------------------------------


def idx_pair(folder: Path, end: str = "") -> tuple[Path, Path]:
    images = idx(folder / f"train-images-idx3-ubyte{end}", grey())
    return images, idx(folder / f"train-labels-idx1-ubyte{end}", two().astype(np.uint8))


def test_idx_without_labels(tmp_path: Path) -> None:
    idx_pair(tmp_path)[1].unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte was looked for beside it; add it or give --labels"):
        open_data(tmp_path, **FACTS)
    with pytest.raises(DataError, match=r"none is not a file"):
        open_data(tmp_path / "train-images-idx3-ubyte", labels=tmp_path / "none", **FACTS)


def test_idx_without_train_images_or_with_two_of_them(tmp_path: Path) -> None:
    images, _ = idx_pair(tmp_path)
    idx_pair(tmp_path, ".gz")
    with pytest.raises(DataError, match="several files of train images"):
        open_data(tmp_path, **FACTS)
    (tmp_path / "train-images-idx3-ubyte.gz").unlink()
    images.rename(tmp_path / "t10k-images-idx3-ubyte")
    (tmp_path / "train-labels-idx1-ubyte").rename(tmp_path / "t10k-labels-idx1-ubyte")
    with pytest.raises(DataError, match="holds no train-images"):
        open_data(tmp_path, **FACTS)


def test_idx_of_other_lengths_types_or_dimensions(tmp_path: Path) -> None:
    images, labels = idx_pair(tmp_path)
    idx(labels, two(11).astype(np.uint8))
    with pytest.raises(DataError, match="differ in length"):
        open_data(tmp_path, **FACTS)
    idx(labels, grey(12))
    with pytest.raises(DataError, match="labels must have one dimension"):
        open_data(tmp_path, **FACTS)
    idx(labels, two().astype(np.uint8))
    idx(images, grey(), kind=13)
    with pytest.raises(DataError, match="not an idx file of bytes"):
        open_data(tmp_path, **FACTS)
    idx(images, grey().reshape(12, 36))
    with pytest.raises(DataError, match=r"shape \[n, 36\]"):
        open_data(tmp_path, **FACTS)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("change", ["short", "long"])
def test_idx_that_does_not_hold_what_it_states(tmp_path: Path, end: str, change: str) -> None:
    images, _ = idx_pair(tmp_path, end)
    data = gzip.decompress(images.read_bytes()) if end else images.read_bytes()
    data = data[:-1] if change == "short" else data + bytes(1)
    images.write_bytes(gzip.compress(data) if end else data)
    opened = open_data(tmp_path, **FACTS)
    with pytest.raises(DataError, match="damaged or cut short"):
        opened.train()


def test_idx_damaged_or_forged(tmp_path: Path) -> None:
    images, _ = idx_pair(tmp_path, ".gz")
    images.write_bytes(images.read_bytes()[:-20])  # the compressed stream ends early
    opened = open_data(tmp_path, **FACTS)
    with pytest.raises(DataError, match="damaged or cut short"):
        opened.train()
    images.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="damaged or cut short"):
        open_data(tmp_path, **FACTS)
    images.write_bytes(gzip.compress(b"\0\0"))
    with pytest.raises(DataError, match="damaged or cut short"):
        open_data(tmp_path, **FACTS)
    many = 2**32 - 1
    images.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, many, 6, 6)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, many)))
    with pytest.raises(DataError, match="GiB"):
        open_data(tmp_path, **FACTS)


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folders_that_are_not_the_declared_classes(tmp_path: Path) -> None:
    folder(tmp_path, grey(4))
    with pytest.raises(DataError, match=r"no folder for the class cow; declared are cat, dog, cow"):
        open_data(tmp_path, **{**FACTS, "classes": ("cat", "dog", "cow")})
    with pytest.raises(DataError, match=r"a folder for no declared class: dog; .* correct --classes"):
        open_data(tmp_path, **{**FACTS, "classes": ("cat",)})


def test_a_test_folder_must_have_the_same_classes(tmp_path: Path) -> None:
    folder(tmp_path / "train", grey(4))
    folder(tmp_path / "test", grey(4), ("cat",))
    with pytest.raises(DataError, match="no folder for the class dog"):
        open_data(tmp_path, **FACTS)


def test_an_image_of_another_size_is_refused_without_its_size(tmp_path: Path) -> None:
    folder(tmp_path, grey(4))
    (tmp_path / "dog" / "odd.png").write_bytes(encoded(grey(1, 7)[0]))
    with pytest.raises(DataError, match="of another shape; declared are height 6") as error:
        open_data(tmp_path, **FACTS).train()
    assert "7" not in str(error.value).replace(str(tmp_path), "")


# --- the test part ---------------------------------------------------------------------------------------------------


def test_without_a_test_part(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"own\.npz has no test part; .* --test-fraction 0\.2"):
        open_arrays(tmp_path, x=grey(), y=two()).test()


def test_an_empty_class_of_the_test_part_is_told(tmp_path: Path) -> None:
    data = open_arrays(tmp_path, x_train=grey(), y_train=two(), x_test=grey(4), y_test=two(4) * 0)
    with pytest.raises(DataError, match="the test part has no record of dog"):
        data.test()


def test_a_fraction_is_refused_beside_a_test_part_or_out_of_range(tmp_path: Path) -> None:
    both = {"x_train": grey(), "y_train": two(), "x_test": grey(4), "y_test": two(4)}
    with pytest.raises(DataError, match="leave out --test-fraction"):
        open_arrays(tmp_path, {"test_fraction": 0.2}, **both)
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(DataError, match="allowed is more than 0 and less than 1"):
            open_arrays(tmp_path, {"test_fraction": fraction}, x=grey(), y=two())


# --- declarations ----------------------------------------------------------------------------------------------------


def undeclared(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        open_data(path, **options)
    return str(error.value)


def test_a_missing_declaration_says_what_to_add_and_why(tmp_path: Path) -> None:
    path = npz(tmp_path / "own.npz", x=grey(), y=two())
    text = undeclared(path)
    assert "add --image-size 28 --channels 1 --classes cat,dog, or --schema schema.json" in text
    assert "--size 60000" in text
    assert "never inferred from the private rows, because that would leak" in text
    assert "add --channels 1, or" in undeclared(path, image_size=6, classes=2)
    assert "add --classes cat,dog, or" in undeclared(path, resize=6, grey=True)
    assert "--classes bus,tram," in undeclared(folder(tmp_path / "f", grey(2), ("tram", "bus")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 0}, "height is 0; allowed is 1 to 1024"),
        ({"image_size": 4000}, "give --resize for larger images"),
        ({"channels": 2}, "channels is 2; allowed is 1 .grey. or 3"),
        ({"classes": 0}, "allowed is 1 to 10,000"),
        ({"classes": ("a", "a")}, "each of them once"),
        ({"classes": "cat,dog"}, "give several names"),
        ({"size": 1}, "declared size is 1; allowed is 2 or more"),
        ({"resize": 0}, "--resize is 0; allowed is 1 to 1024"),
        ({"resize": 2000}, "--resize is 2000"),
        ({"schema": ImageSchema(height=6, width=6, channels=1, classes=("a",))}, "give one or the other"),
    ],
)
def test_declarations_out_of_range(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_arrays(tmp_path, change, x=grey(), y=two())
