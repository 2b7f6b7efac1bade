"""The page that compares evaluations, from hand-made ones whose difference is known."""

import pytest
import report_pages
from test_report_page import Page

from diou_jax.analysis.comparison import Side, compare
from diou_jax.analysis.suppression import side_by_side
from diou_jax.evaluation import coco_results
from diou_jax.reporting.comparison_page import comparison_document
from diou_jax.reporting.rendering import render


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Three evaluations: one that finds half of the objects, one that finds all, one that is like the first."""
    path = tmp_path_factory.mktemp("annotations") / "a.json"
    content = report_pages.write_annotations(path, images=12)
    true = [one for one in content["annotations"] if not one["iscrowd"]]
    every = [{key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for one in true]

    def side(number, found):
        summary = coco_results.evaluate(found, [path], with_matches=True)
        options = {"test.diou_nms.beta1": 1.0 - number / 10, "same": 1}
        return Side(f"run <{number}>", f"runs/{number}", 8, summary.statistics, summary.matches, options)

    return [side(0, every[::2]), side(1, every), side(2, every[::2])]


def page_of(sides, *, albums=None, **options):
    one = compare(sides, dataset="val", resamples=100)
    return Page(render(comparison_document([one], albums=albums or {}, suppressions=options)))


def test_the_first_screen_says_which_is_better_and_how_sure_that_is(sides):
    page = page_of(sides[:2], albums={"val": report_pages.Album()})
    text, gain = page.text(), sides[1].statistics["AP"] - sides[0].statistics["AP"]
    assert gain > 0.3 and f"run <1> is better than run <0>: AP +{gain:.3f}, 95 % interval +0." in text
    assert "test.diou_nms.beta1 1.0 0.9" in text and "same" not in text.split("Options that differ")[2][:200]
    assert "4 of 4 classes gain and 0 lose" in text
    shapes = [one["class"] for one in page.all("rect") if one.get("class", "").startswith("shape ")]
    assert shapes.count("shape found") == shapes.count("shape missed"), "the other misses it"
    assert shapes.count("shape found") > 6


@pytest.mark.slow
def test_equal_runs_are_said_to_be_equal_and_several_have_a_curve_over_their_option(sides):
    page = page_of(sides)
    text = page.text()
    assert "run <2> has the same AP as run <0>." in text
    assert "AP over test.diou_nms.beta1" in text
    assert "run <1> against run <0>" in text and "No image differs." in text
    assert "objects gained" in text, "without an album, images that differ are a table"


def test_both_kinds_of_suppression_stand_on_the_page(sides):
    greedy, diou = sides[0].matches, sides[1].matches
    text = page_of(sides[:2], val=side_by_side(greedy, diou, limit=100)).text()
    alone = len(diou.found) - len(greedy.found)
    assert "Greedy NMS and DIoU-NMS side by side" in text
    assert f"DIoU-NMS alone rightly keeps {alone} detections and wrongly keeps 0" in text
