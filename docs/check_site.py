"""Whether a built site is whole and opens offline: `python docs/check_site.py site`.

Each link must lead to a file, and to an anchor in it; nothing may be loaded from elsewhere. Links
of the text to other sites are counted, not opened.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LOADED = ("script", "img", "source", "iframe", "audio", "video", "link")  # By the browser itself.
_CANONICAL = ("canonical", "alternate", "author", "license")  # Links that name and load nothing.

_FROM_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


class Link(NamedTuple):
    """Where a page points to."""

    tag: str
    target: str


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[Link] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser for each element."""
        held = dict(attrs)
        self.anchors |= {name for name in (held.get("id"), held.get("name")) if name}
        if tag == "link" and held.get("rel") in _CANONICAL:
            return
        self.links += [Link(tag, held[key] or "") for key in ("href", "src") if key in held]


def read(path: Path) -> Page:
    """The links and the anchors of a file."""
    page = Page()
    page.feed(path.read_text())
    return page


def faults(site: Path) -> Iterator[str]:
    """What is broken, one line each."""
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for tag, target in page.links:
            url = urlsplit(target)
            if url.scheme == "data":
                continue
            if url.scheme or url.netloc:
                if tag in LOADED:
                    yield f"{name}: loads {target}, which is not there without a network"
                continue
            anchor = unquote(url.fragment)
            file = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not file.is_file():
                yield f"{name}: {target}: no such file"
            elif anchor and file in pages and anchor not in pages[file].anchors:
                yield f"{name}: {target}: no such anchor"
    for path in sorted(site.rglob("*.css")):
        for url in _FROM_CSS.findall(path.read_text()):
            yield f"{path.relative_to(site)}: loads {url}, which is not there without a network"


def main() -> None:
    """The command line."""
    site = Path(sys.argv[1])
    pages = list(site.rglob("*.html"))
    if not pages:
        raise SystemExit(f"error: {site}: no pages; build them with `make docs`")
    found = list(faults(site))
    if found:
        print("\n".join(found))
        raise SystemExit(f"error: {site}: {len(found)} faults in {len(pages)} pages")
    outward = {
        link.target
        for page in map(read, pages)
        for link in page.links
        if link.tag == "a" and urlsplit(link.target).scheme.startswith("http")
    }
    print(f"{site}: {len(pages)} pages, every link leads somewhere ({len(outward)} to other sites)")


if __name__ == "__main__":
    main()
