"""The curves of a run, drawn from metrics.jsonl."""

import dataclasses
import io
import math
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from diou_jax.files import replacing
from diou_jax.reporting.run_log import METRICS_FILE, read_metrics
from diou_jax.reporting.series import Series

CURVES_FILE = "curves.png"

COLUMNS, PANEL_SIZE, DPI = 2, (6.0, 3.1), 90

# Number of letters of a legend that fit above a panel.
WIDTH = 90

# The palette of Okabe and Ito, which colour-blind people can tell apart, without yellow, too light for a line.
COLORS = ("#222222", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
STYLES = ("-", "--", ":")

# From this number of points on, a curve shows means over a fiftieth of the points, with the points faint behind it.
MANY = 100


@dataclasses.dataclass(frozen=True)
class Panel:
    """Quantities that share an axis.

    Attributes:
      title: title of the panel.
      names: labels of the curves, by their names in a row of metrics.
      prefix: further curves have names with this prefix, and the rest as label; so losses that heads name appear, too.
      log: whether the axis is logarithmic, for values that fall by powers of ten or differ much.
      noisy: whether the curve is smoothed if it has many points.
    """

    title: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    log: bool = False
    noisy: bool = True

    def labels(self, rows: Sequence[Mapping]) -> dict[str, str]:
        """Labels of the panel's quantities in rows of metrics, by name."""
        rest = {name: name.removeprefix(self.prefix) for row in rows for name in row if name.startswith(self.prefix)}
        return dict(self.names) | (rest if self.prefix else {})


PANELS = (
    Panel("losses", {"loss": "total"}, prefix="loss_", log=True),
    Panel("validation losses", {"val/loss": "total"}, prefix="val/loss_", log=True, noisy=False),
    Panel("box AP", {"eval/AP": "AP", "eval/AP50": "AP50", "eval/AP75": "AP75"}, noisy=False),
    Panel(
        "average recall of proposals",
        {"eval/AR@10": "best 10", "eval/AR@100": "best 100", "eval/AR@1000": "best 1000"},
        noisy=False,
    ),
    Panel("mask AP", {"eval/segm/AP": "AP", "eval/segm/AP50": "AP50", "eval/segm/AP75": "AP75"}, noisy=False),
    Panel("box losses per RoI, unweighted", prefix="bbox_", log=True),
    Panel("norm of the gradient", {"grad_norm": ""}, log=True),
    Panel("learning rate", {"rate": ""}, log=True, noisy=False),
    Panel("images per second", {"images_per_second": ""}),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of one quantity.

    Attributes:
      label: label of the quantity.
      series: title of the series if there are several, else empty.
      steps: (N,) steps.
      values: (N,) values, NaN where a row has no number.
      color: matplotlib's colour.
      style: matplotlib's line style.
    """

    label: str
    series: str
    steps: np.ndarray
    values: np.ndarray
    color: str
    style: str


def draw_curves(workdir: str | os.PathLike) -> pathlib.Path | None:
    """Draws losses, AP, learning rate and speed over the steps, each in its own panel, to `workdir`/curves.png.

    Returns:
      Path of the picture, or None if it could not be written, which is only logged and ends no run.
    """
    path = pathlib.Path(workdir) / CURVES_FILE
    if not (pathlib.Path(workdir) / METRICS_FILE).exists():
        logging.warning("%s could not be drawn: there is no log", path)
        return None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the font may lack letters of a data set's name
            content = _picture(read_metrics(workdir))
        with replacing(path) as draft:
            draft.write_bytes(content)
    except OSError as error:
        logging.warning("%s could not be drawn: %s", path, error)
        return None
    return path


def curves(panel: Panel, rows: Sequence[Mapping]) -> list[Curve]:
    """The curves of a panel that have points.

    Each series of evaluations has curves of its own, see `series`; rows without a data set share curves.
    """
    rows = [row for row in rows if "step" in row]
    labels = panel.labels(rows)
    mine = [row for row in rows if labels.keys() & row.keys()]
    every = list(dict.fromkeys(Series.of(row) for row in mine))
    several = len(every) > 1
    found = []
    for which, series in enumerate(every):
        for number, (name, label) in enumerate(labels.items()):
            points = [(row["step"], row[name]) for row in mine if Series.of(row) == series and name in row]
            points.sort(key=lambda point: point[0])  # an earlier checkpoint may be evaluated after a later one
            steps, values = np.array([[_number(x) for x in point] for point in points]).reshape(-1, 2).T
            if np.isfinite(values).any():
                # Colours tell series apart where there are several, else quantities.
                color, style = (
                    (COLORS[which % len(COLORS)], STYLES[number % len(STYLES)])
                    if several
                    else (COLORS[number % len(COLORS)], "-")
                )
                found.append(Curve(label, series.title() if several else "", steps, values, color, style))
    return found


def _number(value) -> float:
    """`value` as a float; NaN for null and for anything that is no number."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def smooth(values: np.ndarray) -> np.ndarray:
    """Means over a window of a fiftieth of the points, shorter at both ends; only finite values count."""
    window = np.ones(max(len(values) // 50, 1) | 1)
    finite = np.isfinite(values)
    count = np.convolve(finite, window, "same")
    total = np.convolve(np.where(finite, values, 0), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _picture(rows: Sequence[Mapping]) -> bytes:
    """The PNG file with all panels that have curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    filled = [(panel, found) for panel in PANELS if (found := curves(panel, rows))]
    lines = max(math.ceil(len(filled) / COLUMNS), 1)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=(COLUMNS * PANEL_SIZE[0], lines * PANEL_SIZE[1]), layout=layout, dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    first = None
    for place, (panel, found) in enumerate(filled, start=1):
        axes = figure.add_subplot(lines, COLUMNS, place, sharex=first)
        first = first or axes
        for curve in found:
            _plot(axes, curve, smoothed=panel.noisy and len(curve.steps) >= MANY)
        _dress(axes, panel, found)
    canvas.draw()
    file = io.BytesIO()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(128).save(file, "PNG", optimize=True)
    return file.getvalue()


def _plot(axes, curve, *, smoothed):
    if smoothed:
        axes.plot(curve.steps, curve.values, color=curve.color, linewidth=0.6, alpha=0.3)
    axes.plot(
        curve.steps,
        smooth(curve.values) if smoothed else curve.values,
        color=curve.color,
        linestyle=curve.style,
        label=curve.label,
        linewidth=1.6,
        marker="o" if len(curve.steps) < 30 else None,
        markersize=3.5,
    )


def _dress(axes, panel, found):
    """Sets scales, grid and title; the legend of several curves stands between title and axes, where it hides none."""
    from matplotlib.ticker import MaxNLocator

    if panel.log:
        log_scale(axes, np.concatenate([curve.values for curve in found]))
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.tick_params(which="both", labelsize=8.5)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    lines = _legend(axes, found) if len(found) > 1 else 0
    axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", pad=6 + 14 * lines)


def _legend(axes, found) -> int:
    """Draws the legend above the axes; returns its number of lines of text."""
    from matplotlib.lines import Line2D

    entries = {curve.label: (curve.color, curve.style) for curve in found}
    if any(curve.series for curve in found):
        # Colours and styles have entries of their own, since there are too many pairs of them.
        # matplotlib leaves out labels that begin with an underscore, and takes text between dollars for a formula.
        names = {curve.series: curve.series[:32].replace("$", r"\$") for curve in found}
        entries = {f"\N{THIN SPACE}{names[curve.series]}": (curve.color, "-") for curve in found}
        entries |= {curve.label: ("#777777", curve.style) for curve in found}
    columns = max(min(len(entries), WIDTH // (max(map(len, entries)) + 6)), 1)
    axes.legend(
        handles=[
            Line2D([], [], color=color, linestyle=style, label=label) for label, (color, style) in entries.items()
        ],
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        fontsize=8.5,
        frameon=False,
        borderaxespad=0.1,
        borderpad=0.2,
        columnspacing=1.4,
    )
    return math.ceil(len(entries) / columns)


def log_scale(axes: Any, values: np.ndarray) -> None:
    """Makes the y axis logarithmic, from one of 1, 2, 5, 10, ... to another, with plain numbers.

    Nothing happens unless one of the `values`, (N,), is positive.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    positive = values[np.isfinite(values) & (values > 0)]
    if not len(positive):
        return
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylim(_round(positive.min(), math.floor), _round(positive.max(), math.ceil))
    decades = np.log10(positive.max() / positive.min())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _round(value, direction):
    """Rounds up or down to 1, 2 or 5 times a power of ten, with a margin so that no curve lies on the frame."""
    value *= 1.02 if direction is math.ceil else 1 / 1.02
    power = 10.0 ** math.floor(math.log10(value))
    steps = [power * factor for factor in (1, 2, 5, 10)]
    return min(s for s in steps if s >= value) if direction is math.ceil else max(s for s in steps if s <= value)
