"""Public features by name, joined by `+`: formulas, own networks (`trained:FILE`) and those of others.

A recipe is what a feature map is rebuilt from. Recipes that came from a file travel inside the release, so a release
that is sent on alone can be trained on again, and the file need not be there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch

from dpgm.methods.base import Tensors
from dpgm.nets.classifiers import to_unit
from dpgm.nets.features import FeatureMap, Normalised, RandomFourier, Scattering
from dpgm.nets.kernels import HermiteFeatures, TangentFeatures
from dpgm.nets.layers import Layered, public_statistics
from dpgm.nets.perceptual import tower_from
from dpgm.nets.pretrained import known_source, network, read_network, read_torchvision, torchvision_file
from dpgm.nets.procedural import procedural_images
from dpgm.schema import ImageSchema, SchemaError

KEY = "dpgm-features"
"""Metadata key of a feature file; its value is the JSON of `Recipe.about`."""

KINDS = (
    "scattering, rff, ntk, hermite, trained:FILE, file:WEIGHTS, torchvision:NAME, torchvision:NAME=WEIGHTS, joined by +"
)
_ALONE, _NAMED = {"scattering", "rff", "ntk", "hermite"}, {"trained", "file", "torchvision"}
_GRID = 8
_PICTURES = 400
"""Made-up pictures that centres and radii of other people's networks are taken from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """What a feature map is rebuilt from.

    Attributes:
        kind: "scattering", "rff", "ntk", "hermite", "trained", "file" or "torchvision".
        about: public facts of a file's features: shape of the images, public sets, settings.
        tensors: weights, of features that came from a file.
    """

    kind: str
    about: Mapping[str, Any]
    tensors: Tensors

    @property
    def public(self) -> tuple[str, ...]:
        """Names of the public sets that the features were fitted on."""
        return tuple(self.about.get("public", ()))

    @property
    def layered(self) -> bool:
        """Whether these are the layers of a network, which have second moments too."""
        return self.kind in _NAMED

    def fingerprint(self) -> str:
        """Eight digits that tell two feature files apart; the weights are public, so a hash of them is."""
        digest = hashlib.blake2b(json.dumps(dict(self.about), sort_keys=True).encode(), digest_size=4)
        for name in sorted(self.tensors):
            digest.update(name.encode() + np.ascontiguousarray(self.tensors[name]).tobytes())
        return digest.hexdigest()


class Featured(Protocol):
    """A method with public features by name."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def features(self) -> str:
        """Their names, joined by +."""
        ...


M = TypeVar("M", bound=Featured)


@dataclass(frozen=True, kw_only=True)
class Look:
    """How feature maps are made from recipes.

    Attributes:
        layers: weight of each layer of a network; None for equal ones.
        second: weight of the layers' second moments, beside 1 for the first; 0 leaves them out.
        angles: angles of the wavelets.
    """

    layers: tuple[float, ...] | None = None
    second: float = 0.0
    angles: int = 8

    def weights(self, n: int) -> list[float]:
        """Weights of the moments of a network's `n` layers: the first moments, then the second, if there are any.

        Raises:
            SchemaError: another number of layers is weighed, or all of them by 0.
        """
        each = (1.0,) * n if self.layers is None else self.layers
        if len(each) != n or not any(each):
            raise SchemaError(f"layers are {each}; the network has {n} of them: give so many weights, one above 0")
        return [*each, *(self.second * w for w in each if self.second)]


def split(spec: str) -> list[tuple[str, str]]:
    """The pairs (kind, argument) of a list of features.

    Raises:
        SchemaError: there is no such kind.
    """
    parts = [tuple(word.partition(":")[::2]) for word in spec.split("+") if word]
    for kind, argument in parts:
        if kind not in (_NAMED if argument else _ALONE):
            raise SchemaError(f"--features is '{spec}'; allowed are {KINDS}")
    return [(kind, argument) for kind, argument in parts]


def short(spec: str) -> str:
    """The list with paths cut down to their last name, as an artefact may show it."""
    parts: list[str] = []
    for kind, argument in split(spec):
        name, equals, path = (
            argument.rpartition("=") if kind == "torchvision" and "=" in argument else ("", "", argument)
        )
        parts.append(f"{kind}:{name}{equals}{Path(path).name}" if argument else kind)
    return "+".join(parts)


def recipes(spec: str) -> list[Recipe]:
    """Read the recipes of a list of features, from their files where they have one.

    Raises:
        SchemaError: a file is absent, or not what it should be.
    """
    return [_recipe(kind, argument) for kind, argument in split(spec)]


def _recipe(kind: str, argument: str) -> Recipe:
    match kind:
        case "trained":
            return read_recipe(Path(argument))
        case "file" | "torchvision":
            return _foreign(kind, argument)
        case _:
            return Recipe(kind=kind, about={}, tensors={})


def _foreign(kind: str, argument: str) -> Recipe:
    """A network that others trained."""
    name, _, given = argument.partition("=") if kind == "torchvision" else ("", "", argument)
    try:
        path = Path(given) if given else torchvision_file(name)
    except ValueError as error:
        raise SchemaError(f"--features {kind}:{argument}: {error}") from error
    if not path.is_file():
        how = f", or give its file: torchvision:{name}=WEIGHTS" if name else ""
        raise SchemaError(f"{path} does not exist; nothing is fetched: put the weights of {name or 'it'} there{how}")
    try:
        about, arrays = read_torchvision(name, path) if name else read_network(path)
        source = known_source(path, name)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise SchemaError(
            f"{path} is no weight file that is known here: {error}. Known are SqueezeNet 1.1 (.pkl of plain arrays, "
            ".pth) and MobileNetV2 (.pth); others by torchvision:NAME=WEIGHTS, or by 'dpgm features train'"
        ) from error
    return Recipe(kind=kind, about={**about, "public": [source]}, tensors=arrays)


