"""The small charts in a table's row: their paths give back the numbers that they draw."""

import re

import numpy as np
import pytest
import report_pages
from test_report_page import Page, reported, test_set

from diou_jax.reporting.curve_sections import CHARTED
from diou_jax.reporting.findings import analyse
from diou_jax.reporting.rendering import render
from diou_jax.reporting.report_page import report_document
from diou_jax.reporting.strips import STRIP, bar_strip, curve_strip

test_set.__test__ = False
WIDTH, HEIGHT = STRIP


def paths(svg, color):
    """The path of a colour as numbers."""
    (path,) = re.findall(rf'<path d="([^"]*)" fill="(?:none" stroke=")?{color}"', svg)
    return path


def test_a_curve_runs_from_the_lower_left_to_the_upper_right():
    x, y = np.array([0, 0.5, 1]), np.array([0, 0.25, 1])
    svg = curve_strip(x, [(y, "#111111"), (np.array([1, np.nan, 0.5]), "#222222")])
    points = [tuple(map(float, pair.split())) for pair in paths(svg, "#111111")[1:].split("L")]
    assert points == [(0, HEIGHT), (WIDTH / 2, 0.75 * HEIGHT), (WIDTH, 0)]
    points = [tuple(map(float, pair.split())) for pair in paths(svg, "#222222")[1:].split("L")]
    assert points == [(0, 0), (WIDTH / 2, HEIGHT), (WIDTH, HEIGHT / 2)], "no precision is a precision of 0"


def test_bars_stand_upon_each_other_and_the_highest_fills_the_strip():
    right, wrong = np.array([1, 0, 3]), np.array([1, 2, 1])
    svg = bar_strip([(right, "#111111"), (wrong, "#222222")])
    bars = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-([\d.]+)z")
    below = np.zeros(3)
    for counts, color in ((right, "#111111"), (wrong, "#222222")):
        drawn = np.array([[float(number) for number in bar] for bar in bars.findall(paths(svg, color))])
        places = np.flatnonzero(counts)
        left, top, width, height, back = drawn.T
        np.testing.assert_allclose(left, places * WIDTH / 3, atol=0.06)
        np.testing.assert_allclose(height, counts[places] * HEIGHT / 4, atol=0.06)
        np.testing.assert_allclose(top + height, HEIGHT * (1 - below[places] / 4), atol=0.11)
        assert (width == back).all() and (width > 0).all() and (width < WIDTH / 3).all()
        below += counts
    assert below.max() == 4


@pytest.mark.parametrize("counts", [np.zeros(3, int), np.zeros(0, int)], ids=["no detections", "no intervals"])
def test_nothing_to_draw_is_a_frame(counts):
    svg = bar_strip([(counts, "#111111")])
    assert paths(svg, "#111111") == "" and svg.count("<path") == 2


def test_a_page_of_many_classes_has_a_strip_for_each(tmp_path):
    """Only some classes get a chart of their own, the tables have all."""
    names = [f"class {number}" for number in range(CHARTED + 8)]
    content = report_pages.write_annotations(tmp_path / "a.json", images=2 * len(names), names=names)
    found = analyse(report_pages.matches(tmp_path / "a.json", report_pages.results(content)))
    page = Page(render(report_document(reported(), [test_set(found, images=2 * len(names))])))
    strips = [attributes for attributes in page.all("svg") if attributes.get("class") == "strip"]
    objects, scores = found.matches.objects(), found.scores
    assert len(strips) == (objects > 0).sum() + ((scores.right + scores.wrong).sum(1) > 0).sum()
    tables = [data for tag, data in page.texts if tag == "caption"]
    assert sum("precision over recall of each class" in text for text in tables) == 1
    assert sum("detections of each class by score" in text for text in tables) == 1
    assert f"All {(objects > 0).sum()} classes" in page.text()
