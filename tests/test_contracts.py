"""The public contracts over everything that is registered, and over the leak check itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

import dpgm
from dpgm import methods, testing
from dpgm.mechanisms.noise import Gaussian
from dpgm.methods.base import Method
from dpgm.privacy.guarantee import Budget, Evidence, PrivacyError, Relation
from dpgm.schema import ImageSchema
from dpgm.testing import check_mechanism, check_method, check_no_rows, check_query, images

SCHEMA = ImageSchema(height=8, width=8, channels=1, classes=("a", "b"), size=100)
ROWS = images(SCHEMA)(24, np.random.default_rng(0))
BUDGET = Budget(epsilon=2.0, delta=1e-3)

SMALL = {"steps": 2, "batch": 4, "width": 4, "dim": 16, "latent": 4, "n_steps": 2, "epochs": 1, "hidden": 8}


NAMES = [n for n in methods.names() if ImageSchema in methods.get(n).takes]  # those of tables have tests of their own


def small(kind: type[Method]) -> Method:
    """The method with as little work as its options allow; so have the methods inside it."""
    options: dict[str, Any] = {f.name: SMALL[f.name] for f in dataclasses.fields(kind) if f.name in SMALL}
    for f in dataclasses.fields(kind):
        if isinstance(f.default_factory, type) and issubclass(f.default_factory, Method):
            options[f.name] = small(f.default_factory)
    return kind(**options)


def plan_of(name: str, relation: Relation = Relation.ADD_REMOVE, budget: Budget = BUDGET) -> Any:
    return small(methods.get(name)).plan(SCHEMA, relation=relation, budget=budget)


def allow_for(evidence: Evidence) -> str | None:
    return evidence.word if evidence < Evidence.CLAIMED else None


@pytest.mark.parametrize("name", NAMES)
def test_registered_method_keeps_the_contract(name: str) -> None:
    kind = methods.get(name)
    assert kind.name == name
    assert kind.sources or "ours" in (kind.__doc__ or "").lower(), "say whose method it is"
    method = small(kind)
    plan = method.plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=BUDGET)
    model = check_method(method, SCHEMA, ROWS, budget=BUDGET, allow=allow_for(plan.guarantee().evidence))
    assert model.guarantee.epsilon <= BUDGET.epsilon


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relation", Relation)
@pytest.mark.parametrize("budget", [BUDGET, Budget(epsilon=0.1, delta=1e-6), Budget(epsilon=1.0, delta=0.0)], ids=str)
def test_plans_stay_within_every_budget(name: str, relation: Relation, budget: Budget) -> None:
    try:
        plan = plan_of(name, relation, budget)
    except PrivacyError:  # a method may have no plan for pure privacy or for replaced records
        return
    assert plan.guarantee().epsilon <= budget.epsilon * (1 + 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_mechanisms_and_queries_of_registered_methods_keep_the_contract(name: str) -> None:
    plan = plan_of(name)
    for mechanism, _ in plan.items:
        query = getattr(mechanism, "query", None)
        if query is None or _without_codes(query):
            continue  # sampled gradients and moments of codes have tests of their own
        check_query(query, images(SCHEMA, strange_labels=True), trials=12, max_rows=4)
        check_mechanism(mechanism, ROWS)
        if isinstance(mechanism, Gaussian):  # the broken twin: the same price for half the noise
            with pytest.raises(AssertionError, match="not what"):
                check_mechanism(_half(mechanism), ROWS)


def _without_codes(query: Any) -> bool:
    """Whether a query only states its price: the talk gives it what it looks through."""
    return any(getattr(query, name, ...) is None for name in ("codes", "look"))


def _half(mechanism: Gaussian) -> Gaussian:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Half(Gaussian):
        def cost(self, relation: Relation) -> Any:
            return mechanism.cost(relation)

    return Half(query=mechanism.query, noise_std=mechanism.noise_std / 2, name=mechanism.name)


def test_fit_twice_with_one_ledger_is_no_second_draw(tmp_path: Path) -> None:
    """The same plan under the same name is paid once, so it is answered once."""
    method = small(methods.get("merf"))
    terms: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-3, "schema": SCHEMA, "ledger": tmp_path / "ledger.jsonl"}
    dpgm.fit(method, ROWS["image"], ROWS["label"], **terms)
    with pytest.raises(PrivacyError, match="was handed out"):
        dpgm.fit(method, ROWS["image"], ROWS["label"], **terms)


def test_a_method_of_this_process_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(dpgm.DPMERF):
        name = "mine"

    monkeypatch.setattr(methods, "_ADDED", {})
    with pytest.raises(KeyError, match="no method 'mine'"):
        methods.get("mine")
    methods.add(Mine)
    methods.add(Mine)  # a notebook's cell is run again
    assert methods.get("mine") is Mine
    model = dpgm.fit(small(Mine), ROWS["image"], ROWS["label"], epsilon=2.0, delta=1e-3, schema=SCHEMA)
    model.save(tmp_path)
    assert type(dpgm.load(tmp_path).release.method) is Mine
    with pytest.raises(ValueError, match="there is a method 'merf' already"):
        methods.add(dpgm.DPMERF)


# --- the leak check ---------------------------------------------------------------------------------------------------

MARKER = np.random.default_rng(5).integers(0, 256, (8, 8, 1), dtype=np.uint8)
COLOUR = np.random.default_rng(6).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def hide_npz(folder: Path, x: NDArray[Any]) -> None:
    np.savez_compressed(folder / "a.npz", other=np.zeros(3), x=x)


def hide_npy(folder: Path, x: NDArray[Any]) -> None:
    np.save(folder / "a.npy", x.astype(np.float32) / 127.5 - 1)


def hide_tensors(folder: Path, x: NDArray[Any]) -> None:
    save_file(
        {"w": np.ascontiguousarray(np.moveaxis(x, 2, 0)[None].astype(np.float32) / 255)}, folder / "m.safetensors"
    )


def hide_json(folder: Path, x: NDArray[Any]) -> None:
    (folder / "run.json").write_text(json.dumps({"x": x.ravel().tolist()}, indent=2))


def hide_float_json(folder: Path, x: NDArray[Any]) -> None:
    (folder / "run.json").write_text(json.dumps((x.ravel() / 255).tolist()))


def hide_log(folder: Path, x: NDArray[Any]) -> None:
    with np.printoptions(threshold=10_000, linewidth=60):
        (folder / "log.txt").write_text(f"batch: {x.ravel()}")


def hide_bytes(folder: Path, x: NDArray[Any]) -> None:
    (folder / "cache").mkdir()
    (folder / "cache" / "x.bin").write_bytes(b"head" + x.tobytes() + b"tail")


def hide_hex(folder: Path, x: NDArray[Any]) -> None:
    (folder / "note.txt").write_text(x.tobytes().hex())


def hide_picture(folder: Path, x: NDArray[Any]) -> None:
    grid = np.zeros((32, 8, x.shape[2]), np.uint8)
    grid[16:24] = x
    Image.fromarray(grid.squeeze()).save(folder / "grid.png")


HIDINGS = [v for k, v in sorted(globals().items()) if k.startswith("hide_")]


@pytest.mark.parametrize("hide", HIDINGS)
@pytest.mark.parametrize("marker", [MARKER, COLOUR], ids=["grey", "colour"])
def test_hidden_row_is_found(tmp_path: Path, hide: Any, marker: NDArray[Any]) -> None:
    other = np.random.default_rng(9).integers(0, 256, marker.shape, dtype=np.uint8)
    hide(tmp_path, other)
    check_no_rows(tmp_path, marker)
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    hide(tmp_path, marker)
    with pytest.raises(AssertionError, match="the private marker appears in"):
        check_no_rows(tmp_path, marker)


@pytest.mark.parametrize(
    "where",
    ["read 54321 rows", "54,321 rows", {"n": 54321}, [np.zeros((54321, 1))], [np.array([1.0, 54321.0])], b"n=54321"],
    ids=str,
)
def test_count_of_rows_is_found(where: Any) -> None:
    with pytest.raises(AssertionError, match="the number"):
        check_no_rows(where, 54321)
    check_no_rows(where, 54322)
    check_no_rows(["154321", "0.54321", "543210"], 54321)


def test_text_is_found_in_names_and_files(tmp_path: Path) -> None:
    (tmp_path / "Jane-Doe-1970.txt").write_text("x")
    with pytest.raises(AssertionError, match="the name"):
        check_no_rows(tmp_path, "Jane-Doe-1970")
    check_no_rows(tmp_path, "Joan-Doe-1970")


def test_markers_that_chance_could_make_are_refused() -> None:
    for marker in (np.zeros((8, 8, 1), np.uint8), np.arange(5), 12, "abc"):
        with pytest.raises(ValueError, match=r"by chance|use random bytes"):
            check_no_rows("text", marker)


def test_public_names() -> None:
    assert {"check_query", "check_mechanism", "check_method", "check_no_rows"} <= set(testing.__all__)