def read_recipe(path: Path) -> Recipe:
    """Read a file that `dpgm features train` wrote.

    Raises:
        SchemaError: it is absent, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise SchemaError(f"{path} does not exist; make it with: dpgm features train PUBLIC --out {path.name}")
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise SchemaError(f"{path} is not a feature file ({error}); 'dpgm features train' writes them") from error
    if about.get("kind") != "vgg":
        raise SchemaError(f"{path} holds features of the kind {about.get('kind')!r}; allowed here is 'vgg'")
    return Recipe(kind="trained", about=about, tensors=tensors)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a feature file."""
    from safetensors.numpy import save_file

    save_file(recipe.tensors, path, {KEY: json.dumps(dict(recipe.about))})


def pack(parts: list[Recipe]) -> Tensors:
    """The recipes that came from files, as tensors of a release."""
    out: Tensors = {}
    for i, recipe in enumerate(parts):
        if recipe.tensors:
            out[f"features.{i}.about"] = np.frombuffer(json.dumps(dict(recipe.about)).encode(), np.uint8).copy()
            out |= {f"features.{i}.{name}": value for name, value in recipe.tensors.items()}
    return out


def unpack(spec: str, tensors: Mapping[str, Any]) -> list[Recipe]:
    """The recipes of a release, without their files."""
    out: list[Recipe] = []
    for i, (kind, argument) in enumerate(split(spec)):
        prefix = f"features.{i}."
        found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        about = json.loads(found.pop("about").tobytes()) if argument else {}
        out.append(Recipe(kind=kind, about=about, tensors=found))
    return out


def holding(method: M, tensors: Mapping[str, Any]) -> M:
    """`method` with the recipes that its release encloses, in the place of its files."""
    again = dataclasses.replace(method)
    object.__setattr__(again, "_held", unpack(method.features, tensors))
    return again


def recipes_of(method: Featured) -> list[Recipe]:
    """The recipes of a method's features: those that it holds, or those in its files."""
    held: list[Recipe] | None = getattr(method, "_held", None)
    return recipes(method.features) if held is None else held


def build(recipe: Recipe, schema: ImageSchema, look: Look) -> FeatureMap:
    """The feature map of a recipe for images of this shape, of norm at most 1.

    Raises:
        SchemaError: the features were made for images of another shape.
    """
    size = {"height": schema.height, "width": schema.width, "channels": schema.channels}
    match recipe.kind:
        case "scattering":
            wavelets = Scattering(**size, angles=look.angles)
            return Normalised(wavelets, wavelets.dim // (wavelets.grid[0] * wavelets.grid[1]))
        case "rff":
            return RandomFourier(**size, dim=4000, scales=(0.6, 0.4, 0.3))
        case "ntk":
            return TangentFeatures(**size)
        case "hermite":
            return HermiteFeatures(**size)
        case "trained":
            return _trained(recipe, schema, look)
        case _:
            return _network(recipe, schema, look)


def _network(recipe: Recipe, schema: ImageSchema, look: Look) -> FeatureMap:
    """Layers of another network; centres and radii come from made-up pictures."""
    try:
        net = network(recipe.about, recipe.tensors)
    except RuntimeError as error:
        raise SchemaError(
            f"the file's weights are not those of {recipe.about['network']}: their names or shapes differ; name the "
            "network that they belong to"
        ) from error
    pictures = procedural_images(
        _PICTURES, height=schema.height, width=schema.width, channels=schema.channels, rng=np.random.default_rng(0)
    )
    second = look.second > 0
    centres, radii = public_statistics(net, to_unit(pictures), grid=_GRID, second=second)
    layers = len(centres) // (1 + second)
    return Layered(
        f"{recipe.about['network']} {recipe.fingerprint()}",
        net,
        centres=centres,
        radii=radii,
        weights=look.weights(layers),
        grid=_GRID,
        second=second,
        provenance=", ".join(recipe.public),
    )


def _trained(recipe: Recipe, schema: ImageSchema, look: Look) -> FeatureMap:
    about = recipe.about
    made = tuple(about["shape"])
    if made != schema.shape:
        raise SchemaError(
            f"the trained features are for images of {made} (height, width, channels), these are {schema.shape}; train "
            f"them again with --image-size {schema.height} --channels {schema.channels}"
        )
    widths = tuple(tuple(group) for group in about["widths"])
    weights = {k.removeprefix("net."): v for k, v in recipe.tensors.items() if k.startswith("net.")}
    centres = torch.from_numpy(recipe.tensors["centres"].astype(np.float32)).split(list(about["sizes"]))
    radii = torch.from_numpy(recipe.tensors["radii"])
    layers = len(centres) // 2
    chosen = slice(0, 2 * layers if look.second else layers)
    return Layered(
        f"trained {recipe.fingerprint()}",
        tower_from(weights, schema.channels, widths),
        centres=centres[chosen],
        radii=radii[chosen],
        weights=look.weights(layers),
        grid=about["grid"],
        second=look.second > 0,
        provenance=", ".join(recipe.public),
    )
