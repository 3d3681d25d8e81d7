"""What MkDocs does beyond mkdocs.yml: pages that lie outside docs/ are shown with the others.

The pages link to each other as GitHub reads them, by paths within the repository; links to and
from the pages outside are turned into those of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = (
    *("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *("benchmarks/README.md", "benchmarks/results.md"),
    *("notebooks/first_attack.ipynb", "notebooks/your_own_model.ipynb", "notebooks/defence.ipynb"),
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside."""
    for path in OUTSIDE:
        if (ROOT / path).exists():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn paths within the repository into paths within the site."""
    here = page.file.src_uri
    home = here if here in OUTSIDE else f"docs/{here}"

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(home), link[1]))
        if target == "README.md":
            target = "docs/index.md"
        if target not in OUTSIDE and not target.startswith("docs/"):
            return link[0]  # MkDocs names it
        site = target if target in OUTSIDE else target.removeprefix("docs/")
        return f"]({posixpath.relpath(site, posixpath.dirname(here) or '.')}"

    return LINK.sub(turned, markdown)
