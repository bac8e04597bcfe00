"""The report: unmistakable, self-contained, safe against hostile names, and content with what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest

from dpgm.evaluation import wording
from dpgm.evaluation.folder import ReportError, read_folder, without_paths
from dpgm.evaluation.report import write_report
from dpgm.privacy.guarantee import Evidence

MakeRun = Callable[..., Path]
HOSTILE = """<script>alert(1)</script>"><img src=x onerror='alert(2)'>{{ 7 * 7 }}"""


class Page(HTMLParser):
    """What a browser would see: tags, attributes that fetch, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def read(folder: Path) -> str:
    return write_report(folder).read_text("utf-8")


def faults(html: str) -> list[str]:
    """Whatever would fetch something, run something, or name a machine's folder."""
    page = Page(html)
    found = [t for t in page.tags if t in {"script", "link", "iframe", "object", "embed", "base", "form"}]
    for name, value in page.attributes:
        if name in {"src", "href", "srcset", "action", "data", "poster"} and not value.startswith(
            "data:image/png;base64,"
        ):
            found.append(f"{name}={value}")
        if name.startswith("on"):
            found.append(name)
    found += re.findall(r"@import|url\(|https?://", html)
    return found + re.findall(r"(?<![\w<.])/(?:home|tmp|root|Users|work)/\w+", page.text)


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_proved_run_says_all_of_it(make_run: MakeRun) -> None:
    html = read(make_run())
    text = Page(html).text
    for expected in (
        "ε = 0.9973",
        "δ = 1e-5",
        "A proof is written down",
        "add/remove one record",
        "real arithmetic",
        "noisy class moments",
        "noise multiplier 3.74",
        "1 / 1",
        "Synthetic; the promise above bounds what these pictures tell of any one record.",
        "95.5 %",
        "95.0 to 96.0",
        "98.3 %",
        "2.287 nats",
        "FID[lenet-digits]",
        "synthetic 10,000, real 10,000, test 299",
        "not private: reference on real data",
        "2 min 27 s",
        "813 MB",
        "dpgm run pge --data digits",
        "@misc{dwork2006",
        "torch",
        "guesses right at most 73.1 %",
        "labeller) does better",
    ):
        assert expected in text, expected
    assert 'class="verdict proved"' in html
    assert "<polyline" in html
    assert not faults(html)


def test_soft_labels_are_named_and_stand_beside_the_same_net_on_real_records(make_run: MakeRun) -> None:
    folder = make_run()
    accuracy = json.loads((folder / "metrics.json").read_text("utf-8"))["accuracy"]
    edit(folder, "metrics.json", accuracy={("cnn_soft" if k == "cnn" else k): v for k, v in accuracy.items()})
    text = Page(read(folder)).text
    assert "CNN on soft labels" in text
    assert re.search(r"CNN on soft labels.{0,140}95\.5 %.{0,40}98\.3 %", text)
    assert "A classifier that saw nothing but samples is right on 95.5 %" in text


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (Evidence.REFUTED, "No privacy guarantee"),
        (Evidence.UNSUPPORTED, "No supported guarantee"),
        (Evidence.CLAIMED, "A paper claims"),
    ],
)
def test_weak_evidence_is_unmistakable_without_colour(make_run: MakeRun, evidence: Evidence, words: str) -> None:
    html = read(make_run(evidence))
    assert words in html
    assert f'class="verdict {evidence.word}' in html
    void = evidence < Evidence.CLAIMED
    assert (f"<title>{evidence.name}" in html) == void
    assert ("It does not hold for this run" in html) == void
    assert ("<s>" in html) == void
    assert ("a sample may resemble a private record" in html) == void
    assert ("the promise above bounds what these pictures tell" in html) != void
    assert ("ε = " in html) != void


def test_what_was_exposed_stands_in_the_headline(make_run: MakeRun) -> None:
    text = Page(read(make_run(exposed=True))).text
    assert "Not private beside it:" in text
    assert text.count("FID against the train part (seen by the analyst)") == 2  # the box and the recorded headline


def test_seeded_noise_supports_nothing(make_run: MakeRun) -> None:
    html = read(make_run(seeded=True))
    assert "No supported guarantee" in html
    assert "drawn from a seed" in html


