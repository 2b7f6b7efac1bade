"""Charts of a page, as SVG that stands inside the page: text stays text, and equal numbers give equal bytes."""

import contextlib
import dataclasses
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from diou_jax.reporting.curves import COLORS, STYLES, log_scale

SVG, LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

# Width and height in inches of a chart that shares a line with two others, and with one other.
SMALL, MEDIUM = (3.1, 2.3), (4.9, 2.9)

INK, MUTED, FAINT = "#1a1a1a", "#5a5a5a", "#d9d9d9"

# Of a detection that is right, and of one that is wrong; blue and orange differ for colour-blind people, too.
RIGHT, WRONG = COLORS[2], COLORS[1]

# Characters that XML forbids. Class names may hold them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")

_FONT, _REFERENCE = re.compile(r"font-family: [^;]*; ?"), re.compile(r"url\(#([^)]*)\)")

_STYLE: Any = {
    "svg.fonttype": "none",  # text is searched, copied and read aloud
    "svg.hashsalt": "diou-jax",  # ids follow from the content
    "text.parse_math": False,  # a class may be named "$x$"
    "font.size": 9.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.8,
    "path.simplify": True,
}


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
      svg: an ``svg`` element with a viewBox and no size, which fills the width that the page gives it.
      alt: the chart in a sentence, for people who hear the page.
      title: heading above the chart; may be empty.
      width: width in pixels at which its text has the size of the page's small print.
      legend: the legend, which the page writes above the chart, where it breaks into lines as text does.
    """

    svg: str
    alt: str
    title: str = ""
    width: int = 480
    legend: tuple["Key", ...] = ()


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of a legend: a line of a colour and of a style of `STYLES`, or a filled square if `style` is empty."""

    label: str
    color: str
    style: str = ""

    @property
    def dashes(self) -> str:
        """SVG's stroke-dasharray of the style."""
        return {"-": "none", "--": "5 2", ":": "1.5 2"}.get(self.style, "none")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart: x (N,) and y (N,), NaN for gaps, with the half-transparent band from `low` to `high`, (N,)."""

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None
    color: str = ""
    style: str = ""
    step: bool = False


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis: its label, its limits, and whether it is logarithmic, for the y axis of lines."""

    label: str = ""
    limits: tuple[float, float] | None = None
    log: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """The parts that all charts have.

    Attributes:
      name: a name that is unique on its page; it begins every id, since charts share the page's ids.
      x: the horizontal axis.
      y: the vertical axis.
      title: heading of the chart.
      alt: the chart in a sentence; by default the title.
      size: width and height in inches; the height of a bar chart follows from its bars.
    """

    name: str
    x: Axis
    y: Axis = Axis()
    title: str = ""
    alt: str = ""
    size: tuple[float, float] = MEDIUM

    def chart(self, svg: str, *, keys: Sequence[Key] = ()) -> Chart:
        """The finished chart; a single key needs no legend."""
        legend = tuple(keys) if len(keys) > 1 else ()
        return Chart(svg, clean(self.alt or self.title), clean(self.title), round(96 * self.size[0]), legend)


def clean(text: Any) -> str:
    """Text without the characters that XML and UTF-8 cannot carry; the replacement character marks their places."""
    text = str(text).encode("utf-8", "backslashreplace").decode()
    return _FORBIDDEN.sub("\ufffd", text)


def shortened(text: str, length: int) -> str:
    """The text, with an ellipsis in place of its end if it is longer than `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


@contextlib.contextmanager
def _drawing(frame: Frame, *, margins: tuple[float, float, float, float]) -> Iterator[Any]:
    """A context in which one chart is drawn.

    Args:
      frame: its name and size.
      margins: inches left, right, below and above the axes. They are given, not measured, so that the fonts of this
        machine change nothing.

    Yields:
      The axes, and a function without arguments that gives the SVG when the drawing is finished.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has letters that matplotlib's font lacks
        figure = Figure(figsize=frame.size)
        canvas = FigureCanvasSVG(figure)
        left, right, below, above = margins
        width, height = frame.size
        axes = figure.add_axes(
            (left / width, below / height, (width - left - right) / width, (height - below - above) / height)
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, labelsize=8.5)

        def svg() -> str:
            file = io.StringIO()
            canvas.print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
            return _embedded(file.getvalue(), frame.name)

        yield axes, svg


