"""A hook of the site's builder: an entry `folder/*` of the navigation stands for all pages of that folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Expand the entries, the folder's README first."""
    docs = Path(config["docs_dir"])

    def expanded(item: Any) -> list[Any]:
        if isinstance(item, dict):
            return [{k: [p for v in e for p in expanded(v)] if isinstance(e, list) else e for k, e in item.items()}]
        if isinstance(item, str) and item.endswith("/*"):
            pages = sorted((docs / item[:-2]).glob("*.md"), key=lambda p: (p.name != "README.md", p.name))
            return [p.relative_to(docs).as_posix() for p in pages]
        return [item]

    config["nav"] = [entry for item in config["nav"] or [] for entry in expanded(item)] or None
    return config
