"""Small generated files in every layout."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpgm.data import DataSet, open_data

FACTS: dict[str, Any] = {"image_size": 6, "channels": 1, "classes": ("cat", "dog")}


def grey(n: int = 12, side: int = 6, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side), dtype=np.uint8)


def two(n: int = 12) -> NDArray[np.int64]:
    return np.arange(n) % 2


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, allow_pickle=True, **arrays)
    return path


def open_arrays(tmp_path: Path, options: Any = None, **arrays: Any) -> DataSet:
    return open_data(npz(tmp_path / "own.npz", **arrays), **{**FACTS, **(options or {})})


def encoded(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def packed(images: list[bytes]) -> dict[str, NDArray[Any]]:
    return {
        "x_train_jpeg": np.frombuffer(b"".join(images), np.uint8),
        "x_train_offsets": np.cumsum([0, *map(len, images)]),
    }


def idx(path: Path, array: NDArray[np.uint8], kind: int = 8) -> Path:
    data = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def folder(root: Path, images: NDArray[np.uint8], classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for i, image in enumerate(images):
        place = root / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:03}.png").write_bytes(encoded(image))
    return root