def _embedded(document: str, name: str) -> str:
    """The ``svg`` element of a document of matplotlib, ready to stand in a page, whose font and style it takes."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", LINK)
    root = ElementTree.fromstring(document)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet would hold for the whole page.
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    root.set("class", "chart")
    root.set("aria-hidden", "true")  # the figure around it has the text
    root.set("focusable", "false")
    targets = set()
    for element in root.iter():
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
        for key, value in element.attrib.items():
            changed = _FONT.sub("", value) if key == "style" else value
            if key == f"{{{LINK}}}href" and value.startswith("#"):
                targets.add(value[1:])
                changed = f"#{name}-{value[1:]}"
            elif found := _REFERENCE.search(value):
                targets.add(found[1])
                changed = _REFERENCE.sub(rf"url(#{name}-\1)", value)
            element.set(key, changed)
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in targets:
            element.set("id", f"{name}-{own}")
    return ElementTree.tostring(root, encoding="unicode")


def line_chart(frame: Frame, lines: Sequence[Line]) -> Chart:
    """Lines over a common axis; a legend names them if there are several."""
    keys = []
    with _drawing(frame, margins=(0.56, 0.14, 0.5, 0.1)) as (axes, svg):
        for number, line in enumerate(lines):
            color = line.color or COLORS[number % len(COLORS)]
            style = line.style or STYLES[number // len(COLORS) % len(STYLES)]
            abscissa = np.asarray(line.x, float)
            if line.low is not None and line.high is not None:
                axes.fill_between(abscissa, line.low, line.high, color=color, alpha=0.18, linewidth=0)
            single = len(abscissa) < 2
            axes.plot(
                abscissa,
                np.asarray(line.y, float),
                color=color,
                linestyle=style,
                linewidth=1.5,
                drawstyle="steps-post" if line.step else "default",
                marker="o" if single or (not line.step and len(abscissa) <= 20) else None,
                markersize=3.2,
            )
            keys.append(Key(clean(line.label), color, style))
        _dress(axes, frame)
        if frame.y.log:
            log_scale(axes, np.concatenate([np.asarray(line.y, float) for line in lines]))
        return frame.chart(svg(), keys=keys)


def histogram(
    frame: Frame,
    edges: np.ndarray,
    layers: Sequence[tuple[str, np.ndarray, str]],
    *,
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Counts by interval, layer upon layer.

    Args:
      frame: the name, axes and title, as of every chart.
      edges: (N + 1,) borders of the intervals.
      layers: label, counts (N,) and colour of each layer, the lowest first.
      marks: positions on the x axis that get a vertical line, with labels.
    """
    with _drawing(frame, margins=(0.62, 0.14, 0.5, 0.22 if marks else 0.1)) as (axes, svg):
        below = np.zeros(len(edges) - 1)
        for _, counts, color in layers:
            axes.bar(
                edges[:-1], counts, np.diff(edges), bottom=below, align="edge", color=color, edgecolor="white", lw=0.4
            )
            below = below + counts
        _dress(axes, frame)
        axes.set_xlim(edges[0], edges[-1])
        for position, label in marks:
            axes.axvline(position, color=INK, linewidth=1, linestyle=(0, (3, 2)))
            near_end = position > edges[0] + 0.7 * (edges[-1] - edges[0])
            axes.annotate(
                clean(label),
                (position, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3 if near_end else 3, 2),
                textcoords="offset points",
                ha="right" if near_end else "left",
                fontsize=8,
                color=INK,
            )
        return frame.chart(svg(), keys=[Key(clean(label), color) for label, _, color in layers])


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of a bar chart, with its interval and a note behind it."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    color: str = ""


def bar_chart(frame: Frame, bars: Sequence[Bar]) -> Chart:
    """Horizontal bars, the first on top, each with its interval as a thin line and its note at its end."""
    longest = max((letters(clean(bar.label)) for bar in bars), default=0)
    left = min(0.25 + 0.078 * min(longest, 26), 0.45 * frame.size[0])
    note = max((letters(bar.note) for bar in bars), default=0)
    frame = dataclasses.replace(frame, size=(frame.size[0], 0.62 + 0.25 * max(len(bars), 1)))
    with _drawing(frame, margins=(left, 0.1 + 0.07 * note, 0.5, 0.08)) as (axes, svg):
        for place, bar in enumerate(bars):
            color = bar.color or COLORS[2]
            finite = math.isfinite(bar.value)
            axes.barh(place, bar.value if finite else 0, 0.62, color=color, alpha=0.85, linewidth=0)
            end = bar.value if finite else 0.0
            if math.isfinite(bar.low) and math.isfinite(bar.high):
                axes.plot([bar.low, bar.high], [place, place], color=INK, linewidth=1.1)
                for limit in (bar.low, bar.high):
                    axes.plot([limit, limit], [place - 0.16, place + 0.16], color=INK, linewidth=1.1)
                end = max(end, bar.high)
            if bar.note:
                axes.annotate(
                    clean(bar.note),
                    (max(end, 0), place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center_baseline",
                    fontsize=8.5,
                    color=INK,
                    annotation_clip=False,
                )
        axes.set_yticks(range(len(bars)), [shortened(clean(bar.label), 26) for bar in bars], color=INK)
        axes.set_ylim(max(len(bars), 1) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if any(bar.value < 0 or bar.low < 0 for bar in bars):
            axes.axvline(0, color=MUTED, linewidth=0.8)
        _dress(axes, frame, grid="x")
        return frame.chart(svg())


def _dress(axes, frame: Frame, *, grid="both"):
    """Sets labels, limits, ticks and the grid."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, about, set_limits in ((axes.xaxis, frame.x, axes.set_xlim), (axes.yaxis, frame.y, axes.set_ylim)):
        if about.label:
            axis.set_label_text(clean(about.label), fontsize=9)
            axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
            axis.set_major_formatter(FuncFormatter(_tick))
        if about.limits is not None:
            set_limits(*about.limits)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _tick(value, _) -> str:
    return f"{value:,.0f}".replace(",", "\u2009") if abs(value) >= 1000 else f"{value:.4g}".replace("-", "\u2212")


def letters(text: str) -> float:
    """Width of a text in average Latin letters; those of Chinese, Japanese and Korean are twice as wide."""
    return sum(2 if ord(letter) > 0x2E7F else 1 for letter in text)
