"""Checks the built site: each local link and picture leads to a file, and each anchor is there.

``python docs/check_links.py docs-output``; `make docs` calls it. Links to other sites are not
followed, so that the check needs no network. Prints what is broken, and exits with 1.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The targets of a page's links and pictures, and the anchors that the page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.targets.append(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")


def broken_links(site: Path) -> tuple[list[str], int]:
    """Return what is wrong with the links of a site, a line each, and how many it has looked at."""
    files = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    pages = {path: Page(path.read_text("utf-8")) for path in files}
    broken, count = [], 0
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue  # another site
            count += 1
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if place.is_dir():
                place /= "index.html"
            if not place.exists():
                broken.append(f"{path.relative_to(site)}: {target} is not there")
            elif (
                parts.fragment
                and place in pages
                and unquote(parts.fragment) not in pages[place].anchors
            ):
                broken.append(f"{path.relative_to(site)}: {target} has no such anchor")
    return broken, count


def main() -> None:
    site = Path(sys.argv[1]).resolve()
    broken, count = broken_links(site)
    if broken or not count:
        sys.exit("\n".join(broken) or f"there are no pages in {site}")
    print(f"{count} local links lead somewhere")


if __name__ == "__main__":
    main()
