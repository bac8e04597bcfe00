"""The report in a real browser, where there is one: nothing sticks out at the width of a desk or a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpgm.evaluation.report import write_report
from dpgm.evaluation.table_figures import describe
from dpgm.privacy.guarantee import Evidence
from dpgm.schema import Column, TableSchema

MakeRun = Callable[..., Path]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = "a_very_long_name_that_somebody_gave_to_a_column_of_a_table_without_any_place_to_break_it"

pytestmark = [pytest.mark.skipif(BROWSER is None, reason="needs chromium"), pytest.mark.slow]

# The page's own policy forbids scripts, so the copy that is measured goes without it. A frame has the width of a phone,
# which a browser's window cannot be made.
MEASURE = """<script>addEventListener("load", () => {
  const wide = document.documentElement.clientWidth;
  const out = [...document.querySelectorAll("body *")].filter(e => !e.closest("svg") && !e.closest(".wide")
    && e.getBoundingClientRect().right > wide + 1).map(e => e.tagName + "." + e.className);
  parent.postMessage([wide, document.documentElement.scrollWidth, out.slice(0, 5).join(" ")].join(","), "*");
});</script>"""


def sticking_out(html: str, width: int, folder: Path) -> str:
    """What stands beyond the right edge of a window of that width; "" if nothing does."""
    copy = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", html)
    copy = copy.replace("</body>", f"{MEASURE}</body>")
    (folder / "copy.html").write_text(copy, "utf-8")
    (folder / "frame.html").write_text(
        "<script>addEventListener('message', e => { document.body.dataset.found = e.data; });</script><body>"
        f"<iframe src='copy.html' width='{width}' height='900' style='border:0'></iframe></body>",
        "utf-8",
    )
    words = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    words += ["--virtual-time-budget=5000"]
    words += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", (folder / "frame.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r'data-found="(\d+),(\d+),([^"]*)"', done.stdout)
    assert found, f"the browser measured nothing: {done.stderr[-500:]}"
    assert int(found[1]) == width
    return found[3] if int(found[2]) <= width else f"the page is {found[2]} wide; {found[3]}"


def full_run(make_run: MakeRun, evidence: Evidence) -> Path:
    """A run with something in every part of the report, and long names in it."""
    folder = make_run(evidence, config={LONG: LONG}, command=f"dpgm run {LONG} --out {LONG}")
    rng = np.random.default_rng(0)
    columns = [Column(name=n, kind="integer", low=0, high=9) for n in (LONG, "age", "wage")]
    columns.append(Column(name="label", kind="category", values=(LONG, "b")))
    schema = TableSchema(columns=tuple(columns), label="label")
    table = np.stack([*(rng.integers(0, 10, (3, 200)).astype(float)), rng.integers(0, 2, 200).astype(float)], axis=1)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text("utf-8"))
    metrics |= {
        "figures": describe(table, table, schema),
        "utility": {
            "boosting": {"auc": {"mean": 0.9, "low": 0.89, "high": 0.91, "n": 5}},
            "real_boosting": {"auc": 0.9},
        },
        "fidelity": {"PairSimilarity": 0.9, LONG: 0.8},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    attack = {"name": LONG, "verdict": "BEATEN: epsilon >= 4 at a claimed 1", "beaten": True, "trials": 5000}
    check = {"name": "the ledger's chain", "passed": False, "found": LONG}
    (folder / "audit.json").write_text(json.dumps({"audits": [attack], "checks": [check]}), "utf-8")
    return folder


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("evidence", [Evidence.PROVED, Evidence.REFUTED])
def test_nothing_sticks_out(make_run: MakeRun, tmp_path: Path, evidence: Evidence, width: int) -> None:
    html = write_report(full_run(make_run, evidence)).read_text("utf-8")
    assert sticking_out(html, width, tmp_path) == ""


def test_what_sticks_out_is_noticed(make_run: MakeRun, tmp_path: Path) -> None:
    html = write_report(make_run()).read_text("utf-8")
    twin = html.replace("<h2>In short</h2>", "<h2 style='white-space:nowrap'>" + "In short " * 30 + "</h2>", 1)
    assert twin != html
    assert sticking_out(twin, 390, tmp_path).startswith("the page is")
