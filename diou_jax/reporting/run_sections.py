"""Sections of a page about a run: its options, its curves, its events, the environment that it ran in."""

import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import diou_jax
from diou_jax.configs import base
from diou_jax.nested_config import flatten
from diou_jax.reporting.charts import Axis, Chart, Frame, Line, line_chart
from diou_jax.reporting.curves import MANY, PANELS, Curve, Panel, curves, smooth
from diou_jax.reporting.document import Cell, Column, Figures, Folded, Section, Table, Text, count_cell, plural

# Points of a curve that a page keeps; a longer curve is thinned, as a screen shows no more.
POINTS = 400

# The events of a run that a page lists, the newest ones.
EVENTS = 50

# Packages whose versions can change a run's numbers.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "opencv-python-headless", "pycocotools")

_OPTIONS = {option.name: option for option in base.OPTIONS}


def options_blocks(config: Mapping[str, Any]) -> list:
    """The options of a run: those that differ from their defaults, then all."""
    values = flatten(json.loads(json.dumps(config)))  # as a run's config.json has them: tuples are lists
    differing, every = [], []
    for name, value in values.items():
        option = _OPTIONS.get(name)
        default = None if option is None else json.loads(json.dumps(option.default))
        shown, usual = _value(value), "–" if option is None else _value(default)
        row = [Cell(name), Cell(shown), Cell(usual)]
        if option is None or value != default:
            differing.append([*row, Cell("" if option is None else _plain(option.meaning))])
        every.append(row)
    head = [Column("option", False), Column("this run", False), Column("default", False)]
    blocks: list = [Text("Every option has its default.")]
    if differing:
        columns = [*head, Column("meaning", False)]
        blocks = [Table(f"{plural(len(differing), 'option')} with another value than the default", columns, differing)]
    return [
        *blocks,
        Folded(f"All {len(every)} options", [Table("All options", head, every, filterable=True)], printed=False),
    ]


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(map(_value, value)) + ")"
    return value or "(empty)" if isinstance(value, str) else f"{value:g}" if type(value) is float else str(value)


def _plain(meaning: str) -> str:
    """The meaning of an option without Markdown."""
    return meaning.replace("`", "")


def curve_figures(rows: Sequence[Mapping], *, prefix: str = "curve") -> list:
    """The curves of rows of metrics; empty without any."""
    charts = []
    for number, panel in enumerate(PANELS):
        found = curves(panel, rows)
        if found:
            charts.append(_curve_chart(f"{prefix}{number}", panel, found))
    if not charts:
        return []
    reading = "Values over training steps. Where a curve has many points, it shows means over a fiftieth of them."
    return [Figures(charts, reading)]


def _curve_chart(name: str, panel: Panel, found: Sequence[Curve]) -> Chart:
    lines = []
    for curve in found:
        values = smooth(curve.values) if panel.noisy and len(curve.steps) >= MANY else curve.values
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).astype(int))
        label = f"{curve.label} ({curve.series})" if curve.series and curve.label else curve.series or curve.label
        lines.append(Line(label or panel.title, curve.steps[kept], values[kept], color=curve.color, style=curve.style))
    finite = np.concatenate([line.y for line in lines])
    finite = finite[np.isfinite(finite)]
    log = panel.log and bool((finite > 0).any())
    last = ", ".join(f"{line.label} {line.y[-1]:.3g}" for line in lines[:4] if math.isfinite(line.y[-1]))
    return line_chart(
        Frame(
            name,
            x=Axis("step", (0, 1.02 * max(float(line.x[-1]) for line in lines) or 1)),
            y=Axis(" ", log=True) if log else Axis(" ", limits=(0, max(1.05 * float(finite.max()), 1e-9))),
            title=panel.title,
            alt=f"Curves of {panel.title} over training steps; last values: {last}",
        ),
        lines,
    )


def events_blocks(events: Sequence[Mapping]) -> list:
    """The incidents of a run, the newest first; empty without any."""
    rows = [[count_cell(row["step"]), Cell(str(row.get("event", "")))] for row in events[-EVENTS:]][::-1]
    if not rows:
        return []
    more = f", the newest {EVENTS} of {len(events)}" if len(events) > EVENTS else ""
    return [Table(f"Events of the run{more}", [Column("step"), Column("event", False)], rows)]


def pairs_table(caption: str, pairs: Sequence[tuple[str, str]], *, heads: tuple[str, str] = ("", "")) -> Table:
    """A table of two columns that is not sorted."""
    columns = [Column(heads[0], False), Column(heads[1], False)]
    return Table(caption, columns, [[Cell(name), Cell(text)] for name, text in pairs], sortable=False, narrow=True)


def environment_pairs() -> list[tuple[str, str]]:
    """The machine and the versions of this process, as pairs of name and text."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    pairs = [
        ("devices", devices),
        ("processes", str(jax.process_count())),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Python", platform.python_version()),
        ("diou-jax", diou_jax.__version__),
    ]
    return pairs + [(name, version) for name in PACKAGES if (version := _version(name))]


def _version(name: str) -> str:
    if (module := sys.modules.get(name.replace("-", "_"))) is not None and hasattr(module, "__version__"):
        return str(module.__version__)
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def run_section(
    config: Mapping[str, Any],
    rows: Sequence[Mapping],
    *,
    data: Sequence[tuple[str, str]],
    times: Sequence[tuple[str, str]],
) -> Section:
    """The section of a report that says which run it is about.

    Args:
      config: the run's config, by section.
      rows: the run's rows of metrics.
      data: pairs on the data sets.
      times: pairs on the time that was spent.
    """
    blocks = [*options_blocks(config), *curve_figures(rows)]
    blocks.append(pairs_table("Data", data))
    blocks.append(pairs_table("Environment", environment_pairs()))
    blocks.append(pairs_table("Time", times))
    return Section("run", "The run", blocks)