def test_the_private_classifiers_stand_beside_the_samples(make_run: MakeRun) -> None:
    folder = make_run()
    text = Page(read(folder)).text
    assert "Beside private classifiers" in text
    assert "Private labeller 97.9 %" in text or "Private labeller 98.0 %" in text
    assert "within the epsilon of 0.9973 above" in text
    edit(folder, "metrics.json", accuracy={"cnn": 0.9})
    assert "Beside private classifiers" not in Page(read(folder)).text
    edit(folder, "metrics.json", accuracy={}, utility={"dp_logreg": {"auc": 0.93}}, sizes={}, fid={})
    html = read(folder)
    assert "Logistic regression trained privately (DP-SGD), ROC AUC 0.930" in Page(html).text
    assert "How good the classifier is" in html


def test_scores_of_a_table_stand_beside_those_of_real_records(make_run: MakeRun) -> None:
    folder = make_run()
    edit(
        folder,
        "metrics.json",
        accuracy={},
        utility={"boosting": {"auc": 0.91, "f1": 0.8}, "real_boosting": {"auc": 0.95, "f1": 0.85}},
        fidelity={"PairSimilarity": 0.9, "KSComplement": {"mean": 0.97, "low": 0.96, "high": 0.98, "n": 5}},
        real_fidelity={"PairSimilarity": 0.98},
        kid={"value": 0.03, "features": "lenet", "low": 0.02, "high": 0.04, "subsets": 50},
    )
    text = Page(read(folder)).text
    for expected in (
        "Gradient boosting, ROC AUC 0.910 0.950",
        "Gradient boosting, F1 0.800 0.850",
        "total variation 0.900 0.980",
        "0.960 to 0.980, 5 seeds",
        "KID[lenet]kernel distance; 0 is best, subsets 50 0.030.02 to 0.04",
        "joint shares of two columns agree with those of real records to 90 %",
    ):
        assert expected in text, expected


def test_attacks_are_shown_the_successful_ones_first(make_run: MakeRun) -> None:
    folder = make_run()
    assert "Nobody has attacked this run" in Page(read(folder)).text
    attack = {
        "name": "moments",
        "verdict": "not beaten (up to 3.2)",
        "beaten": False,
        "trials": 5000,
        "pair": "10 white",
    }
    beaten = {"name": "thresholds", "verdict": "BEATEN: epsilon >= 4 at a claimed 1", "beaten": True}
    check = {"name": "the ledger's chain", "passed": False, "found": "line 3 was changed"}
    (folder / "audit.json").write_text(json.dumps({"audits": [attack, beaten], "checks": [check]}), "utf-8")
    text = Page(read(folder)).text
    assert "Nobody has attacked" not in text
    assert text.index("BEATEN: epsilon >= 4") < text.index("not beaten (up to 3.2)")
    assert "5,000" in text
    assert text.count("line 3 was changed") == 2  # in the box, too
    assert "An attack on this run beat its claim: thresholds" in text
    assert "No privacy guarantee" in text
    (folder / "audit.json").write_text(json.dumps({"audits": [attack], "skipped": "samples: no test part"}), "utf-8")
    text = Page(read(folder)).text
    assert "No privacy guarantee" not in text
    assert "Samples: no test part." in text
    (folder / "audit.json").write_text(json.dumps({"audits": [{**beaten, "kind": "membership"}]}), "utf-8")
    text = Page(read(folder)).text
    assert "No privacy guarantee" not in text
    assert "Members were found more often than the claim allows: thresholds" in text
    (folder / "audit.json").write_text(json.dumps({"audits": "none"}), "utf-8")
    assert "Attacks on the claim" not in Page(read(folder)).text


def test_the_method_its_mechanisms_and_the_tool_are_cited(make_run: MakeRun) -> None:
    source = {
        "key": "liu2024pge",
        "title": "Private Gradients",
        "authors": "Liu",
        "year": 2024,
        "where": "MM",
        "part": "",
    }
    html = read(make_run(sources=[source]))
    for expected in ("Private Gradients", "@misc{liu2024pge", "@misc{dwork2006", "@misc{dpgm", "version 0.1.0"):
        assert expected in html, expected


# --- what it does not believe ----------------------------------------------------------------------------------------


def test_the_weaker_of_run_and_ledger_is_shown(make_run: MakeRun) -> None:
    folder = make_run(Evidence.REFUTED)
    run = json.loads((folder / "run.json").read_text("utf-8"))
    edit(folder, "run.json", guarantee={**run["guarantee"], "evidence": "proved", "epsilon": 0.1})
    html = read(folder)
    assert 'class="verdict refuted void"' in html
    assert "the ledger supports no more than “refuted”" in html
    assert "run.json states epsilon 0.1, the ledger reserved" in html
    assert "ε 0.1" not in html


