"""What all methods share: plan, talk with the curator, release, free training, model.

A run has two halves. `Method.talk` is the private half: a Python generator that *yields* mechanisms and *receives*
noisy answers, and ends with the tensors of a release. `Method.train` is the free half: it makes a model from a
release, as often as one likes.
"""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dpgm.methods.options import Forms, check_count, check_option, check_seed, parse, to_plain
from dpgm.privacy import accountant
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, Guarantee, PrivacyError, Relation, Source, check_allowed
from dpgm.privacy.mechanism import Cost, Json, Mechanism
from dpgm.schema import ImageSchema, Schema, SchemaError

Tensors: TypeAlias = dict[str, NDArray[Any]]


# ---------------------------------------------------------------------------------------------------------------------
# What passes between the parts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a method will ask, priced before any row is read.

    Attributes:
        schema: public facts about the records.
        relation: which data sets are neighbours.
        budget: what may be spent.
        items: pairs (mechanism, how many times it is called); their prices are what the ledger reserves.
        details: calibrated numbers worth showing, e.g. {"noise_multiplier": 3.73}.
        seconds: rough time of release and training on two CPU cores.
        memory_mb: rough peak memory.
    """

    schema: Schema
    relation: Relation
    budget: Budget
    items: tuple[tuple[Mechanism[Any], int], ...]
    details: Mapping[str, Json] = field(default_factory=dict)
    seconds: float = 0.0
    memory_mb: float = 0.0

    def costs(self) -> list[tuple[Cost, int]]:
        """Its prices under the relation, and how often each is paid."""
        return [(m.cost(self.relation), n) for m, n in self.items]

    def guarantee(self) -> Guarantee:
        """The promise that the plan will give."""
        return accountant.promise(self.costs(), delta=self.budget.delta, relation=self.relation)


@dataclass(frozen=True, kw_only=True)
class Note:
    """Progress, made of public facts and releases only.

    Attributes:
        stage: what is going on, e.g. "train".
        step: steps done.
        total: steps in all.
        values: numbers worth plotting, e.g. {"loss": 0.1}.
        state: tensors to resume from; None when this is no checkpoint.
    """

    stage: str
    step: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)
    state: Tensors | None = None


OnNote: TypeAlias = Callable[[Note], None]


def reporter(on_note: OnNote | None, stage: str, total: int, *, points: int = 200) -> Callable[[int, float], None]:
    """A callback (step, loss) that passes about `points` of `total` steps on as notes."""
    every = max(1, total // points)

    def report(step: int, loss: float) -> None:
        if on_note and (step % every == 0 or step == total - 1):
            on_note(Note(stage=stage, step=step + 1, total=total, values={"loss": loss}))

    return report


Ask: TypeAlias = Mechanism[Any] | Note
Talk: TypeAlias = Generator[Ask, Any, Tensors]


@dataclass(frozen=True, kw_only=True)
class Resume:
    """Where an interrupted talk stands.

    Attributes:
        used: for each plan item, how many of its calls are burnt.
        state: tensors of the last checkpoint, or None.
    """

    used: Mapping[int, int]
    state: Tensors | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Synthetic records of images.

    Attributes:
        images: uint8 [n, height, width, channels], 0 to 255.
        labels: int64 [n], class numbers from 0.
        odds: class probabilities float32 [n, k] of a labeller that read the images, or None.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    odds: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Release:
    """Everything a method has learnt from private rows: noisy, final, free to publish and to train on for ever.

    Attributes:
        method: the method that asked, with its configuration.
        schema: public facts about the records.
        guarantee: the promise; it covers whatever is computed from here on.
        tensors: the noisy answers.
        details: the plan's calibrated numbers.
    """

    method: Method
    schema: Schema
    guarantee: Guarantee
    tensors: Tensors
    details: Mapping[str, Json]


# ---------------------------------------------------------------------------------------------------------------------
# Methods and models


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to make synthetic data. The frozen dataclass is the configuration; the command line is made from it.

    Subclasses are frozen keyword-only dataclasses whose fields are int, float, str, bool, None, `Literal`s, tuples of
    these, or other methods. Numbers are finite and 0 or more; those of the types `AtLeast1` and `Above0`
    (`dpgm.methods.options`) are not 0 either.
    """

    name: ClassVar[str]
    """The name on the command line and in files."""
    sources: ClassVar[tuple[Source, ...]]
    """Literature of the method; that of its mechanisms comes with their costs."""
    takes: ClassVar[tuple[type[Any], ...]] = (ImageSchema,)
    """Kinds of schema that it can plan for."""
    generates: ClassVar[bool] = True
    """Whether its models make records; a private classifier only reads them."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Names of the options that only training reads: they may change when a release is trained on again."""
    packages: ClassVar[Mapping[str, str]] = {}
    """Packages beyond the core that it needs, and the extra of this project that brings each."""
    forms: ClassVar[Forms] = ()
    """Options that only one of its forms reads: given beside another form they are refused."""

    def __post_init__(self) -> None:
        """Refuse options of another type, and numbers below 0 or not finite, before anything is planned with them."""
        hints = typing.get_type_hints(type(self), include_extras=True)
        for f in dataclasses.fields(self):
            check_option(getattr(self, f.name), hints[f.name], f"{self.name}.{f.name}")

    @abstractmethod
    def plan(self, schema: Schema, *, relation: Relation, budget: Budget) -> Plan:
        """Everything that will be asked, calibrated to the budget, before any row is read.

        Raises:
            SchemaError: options that do not fit the schema or each other.
            BudgetExceeded: no noise brings the plan within the budget.
            PrivacyError: a relation or a delta under which the method has no price.
        """

    @abstractmethod
    def talk(self, plan: Plan, *, rng: np.random.Generator, resume: Resume) -> Talk:
        """The private half: yield mechanisms of the plan, receive noisy answers, return the release's tensors.

        Args:
            plan: what was reserved; nothing else can be asked.
            rng: public randomness (never privacy noise).
            resume: where an interrupted run stands; `Resume(used={})` for a new one.
        """

    @abstractmethod
    def train(self, release: Release, *, seed: int, on_note: OnNote | None = None) -> Model:
        """The free half: a model from a release, the same for the same seed."""

    @abstractmethod
    def restore(self, release: Release, tensors: Tensors) -> Model:
        """The model that `Model.tensors` was taken from."""

    def public_sets(self) -> tuple[str, ...]:
        """Names of the public data sets that the method's own parts were fitted on."""
        return ()

    def reopened(self, tensors: Tensors) -> Self:
        """The method with what its release encloses in the place of its files, so that it can plan without them."""
        return self

    def retrained(self, other: Method) -> Self:
        """`other`, if it differs from this method in free options only.

        Raises:
            SchemaError: it differs in an option that the release depends on.
        """
        if type(other) is not type(self):
            raise SchemaError(f"the release was made by '{self.name}', not by '{other.name}'")
        names = [f.name for f in dataclasses.fields(self)]
        changed = {n for n in names if getattr(self, n) != getattr(other, n)}
        if fixed := sorted(changed - self.free):
            raise SchemaError(
                f"{fixed} decided what was released and cannot change now; free to change are {sorted(self.free)}"
            )
        return other

    def to_json(self) -> dict[str, Json]:
        """The configuration as plain JSON values."""
        return {"name": self.name, **{f.name: to_plain(getattr(self, f.name)) for f in dataclasses.fields(self)}}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Self:
        """Read back what `to_json` wrote; unknown keys are refused, and so are values of another type."""
        hints = typing.get_type_hints(cls)
        known = {f.name for f in dataclasses.fields(cls)}
        given = {k: v for k, v in value.items() if k != "name"}
        if (name := value.get("name", cls.name)) != cls.name:
            raise SchemaError(f"these are options of the method '{name}', not of '{cls.name}'; look it up by its name")
        if unknown := sorted(set(given) - known):
            raise SchemaError(f"method '{cls.name}' has no option {unknown}; it has {sorted(known)}")
        return cls(**{k: parse(v, hints[k], f"{cls.name}.{k}") for k, v in given.items()})


