"""The report as one HTML file that needs no other: pictures, style and script are inside it."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pp_jax.evaluate.files import put_text
from pp_jax.evaluate.sections import Picture, Section, Table
from pp_jax.evaluate.tables import BEST, best, command, heading, is_numeric, text, value


def write_page(
    path: Path, sections: Sequence[Section], *, title: str, settings: Mapping[str, Any]
) -> None:
    """Write the report as one HTML file that opens offline, in any browser.

    Tables are sorted by a click on a heading (intervals by their mean, empty cells last). All text
    is escaped, and the file forbids the browser any request and any script but its own.

    Args:
      path: The file, in a folder that exists.
      sections: In their order; their pictures are read now.
      title: First line, and the name of the window.
      settings: What a reader needs to repeat it; last section.

    Raises:
      FileNotFoundError: A picture is not there.
      ValueError: A picture is neither PNG nor SVG.
    """
    names = [f"section-{index}" for index in range(1, len(sections) + 1)]
    contents = zip([*names, "settings"], [*(s.heading for s in sections), "Settings"], strict=True)
    links = "\n".join(f'<li><a href="#{name}">{escape(word)}</a></li>' for name, word in contents)
    body = "\n".join(_section(one, name) for one, name in zip(sections, names, strict=True))
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_digest(_STYLE)}'",
            f"script-src '{_digest(_SCRIPT)}'",
        ]
    )
    put_text(
        path,
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1></header>
<nav aria-label="Contents"><ol>
{links}
</ol></nav>
<main>
{body}
<section id="settings"><h2>Settings</h2>
{_settings(settings)}
</section>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
""",
    )


def _section(section: Section, name: str) -> str:
    parts = [_paragraph(paragraph) for paragraph in section.paragraphs]
    parts += [_table(table) for table in section.tables]
    parts += [_figure(picture) for picture in section.pictures]
    body = "\n".join(parts)
    return f'<section id="{name}"><h2>{escape(section.heading)}</h2>\n{body}\n</section>'


def _paragraph(paragraph: str) -> str:
    shell = command(paragraph)
    if shell is None:
        return f"<p>{escape(paragraph)}</p>"
    return f'<pre tabindex="0"><code>{escape(shell)}</code></pre>'


def _table(table: Table) -> str:
    bold = best(table)
    kinds = ["number" if is_numeric(table, j) else "text" for j in range(len(table.columns))]
    head = "".join(_head(table, j, kind) for j, kind in enumerate(kinds))
    rows = "\n".join(
        f"<tr>{''.join(_cell(table, i, j, kinds[j], (i, j) in bold) for j in range(len(row)))}</tr>"
        for i, row in enumerate(table.rows)
    )
    notes = "\n".join(
        f'<p class="note">{escape(note)}</p>' for note in [*table.notes, *([BEST] if bold else [])]
    )
    title = escape(table.title)
    return f"""<h3>{title}</h3>
<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
{notes}"""


def _head(table: Table, index: int, kind: str) -> str:
    """The best comes first at the first click, where it is known which is better."""
    words = escape(heading(table, index))
    if len(table.rows) > 1:
        first = "descending" if table.columns[index].higher_is_better else "ascending"
        words = f'<button type="button" data-first="{first}">{words}</button>'
    return f'<th scope="col" class="{kind}">{words}</th>'


def _cell(table: Table, i: int, j: int, kind: str, bold: bool) -> str:
    cell = table.rows[i][j]
    words = escape(text(cell, table.columns[j]))
    number = value(cell) if kind == "number" else None
    key = "" if number is None else f' data-value="{number!r}"'
    return f'<td class="{kind}"{key}>{f"<strong>{words}</strong>" if bold else words}</td>'


def _figure(picture: Picture) -> str:
    path = Path(picture.path)
    if path.suffix not in _TYPES:
        raise ValueError(f"{path}: a picture of the report is one of {', '.join(_TYPES)}")
    data = base64.b64encode(path.read_bytes()).decode()
    title, caption = escape(picture.title), escape(picture.caption)
    return f"""<figure>
<img alt="{title}" src="data:{_TYPES[path.suffix]};base64,{data}">
<figcaption><strong>{title}</strong> {caption}</figcaption>
</figure>"""


def _settings(settings: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(str(settings[key]))}</td></tr>'
        for key in settings
    )
    return f'<table class="settings"><tbody>\n{rows}\n</tbody></table>'


def _digest(source: str) -> str:
    """What the browser compares with the text between the tags before it obeys it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


_STYLE = """
:root { --paper: #fff; --ink: #1b1f24; --pale: #59636e; --line: #d0d7de; --shade: #f3f5f7;
  --link: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15191e; --ink: #e6e9ec; --pale: #9aa4ae; --line: #3a424b; --shade: #20262d;
    --link: #56b4e9; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p { max-width: 48rem; margin: .5rem 0; }
a { color: var(--link); }
nav ol { margin: 0; padding: .75rem 1rem .75rem 2.5rem; background: var(--shade);
  columns: 18rem; column-gap: 2rem; }
pre { padding: .75rem; background: var(--shade); overflow-x: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); background: var(--paper); }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
td.number, th.number, th.number button { text-align: right; }
td.number { white-space: nowrap; }
td.text { min-width: 6rem; max-width: 28rem; }
tbody tr:hover td { background: var(--shade); }
th button { all: unset; cursor: pointer; box-sizing: border-box; }
th button::after { content: "\\a0\\2195"; color: var(--pale); font-weight: normal; }
th[aria-sort=ascending] button::after { content: "\\a0\\2191"; color: var(--ink); }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; color: var(--ink); }
th button:hover { color: var(--link); }
:focus-visible, th button:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.note, figcaption { color: var(--pale); font-size: .85rem; max-width: 48rem; }
.settings th { font-weight: 600; }
.settings th, .settings td { overflow-wrap: anywhere; min-width: 6rem; }
figure { margin: 1.25rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; }
@media (max-width: 40rem) {
  body { padding: .75rem; }
  thead th:first-child, tbody td:first-child { position: sticky; left: 0; min-width: 6rem;
    max-width: 8rem; overflow-wrap: break-word; border-right: 1px solid var(--line); }
}
@page { margin: 12mm; }
@media print {
  :root { --paper: #fff; --ink: #000; --pale: #333; --line: #999; --shade: #fff; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  pre { white-space: pre-wrap; }
  table { font-size: 7pt; }
  th, td, td.text { padding: .15rem .3rem; min-width: 0; }
  td.number { white-space: normal; }
  thead { display: table-header-group; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  th button::after { content: none !important; }
}
"""

_SCRIPT = """
"use strict";
document.querySelectorAll("th button").forEach((button) => {
  const head = button.parentElement;
  const body = head.closest("table").tBodies[0];
  const numeric = head.classList.contains("number");
  const key = (row) => {
    const cell = row.cells[head.cellIndex];
    if (numeric) return "value" in cell.dataset ? Number(cell.dataset.value) : null;
    return cell.textContent || null;
  };
  const compare = numeric
    ? (a, b) => a - b
    : (a, b) => a.localeCompare(b, "en", { numeric: true });
  button.addEventListener("click", () => {
    const first = button.dataset.first;
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    for (const one of head.parentElement.cells) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = Array.from(body.rows, (row) => [key(row), row]);
    rows.sort(([a], [b]) =>
      a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  });
});
"""

_TYPES: Mapping[str, str] = MappingProxyType({".png": "image/png", ".svg": "image/svg+xml"})
