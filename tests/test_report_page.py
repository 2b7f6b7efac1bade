"""The report of an evaluation as HTML: its content, and the input that it survives."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
import report_pages
from coco_scenes import match, thing

from diou_jax.configs import base
from diou_jax.reporting import charts, curve_sections, document, error_sections
from diou_jax.reporting.charts import Axis, Bar, Frame, Line, bar_chart, line_chart
from diou_jax.reporting.curves import COLORS
from diou_jax.reporting.document import Panel, Photograph, Shape
from diou_jax.reporting.findings import analyse
from diou_jax.reporting.gallery import with_tags
from diou_jax.reporting.rendering import render
from diou_jax.reporting.report_page import ReportedRun, TestSet, report_document, write_report

VOID = {"meta", "link", "br", "img", "input"}


class Page(html.parser.HTMLParser):
    """The elements of a page; faults of its structure raise AssertionError."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        """Attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        """The text that people see."""
        return " ".join(data.strip() for tag, data in self.texts if tag not in ("style", "script") and data.strip())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("annotations") / "a.json"
    content = report_pages.write_annotations(path)
    return analyse(report_pages.matches(path, report_pages.results(content)))


def reported(**changes):
    config = base.get_config().to_dict()
    config["model"]["loss_type"] = "ciou"
    run = ReportedRun("run", 1500, config, [], [("training sets", "train")], [("detection in val", "1.0 s")])
    return dataclasses.replace(run, **changes)


def test_set(findings, **changes):
    one = TestSet("val", 6, 1, 20, 2.0, ["bbox_val_results.json"], {"bbox": findings}, report_pages.Album())
    return dataclasses.replace(one, **changes)


test_set.__test__ = False


@pytest.fixture(scope="module")
def page(found):
    return Page(render(report_document(reported(), [test_set(found)])))


def test_the_first_screen_has_ap_with_its_interval_and_the_largest_loss(page, found):
    text, statistics = page.text(), found.intervals.statistics
    ap = statistics["AP"]
    start = text.index("Report on run")
    first = text[start : text.index("The intervals say", start)]
    for words in (
        f"{ap.value:.3f}",
        f"95 % interval {ap.low:.3f} to {ap.high:.3f}",
        f"AP50 {statistics['AP50'].value:.3f}",
        f"AP75 {statistics['AP75'].value:.3f}",
        "images 6 1 unreadable",
        "objects 17 and 1 regions to ignore",
        "Most AP is lost to ",
    ):
        assert words in first
    kind = max(found.gains.ap, key=found.gains.ap.get)
    assert error_sections.LOSSES[kind][0] in first
    assert f"AP would be {ap.value + found.gains.ap[kind]:.3f} instead of {ap.value:.3f}" in first


def test_sections_come_in_the_order_of_importance(page):
    names = [attributes["id"] for attributes in page.all("section")]
    wanted = ("numbers", "classes", "curves", "scores", "confusion", "size", "losses", "placement", "worst", "run")
    assert names == [f"set1-{name}" for name in wanted]
    assert {attributes["href"] for attributes in page.all("a")} >= {f"#{name}" for name in names}


def test_nothing_is_fetched_and_ids_are_unique(page):
    addresses = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "xlink:href")
    ]
    assert addresses and all(one.startswith(("#", "data:", "file:///images/")) or "/" not in one for one in addresses)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    targets = {one[1:] for one in addresses if one.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", " ".join(str(attributes) for _, attributes in page.elements)))
    assert targets <= set(ids)
    assert "@import" not in "".join(data for tag, data in page.texts if tag == "style")


def test_names_are_text_and_never_markup(page):
    (script,) = [data for tag, data in page.texts if tag == "script"]
    assert "document.title=" not in script
    text = page.text()
    for name in (*report_pages.NAMES, "a&b<1>.png"):
        assert name in text, "names stand on the page as they are"


def test_tables_and_charts_speak(page):
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) > 5
    figures = page.all("figure")
    assert len(figures) > 10 and all(len(attributes["aria-label"]) > 10 for attributes in figures)
    assert page.all("html")[0]["lang"] == "en" and page.all("title") and page.all("main")


def test_the_table_of_classes_has_each_class_with_its_numbers(page, found):
    text = page.text()
    for row, name in enumerate(found.matches.class_names):
        interval, best = found.intervals.classes[row], found.thresholds[row]
        if np.isfinite(interval.value):
            assert f"{name} {found.matches.objects()[row]} {interval.value:.3f}" in text
            assert document.number(best.threshold, 2) in text
        else:
            assert f"{name} 0 – –" in text


def test_photographs_show_what_is_right_wrong_and_missed(page, found):
    worst = found.worst
    assert worst and [one.loss for one in worst] == sorted((one.loss for one in worst), reverse=True)
    pictures = page.all("image")
    readable = [one for one in worst if one.image_id != 2]
    assert len(pictures) == len(readable) and all(one["href"].startswith("data:image/jpeg;base64,") for one in pictures)
    assert len(page.all("use")) >= len(readable), "the second panel has the same picture"
    styles = [
        attributes["class"] for attributes in page.all("rect") if attributes.get("class", "").startswith("shape ")
    ]
    assert styles.count("shape missed") - 1 == sum(len(one.missed) for one in worst), "one more in the legend"
    shown = sum((found.matches.found.scores[one.duplicates] >= found.shown_from).sum() for one in worst)
    assert styles.count("shape duplicate") - 1 == shown
    assert "file:///images/1.png" in [attributes.get("href") for attributes in page.all("a")]


def test_options_that_differ_come_first(page):
    text = page.text()
    assert text.index("1 option with another value than the default") < text.index("All options")
    assert "model.loss_type ciou smooth_l1 box loss of the box head" in text
    assert text.count("solver.max_iter 90000 90000") == 1


