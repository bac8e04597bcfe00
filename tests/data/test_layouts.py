"""Every layout is read as it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpgm.data import DataError, DataSet, open_data
from dpgm.schema import ImageSchema

from .helpers import FACTS, encoded, folder, grey, idx, npz, open_arrays, packed, two


def same(data: DataSet, images: np.ndarray, labels: np.ndarray) -> None:
    rows = data.train()
    assert rows["image"].dtype == np.uint8
    assert rows["label"].dtype == np.int64
    assert rows["image"].flags.writeable
    np.testing.assert_array_equal(rows["image"], images)
    np.testing.assert_array_equal(rows["label"], labels)


@pytest.mark.parametrize(("x", "y"), [("x_train", "y_train"), ("x", "y"), ("images", "labels")])
def test_npz_arrays(tmp_path: Path, x: str, y: str) -> None:
    data = open_arrays(tmp_path, **{x: grey(), y: two()})
    same(data, grey()[..., None], two())
    assert not data.has_test


def test_npz_with_a_test_part(tmp_path: Path) -> None:
    data = open_arrays(tmp_path, x_train=grey(), y_train=two(), x_test=grey(4, seed=1), y_test=two(4)[:, None])
    assert data.has_test
    np.testing.assert_array_equal(data.test()["image"], grey(4, seed=1)[..., None])
    np.testing.assert_array_equal(data.test()["label"], two(4))


def test_npz_colour_and_compressed(tmp_path: Path) -> None:
    images = np.stack([grey(seed=s) for s in range(3)], axis=-1)
    np.savez_compressed(tmp_path / "own.npz", x=images, y=two().astype(np.uint8))
    same(open_data(tmp_path / "own.npz", **{**FACTS, "channels": 3}), images, two())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_from_0_to_1_become_bytes(tmp_path: Path, dtype: type) -> None:
    same(open_arrays(tmp_path, x=(grey() / 255).astype(dtype), y=two()), grey()[..., None], two())


def test_packed_images(tmp_path: Path) -> None:
    data = open_arrays(tmp_path, **packed([encoded(g) for g in grey()]), y_train=two())  # PNG: exact
    same(data, grey()[..., None], two())
    flat = np.full((6, 6), 77, np.uint8)
    data = open_arrays(tmp_path, **packed([encoded(flat, "JPEG")] * 4), y_train=two(4))
    assert bool((data.train()["image"] == 77).all())


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_folder(tmp_path: Path, end: str) -> None:
    for part, n in (("train", 12), ("t10k", 4)):
        idx(tmp_path / f"{part}-images-idx3-ubyte{end}", grey(n))
        idx(tmp_path / f"{part}-labels-idx1-ubyte{end}", two(n).astype(np.uint8))
    data = open_data(tmp_path, **FACTS)
    same(data, grey()[..., None], two())
    np.testing.assert_array_equal(data.test()["image"], grey(4)[..., None])


def test_single_idx_file_with_labels_beside_it_or_given(tmp_path: Path) -> None:
    images = idx(tmp_path / "own-images-idx3-ubyte", grey())
    idx(tmp_path / "own-labels-idx1-ubyte.gz", two().astype(np.uint8))
    same(open_data(images, **FACTS), grey()[..., None], two())
    other = idx(tmp_path / "other", 1 - two().astype(np.uint8))
    same(open_data(images, labels=other, **FACTS), grey()[..., None], 1 - two())


def test_flat_folder_in_the_order_of_the_declared_classes(tmp_path: Path) -> None:
    folder(tmp_path, grey(4))
    (tmp_path / "cat" / ".hidden").write_text("skipped")
    (tmp_path / "cat" / "Thumbs.db").write_text("skipped")
    same(open_data(tmp_path, **FACTS), grey(4)[[0, 2, 1, 3], ..., None], np.array([0, 0, 1, 1]))
    same(
        open_data(tmp_path, **{**FACTS, "classes": ("dog", "cat")}),
        grey(4)[[1, 3, 0, 2], ..., None],
        two(4) // 1 * 0 + [0, 0, 1, 1],
    )


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    folder(tmp_path / "train", grey(4))
    folder(tmp_path / "test", grey(2, seed=1))
    data = open_data(tmp_path, **FACTS)
    assert len(data.train()) == 4
    np.testing.assert_array_equal(data.test()["image"], grey(2, seed=1)[..., None])


def test_train_may_be_a_class(tmp_path: Path) -> None:
    folder(tmp_path, grey(4), ("bus", "train"))
    assert len(open_data(tmp_path, **{**FACTS, "classes": ("bus", "train")}).train()) == 4


def test_schema_instead_of_single_facts(tmp_path: Path) -> None:
    schema = ImageSchema(height=6, width=6, channels=1, classes=("cat", "dog"), size=1000)
    data = open_data(npz(tmp_path / "own.npz", x=grey(), y=two()), schema=schema)
    assert data.schema == schema
    assert open_data(tmp_path / "own.npz", schema=schema, size=500).schema.size == 500


def test_classes_by_number_and_size_declared(tmp_path: Path) -> None:
    data = open_arrays(tmp_path, {"classes": 2, "size": 60_000}, x=grey(), y=two())
    assert data.schema.classes == ("0", "1")
    assert data.schema.size == 60_000


def test_an_empty_class_of_the_private_part_is_not_told(tmp_path: Path) -> None:
    open_arrays(tmp_path, x=grey(), y=two() * 0).train()
    folder(tmp_path / "f", grey(4), ("cat",))
    (tmp_path / "f" / "dog").mkdir()
    open_data(tmp_path / "f", **FACTS).train()


def test_opening_reads_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object, **__: object) -> None:
        raise AssertionError("a row was read")

    monkeypatch.setattr(np, "load", touched)
    data = open_arrays(tmp_path, {"test_fraction": 0.5}, x=grey(), y=two())
    assert data.has_test
    with pytest.raises(DataError):  # the broken twin: reading does touch them
        data.train()
    open_data(folder(tmp_path / "f", np.zeros((2, 9, 9), np.uint8)), **FACTS)  # images of the wrong size stay closed


def test_repr_tells_the_name_and_the_public_facts_only(tmp_path: Path) -> None:
    data = open_arrays(tmp_path, x=grey(37), y=two(37))
    data.train()
    assert repr(data).startswith("DataSet('own.npz', ImageSchema(")
    assert "37" not in repr(data) + repr(data.parts)
    assert str(tmp_path) not in repr(data)


# --- a held-out part by a rule ---------------------------------------------------------------------------------------


def test_split_is_complete_and_disjoint(tmp_path: Path) -> None:
    data = open_arrays(tmp_path, {"test_fraction": 0.25}, x=grey(400), y=two(400))
    train, test = data.train()["image"], data.test()["image"]
    assert len(train) + len(test) == 400
    assert 60 <= len(test) <= 140  # fixed seed, and 4.6 standard deviations either way
    both = {i.tobytes() for i in train} | {i.tobytes() for i in test}
    assert both == {i.tobytes() for i in grey(400)}


def moved(tmp_path: Path, rule: str) -> bool:
    """Whether some other record changes sides when the first record is removed."""
    images = grey(100)
    if rule == "position":  # the broken twin
        return {i.tobytes() for i in images[::5]} - {images[0].tobytes()} != {i.tobytes() for i in images[1:][::5]}
    parts = []
    for x in (images, images[1:]):
        rows = open_arrays(tmp_path, {"test_fraction": 0.2}, x=x, y=two(len(x))).test()
        parts.append({i.tobytes() for i in rows["image"]} - {images[0].tobytes()})
    return parts[0] != parts[1]


def test_removing_a_record_moves_no_other_one_across_the_split(tmp_path: Path) -> None:
    assert not moved(tmp_path, "hash")
    assert moved(tmp_path, "position")


def test_replacing_a_record_can_move_it_across_the_split(tmp_path: Path) -> None:
    """So a release that shows how many train records there are is refused there (`check_split`)."""
    found: set[int] = set()
    for seed in range(20):
        images = np.concatenate([grey(1, seed=seed), grey(11, seed=99)])
        data = open_arrays(tmp_path, {"test_fraction": 0.5}, x=images, y=two())
        found.add(len(data.train()))
    assert len(found) == 2


def test_split_does_not_depend_on_resizing(tmp_path: Path) -> None:
    source = {"x": grey(100), "y": np.arange(100)}
    options = {"test_fraction": 0.5, "classes": 100}
    plain = open_arrays(tmp_path, options, **source).train()["label"]
    np.testing.assert_array_equal(plain, open_arrays(tmp_path, {**options, "resize": 3}, **source).train()["label"])


def test_split_of_folders_and_packed_images(tmp_path: Path) -> None:
    for data in (
        open_data(folder(tmp_path / "f", grey(40)), test_fraction=0.5, **FACTS),
        open_arrays(tmp_path, {"test_fraction": 0.5}, **packed([encoded(g) for g in grey(40)]), y_train=two(40)),
    ):
        assert len(data.train()) + len(data.test()) == 40


def unlabelled(path: Path, **more: object) -> DataSet:
    return open_data(path, image_size=6, channels=1, unlabelled=True, **more)  # pyright: ignore[reportArgumentType]


def test_arrays_need_no_labels_where_none_are_wanted(tmp_path: Path) -> None:
    files = [encoded(g) for g in grey()]
    for arrays in ({"x": grey()}, {"images": grey()}, packed(files), {"x": grey(), "y": np.array(["a"])}):
        data = unlabelled(npz(tmp_path / "own.npz", **arrays))
        assert data.schema.classes == ("all",)
        same(data, grey()[..., None], np.zeros(12))
    data = unlabelled(npz(tmp_path / "own.npz", x_train=grey(), x_test=grey(4, seed=1)))
    np.testing.assert_array_equal(data.test()["image"], grey(4, seed=1)[..., None])
    with pytest.raises(DataError, match="y missing"):
        open_arrays(tmp_path, x=grey())


def test_idx_files_need_no_labels_where_none_are_wanted(tmp_path: Path) -> None:
    one = idx(tmp_path / "train-images-idx3-ubyte", grey())
    for where in (one, tmp_path):
        data = unlabelled(where)
        assert data.schema.classes == ("all",)
        same(data, grey()[..., None], np.zeros(12))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"none")
    same(unlabelled(one), grey()[..., None], np.zeros(12))
    with pytest.raises(DataError, match="labels-idx1-ubyte: not an idx file"):
        open_data(one, image_size=6, channels=1, classes=2)


def test_image_files_need_no_class_folders_where_no_labels_are_wanted(tmp_path: Path) -> None:
    for i, image in enumerate(grey()):
        (tmp_path / f"{i:03}.PNG").write_bytes(encoded(image))
    (tmp_path / "README.txt").write_text("no record")
    for names in (None, ("all",)):
        same(unlabelled(tmp_path, classes=names), grey()[..., None], np.zeros(12))
    folder(tmp_path, grey(4, seed=1))
    both = np.concatenate([grey(), grey(4, seed=1)[[0, 2, 1, 3]]])
    same(unlabelled(tmp_path), both[..., None], np.zeros(16))
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="a folder test but none called train"):
        unlabelled(tmp_path)


def test_what_is_held_out_does_not_hang_on_how_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").mkdir()
    for i, image in enumerate(grey()):
        (tmp_path / "own" / f"{i:03}.png").write_bytes(encoded(image))
    far = unlabelled(tmp_path / "own", test_fraction=0.5).train()["image"]
    monkeypatch.chdir(tmp_path / "own")
    np.testing.assert_array_equal(unlabelled(Path(), test_fraction=0.5).train()["image"], far)
