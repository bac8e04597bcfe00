"""Sets known by name: their facts agree with their files."""

from __future__ import annotations

import dataclasses
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dpgm.data import NAMED, DataError, named, open_data
from dpgm.data.named import OpenML

from .helpers import encoded, grey, npz, packed, two


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DPGM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def mnist_like(folder: Path, **more: Any) -> Path:
    x, y = grey(20, 28), np.arange(20) % 10
    npz(folder / "mnist.npz", **{"x_train": x, "y_train": y, "x_test": x[:10], "y_test": y[:10], **more})
    return folder


def test_digits() -> None:
    data = open_data("digits")
    train, test = data.train(), data.test()
    assert len(train) == data.schema.size
    assert len(test) == 1797 - len(train)
    assert train["image"].shape[1:] == (8, 8, 1)
    assert (train["image"].min(), train["image"].max()) == (0, 255)
    table: Any = load_digits()
    np.testing.assert_array_equal(test["label"], table.target[5::6])
    np.testing.assert_array_equal(test["image"][0, ..., 0], np.rint(table.images[5] * 255 / 16))
    assert open_data("digits", resize=16).train()["image"].shape[1:] == (16, 16, 1)


def test_data_folder_by_option_or_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data("mnist", data_dir=str(mnist_like(tmp_path)))  # a path or its text
    assert (data.name, data.schema.size, data.schema.n_classes) == ("mnist", 60_000, 10)
    assert "LeCun" in data.terms
    assert len(data.test()) == 10
    monkeypatch.setenv("DPGM_DATA", str(tmp_path))
    assert len(open_data("MNIST", size=20).train()) == 20


def test_a_name_goes_before_a_path_of_the_same_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").schema.size == 1498
    with pytest.raises(DataError, match="facts are not declared"):
        open_data("./digits")


def test_spelling_with_underscore() -> None:
    with pytest.raises(DataError, match=r"celeba_10k\.npz is not in"):
        open_data("celeba_hair")


@pytest.mark.parametrize("name", [n for n, s in NAMED.items() if s.file and s.openml is None])
def test_an_absent_file_is_named_with_the_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="--data-dir FOLDER or the variable DPGM_DATA") as error:
        open_data(name, data_dir=tmp_path)
    assert NAMED[name].file in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_absent_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none does not exist; correct --data-dir"):
        open_data("mnist", data_dir=tmp_path / "none")


def test_a_file_without_a_test_part(tmp_path: Path) -> None:
    npz(tmp_path / "mnist.npz", x=grey(20, 28), y=two(20))
    with pytest.raises(DataError, match="a named set needs a test part"):
        open_data("mnist", data_dir=tmp_path)


def test_known_facts_cannot_be_declared_otherwise(tmp_path: Path) -> None:
    folder = mnist_like(tmp_path)
    known = NAMED["mnist"].schema
    changes: list[dict[str, Any]] = [{"classes": 9}, {"classes": ("a",) * 10}, {"channels": 3}, {"image_size": 32}]
    for change in changes:
        with pytest.raises(DataError, match="the facts of mnist are known"):
            open_data("mnist", data_dir=folder, **change)
    with pytest.raises(DataError, match="the facts of mnist are known"):
        open_data("mnist", data_dir=folder, schema=NAMED["usps"].schema)
    assert open_data("mnist", data_dir=folder, classes=10, channels=1, image_size=28).schema == known
    assert open_data("mnist", data_dir=folder, schema=dataclasses.replace(known, size=50_000)).schema.size == 50_000
    small = open_data("mnist", data_dir=folder, resize=14)
    assert open_data("mnist", data_dir=folder, resize=14, schema=small.schema).schema == small.schema