def test_a_changed_ledger_voids_the_promise(make_run: MakeRun) -> None:
    folder = make_run()
    path = folder / "ledger.jsonl"
    path.write_text(path.read_text("utf-8").replace("3.74", "37.4"), "utf-8")
    html = read(folder)
    assert "breaks the hash chain" in html
    assert "No supported guarantee" in html
    assert "ε = " not in html


def test_reading_leaves_the_ledger_alone(make_run: MakeRun) -> None:
    folder = make_run()
    path = folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "torn')  # cut off in writing: it announced nothing
    before = path.read_bytes()
    assert 'class="verdict proved"' in read(folder)
    assert path.read_bytes() == before


@pytest.mark.parametrize("word", ["certified", None, 3])
def test_unknown_evidence_supports_nothing(make_run: MakeRun, word: object) -> None:
    folder = make_run()
    run = json.loads((folder / "run.json").read_text("utf-8"))
    edit(folder, "run.json", guarantee={**run["guarantee"], "evidence": word})
    assert 'class="verdict unsupported void"' in read(folder)


# --- what it leaves out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ledger.jsonl", "metrics.json", "training.json", "samples.npz"])
def test_each_missing_file_leaves_its_part_out(make_run: MakeRun, name: str) -> None:
    folder = make_run()
    (folder / name).unlink()
    html = read(folder)
    gone = {
        "ledger.jsonl": "What was spent where",
        "metrics.json": "How useful",
        "training.json": "<polyline",
        "samples.npz": "<img",
    }
    assert gone[name] not in html
    assert all(part in html for key, part in gone.items() if key != name)
    assert not faults(html)


@pytest.mark.parametrize(
    "content", [{}, {"method": "pge", "guarantee": None, "schema": None, "seconds": {}, "plan": []}]
)
def test_an_almost_empty_run_promises_nothing(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content), "utf-8")
    html = read(tmp_path)
    assert "No guarantee is recorded for this run" in html
    assert 'class="verdict unsupported void"' in html
    assert not re.search(r"\b(None|Undefined|nan)\b", Page(html).text)


def test_each_missing_key_of_run_json_is_left_out(make_run: MakeRun) -> None:
    folder = make_run()
    (folder / "samples.npz").unlink()
    run = json.loads((folder / "run.json").read_text("utf-8"))
    for key in run:
        (folder / "run.json").write_text(json.dumps({k: v for k, v in run.items() if k != key}), "utf-8")
        read(folder)
    for key in run["guarantee"]:
        rest = {k: v for k, v in run["guarantee"].items() if k != key}
        (folder / "run.json").write_text(json.dumps({**run, "guarantee": rest}), "utf-8")
        read(folder)


