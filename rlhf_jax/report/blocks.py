"""What sections of a report are made of: paragraphs, headings, tables and figures (`Plot`), and how
numbers are written. Templates turn blocks into HTML and Markdown; they escape all text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from typing import Any, ClassVar, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_jax.report.study_results import CellResult, StudyResults, is_number
from rlhf_jax.report.style import Plot
from rlhf_jax.study.results import scalars

T = TypeVar("T")
MOST_ROWS = 25  # of a table that is shown whole; of a longer one the first are
FIRST_ROWS = 10


@dataclass(frozen=True)
class Paragraph:
    """kind: `muted` or `refused`, for how it is shown."""

    MACRO: ClassVar[str] = "paragraph"
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    MACRO: ClassVar[str] = "items"
    texts: Sequence[str]


@dataclass(frozen=True)
class Heading:
    """quotes: as of `Table`."""

    MACRO: ClassVar[str] = "heading"
    text: str
    quotes: bool = False


@dataclass(frozen=True)
class Reference:
    """A cell's name, which leads to its row of the provenance table. target: it stands there."""

    text: str
    run_id: str
    code: bool = False
    target: bool = False

    def __str__(self) -> str:
        return self.text

    def __html__(self) -> str:
        return str(_macros("blocks.html.j2").reference(self))


@dataclass(frozen=True)
class Table:
    """text: columns that hold free text. quotes: it shows what a corpus holds or a model says,
    which no export publishes."""

    MACRO: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text: Sequence[int] = ()
    quotes: bool = False

    @property
    def folded(self) -> int:
        """Rows that a page shows only when asked."""
        return len(self.rows) - FIRST_ROWS if len(self.rows) > MOST_ROWS else 0

    @property
    def kinds(self) -> list[str]:
        """Of each column `text`, `n` (numbers, which align right), or nothing."""

        def numbers(j: int) -> bool:
            column = [row[j] for row in self.rows]
            return bool(column) and all(
                not isinstance(v, Reference) and str(v)[:1] in "0123456789-+[" for v in column
            )

        return [
            "text" if j in self.text else "n" if numbers(j) else "" for j in range(len(self.header))
        ]


Block = Paragraph | Items | Heading | Table | Plot | None


@dataclass(frozen=True)
class Lead:
    """A headline figure, for the top of a page. what: was measured. number: with its interval."""

    what: str
    number: str
    plot: Plot | None = None


@dataclass(frozen=True)
class Section:
    """Part of a report.

    Attributes:
        blocks: in order; None where there is nothing to show.
        said: sentences for the summary. cautions: what is refused or may mislead, for `Limits`.
        leads: for the top of the page.
    """

    title: str
    blocks: Sequence[Block]
    said: Sequence[str] = ()
    cautions: Sequence[str] = ()
    leads: Sequence[Lead] = ()
    anchor: str = ""


# --- tables ----------------------------------------------------------------------------------


def columns(
    items: Iterable[T], *named: tuple[str, Callable[[T], Any]], text: Sequence[int] = ()
) -> Table | None:
    """A row an item, a column a (title, what it shows of an item); None without items."""
    rows = [[of(item) for _, of in named] for item in items]
    return Table([title for title, _ in named], rows, text) if rows else None


def reference(cell: CellResult) -> Reference:
    return Reference(cell.name, cell.run_id)


def absent(cells: Sequence[CellResult], what: str) -> list[Block]:
    """Why a section is empty."""
    said = "; ".join(f"{cell.name}: {cell.state}" for cell in cells)
    return [Paragraph(f"No {what} has results yet ({said}).", "muted")]


def plain(study: StudyResults, kind: str) -> Section:
    """The section of a kind that has none of its own: the numbers and words of its results."""
    cells = study.of(kind, done=False)
    found = [(cell, dict(scalars(cell.result))) for cell in cells if cell.result]
    title = kind.replace("_", " ").capitalize()
    if not found:
        return Section(title, absent(cells, f"{kind} cell"))
    keys = list(dict.fromkeys(key for _, of in found for key in of))
    one_file = len({key.split(".")[0] for key in keys}) == 1
    names = [(key.split(".", 1)[1] if one_file else key).replace("_", " ") for key in keys]

    def shown(value: Any) -> str:
        return value if isinstance(value, str) else number(value)

    table = columns(
        found,
        ("cell", lambda of: reference(of[0])),
        *((name, lambda of, k=k: shown(of[1].get(k))) for name, k in zip(names, keys, strict=True)),
    )
    return Section(title, [table])


# --- numbers ---------------------------------------------------------------------------------


def number(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant digits; what is none is a dash."""
    if not is_number(value):
        return "-"
    if isinstance(value, int) and abs(value) < 1e7:
        return f"{value:,}"
    return f"{value:.{digits}g}"


def fixed(value: Any, places: int = 3) -> str:
    return f"{value:.{places}f}" if is_number(value) else "-"


def share(value: Any) -> str:
    """A rate as a percentage."""
    return f"{value:.1%}" if is_number(value) else "-"


def interval(
    ends: Any, places: int | None = None, form: Callable[[Any], str] = lambda v: number(v, 3)
) -> str:
    """[low, high], with `places` decimals or by `form`; a dash when it is not a pair of numbers."""
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(map(is_number, ends)):
        return "-"
    low, high = (form(v) if places is None else fixed(v, places) for v in ends)
    return f"[{low}, {high}]"


def plus_minus(value: Any, stderr: Any, places: int = 4) -> str:
    return fixed(value, places) + (f" ± {fixed(stderr, places)}" if is_number(stderr) else "")


def change(before: float, after: float, form: Callable[[Any], str] = fixed) -> str:
    return f"{form(before)} → {form(after)}"


# --- templates -------------------------------------------------------------------------------


def html(blocks: Iterable[Block]) -> Markup:
    """Blocks one after the other."""
    macros = _macros("blocks.html.j2")
    return Markup("").join(getattr(macros, b.MACRO)(b) for b in blocks if b is not None)


def markdown(blocks: Iterable[Block], files: Collection[str]) -> str:
    """The same for a README. Tables of quotes are left out. files: that are beside the README, to
    which it links for the numbers of a figure, and the rows that a long table lacks."""
    macros = _macros("blocks.md.j2")
    shown = [b for b in blocks if b is not None and not getattr(b, "quotes", False)]
    texts = [getattr(macros, b.MACRO)(b, files, FIRST_ROWS) for b in shown]
    return "\n".join(f"{text.strip()}\n" for text in texts)


def page(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


@cache
def _macros(name: str) -> Any:
    return _environment().get_template(name).module


@cache
def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("rlhf_jax.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"markdown": _escaped, "html": html, "blocks_as_markdown": markdown}
    return env


def _escaped(text: Any) -> str:
    """Text that stays one line and is no markup in Markdown, in a table too."""
    found = escape(" ".join(str(text).split()), quote=False).replace('"', "&quot;")
    for mark in "\\`*_[]|":
        found = found.replace(mark, "\\" + mark)
    return found
