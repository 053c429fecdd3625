"""Brings files that lie outside docs/ into the site, and translates links between files to links between pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FOLDERS = {"docs/": "", "benches/results/": "results/"}
CODE_OR_LINK = re.compile(r"```.*?```|`[^`]*`|(?<=\]\()(?!https?:)[^)#\s]+", re.DOTALL)
FETCHED = re.compile(r"<(?:script|img|source|iframe|link)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: Any) -> Files:
    for name, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    for path in (ROOT / "benches" / "results").rglob("*"):
        if path.suffix in (".md", ".png"):
            uri = placed(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, uri, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    source = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()

    def translated(found: re.Match[str]) -> str:
        if found[0].startswith("`"):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[0]))
        return posixpath.relpath(placed(target), posixpath.dirname(uri) or ".")

    return CODE_OR_LINK.sub(translated, markdown)


def placed(path: str) -> str:
    """Where a file of the repository lies among the pages; one that is not shown stays a broken link."""
    folder = next((folder for folder in FOLDERS if path.startswith(folder)), None)
    return PAGES.get(path, path) if folder is None else FOLDERS[folder] + path.removeprefix(folder)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri}: the site has to work without network, but fetches {found[0]}")
    return output
