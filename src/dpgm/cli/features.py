"""The command `features`: public features from public images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import tyro
from numpy.typing import NDArray

from dpgm.artefact import write_whole
from dpgm.cli.console import Screen
from dpgm.cli.options import parse
from dpgm.methods.base import reporter
from dpgm.methods.features import Recipe, write_recipe
from dpgm.schema import SchemaError

PROCEDURAL = "procedural"
_LEAST_STEPS, _LEAST_SIDE = 2, 8


@dataclass(frozen=True, kw_only=True)
class _Features:
    """What the command takes.

    Attributes:
        action: train: fit a feature network.
        public: public sets: names (fashion-mnist, cifar10, ...), .npz files or folders of images by class, and
            "procedural" for made-up strokes and patches. Their names become an assumption of every guarantee that
            rests on the features.
        out: the .safetensors file to write.
        kind: vgg: layers of a small network that tells public classes apart, for mepf; vq: a VQ model, whose codes the
            published form of pge takes (needs diffusers).
        image_size: side in pixels of the images that the features will see; by default that of the first set.
        channels: 1 (grey) or 3 (colour) of these; by default those of the first set.
        classes: names of the classes of an own set, or their number.
        data_dir: folder with the files of named sets; otherwise the environment variable DPGM_DATA.
        instances: images a set that get a class of their own instead of their labels; 0 uses the labels.
        records: images used of each set, at most.
        steps: optimiser steps; by default 1500 (vgg) or 500 (vq).
        flip: mirror half of the pictures: right for photographs, wrong for signs.
        seed: of every draw.
        json: print one JSON object.
    """

    action: tyro.conf.Positional[Literal["train"]]
    public: tyro.conf.Positional[tuple[str, ...]]
    out: Path
    kind: Literal["vgg", "vq"] = "vgg"
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    classes: str | None = None
    data_dir: Path | None = None
    instances: int = 0
    records: int = 20_000
    steps: int | None = None
    flip: bool = False
    seed: int = 0
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class PublicImages:
    """Public images of one shape.

    Attributes:
        images: uint8 [n, h, w, c].
        labels: int64 [n]; the classes of different sets are different.
        n_classes: number of classes.
        names: of the sets.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    n_classes: int
    names: tuple[str, ...]


Made: TypeAlias = tuple[dict[str, Any], Callable[[Path], None]]
"""Facts to print, and what writes the file."""


def features_command(words: list[str]) -> int:
    """Train public features."""
    options = parse("features", _Features, words, about="Fit public features to public images.")
    if not options.public:
        raise SchemaError("name at least one public set: dpgm features train fashion-mnist --out F.safetensors")
    if options.steps is not None and options.steps < _LEAST_STEPS:
        raise SchemaError(f"--steps is {options.steps}; allowed is {_LEAST_STEPS} or more")
    if options.records < 1 or options.instances < 0:
        raise SchemaError(f"--records is {options.records}, --instances {options.instances}; allowed: >= 1 and >= 0")
    screen = Screen(as_json=options.json)
    public = read_public(options)
    about, write = TRAINERS[options.kind](options, public, screen)
    write_whole(options.out, write)
    text = f"{options.kind} features from {', '.join(public.names)} in {options.out}"
    screen.result({"file": str(options.out), "public": list(public.names), **about}, text)
    return 0


