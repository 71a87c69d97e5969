"""HTML of tables, figures and numbers. Everything that enters as text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from rlhf_jax.report.study_results import CellResult, StudyResults, is_number
from rlhf_jax.report.style import Plot, css

STYLE = (
    css(":root")
    + """
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.2rem 4rem;max-width:60rem;color:var(--fg);background:var(--page);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--grid)}
h3{font-size:1.02rem;margin:1.5rem 0 .4rem}
p{margin:.5rem 0}nav a{margin-right:.9rem}a{color:var(--s0)}.muted,figcaption{color:var(--muted)}
figure{margin:1.1rem 0}figure svg{height:auto;display:block}
figcaption{font-size:.88rem;max-width:48rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.86rem;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem .25rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}
th{color:var(--muted);font-weight:600}td.n,th.n{text-align:right;white-space:nowrap}
code,pre{font:.86em ui-monospace,Menlo,Consolas,monospace}pre{white-space:pre-wrap;overflow-wrap:anywhere}
td.text{min-width:14rem;max-width:24rem;white-space:pre-wrap;overflow-wrap:anywhere}
.refused{border-left:3px solid var(--s1);padding-left:.7rem}
.headline{font-size:1.02rem;padding-left:1.2rem}
@media print{body{max-width:none;padding:0;font-size:11pt}nav{display:none}
figure,tr{break-inside:avoid}h2,h3{break-after:avoid}.scroll{overflow:visible}}
"""
)


def number(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant digits; what is none is a dash."""
    if not is_number(value):
        return "-"
    if isinstance(value, int) and abs(value) < 1e7:
        return f"{value:,}"
    return f"{value:.{digits}g}"


def fixed(value: Any, places: int = 3) -> str:
    return f"{value:.{places}f}" if is_number(value) else "-"


def interval(ends: Any, places: int | None = None, form=lambda v: number(v, 3)) -> str:
    """[low, high], with `places` decimals or by `form`; a dash when it is not a pair of numbers."""
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(map(is_number, ends)):
        return "-"
    low, high = (form(v) if places is None else fixed(v, places) for v in ends)
    return f"[{low}, {high}]"


def plus_minus(value: Any, stderr: Any, places: int = 4) -> str:
    return fixed(value, places) + (f" ± {fixed(stderr, places)}" if is_number(stderr) else "")


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


class Html(str):
    """Markup that is escaped already."""


def cell_link(cell: CellResult) -> Html:
    """A cell's name, linked to its row of the provenance table."""
    return Html(f'<a href="#cell-{escape(cell.run_id)}">{escape(cell.name)}</a>')


def run_link(run_id: str) -> Html:
    return Html(f'<a href="#cell-{escape(run_id)}"><code>{escape(run_id)}</code></a>')


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], text: Sequence[int] = ()) -> str:
    """A table; columns in `text` hold free text, those that start with a digit align right."""
    rows = [list(row) for row in rows]

    def is_count(j: int) -> bool:
        return j not in text and all(
            not isinstance(row[j], Html) and str(row[j])[:1] in "0123456789-+[" for row in rows
        )

    kinds = [
        "text" if j in text else "n" if rows and is_count(j) else "" for j in range(len(header))
    ]
    head = "".join(f'<th class="{k}">{escape(h)}</th>' for h, k in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{k}">{v if isinstance(v, Html) else escape(str(v))}</td>'
            for v, k in zip(row, kinds, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def share(value: Any) -> str:
    """A rate as a percentage."""
    return f"{value:.1%}" if is_number(value) else "-"


def absent(study: StudyResults, kind: str, what: str) -> str:
    """Why a section is empty: the study has no such cell, or they are not done."""
    waiting = [cell for cell in study.of(kind, done=False) if not cell.done]
    if not waiting:
        return paragraph(f"This study has no {what}.", "muted")
    said = "; ".join(f"{cell.name}: {cell.state}" for cell in waiting)
    return paragraph(f"No {what} is done yet ({said}).", "muted")


def figure(plot: Plot | None) -> str:
    if plot is None:
        return ""
    source = f"Data: <code>figures/{escape(plot.name)}.csv</code>."
    return (
        f'<figure role="img" aria-label="{escape(plot.caption)}">{plot.svg}'
        f"<figcaption>{escape(plot.caption)} {source}</figcaption></figure>"
    )


def page(title: str, description: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole document. sections: (anchor, heading, markup)."""
    links = " ".join(f'<a href="#{a}">{escape(h)}</a>' for a, h, _ in sections)
    body = "".join(
        f'<section id="{a}"><h2>{escape(h)}</h2>{markup}</section>' for a, h, markup in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{paragraph(description) if description else ''}"
        f"<nav>{links}</nav>{body}</body></html>\n"
    )
