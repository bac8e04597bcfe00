"""`dpgm.fit`: from arrays or files to a model in one call, with curator and ledger built on the way."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from operator import index
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpgm.methods import bounds, get, names
from dpgm.methods.base import Method, Model, OnNote, Plan, privatise
from dpgm.methods.options import check_seed, check_takes, check_trained
from dpgm.privacy.curator import Curator
from dpgm.privacy.guarantee import Budget, PrivacyError, Relation, check_allowed, large_delta
from dpgm.privacy.ledger import Ledger
from dpgm.privacy.mechanism import PUBLIC_NUMBER, Reader
from dpgm.privacy.together import Part, shared
from dpgm.schema import AnySchema, ImageSchema, Rows, SchemaError, TableSchema, class_names, default_delta


def fit(
    method: Method,
    x: Any,
    y: Any = None,
    *,
    epsilon: float,
    delta: float | None = None,
    relation: Relation = Relation.ADD_REMOVE,
    schema: AnySchema | None = None,
    classes: int | Sequence[str] | None = None,
    size: int | None = None,
    seed: int = 0,
    ledger: str | Path | Ledger | None = None,
    name: str | None = None,
    allow: Literal["unsupported", "refuted"] | None = None,
    bounds_share: float = bounds.SHARE,
    on_note: OnNote | None = None,
) -> Model:
    """Fit a generative model to private images or a private table under (epsilon, delta)-differential privacy.

    Args:
        method: what to fit, e.g. `DPMEPF()`.
        x: private images [n, h, w] or [n, h, w, c] (or tensors [n, c, h, w]); uint8, or floats in [0, 1]. Or a pandas
            frame, with a `TableSchema`. Or a source that `dpgm run` takes: the name of a public set, or the path of a
            file or folder, with its schema; it is read after its price is reserved.
        y: private labels [n], whole numbers from 0; left out for a frame or a source, which hold them, and for images
            of one class (classes=1).
        epsilon: privacy loss allowed, above 0.
        delta: slack allowed; by default 1/size rounded down to a power of ten. 0 asks for pure privacy.
        relation: which data sets are neighbours.
        schema: public facts; without it the image shape is taken from the array, as a public fact. A frame needs one.
        classes: number or names of the classes, public; needed where no schema is given.
        size: declared number of records, a public round figure; needed where no delta is given.
        seed: of the public randomness; privacy noise is never seeded.
        ledger: the account that this fit shares with others on the same records: a `Ledger` whose cap is the most that
            all of them may cost together, or its file. A fit that would exceed the cap is refused before anything is
            read or paid. A file that does not exist yet is made with this fit's budget as its cap, so that a second fit
            on it is refused. None: an account of this fit alone, in memory.
        name: of this fit in the shared ledger; by default the method's. A finished fit is not made again under its
            name; one that a crash interrupted goes on.
        allow: "unsupported" or "refuted", to run methods of weak evidence for study.
        bounds_share: share of the budget for the bounds of columns with `private_bounds`.
        on_note: receives progress.

    Returns:
        A model; `model.guarantee.headline()` says what is promised, `model.sample(n)` draws records.

    Raises:
        SchemaError: data or options that do not fit; the message says what is allowed.
        PrivacyError: a plan that is refused.

    An error of the free half, an interruption included, carries what was paid for as its attribute `release`.
    """
    _check_words(method, schema, relation)
    seed = check_seed(seed)
    reader, facts = _opened(x, y, schema=schema, classes=classes, size=size)
    if delta is None:
        if facts.size is None:
            raise PrivacyError(
                "neither delta nor size is given; pass delta=1e-5, or size= the declared number of records (public): "
                "the default delta is 1/size rounded down to a power of ten"
            )
        delta = default_delta(facts.size)
    check_takes(method, facts)
    if isinstance(x, str | Path):
        check_public(method, Path(x).name)
    budget = Budget(epsilon=epsilon, delta=delta)
    if warning := large_delta(delta, facts.size):
        warnings.warn(warning, stacklevel=2)
    plan = method.plan(facts, relation=relation, budget=budget)
    check_allowed(plan.guarantee(), allow)
    with ExitStack() as stack:
        terms: dict[str, Any] = {"cap": budget, "relation": relation}
        if ledger is None:
            book = Ledger(None, **terms)
        else:
            whole = ledger if isinstance(ledger, Ledger) else stack.enter_context(shared(Path(ledger), **terms))
            prices = bounds.prices(method, plan, share=bounds_share)
            book = Part(None, **terms, whole=whole, name=name or method.name, prices=prices)
        if bounds.private_columns(facts):
            wide = Curator(reader, schema=facts, ledger=book)
            spent = bounds.price(wide, budget=budget, share=bounds_share)
            found, caution = bounds.find(wide, budget=budget, share=bounds_share)
            if caution:
                warnings.warn(caution, stacklevel=2)
            reader, facts = _opened(x, y, schema=found, classes=classes, size=size)  # beyond the bounds: moved to them
            plan = bounds.rest(method, facts, relation=relation, budget=budget, spent=spent)
        curator = Curator(reader, schema=facts, ledger=book)
        release = privatise(method, curator, plan, seed=seed, on_note=on_note, allow=allow)
    try:
        model = method.train(release, seed=seed, on_note=on_note)
        check_trained(model.tensors())
        return model
    except BaseException as error:
        vars(error)["release"] = release
        error.add_note(
            "the budget is spent, and the release that it paid for is not lost: it is the attribute 'release' of this "
            "error. Train on it for free: error.release.method.train(error.release, seed=0)"
        )
        raise


def check_split(plan: Plan, held_out: object) -> None:
    """Refuse to publish how many records a part has that was drawn by a hash of each record.

    Such a part gains or loses a record where one of the whole set is replaced. Sums do not mind: that moves them no
    further than a replaced record.

    Args:
        plan: what will be asked.
        held_out: the share that was held out by a hash; None where the test part is a part of its own.
    """
    if held_out is not None and any(PUBLIC_NUMBER in cost.assumptions for cost, _ in plan.costs()):
        raise PrivacyError(
            f"the plan publishes the number of train records, and with --test-fraction {held_out} that depends on what "
            "the records are: no epsilon would hold. Give held-out records of their own, or a mode that releases sums"
        )


def check_public(method: Method, private: str) -> None:
    """Refuse features that were fitted on the records that are to be protected."""
    from dpgm.data import same_source

    for name in method.public_sets():
        if same_source(name, private):
            raise PrivacyError(
                f"the features were fitted on '{name}', which holds the records that are to be protected here "
                f"('{private}'); take features that were fitted on other, public data"
            )


def _check_words(method: Any, schema: Any, relation: Any) -> None:
    """Raise where an argument is of another kind than is meant; such slips would show as far-off errors."""
    if not isinstance(method, Method):
        named = get(method).__name__ if isinstance(method, str) and method in names() else "DPMERF"
        raise SchemaError(f"the method is {method!r}; give an instance of one, e.g. dpgm.{named}()")
    if schema is not None and not isinstance(schema, ImageSchema | TableSchema):
        raise SchemaError(f"the schema is a {type(schema).__name__}; give an ImageSchema or a TableSchema")
    if not isinstance(relation, Relation):
        raise SchemaError(f"the relation is {relation!r}; allowed are Relation.ADD_REMOVE and Relation.REPLACE")


def _whole(value: Any, name: str) -> int:
    try:
        return index(value)
    except TypeError as error:
        raise SchemaError(f"{name} is {value!r}; allowed is a whole number") from error


def _opened(
    x: Any, y: Any, *, schema: AnySchema | None, classes: int | Sequence[str] | None, size: int | None
) -> tuple[Reader, Any]:
    """What reads the rows, and their public facts."""
    size = None if size is None else _whole(size, "size")
    if schema is not None and classes is not None:
        raise SchemaError("the schema declares the classes already; leave classes out")
    if isinstance(classes, str):
        raise SchemaError(f"classes is the text {classes!r}; give their number, or several names in a list")
    if classes is not None and not hasattr(classes, "__len__"):
        classes = _whole(classes, "classes")
    if schema is not None and size is not None:
        schema = dataclasses.replace(schema, size=size)
    if isinstance(x, str | Path):
        data = _source(x, y, schema, classes, size)
        return data.train, data.schema
    if hasattr(x, "columns") or isinstance(schema, TableSchema):
        table = _table(x, y, schema)
        return lambda: table, schema
    images = _images(x)
    if schema is None:
        if classes is None:
            raise SchemaError(
                "the classes are not declared; pass classes=10 (or their names), or a schema: taking them from private "
                "labels would publish which classes occur; images without labels have classes=1"
            )
        names = class_names(classes) if isinstance(classes, int) else tuple(map(str, classes))
        height, width, channels = images.shape[1:]
        schema = ImageSchema(height=height, width=width, channels=channels, classes=names, size=size)
    rows = _labelled(images, y, schema.n_classes)
    return lambda: rows, schema


def _source(
    x: str | Path, y: Any, schema: AnySchema | None, classes: int | Sequence[str] | None, size: int | None
) -> Any:
    """A named set, file or folder, opened but not read."""
    if y is not None:
        raise SchemaError("a source holds its own labels; leave y out")
    if isinstance(schema, TableSchema):
        from dpgm.data.tables import TableSet

        return TableSet(path=Path(x), schema=schema)
    from dpgm.data import open_data

    return open_data(x, schema=schema, classes=classes, size=size)


def _table(frame: Any, y: Any, schema: AnySchema | None) -> Rows:
    """A private frame as rows of numbers."""
    from dpgm.data.frames import check_dtypes, to_numbers
    from dpgm.data.table_files import pandas_

    if not isinstance(schema, TableSchema):
        raise SchemaError(
            "the public facts of the table are not declared; pass schema=TableSchema(...) with its columns, kinds and "
            "bounds: taking them from private records would publish those"
        )
    if y is not None or not isinstance(frame, pandas_().DataFrame):
        raise SchemaError(
            f"x is a {type(frame).__name__}; pass a pandas frame (others have to_pandas()) or a file's path, and no y: "
            "the label is a column of the frame, named by schema.label"
        )
    check_dtypes(schema)
    return Rows(table=to_numbers(frame, schema))


def _labelled(images: NDArray[np.uint8], y: Any, n_classes: int) -> Rows:
    """Private images with labels as rows; of one class there is nothing to say."""
    if y is None and n_classes == 1:
        y = np.zeros(len(images), np.int64)
    if y is None:
        raise SchemaError(
            "labels are missing; pass y, one whole number for each image, or classes=1 for images without labels"
        )
    labels = _array(y, "labels")
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise SchemaError(
            f"labels are {labels.dtype} with {labels.ndim} axes; allowed are whole numbers with one axis, one a record"
        )
    if len(labels) != len(images):
        raise SchemaError("images and labels differ in number; give one label for each image")
    return Rows(image=images, label=labels.astype(np.int64))


def _array(values: Any, name: str) -> NDArray[Any]:
    """Arrays, tensors and lists as an array; numpy's own messages would tell how many records there are."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    try:
        return np.asarray(values)
    except (TypeError, ValueError):
        raise SchemaError(f"{name} are no array of numbers of one shape; pass a numpy array") from None


def _images(x: Any) -> NDArray[np.uint8]:
    """Private images as uint8 [n, h, w, c]; messages name shapes and types only."""
    array = _array(x, "images")
    if hasattr(x, "detach") and array.ndim == 4 and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)  # torch's order of axes
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        raise SchemaError(
            f"images have shape [n, {', '.join(map(str, array.shape[1:]))}]; allowed is [n, h, w] or [n, h, w, 1 or 3]"
        )
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise SchemaError(f"images are {array.dtype}; allowed is uint8 (0 to 255) or floats in [0, 1]")
    if not (np.isfinite(array).all() and (array >= 0).all() and (array <= 1).all()):
        raise SchemaError("float images must be finite and lie in [0, 1]; divide by a public constant first, e.g. 255")
    scaled = array.astype(np.float64)  # one precision: the array's own hangs on all records of a list
    return np.round(scaled * 255).astype(np.uint8)
