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
    rows = {r["row"]: r for r in board._rows([mine, rival], [], {"pge": "", "labeller": ""}, "")}
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
    rows = {r["row"]: r for r in board._rows([other, _line("pge", 0.95)], [], {"pge": "", "merf": ""}, "")}
    assert (rows["pge"]["best"], rows["merf"]["best"]) == (True, False)
    assert (rows["pge"]["remarks"], rows["merf"]["remarks"]) == ([said] * bool(said), [])
