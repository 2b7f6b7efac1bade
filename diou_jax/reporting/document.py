"""A page as data: parts with sections, sections with texts, charts, tables and pictures; see `rendering`."""

import dataclasses
import math
import os
import urllib.parse
from collections.abc import Sequence
from typing import Any, ClassVar

from diou_jax.reporting.charts import Chart, Key

# A space at which no line breaks.
NBSP = "\N{NO-BREAK SPACE}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: its text.
      value: the number by which the column is sorted, NaN for the end; None sorts by the text.
      bar: length of a bar behind the number, in [0, 1], or None.
      tint: strength of the cell's colour, in [0, 1], or None.
      tone: "good" or "bad" colours the number, empty does not.
      link: address that the text leads to, or empty.
      strip: a small chart as SVG, which stands behind the text, or empty.
    """

    text: str
    value: float | None = None
    bar: float | None = None
    tint: float | None = None
    tone: str = ""
    link: str = ""
    strip: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table: its heading, whether it holds numbers, and the meaning of the heading."""

    heading: str
    numeric: bool = True
    meaning: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
      caption: a sentence on the content of the table.
      columns: C columns.
      rows: rows of C cells.
      sortable: whether a click on a heading sorts.
      filterable: whether a field above the table filters by the first column.
      narrow: whether it takes the width of its content instead of the page's.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = True
    filterable: bool = False
    narrow: bool = False
    kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; `small` for a remark."""

    text: str
    small: bool = False
    kind: ClassVar[str] = "text"


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclasses.dataclass(frozen=True)
class Figures:
    """Charts beside each other, with a sentence that says how to read them."""

    charts: Sequence[Chart]
    reading: str = ""
    kind: ClassVar[str] = "figures"

    @property
    def legend(self) -> tuple[Key, ...]:
        """The legend that all charts share, which then stands once above them; else empty."""
        legends = {chart.legend for chart in self.charts}
        return legends.pop() if len(legends) == 1 and len(self.charts) > 1 else ()


@dataclasses.dataclass(frozen=True)
class Terms:
    """Terms with their meanings."""

    pairs: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "terms"


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks that are shown after a click on `summary`; in print they are shown if `printed`, else left out."""

    summary: str
    blocks: Sequence[Any]
    printed: bool = True
    kind: ClassVar[str] = "folded"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Counts by row and column, as a table with coloured cells.

    Attributes:
      caption: a sentence on the content of the matrix.
      corner: the meaning of rows and columns.
      rows: R labels.
      columns: C labels.
      cells: R lists of C cells.
    """

    caption: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    kind: ClassVar[str] = "matrix"


@dataclasses.dataclass(frozen=True)
class Shape:
    """An object on a photograph.

    Attributes:
      x: left edge in pixels of the photograph's file.
      y: upper edge.
      width: width.
      height: height.
      label: text at its corner; may be empty.
      tag: left end and baseline of the label, in pixels of the photograph's file.
      meaning: text that appears under the pointer.
      style: "right", "wrong", "duplicate", "missed", "found" or "crowd".
      outline: SVG's path data of its mask, or empty.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    tag: tuple[float, float]
    meaning: str
    style: str
    outline: str = ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """The photograph with objects on it, and its caption."""

    caption: str
    shapes: Sequence[Shape]


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph, once in the file and drawn in each of its panels.

    Attributes:
      name: a name that is unique on the page, for ids.
      title: its heading.
      link: address of the image file, or empty.
      source: data URI of the JPEG, or empty if the image could not be read.
      size: width and height in pixels of the image file, to which the shapes refer.
      alt: the picture in a sentence.
      note: a sentence under the heading.
      panels: the drawings on it.
    """

    name: str
    title: str
    link: str
    source: str
    size: tuple[int, int]
    alt: str
    note: str
    panels: Sequence[Panel]

    @property
    def tag_size(self) -> float:
        """Height of the letters of labels, in pixels of the image file."""
        return max(self.size) / 32


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Photographs below each other; `keys` are pairs of style and meaning."""

    photographs: Sequence[Photograph]
    keys: Sequence[tuple[str, str]] = ()
    kind: ClassVar[str] = "gallery"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures that are files beside the page: pairs of relative address and text."""

    files: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "pictures"


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a page: a name for its address, a title, an introduction, and its blocks."""

    name: str
    title: str
    blocks: Sequence[Any]
    intro: str = ""


@dataclasses.dataclass(frozen=True)
class Fact:
    """A number of the first screen: text, label and a note below."""

    text: str
    label: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a page, as a test set.

    Attributes:
      name: a name for its address.
      title: its title; may be empty if the page has one part.
      main: rows of the numbers that stand large.
      facts: the numbers that stand small.
      sentence: the sentence that says most.
      sections: its sections.
    """

    name: str
    title: str
    sections: Sequence[Section]
    main: Sequence[Sequence[Fact]] = ()
    facts: Sequence[Fact] = ()
    sentence: str = ""


@dataclasses.dataclass(frozen=True)
class Document:
    """A page.

    Attributes:
      title: its title.
      subtitle: a line below it.
      parts: its parts.
      links: pairs of relative address and text, to pages and files beside it.
      refresh: seconds after which a browser loads the page again; 0: never.
      written: when it was written, for its foot.
    """

    title: str
    subtitle: str
    parts: Sequence[Part]
    links: Sequence[tuple[str, str]] = ()
    refresh: int = 0
    written: str = ""


def address(name: str) -> str:
    """The address of a file beside the page, by its name or relative path."""
    try:
        return urllib.parse.quote(os.fsencode(name))
    except UnicodeEncodeError:  # no file system has such a name
        return urllib.parse.quote(name, errors="replace")


def number(value: float, digits: int = 3) -> str:
    """A number for people: `digits` behind the point, a real minus, a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    # A number that rounds to zero has no sign.
    return text.replace("-", "\u2212") if float(text) else text.lstrip("-")


def signed(value: float, digits: int = 3) -> str:
    """As `number`, with a plus."""
    text = number(value, digits)
    return f"+{text}" if math.isfinite(value) and float(f"{value:.{digits}f}") > 0 else text


def count(value: int) -> str:
    """A count, in groups of three digits."""
    return f"{value:,}".replace(",", "\u202f")


def plural(number: int, thing: str) -> str:
    """A count of things, whose plural ends in s."""
    return f"{count(number)} {thing}" + ("" if number == 1 else "s")


def share(part: float, whole: float) -> str:
    """A share in percent; a dash of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "–"


def number_cell(value: float, digits: int = 3, **look: Any) -> Cell:
    """A cell with a number, sorted by it."""
    return Cell(number(value, digits), value=float(value), **look)


def count_cell(value: int, **look: Any) -> Cell:
    """A cell with a count."""
    return Cell(count(value), value=float(value), **look)