def read_public(options: _Features) -> PublicImages:
    """All public sets, in one shape, with classes of their own."""
    from dpgm.data import NAMED, open_data
    from dpgm.nets.procedural import procedural_images

    rng = np.random.default_rng(options.seed)
    first = next((NAMED[n].schema for n in options.public if n in NAMED), None)
    side = options.image_size or (first.height if first else None)
    channels = options.channels or (first.channels if first else None)
    if side is None or channels is None:
        raise SchemaError("give --image-size and --channels of the images that the features will see, e.g. 28 and 1")
    if side < _LEAST_SIDE:
        raise SchemaError(f"--image-size is {side}; allowed is {_LEAST_SIDE} or more, as it is halved three times")
    images, labels, names, classes = list[NDArray[np.uint8]](), list[NDArray[np.int64]](), list[str](), 0
    for source in options.public:
        if source == PROCEDURAL:
            n = options.instances or 500
            x = procedural_images(n, height=side, width=side, channels=channels, rng=rng)
            y, name = np.arange(n), PROCEDURAL
        else:
            data = open_data(
                source,
                data_dir=options.data_dir,
                resize=side,
                grey=None if source in NAMED and NAMED[source].schema.channels == channels else channels == 1,
                classes=None if source in NAMED else _classes(options.classes),
            )
            rows, name = data.train(), data.name
            n = options.instances or options.records
            index = np.sort(rng.permutation(len(rows))[:n])
            x, y = rows["image"][index], rows["label"][index]
            y = np.arange(len(x)) if options.instances else y
        images.append(x)
        labels.append(y + classes)
        names.append(name)
        classes += int(y.max()) + 1
    return PublicImages(
        images=np.concatenate(images), labels=np.concatenate(labels), n_classes=classes, names=tuple(names)
    )


def _vgg(options: _Features, public: PublicImages, screen: Screen) -> Made:
    """A small VGG, with centres and radii of its layers over the same images."""
    import torch

    from dpgm.nets.classifiers import to_unit
    from dpgm.nets.layers import public_statistics
    from dpgm.nets.perceptual import train_tower

    rng, steps = np.random.default_rng([options.seed, 1]), options.steps or 1500
    with screen.progress(None) as show:
        tower, accuracy = train_tower(
            public.images,
            public.labels,
            n_classes=public.n_classes,
            steps=steps,
            rng=rng,
            flip=options.flip,
            on_step=reporter(show, "features", steps),
        )
    shown = to_unit(public.images[rng.permutation(len(public.images))[:2000]])
    grid = max(1, public.images.shape[1] // 2) if public.images.shape[1] < 32 else 16
    centres, radii = public_statistics(tower, shown, grid=grid, second=True)
    tensors = {f"net.{k}": v.numpy() for k, v in tower.state_dict().items()}
    tensors |= {"centres": torch.cat(centres).numpy(), "radii": radii.float().numpy()}
    about: dict[str, Any] = {
        "kind": options.kind,
        "public": list(public.names),
        "shape": list(public.images.shape[1:]),
        "widths": [list(group) for group in tower.widths],
        "grid": grid,
        "sizes": [len(c) for c in centres],
        "settings": {"steps": steps, "classes": public.n_classes, "seed": options.seed, "flip": options.flip},
        "accuracy": accuracy,
    }
    recipe = Recipe(kind="trained", about=about, tensors=tensors)
    return {"fingerprint": recipe.fingerprint(), **about}, lambda path: write_recipe(recipe, path)


def _vq(options: _Features, public: PublicImages, screen: Screen) -> Made:
    """A VQ model, whose codes the published form of PGE takes."""
    from dpgm.nets.codes import save_vq, train_vq

    steps = options.steps or 500
    with screen.progress(None) as show:
        report = reporter(show, "features", steps)
        model = train_vq(public.images, steps=steps, flip=options.flip, seed=options.seed, on_step=report)
    settings = {"steps": steps, "seed": options.seed, "flip": options.flip}
    return {"kind": "vq", "settings": settings}, lambda path: save_vq(model, path, provenance=", ".join(public.names))


TRAINERS: dict[str, Callable[[_Features, PublicImages, Screen], Made]] = {"vgg": _vgg, "vq": _vq}
"""A kind of features, and what makes them; a new one is a function here and a word in `_Features.kind`."""


def _classes(given: str | None) -> int | list[str] | None:
    if given is None:
        return None
    return int(given) if given.isdigit() else [c.strip() for c in given.split(",")]