class Model(ABC):
    """A generator made of releases only: free to publish.

    Args:
        release: what it was trained on.
    """

    def __init__(self, release: Release) -> None:
        self.release = release

    @property
    def guarantee(self) -> Guarantee:
        """The promise of the release; training, sampling and publishing add nothing to it."""
        return self.release.guarantee

    @property
    def schema(self) -> Schema:
        """Public facts about the records."""
        return self.release.schema

    @property
    def generates(self) -> bool:
        """Whether it makes records; a private classifier only reads them."""
        return self.release.method.generates

    @property
    def reader(self) -> str:
        """What metrics call the classifier behind `classify`."""
        return "labeller"

    @abstractmethod
    def tensors(self) -> Tensors:
        """What must be saved beside the release."""

    @abstractmethod
    def _sample(self, labels: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """One record for each label, in order. A method may improve the labels; the length stays."""

    def sample(self, n: int, *, labels: Sequence[int] | NDArray[Any] | None = None, seed: int | None = None) -> Batch:
        """Draw synthetic records; as often as you like, it is free.

        Args:
            n: how many, 0 or more.
            labels: the class of each, [n]; without them the classes are as equal as n allows.
            seed: makes the draw reproducible.

        Returns:
            n records; of a table a `TableBatch`, whose `frame()` is a pandas frame.

        Raises:
            SchemaError: a count below 0, or labels of another length or outside the classes.
        """
        check_count(n, "n")
        check_seed(seed if seed is not None else 0)
        k = self.schema.n_classes
        chosen = np.arange(n) % k if labels is None else np.asarray(labels)
        if chosen.shape != (n,):
            raise SchemaError(f"labels have shape {chosen.shape}; give one for each of the {n} records")
        if n and not (np.issubdtype(chosen.dtype, np.integer) and chosen.min() >= 0 and chosen.max() < k):
            raise SchemaError(f"labels must be whole numbers from 0 to {k - 1} ({', '.join(self.schema.classes)})")
        if n == 0:
            return Batch(images=np.zeros((0, *self.schema.shape), np.uint8), labels=np.zeros(0, np.int64))
        return self._sample(chosen.astype(np.int64), np.random.default_rng(seed))

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.floating[Any]] | None:
        """Class probabilities [n, k] of images [n, h, w, c], where a private classifier came with the release."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.release.method!r}, {self.guarantee.headline()})"

    def save(self, folder: Any) -> None:
        """Write release and model to a run folder that `dpgm.load` and the command line read."""
        from dpgm.artefact import save_model

        save_model(self, folder)


# ---------------------------------------------------------------------------------------------------------------------
# Driving


def privatise(
    method: Method,
    curator: Curator,
    plan: Plan,
    *,
    seed: int,
    on_note: OnNote | None = None,
    state: Tensors | None = None,
    allow: str | None = None,
) -> Release:
    """Reserve the plan, then drive the talk: the private half of a run.

    Args:
        method: who asks.
        curator: who answers.
        plan: what will be asked; its whole price is reserved before the first row is read.
        seed: of the public randomness.
        on_note: receives progress and checkpoints.
        state: tensors of the last checkpoint of an interrupted run.
        allow: "unsupported" or "refuted", for plans of weak evidence.

    Returns:
        The release, with the guarantee of the curator's ledger.

    Raises:
        PrivacyError: a plan for other facts, of evidence that was not allowed, or other than the one reserved before.
        BudgetExceeded: a plan above the ledger's cap; nothing was read.
    """
    if (plan.relation, plan.schema) != (curator.ledger.relation, curator.schema):
        raise PrivacyError(
            f"the plan is for {plan.schema} under '{plan.relation.value}'; the curator has {curator.schema} and a "
            f"ledger under '{curator.ledger.relation.value}'; plan again for these"
        )
    check_allowed(plan.guarantee(), allow)
    seed = check_seed(seed)
    used = curator.reserve("fit", plan.items)
    talk = method.talk(plan, rng=np.random.default_rng(seed), resume=Resume(used=used, state=state))
    answer: Any = None
    while True:
        try:
            ask = talk.send(answer)
        except StopIteration as end:
            tensors: Tensors = end.value
            break
        if isinstance(ask, Note):
            answer = None
            if on_note:
                on_note(ask)
        else:
            answer = curator.answer(ask)
    return Release(
        method=method, schema=curator.schema, guarantee=curator.guarantee(), tensors=tensors, details=dict(plan.details)
    )