@pytest.mark.slow
def test_several_sets_are_parts_and_masks_stand_below_boxes(found):
    with_masks = test_set(found, found={"bbox": found, "segm": found}, name="other")
    bare = test_set(found, found={}, name="bare")
    page = Page(render(report_document(reported(), [with_masks, bare])))
    assert [attributes["id"] for attributes in page.all("article")] == ["set1", "set2", "all"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = page.text()
    assert "mask AP" in text and "Masks: 5 classes" in text and "Boxes: 5 classes" in text


def test_a_set_without_annotations_and_one_of_proposals_have_short_parts(found):
    bare = test_set(found, found={}, name="test-dev")
    recall = test_set(found, found={}, name="rpn", recall={"AR@100": 0.25, "ARs@100": -1.0, "AR@1000": 0.5})
    page = Page(render(report_document(reported(), [bare, recall])))
    text = page.text()
    assert "test-dev has no annotations, so there is nothing to compare with" in text
    assert "AR@100 0.250" in text and "ARs@100 –" in text and "AP50" not in text


@pytest.mark.slow
def test_no_objects_and_no_detections_are_no_fault(tmp_path):
    path = tmp_path / "a.json"
    content = report_pages.write_annotations(path)
    nothing = analyse(report_pages.matches(path, []))
    text = Page(render(report_document(reported(), [test_set(nothing)]))).text()
    assert "There are no detections." in text and "objects that are missed" in text
    path.write_text(json.dumps(content | {"annotations": []}))
    objectless = analyse(report_pages.matches(path, report_pages.results(content)))
    text = Page(render(report_document(reported(), [test_set(objectless)]))).text()
    assert "There are no objects to find, so there is no AP." in text


def test_detections_that_all_lie_in_regions_to_ignore_have_no_scores_to_show(tmp_path):
    region = thing(1, 1, [10, 10, 50, 50])
    ignored = match(tmp_path, [region | {"iscrowd": 1, "area": 2500}], [region | {"score": 0.5}])
    (block,) = curve_sections.scores(analyse(ignored), "Boxes", "boxes")
    assert block.text == "All detections lie in regions to ignore."


def test_a_page_is_written_whole_or_not_at_all(tmp_path, found, monkeypatch):
    bare = test_set(found, found={})
    path = write_report(tmp_path, reported(), [bare])
    before = path.read_bytes()
    assert before.endswith(b"</html>")
    monkeypatch.setattr(document.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_report(tmp_path, reported(step=2), [bare])
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["$a_b$", "_hidden", "<b>&\"'", "猫", "\x00\x1b", "\ud800", "]]>", ""])
def test_any_name_can_be_on_a_chart(name):
    chart = bar_chart(Frame("one", x=Axis(name), title=name, alt=name), [Bar(name, 0.5, 0.4, 0.6, note=name)])
    chart.svg.encode()
    shown = charts.clean(name)
    texts = Page(chart.svg).texts
    assert sum(text == shown for tag, text in texts if tag == "text") == (3 if name else 0)
    assert shown.isprintable() or name in ("\x00\x1b",) or not shown.strip("\ufffd")


def test_every_line_stands_out_from_the_page_and_lighter_ones_are_higher_thresholds():
    def contrast(color):
        """WCAG's contrast with white."""
        channels = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)

    ramp = [contrast(color) for color in curve_sections.RAMP]
    assert ramp == sorted(ramp, reverse=True)
    assert min(*ramp, *map(contrast, COLORS)) > 2.2


def test_equal_numbers_give_equal_bytes_and_charts_share_no_id():
    def draw(name):
        lines = [Line("a", [0, 1, 2], [1, np.nan, 3]), Line("b", [0, 1], [2.0, 2.5], low=[1, 2], high=[3, 3])]
        return line_chart(Frame(name, x=Axis("x"), y=Axis("y", log=True), title="t"), lines).svg

    assert draw("one") == draw("one")
    ids = [set(re.findall(r' id="([^"]*)"', draw(name))) for name in ("one", "two")]
    assert ids[0] and not ids[0] & ids[1]
    assert "font-family" not in draw("one"), "the page's font is used"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.123"), (-0.5, "\u22120.500"), (-0.0001, "0.000"), (float("nan"), "–"), (2, "2.000")],
)
def test_numbers_for_people(value, text):
    assert document.number(value) == text
    assert document.signed(value) == ("+" + text if value > 0.0005 else text)


def test_no_text_is_too_odd_for_a_page(found):
    odd = "\ud800\x00#?%\"'<&"
    one = test_set(found, found={}, name=odd, files=[odd])
    text = render(report_document(reported(name=odd), [one]))
    assert text.encode() and "\x00" not in text
    page = Page(text)
    assert page.text().count("\\ud800\ufffd#?%\"'<&") > 3
    (link,) = [one["href"] for one in page.all("a") if one["href"].startswith("%")]
    assert "#" not in link and "?" not in link


def test_labels_of_a_photograph_keep_clear_of_each_other():
    shapes = [Shape(10 + i, 50 + i, 60, 60, "disc 0.50", (0, 0), "", "right") for i in range(3)]
    photograph = Photograph("a", "", "", "", (320, 320), "", "", [Panel("", shapes)])
    (panel,) = with_tags(photograph).panels
    tags = np.array([shape.tag for shape in panel.shapes])
    apart = np.abs(tags[:, None] - tags[None]) > [0.6 * 10 * 9 - 1e-6, 1.2 * 10 - 1e-6]
    assert (apart.any(-1) | np.eye(3, dtype=bool)).all()
    assert (tags >= 0).all() and (tags <= 320).all()
