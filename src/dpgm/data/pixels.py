"""From an image as it is stored to an image of the schema: decode, cut, convert, resize, record by record."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dpgm.data.errors import DataError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_PIXELS = 64_000_000
_GREY, _COLOUR = {"1", "L", "LA"}, {"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"}


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """Brings one stored image to the schema's shape; nothing is computed over several records.

    Where the size changes, the central square of side `cut` (or of the shorter side) is taken and resized: by the
    mean over whole blocks where it shrinks by a whole factor, else by an antialiasing Lanczos filter. Colour becomes
    grey by the ITU-R 601 luma; grey becomes colour by three equal channels.

    Attributes:
        target: (height, width, channels) wanted.
        source: (height, width, channels) that stored images must have; None stands for any.
        cut: side of the central square, in pixels; None takes the shorter side.
    """

    target: tuple[int, int, int]
    source: tuple[int | None, int | None, int | None]
    cut: int | None = None

    def check(self, shape: tuple[int, ...], where: str, *, public: bool = True) -> None:
        """Raise `DataError` unless stored images of `shape` are as declared; a shape of one record is not shown."""
        if any(s is not None and s != g for s, g in zip(self.source, shape, strict=True)):
            height, width, channels = ("any" if s is None else s for s in self.source)
            seen = f"{shape[0]} high, {shape[1]} wide with {shape[2]} channels" if public else "of another shape"
            raise DataError(
                f"{where}: an image is {seen}; declared are height "
                f"{height}, width {width}, channels {channels}; correct --image-size and --channels, or let the images "
                "be converted with --resize, --colour grey or --colour rgb"
            )

    def keeps(self, shape: tuple[int, ...]) -> bool:
        """Whether images of `shape` stay as they are."""
        return shape == self.target and self.cut is None

    def __call__(self, image: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
        """The image uint8 [h, w, c] in the target's shape."""
        self.check(image.shape, where, public=False)
        if self.keeps(image.shape):
            return image
        height, width, channels = self.target
        if self.cut or image.shape[:2] != (height, width):
            side = self.cut or min(image.shape[:2])
            top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
            image = image[top : top + side, left : left + side]
        picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            whole = picture.height % height == 0 and picture.width % width == 0
            picture = picture.resize((width, height), Image.Resampling.BOX if whole else Image.Resampling.LANCZOS)
        return np.asarray(picture).reshape(self.target)


def decode(source: Path | IO[bytes], where: str) -> NDArray[np.uint8]:
    """Decode one image file to uint8 [h, w, c], upright; an alpha channel is dropped.

    Raises:
        DataError: not an image, damaged, larger than `MAX_PIXELS` or of more than 8 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:  # by the header, before any pixel is decoded
                    raise DataError(_too_large(where))
                if picture.mode not in _GREY | _COLOUR:
                    raise DataError(
                        f"{where}: pixels are of mode {picture.mode}; allowed are 8 bits, grey or colour; convert it"
                    )
                ImageOps.exif_transpose(picture, in_place=True)
                mode = "L" if picture.mode in _GREY else "RGB"
                pixels = np.array(picture.convert(mode), dtype=np.uint8)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(where)) from error
    except Exception as error:  # decoders raise almost anything on damaged files
        raise DataError(
            f"{where}: not a readable image ({type(error).__name__}); it may be cut short or of another format; "
            f"allowed are {', '.join(FORMATS)}; replace or remove it"
        ) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _too_large(where: str) -> str:
    return f"{where}: an image of more than {MAX_PIXELS:,} pixels is refused undecoded; shrink or remove it"


def as_bytes(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Array images [n, h, w] or [n, h, w, c] as uint8 [n, h, w, c].

    uint8 stays; floating-point values must be finite and lie in 0 to 1, and become round(255 x).

    Raises:
        DataError: other values or types.
    """
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype == np.uint8:
        return images
    out = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), 1024):  # blocks, so that no second float copy arises
        block = images[start : start + 1024]
        if not bool(np.isfinite(block).all()):
            raise DataError(f"{where}: images hold NaN or infinite values; remove or correct those records")
        if block.size and (block.min() < 0 or block.max() > 1):
            raise DataError(
                f"{where}: floating-point images must lie in 0 to 1 (they become round(255 x)); "
                "scale them by a fixed public number, or store them as uint8 0 to 255"
            )
        out[start : start + 1024] = np.rint(block.astype(np.float64) * 255)
    return out


def array_shape(shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> tuple[int, int, int]:
    """Height, width and channels of array images, by the header alone."""
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(
            f"{where}: images are {dtype}; allowed are uint8 (0 to 255) and floating point (0 to 1); "
            "convert them, e.g. x.astype('uint8')"
        )
    text = f"[n{''.join(f', {s}' for s in shape[1:])}]"
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise DataError(f"{where}: images are {text}, channels first; put them last: x.transpose(0, 2, 3, 1)")
    if len(shape) not in (3, 4) or 0 in shape[1:] or (len(shape) == 4 and shape[3] not in (1, 3)):
        raise DataError(
            f"{where}: images are of shape {text}; allowed are [n, height, width] and [n, height, width, 1 or 3]; "
            "reshape them"
        )
    return (shape[1], shape[2], shape[3] if len(shape) == 4 else 1)
