"""What the report says of its numbers: what they are compared with, what their ranges are, which rival does better."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpgm.evaluation import wording
from dpgm.evaluation.folder import called
from dpgm.evaluation.report import write_report
from dpgm.evaluation.scores import panels

MakeRun = Callable[..., Path]
HALVES = "Ranges are 95 % intervals from half-samples"
SEEDS = "Ranges that name seeds are 95 % t-intervals"


def rivals(metrics: dict[str, Any]) -> list[str]:
    return [s for _, s in wording.edges({}, {}, metrics, []) if "does better" in s]


def test_a_table_that_loses_to_the_private_classifier_says_so() -> None:
    scores = {"boosting": {"auc": 0.70, "f1": 0.99}, "dp_logreg": {"auc": 0.95, "f1": 0.1}}
    [sentence] = rivals({"utility": scores})
    assert "(dp logreg)" in sentence
    seeds = {k: {"auc": {"mean": v["auc"], "n": 5}} for k, v in scores.items()}
    assert rivals({"utility": seeds}) == [sentence]
    assert not rivals({"utility": {**scores, "boosting": {"auc": 0.96}}})
    assert not rivals({"utility": {"dp_logreg": {"auc": 0.95}}}), "a classifier alone loses to nobody"
    assert not rivals({"utility": {"boosting": {"auc": 0.7}, "real_boosting": {"auc": 0.95}}})


@pytest.mark.parametrize(("kind", "name"), [("accuracy", "labeller"), ("accuracy", "dp_cnn")])
def test_pictures_that_lose_to_a_private_classifier_say_so(kind: str, name: str) -> None:
    assert len(rivals({kind: {"cnn": 0.9, name: 0.95}})) == 1
    assert not rivals({kind: {"cnn": 0.95, name: 0.9}})


def test_the_summary_says_how_many_real_records_the_rival_saw() -> None:
    for scores in (
        {"accuracy": {"cnn": 0.9, "real_cnn": 0.99}},
        {"utility": {"boosting": {"auc": 0.9}, "real_boosting": {"auc": 0.99}}},
    ):
        said = " ".join(wording.summary(False, "proved", 1, {**scores, "sizes": {"real": 10_000}}, []))
        assert "one that saw 10,000 real records, o" in said
        assert "one that saw real records, o" in " ".join(wording.summary(False, "proved", 1, scores, []))


def test_scores_with_another_scale_are_named_where_they_stand() -> None:
    def intro(fidelity: dict[str, float], **more: Any) -> str:
        return panels({"fidelity": fidelity, **more}, "")[0].intro

    assert intro({"PairSimilarity": 0.9, "KMarginal": 356.3}).endswith("1 (the same), KMarginal from 0 to 1,000.")
    both = intro({"KMarginal": 356.3}, real_fidelity={"KMarginal": 900.0})
    assert "KMarginal from 0 to 1,000; real train records reach" in both
    assert intro({"PairSimilarity": 0.9}).endswith("from 0 to 1 (the same).")


def test_each_kind_of_range_is_said_to_be_what_it_is(make_run: MakeRun) -> None:
    folder = make_run()
    path = folder / "metrics.json"
    fid = {"value": 12.31, "low": 3.141, "high": 29.61, "features": "lenet-digits", "n": 299}
    bare = {k: v for k, v in fid.items() if k not in ("low", "high")}
    many, one = {"mean": 0.95, "low": 0.94, "high": 0.96, "n": 5}, 0.95
    for scores, value, halves, seeds in (
        ({"cnn": many}, fid, True, True),
        ({"cnn": one}, fid, True, False),
        ({"cnn": many}, bare, False, True),
        ({"cnn": one}, bare, False, False),
    ):
        path.write_text(json.dumps({"accuracy": scores, "fid": value}), "utf-8")
        page = write_report(folder).read_text("utf-8")
        assert (HALVES in page, SEEDS in page) == (halves, seeds)
    path.write_text(json.dumps({"fidelity": {"PairSimilarity": many}}), "utf-8")
    assert SEEDS in write_report(folder).read_text("utf-8")


def test_a_generator_with_a_labeller_bears_its_own_name() -> None:
    assert called({"method": "labelled", "config": {"generator": {"name": "pge"}}}) == "pge with a labeller"
    assert called({"method": "pge", "config": {}}) == "pge"
    assert called({}) == "unknown method"