def test_training_may_stand_in_run_json_and_samples_may_be_a_picture(make_run: MakeRun) -> None:
    folder = make_run(training={"loss": [3.0, 2.0, 1.0]})
    (folder / "training.json").unlink()
    (folder / "samples.npz").unlink()
    (folder / "samples.png").write_bytes(b"\x89PNG")
    html = read(folder)
    assert "<polyline" in html
    assert 'src="data:image/png;base64,iVBORw=="' in html


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"holds no run\.json"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{", "utf-8")
    with pytest.raises(ReportError, match=r"run\.json is not JSON"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("[]", "utf-8")
    with pytest.raises(ReportError, match="holds a list"):
        write_report(tmp_path)


# --- what it must never do -------------------------------------------------------------------------------------------


def hostile_run(make_run: MakeRun) -> Path:
    folder = make_run(
        method=HOSTILE, data=HOSTILE, command=HOSTILE, versions={HOSTILE: HOSTILE}, config={HOSTILE: HOSTILE}
    )
    run = json.loads((folder / "run.json").read_text("utf-8"))
    source = {"key": HOSTILE, "title": HOSTILE, "authors": HOSTILE, "year": 1, "where": HOSTILE}
    guarantee = {k: HOSTILE if isinstance(v, str) else v for k, v in run["guarantee"].items()}
    guarantee |= {"sources": [source], "assumptions": [HOSTILE], "exposures": [HOSTILE]}
    edit(folder, "run.json", guarantee=guarantee, schema={**run["schema"], "classes": [HOSTILE] * 10})
    edit(folder, "metrics.json", accuracy={HOSTILE: 0.5}, exposures=[HOSTILE], fid={"features": HOSTILE})
    (folder / "training.json").write_text(json.dumps({HOSTILE: [1.0, 2.0]}), "utf-8")
    return folder


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    html = read(hostile_run(make_run))
    assert not faults(html)
    assert "<script" not in html
    assert "{{ 7 * 7 }}" in html


def test_the_check_for_hostile_names_catches_a_page_without_escaping(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda autoescape, **more: plain(autoescape=False, **more))
    assert {"script", "onerror", "src=x"} <= set(faults(read(hostile_run(make_run))))


def test_paths_are_cut_to_their_last_name(make_run: MakeRun) -> None:
    command = "dpgm run pge --data /home/ann/secret/data.npz --out=/tmp/run --features inception:/home/ann/w.pt"
    html = read(make_run(command=command, data="/home/ann/data.npz", config={"features": ["/home/ann/w.pt"]}))
    assert not faults(html)
    assert "--data data.npz --out=run --features inception:w.pt" in Page(html).text
    assert "ann" not in re.findall(r"\w+", Page(html).text)


def test_cutting_paths_leaves_other_text_alone() -> None:
    kept = ["add/remove one", "T-shirt/top", "docs/proofs/gaussian.md", "1 / 10", "https://a.example/b", "a, b / c"]
    assert [without_paths(k) for k in kept] == kept
    cut = {"C:\\Users\\ann\\x.npz": "x.npz", "~/data/x": "x", "'/a/b c": "'b c", "x=/a/b": "x=b", "(/a/b)": "(b)"}
    assert {k: without_paths(k) for k in cut} == cut


@pytest.mark.parametrize(
    "twin",
    [
        '<img src="https://example.org/x.png">',
        '<link rel="stylesheet" href="style.css">',
        "<style>@import 'x.css'</style>",
        "<p style='background: url(x.png)'>",
        "<script>1</script>",
        "<p onclick='x'>",
        "<p>/home/ann/data</p>",
    ],
)
def test_the_check_for_outside_references_catches_its_twins(twin: str) -> None:
    assert faults(twin)


# --- the words -------------------------------------------------------------------------------------------------------


def test_the_guessing_bound_is_that_of_the_worst_mechanism() -> None:
    """Against randomised response, the worst pure mechanism, the best guess is right e^eps/(1 + e^eps) of the time."""
    text = " ".join(wording.meaning(1.0, 0.0, "replace one", "record"))
    assert "73.2 %" in text  # 0.7310..., rounded up
    assert "replaced by any other" in text
    assert "pure differential privacy" in text
    assert "hardly restrains" in " ".join(wording.meaning(10.0, 1e-5, "add/remove one", "record"))
    assert "infinite" in wording.meaning(float("inf"), 0.0, "add/remove one", "record")[0]


def test_edges_apply_only_where_they_do() -> None:
    guarantee = {"epsilon": 1.0, "delta": 1e-2, "relation": "replace one", "unit": "record"}
    edges = wording.edges(guarantee, {"schema": {"size": 1000}}, {"accuracy": {"cnn": 0.9, "dp_cnn": 0.8}}, [])
    found = " ".join(sentence for _, sentence in edges)
    order = [["critical", "serious", "minor"].index(severity) for severity, _ in edges]
    assert order == sorted(order)
    assert "not below 1/1,000" in found
    assert "counts as public" in found
    assert "One seed" in found
    for absent in (
        "does better",
        "without protection",
        "hardly restrains",
        "no guarantee",
        "Run times",
        "called public",
    ):
        assert absent not in found, absent
    weak: dict[str, Any] = {**guarantee, "evidence": "refuted", "epsilon": 9.0, "assumptions": ["saw public data only"]}
    more = " ".join(sentence for _, sentence in wording.edges(weak, {}, {}, ["a look"], attacked=False))
    for present in ("without protection", "hardly restrains", "no guarantee", "called public"):
        assert present in more, present
    assert "Nobody has attacked" not in more  # it is refuted as it is


def test_the_summary_says_first_whether_anything_may_be_published() -> None:
    scores = {"accuracy": {"cnn": 0.9, "real_cnn": 0.99}}
    assert wording.summary(True, "refuted", 3, {}, [])[0].startswith("Publish nothing")
    assert "paper's word" in wording.summary(False, "claimed", None, {}, [])[0]
    good = wording.summary(False, "proved", 2, scores, ["a look"])
    assert "may be published" in good[0]
    assert "read the private records 2 times" in good[1]
    assert "90.0 %" in good[2]
    assert "99.0 %" in good[2]
    assert "without protection" in good[3]


def test_read_folder_keeps_the_ledger_in_order(make_run: MakeRun) -> None:
    folder = read_folder(make_run(exposed=True))
    assert folder.ledger is not None
    assert [e["kind"] for e in folder.ledger] == ["open", "reserve", "charge", "expose"]
    assert folder.grid_classes == tuple("0123456789")
