"""HTML of a report: figures, tables, sections, and the page around them, in one file.

Nothing is fetched: plotly.js, styles and data are inside, and a content security policy has the
browser refuse any request. Text from outside (names of models, molecules, reasons) goes through
`html.escape`; within figures too, because plotly.js draws a subset of HTML.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from mlpot.errors import require

TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Figure:
    """Traces and layout as plotly.js takes them; colours of axes and paper are the page's."""

    title: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row, and the last one is prose where it says so."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    prose: bool = False


@dataclass(frozen=True)
class Viewer:
    """Figures of which one is seen at a time: chosen from a list, under the heading of a kind."""

    title: str
    choices: Sequence[tuple[str, Figure]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it; left out of the page where nothing does."""

    title: str
    parts: Sequence[Figure | Table | Viewer] = ()
    text: Sequence[str] = field(default_factory=list)


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "automargin": True, **more}


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole file.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    plotly = require("plotly.offline", "'mlpot[report]'", "writing a report")
    figures: list[Figure] = []
    shown = [s for s in sections if s.parts or s.text]
    body = "".join(_section(s, i, figures) for i, s in enumerate(shown))
    contents = "".join(
        f'<li><a href="#s{i}">{escape(s.title)}</a></li>' for i, s in enumerate(shown)
    )
    told = {
        "TITLE": escape(title),
        "LEAD": _paragraphs(lead),
        "CONTENTS": contents,
        "BODY": body,
        "FIGURES": _script([{"data": f.data, "layout": f.layout} for f in figures]),
        "PLOTLY": plotly.get_plotlyjs(),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in told.items():  # plotly.js last, so that nothing is replaced inside it
        text = text.replace(f"<!--{name}-->", value)
    return text


def finite(value: Any) -> Any:
    """The same with None for what JSON has no word for: NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _script(value: Any) -> str:
    """JSON that cannot end the script element around it."""
    text = json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _section(section: Section, number: int, figures: list[Figure]) -> str:
    parts = [_paragraphs(section.text)]
    grid: list[str] = []
    for part in section.parts:
        if isinstance(part, Figure):
            grid.append(_figure(part, figures))
            continue
        parts += [_grid(grid), _table(part) if isinstance(part, Table) else _viewer(part, figures)]
        grid = []
    body = "".join([*parts, _grid(grid)])
    return f'<section id="s{number}"><h2>{escape(section.title)}</h2>{body}</section>'


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _figure(figure: Figure, figures: list[Figure]) -> str:
    figures.append(figure)
    title, caption = escape(figure.title), escape(figure.caption)
    names = {trace["name"] for trace in figure.data if "name" in trace}
    # a line of the legend for each, which would else be taken from the figure
    height = figure.layout.get("height", 300) + 20 * len(names)
    return (
        f'<figure><h3>{title}</h3><div class="plot" data-figure="{len(figures) - 1}" '
        f'style="height:{height}px" role="img" aria-label="{title}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _viewer(viewer: Viewer, figures: list[Figure]) -> str:
    """All its figures, and one place for them."""
    first, groups = len(figures), dict[str, list[str]]()
    for kind, figure in viewer.choices:
        option = f'<option value="{len(figures)}">{escape(figure.title)}</option>'
        groups.setdefault(kind, []).append(option)
        figures.append(figure)
    options = "".join(
        f'<optgroup label="{escape(kind)}">{"".join(found)}</optgroup>'
        for kind, found in groups.items()
    )
    title = escape(viewer.title)
    return (
        f'<figure class="viewer"><label>{title} <select>{options}</select></label>'
        '<div class="stage">'
        f'<div class="plot tall" data-figure="{first}" role="img" aria-label="{title}"></div></div>'
        f"<figcaption>{escape(viewer.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    kinds = [_kind([row[k] for row in table.rows]) for k in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for name, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{k}>{escape(cell)}</td>" for cell, k in zip(row[1:], kinds[1:], strict=True))
        + "</tr>"
        for row in table.rows
    )
    title, kind = escape(table.title), ' class="prose"' if table.prose else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table{kind}>'
        f"<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"</div>{note}"
    )


def _kind(cells: Sequence[str]) -> str:
    """Columns of numbers are aligned to the right."""
    return ' class="number"' if any(re.match(r"[-+]?\d", cell) for cell in cells) else ""


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
