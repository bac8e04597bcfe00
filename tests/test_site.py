"""The site: it builds without a warning, fetches nothing from elsewhere, and reads as the repository's pages do."""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs the extra docs")

ROOT = Path(__file__).parents[1]


def build(target: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Build the site strictly. Not with --quiet: it hides the warnings from --strict, too."""
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(target)]
    here = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=here, check=False)


def outside(html: str) -> list[str]:
    """Whatever a browser would fetch from another host; links that a reader may follow are none."""
    fetching = re.findall(r"""<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=["']?(https?:)?//""", html)
    return fetching + re.findall(r"""@import\s+(?:url\()?["']?https?:|url\(["']?https?:""", html)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 20
    assert not {p.name: found for p in pages if (found := outside(p.read_text("utf-8")))}


@pytest.mark.parametrize(
    "twin",
    [
        '<link rel="stylesheet" href="https://fonts.example/css?family=Roboto">',
        '<script async src="//cdn.example/mathjax.js"></script>',
        "<style>@import url(https://fonts.example/a.css)</style>",
        "<p><img alt='x' src=http://a.example/x.png>",
    ],
)
def test_the_check_for_outside_fetches_catches_its_twins(twin: str) -> None:
    assert outside(twin)
    assert not outside('<a href="https://a.example">x</a><img src="images/a.png"><link rel="icon" href="a.png">')


def test_a_dead_link_stops_the_build(tmp_path: Path) -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:")[0].replace("docs_dir: docs", "docs_dir: pages")
    config = config.replace("hooks: [.ci/site.py]\n", "")
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"\n  - mkdocstrings:\n(    .*\n)*", "\n", config + "\n"), "utf-8")
    (tmp_path / "pages").mkdir()
    page = tmp_path / "pages" / "index.md"
    page.write_text("# A\n\n[there](#a)\n", "utf-8")
    assert build(tmp_path / "site", tmp_path / "mkdocs.yml").returncode == 0
    for broken in ("[gone](gone.md)", "[no such part](index.md#b)"):
        page.write_text(f"# A\n\n{broken}\n", "utf-8")
        assert build(tmp_path / "site", tmp_path / "mkdocs.yml").returncode != 0


# --- two renderers ---------------------------------------------------------------------------------------------------


def parts(html: str) -> collections.Counter[str]:
    """How many of each element a page has."""
    return collections.Counter(re.findall(r"<(h\d|ul|ol|li|table|tr|td|th|em|strong|a|img|code|pre)\b", html))


def differences(text: str) -> dict[str, tuple[int, int]]:
    """Elements whose number differs between the site and a renderer like those of code forges."""
    import markdown
    from markdown_it import MarkdownIt

    here = markdown.markdown(
        text,
        extensions=["tables", "sane_lists", "attr_list", "md_in_html", "pymdownx.highlight", "pymdownx.superfences"],
        extension_configs={"pymdownx.highlight": {"use_pygments": False}},
    )
    site, forge = parts(here), parts(MarkdownIt("commonmark").enable("table").render(text))
    return {k: (site[k], forge[k]) for k in {*site, *forge} if site[k] != forge[k]}


PAGES = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "\n::: " not in p.read_text("utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_has_the_same_structure_in_both_renderers(page: Path) -> None:
    assert not differences(page.read_text("utf-8"))


def test_a_list_that_only_one_renderer_sees_is_noticed() -> None:
    assert differences("Some text:\n- one\n- two\n") == {"ul": (0, 1), "li": (0, 2)}
    assert differences("1. one\n\n       code\n\n   more\n\n2. two\n")
