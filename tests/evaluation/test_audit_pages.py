"""The pages about audits: their commands print what the pages show, and every refutation still beats its claim."""

import re
from pathlib import Path

import pytest

from dpgm.cli import main
from dpgm.evaluation.audit import TWINS

PAGES = Path(__file__).parents[2] / "docs" / "refutations"


def skeleton(text: str) -> list[str]:
    """An audit's words without its numbers, and without what depends on chance."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(" " * 11)]
    words = [re.split(r", both at delta|; it moves| \(by ", line)[0] for line in lines]
    kinds = [re.sub(r"^  (power|pair) .*", r"  \1", line) for line in words]
    return [re.sub(r"\d[\d.,]*(e-\d+)?", "#", line) for line in kinds]


def transcripts(page: Path) -> list[tuple[str, str]]:
    """Commands of a page, without `dpgm audit`, and their output."""
    return re.findall(r"```console\n\$ dpgm audit ([^\n]*)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


@pytest.mark.slow
def test_commands_of_the_pages_print_what_the_pages_say(capsys: pytest.CaptureFixture[str]):
    found = 0
    for page in [*PAGES.glob("*.md"), PAGES.parent / "audits.md"]:
        for command, output in transcripts(page):
            if "--kind canary" in command or command == "run":
                continue  # minutes, or a folder that the next test makes
            assert main(["audit", *command.split()]) == 0
            assert skeleton(capsys.readouterr().out) == skeleton(output), page.name
            found += 1
    assert found >= 12


def test_the_audit_of_a_folder_prints_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = ["run", "digits", "--method", "pge", "--epsilon", "1", "--out", "run", "--samples", "1500"]
    assert main([*words, "--evaluate", "False", "--json"]) == 0
    capsys.readouterr()
    [output] = [text for command, text in transcripts(PAGES.parent / "audits.md") if command == "run"]
    assert main(["audit", "run"]) == 0
    assert skeleton(capsys.readouterr().out) == skeleton(output)
    assert skeleton(output).count("  power") == skeleton(output).count("  verdict  not beaten (up to #)") == 3


def test_every_refutation_has_a_page_whose_command_still_beats_it(capsys: pytest.CaptureFixture[str]):
    shown: set[str] = set()
    for page in PAGES.glob("*.md"):
        for command in re.findall(r"^\$ dpgm audit (.*)$", page.read_text("utf-8"), re.MULTILINE):
            shown.add(command)
        if page.name != "README.md":
            assert "verdict  BEATEN: epsilon >= " in page.read_text("utf-8"), page.name
    forms = ("pge --privacy published", "dp2vae --privacy published", "dp2vae --privacy local")
    published = {*forms, "pge --privacy published --kind canary --trials 1000"}
    assert shown == {*TWINS, *published}
    for command in ("half-noise", "pge --privacy published"):
        assert main(["audit", *command.split()]) == 0
        assert "BEATEN" in capsys.readouterr().out
