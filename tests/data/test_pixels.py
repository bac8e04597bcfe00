"""Decoding, cutting, conversion and resizing of single images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpgm.data import DataError, open_data
from dpgm.data.pixels import Shaping, decode

from .helpers import FACTS, encoded, folder, grey, open_arrays, two

ANY = (None, None, None)


def test_whole_factors_shrink_by_block_means() -> None:
    image = grey(1, 8)[0][..., None]
    out = Shaping(target=(4, 4, 1), source=ANY)(image, "here")
    means = image.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    assert np.abs(out[..., 0] - means).max() <= 1  # rounded once along each side


@pytest.mark.parametrize("side", [3, 5, 7, 16])
def test_a_constant_image_stays_constant(side: int) -> None:
    out = Shaping(target=(side, side, 1), source=ANY)(np.full((8, 8, 1), 201, np.uint8), "here")
    assert out.shape == (side, side, 1)
    assert bool((out == 201).all())


def test_the_central_square_is_taken() -> None:
    image = np.zeros((10, 6, 3), np.uint8)
    image[2:8] = 9
    np.testing.assert_array_equal(Shaping(target=(6, 6, 3), source=ANY)(image, "here"), np.full((6, 6, 3), 9))
    image[4:6, 2:4] = 50
    np.testing.assert_array_equal(Shaping(target=(2, 2, 3), source=ANY, cut=2)(image, "here"), np.full((2, 2, 3), 50))


def test_grey_by_luma_and_colour_by_equal_channels() -> None:
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_array_equal(Shaping(target=(2, 2, 1), source=ANY)(red, "here"), np.full((2, 2, 1), 76))  # .299
    image = grey(1)[0][..., None]
    np.testing.assert_array_equal(Shaping(target=(6, 6, 3), source=ANY)(image, "here"), np.repeat(image, 3, axis=2))


def test_conversion_by_options(tmp_path: Path) -> None:
    data = open_arrays(tmp_path, {"resize": 4, "grey": False}, x=grey(), y=two())
    assert data.schema.shape == (4, 4, 3)
    assert data.train()["image"].shape == (12, 4, 4, 3)


def test_resize_and_grey_stand_for_the_declared_size_and_channels(tmp_path: Path) -> None:
    folder(tmp_path, grey(2, 9))
    (tmp_path / "cat" / "wide.jpg").write_bytes(encoded(np.zeros((5, 11, 3), np.uint8), "JPEG"))
    rows = open_data(tmp_path, classes=("cat", "dog"), resize=4, grey=True).train()
    assert rows["image"].shape == (3, 4, 4, 1)


def test_large_photos_need_resizing_alone(tmp_path: Path) -> None:
    folder(tmp_path, np.zeros((2, 1100, 1050), np.uint8))
    with pytest.raises(DataError, match="give --resize"):
        open_data(tmp_path, **{**FACTS, "image_size": (1100, 1050)})
    for size in (None, (1100, 1050)):
        data = open_data(tmp_path, **{**FACTS, "image_size": size}, resize=8)
        assert data.train()["image"].shape == (2, 8, 8, 1)


def test_what_is_declared_is_checked_even_if_it_is_converted(tmp_path: Path) -> None:
    for options in ({"image_size": 5, "resize": 4}, {"channels": 3, "grey": True}):
        with pytest.raises(DataError, match="an image is 6 high, 6 wide with 1 channels; declared are"):
            open_arrays(tmp_path, options, x=grey(), y=two())


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_modes_of_png(mode: str, channels: int) -> None:
    out = io.BytesIO()
    Image.new(mode, (3, 2)).save(out, "PNG")
    assert decode(out, "here").shape == (2, 3, channels)


def test_images_are_turned_upright() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("L", (4, 2)).save(out, "JPEG", exif=exif)
    assert decode(out, "here").shape == (4, 2, 1)


def test_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: pixels are of mode I;16; allowed are 8 bits"):
        decode(tmp_path / "deep.png", str(tmp_path / "deep.png"))


@pytest.mark.parametrize("side", [9_000, 12_000, 30_000])  # ours, Pillow's warning, Pillow's error
def test_bombs_are_refused_undecoded(tmp_path: Path, side: int) -> None:
    bomb = bytearray(encoded(np.zeros((2, 2), np.uint8), "BMP"))
    bomb[18:26] = side.to_bytes(4, "little") * 2  # the header alone claims the size
    (tmp_path / "bomb.bmp").write_bytes(bomb)
    with pytest.raises(DataError, match="refused undecoded"):
        decode(tmp_path / "bomb.bmp", "bomb.bmp")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_damaged_images_are_told_by_their_name(kind: str) -> None:
    whole = encoded(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), kind)
    assert decode(io.BytesIO(whole), "a").shape == (32, 32, 3)
    for cut in (0, 1, 10, len(whole) // 2):
        with pytest.raises(DataError, match="a: not a readable image"):
            decode(io.BytesIO(whole[:cut]), "a")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_flipped_bytes_are_read_or_refused_but_never_crash(kind: str) -> None:
    rng = np.random.default_rng(1)
    whole = np.frombuffer(encoded(grey(1, 16)[0], kind), np.uint8)
    for _ in range(200):
        twisted = whole.copy()
        twisted[rng.integers(0, len(twisted), 3)] = rng.integers(0, 256, 3)
        try:
            assert decode(io.BytesIO(twisted.tobytes()), "a").dtype == np.uint8
        except DataError as error:
            assert str(error).startswith("a: ")  # noqa: PT017


def test_an_unreadable_file_of_a_folder_is_named(tmp_path: Path) -> None:
    folder(tmp_path, grey(4))
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"dog.notes\.txt: not a readable image"):
        open_data(tmp_path, **FACTS).train()
