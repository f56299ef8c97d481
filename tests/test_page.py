"""The page: all of it inside one file, all text is text, and a click sorts a table."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pp_jax.evaluate.page import write_page
from pp_jax.evaluate.sections import Column, Picture, Section, Table
from pp_jax.evaluate.statistics import Interval

EVIL = "<script>alert(1)</script> & \"quoted\" 'single' </td></table>"
VOID = {"meta", "link", "img"}
SAM = Interval(0.5, 0.4, 0.6, 57, 46, 1, 0.95)
TABLE = Table(
    f"Table {EVIL}",
    (Column("method"), Column("Dice", higher_is_better=True), Column("HD95"), Column("n")),
    (
        ("run 10", SAM, 2.0, 57),
        ("run 9", SAM._replace(mean=0.9), 10.0, 1),
        (EVIL, None, None, None),
        ("Run 1", SAM._replace(mean=0.0625, patients=1), 1e-3, 1000),
    ),
    (f"Note {EVIL}",),
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags in their order, each closed by its own; text and attributes as a browser sees them."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.append((self.open[-1], data))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture
def pictures(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "a.png")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="5"/></svg>'
    (tmp_path / "b.svg").write_text(svg)
    return [Picture(tmp_path / "a.png", EVIL, EVIL), Picture(tmp_path / "b.svg", "plot")]


@pytest.fixture
def path(tmp_path, pictures):
    sections = [
        Section(EVIL, [f"Prose {EVIL}", f"$ python eval.py --data '{EVIL}'"], [TABLE]),
        Section("Pictures", pictures=pictures),
        Section("Pictures"),
    ]
    write_page(tmp_path / "report.html", sections, title=EVIL, settings={"data": EVIL, EVIL: 7})
    return tmp_path / "report.html"


def test_every_tag_is_closed_and_every_link_of_the_contents_has_its_place(path):
    page = Page(path.read_text())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) == 4
    links = [attributes["href"] for attributes in page.of("a")]
    assert links == [f"#{name}" for name in ids]
    assert page.text("a") == page.text("h2") == [EVIL, "Pictures", "Pictures", "Settings"]


def test_all_text_is_text(path):
    page = Page(path.read_text())
    assert len(page.of("script")) == 1
    assert page.text("title") == page.text("h1") == [EVIL]
    assert page.text("h3") == [f"Table {EVIL}"]
    assert page.text("p") == [f"Prose {EVIL}", f"Note {EVIL}", "Bold: the best of its column."]
    assert page.text("code") == [f"python eval.py --data '{EVIL}'"]
    assert page.of("img")[0]["alt"] == EVIL
    cells = page.text("td")
    assert cells.count(EVIL) == 2  # Of the table, of the settings.
    assert {"0.500 [0.400, 0.600]", "0.062 [1 patient]", "10.000", "57"} <= set(cells)
    assert page.text("strong")[0] == "0.900 [0.400, 0.600]"


def test_pictures_are_inside_and_nothing_is_fetched(path, pictures):
    source = path.read_text()
    page = Page(source)
    for picture, attributes in zip(pictures, page.of("img"), strict=True):
        head, data = attributes["src"].split(",", 1)
        kind = {".png": "image/png", ".svg": "image/svg+xml"}[picture.path.suffix]
        assert head == f"data:{kind};base64"
        assert base64.b64decode(data, validate=True) == picture.path.read_bytes()
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "style", "onclick"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not re.search(r"https?:|//\w|@import|url\(", "".join(page.text("style")))
    assert not re.search(r"https?:|fetch|XMLHttp|import", "".join(page.text("script")))
    assert {tag for tag, _ in page.tags}.isdisjoint({"iframe", "object", "embed", "base", "form"})


def test_the_browser_is_told_to_run_nothing_but_the_script_that_is_there(path):
    page = Page(path.read_text())
    (policy,) = [one["content"] for one in page.of("meta") if "http-equiv" in one]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert rules.pop("img-src") == "data:"
    for tag in ("style", "script"):
        # As the standard hashes it: the text between the tags, in UTF-8.
        between = path.read_text().split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(between.encode()).digest()).decode()
        assert rules.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert not rules


def test_a_picture_that_cannot_be_shown_is_named(tmp_path):
    for name, error in (("a.pdf", ValueError), ("missing.png", FileNotFoundError)):
        section = Section("s", pictures=[Picture(tmp_path / name, "t")])
        with pytest.raises(error, match=name):
            write_page(tmp_path / "report.html", [section], title="t", settings={})
    assert not list(tmp_path.iterdir())


def browse(path, folder, *, width: int = 1000) -> tuple[str, str]:
    """The document after its scripts have run, and what the browser complained of."""
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", f"--window-size={width},900"),
            *(f"--user-data-dir={folder}", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(said)


# Clicks every heading three times and notes the rows' first letters after each.
CLICKS = """<script>
const order = () => Array.from(document.querySelectorAll("#section-1 tbody tr"),
  (row) => row.cells[0].textContent.slice(0, 6)).join("|");
const seen = [];
document.querySelectorAll("#section-1 th button").forEach((button) => {
  for (const _ of [1, 2]) { button.click();
    seen.push([button.parentElement.getAttribute("aria-sort"), order()]); }
});
const images = Array.from(document.images, (image) => image.naturalWidth);
const wide = document.documentElement.scrollWidth > innerWidth;
document.title = JSON.stringify({ seen, images, wide });
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_sorts_the_tables_and_has_no_complaint(path, tmp_path):
    _, complaints = browse(path, tmp_path / "profile")
    assert not complaints
    source = re.sub(r"<meta http-equiv=[^>]*>", "", path.read_text())
    waits = CLICKS.replace("<script>", '<script>addEventListener("load", () => {').replace(
        "</script>", "});</script>"
    )
    clicked = tmp_path / "clicked.html"
    clicked.write_text(source.replace("</body>", waits))
    document, complaints = browse(clicked, tmp_path / "profile", width=500)
    assert not complaints
    told = json.loads(Page(document).text("title")[0])
    up, down = "ascending", "descending"
    assert told["seen"] == [
        [up, "<scrip|Run 1|run 9|run 10"],
        [down, "run 10|run 9|Run 1|<scrip"],
        [down, "run 9|run 10|Run 1|<scrip"],  # The best first; what is not known, last.
        [up, "Run 1|run 10|run 9|<scrip"],
        [up, "Run 1|run 10|run 9|<scrip"],
        [down, "run 9|run 10|Run 1|<scrip"],
        [up, "run 9|run 10|Run 1|<scrip"],
        [down, "Run 1|run 10|run 9|<scrip"],
    ]
    assert told["images"] == [4, 9]
    assert not told["wide"]
