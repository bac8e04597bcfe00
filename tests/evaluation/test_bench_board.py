"""What the leaderboard says of a row beside others: it loses, or is the best, only as far as the intervals tell."""

from __future__ import annotations

from typing import Any

import pytest

from dpgm.evaluation.bench import board


def _line(method: str, mean: float, *, n: int = 5, half: float = 0.01) -> dict[str, Any]:
    """A line of the summary, with an interval from five seeds on."""
    number = {"mean": mean, "n": n, **({"low": mean - half, "high": mean + half} if n >= 5 else {})}
    facts = {"evidence": "proved", "relation": "add/remove one", "delta": 1e-5, "failed": 0, "n": n, "of": n}
    costs = {k: {"mean": 1.0, "n": n} for k in ("seconds", "cpu_seconds", "peak_memory_mb")}
    return {"row": method, "method": method, "score": number, **facts, **costs}


NONE = board.Closeness("", "")
RIVAL = "a private classifier on real records"


@pytest.mark.parametrize(
    ("mine", "rival", "said"),
    [
        (_line("pge", 0.90), _line("labeller", 0.95), f"loses to {RIVAL}"),
        (_line("pge", 0.94), _line("labeller", 0.95), f"not told apart from {RIVAL}: the intervals overlap"),
        (_line("pge", 0.96), _line("labeller", 0.95), f"not told apart from {RIVAL}: the intervals overlap"),
        (_line("pge", 0.90, n=1), _line("labeller", 0.95), f"by the mean below {RIVAL} (1 seed against 5)"),
        (_line("pge", 0.90), _line("labeller", 0.95, n=3), f"by the mean below {RIVAL} (5 seeds against 3)"),
        (_line("pge", 0.99), _line("labeller", 0.95), ""),
        (_line("pge", 0.99, n=1), _line("labeller", 0.95), f"by the mean not below {RIVAL} (1 seed against 5)"),
    ],
)
def test_a_row_loses_only_where_intervals_say_so(mine: dict[str, Any], rival: dict[str, Any], said: str) -> None:
    rows = {r["row"]: r for r in board._rows([mine, rival], [], {"pge": "", "labeller": ""}, NONE)}
    assert rows["pge"]["remarks"] == [said] * bool(said)
    assert rows["labeller"]["remarks"] == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_line("merf", 0.90), ""),
        (_line("merf", 0.945), "best by the mean; intervals of others overlap"),
        (_line("merf", 0.90, n=1), "best by the mean (5 seeds against 1)"),
    ],
)
def test_the_best_row_is_best_by_the_mean_where_others_are_not_told_apart(other: dict[str, Any], said: str) -> None:
    rows = {r["row"]: r for r in board._rows([other, _line("pge", 0.95)], [], {"pge": "", "merf": ""}, NONE)}
    assert (rows["pge"]["best"], rows["merf"]["best"]) == (True, False)
    assert (rows["pge"]["remarks"], rows["merf"]["remarks"]) == ([said] * bool(said), [])


def test_rows_are_compared_with_others_of_their_relation_and_delta_only() -> None:
    lines = [
        _line("slicing", 0.97) | {"relation": "replace one"},
        _line("labeller", 0.95),
        _line("pge", 0.90),
        _line("merf", 0.80) | {"delta": 0.0},
    ]
    rows = {r["row"]: r for r in board._rows(lines, [], {x["row"]: "" for x in lines}, NONE)}
    assert rows["pge"]["remarks"] == [f"among rows of add/remove one, delta 1e-5: loses to {RIVAL}"]
    assert [rows[r]["best"] for r in ("slicing", "pge", "merf")] == [True] * 3
    assert rows["slicing"]["remarks"] == rows["merf"]["remarks"] == []


def test_generators_without_a_private_classifier_beside_them_are_named() -> None:
    lines = [x | {"epsilon": 1.0} for x in (_line("pge", 0.9), _line("labeller", 0.95))]
    assert board.alone(lines) == ""
    assert board.alone([*lines, _line("merf", 0.8) | {"epsilon": 2.0}]).startswith(
        "No private classifier of the same epsilon, relation and delta was run beside merf: "
    )


def test_an_fid_of_another_number_of_records_is_marked() -> None:
    lines: list[dict[str, Any]] = [{"features": "lenet-x", "fid_n": n, "fid": {"mean": 3.0}} for n in (5000, 500, 5000)]
    close = board.closeness(lines)
    assert close.head == "FID[lenet-x], n = 5,000"
    assert [close.of(x) for x in lines] == ["3", "3 (n = 500)", "3"]


def test_seeds_that_are_all_alike_get_no_interval() -> None:
    assert board.interval({"mean": 0.9, "low": 0.9, "high": 0.9, "n": 5}) == "5 seeds, all alike"