def test_joined_jpeg_files_have_their_own_size_and_note(tmp_path: Path) -> None:
    pack = packed([encoded(np.zeros((32, 32, 3), np.uint8), "JPEG")] * 10)
    test = {k.replace("train", "test"): v for k, v in pack.items()}
    npz(tmp_path / "cifar10.npz", **pack, **test, y_train=np.arange(10), y_test=np.arange(10))
    data = open_data("cifar10", data_dir=tmp_path)
    assert data.schema.size == 48_000
    assert data.note.startswith("JPEG-95")
    assert data.test()["image"].shape == (10, 32, 32, 3)


def test_celeba_is_cut_before_it_is_resized(tmp_path: Path) -> None:
    face = np.zeros((109, 89, 3), np.uint8)
    face[17:91, 7:81] = 200  # the central 74 x 74
    pack = packed([encoded(face)] * 5)
    test = {k.replace("train", "test"): v for k, v in pack.items()}
    hair = np.arange(5)
    npz(tmp_path / "celeba_10k.npz", **pack, **test, y_train=two(5), y_test=two(5), hair_train=hair, hair_test=hair)
    for side, resize in ((64, None), (32, 32)):
        rows = open_data("celeba", data_dir=tmp_path, resize=resize).train()
        assert rows["image"].shape[1:] == (side, side, 3)
        assert bool((rows["image"] == 200).all())
    np.testing.assert_array_equal(open_data("celeba-hair", data_dir=tmp_path).train()["label"], hair)


# --- fetching --------------------------------------------------------------------------------------------------------


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    for name in ("mnist", "fashion-mnist", "cifar10"):
        with pytest.raises(DataError, match=r"from openml\.org failed \(URLError\); connect .* --data-dir FOLDER"):
            open_data(name)


def test_what_was_fetched_is_kept_and_split_in_official_order(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def table(*, data_id: int, **_: object) -> Any:
        calls.append(data_id)

        class Table:
            data = np.arange(30 * 784).reshape(30, 784) % 251 * 1.0
            target = np.array([str(i % 10) for i in range(30)], dtype=object)

        return Table

    monkeypatch.setattr("sklearn.datasets.fetch_openml", table)
    short = OpenML(id=554, train=20, row=(28, 28, 1))
    arrays = named.fetch(short)
    assert arrays["x_train"].shape == (20, 28, 28, 1)
    assert arrays["y_test"].tolist() == list(range(10))
    monkeypatch.setattr(named, "fetch", lambda _: arrays)
    first = open_data("mnist").train()
    monkeypatch.setattr(named, "fetch", None)  # a second look needs no network
    np.testing.assert_array_equal(open_data("mnist").train()["image"], first["image"])
    assert calls == [554]


def test_rows_of_colour_are_put_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    class Table:
        data = np.repeat([[1.0, 2.0, 3.0]], 1024, axis=1).reshape(1, 3072)
        target = np.array(["7"])

    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda **_: Table)
    image = named.fetch(OpenML(id=1, train=1, row=(3, 32, 32)))["x_train"][0]
    assert image.shape == (32, 32, 3)
    assert [int(image[..., c].max()) for c in range(3)] == [1, 2, 3]


# --- the real files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "usps", "pneumonia-mnist", "brain-mri", "cats-dogs"])
def test_real_files_are_as_the_registry_says(data_dir: Path, name: str) -> None:
    if not (data_dir / NAMED[name].file).is_file():
        pytest.skip(f"{name} is not at hand")
    data = open_data(name, data_dir=data_dir)
    assert len(data.train()) == data.schema.size
    data.test()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "celeba", "celeba-hair"])
def test_large_real_files_are_as_the_registry_says(data_dir: Path, name: str) -> None:
    test_real_files_are_as_the_registry_says(data_dir, name)


def test_labels_can_be_dropped() -> None:
    data = open_data("digits", unlabelled=True)
    assert data.schema.classes == ("all",)
    assert set(data.train()["label"].tolist()) == set(data.test()["label"].tolist()) == {0}
    assert len(data.train()) == len(open_data("digits").train())
