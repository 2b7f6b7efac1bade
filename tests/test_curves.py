import json

import numpy as np
import pytest
from conftest import slow
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from diou_jax.configs import base
from diou_jax.nested_config import flatten
from diou_jax.reporting import curves as curves_module
from diou_jax.reporting.curves import PANELS, curves, draw_curves, smooth
from diou_jax.reporting.series import NEUTRAL, NEUTRAL_GROUPS

PARTS = ("loss", "loss_cls", "loss_bbox", "loss_rpn_cls", "loss_rpn_bbox", "bbox_iou", "bbox_giou", "bbox_sl1")

LEGENDS = ("losses", "box AP", "mask AP", "box losses per RoI, unweighted")


def training(steps):
    rng = np.random.default_rng(0)
    return [
        {"step": step, "rate": 0.02, "images_per_second": 30.0, "grad_norm": 3.0}
        | {name: float(rng.uniform(0.5, 1)) / 10**n for n, name in enumerate(PARTS)}
        for step in steps
    ]


def judged(steps, **more):
    masks = {"eval/segm/AP": 0.2, "eval/segm/AP50": 0.5, "eval/segm/AP75": 0.3}
    return [{"step": step, "eval/AP": 0.3, "eval/AP50": 0.6, "eval/AP75": 0.4} | masks | more for step in steps]


def panel(title):
    return next(panel for panel in PANELS if panel.title == title)


def write(workdir, rows):
    workdir.mkdir(exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn."""
    drawn = []
    draw = FigureCanvasAgg.draw
    monkeypatch.setattr(FigureCanvasAgg, "draw", lambda canvas: (drawn.append(canvas.figure), draw(canvas))[1])
    return drawn


@pytest.mark.parametrize("steps", [range(1, 4), range(10, 3000, 10)])
@pytest.mark.parametrize(
    "sets", [slow((None,)), slow(("val",)), ("val", "a_set_with_quite_a_long_name", "_x$y"), slow((None, "b", "画像"))]
)
def test_legends_lie_outside_and_inside_the_picture(tmp_path, figures, steps, sets):
    rows = training(steps)
    for data in sets:
        rows += judged(steps[1::2], **({} if data is None else {"dataset": data}))
    write(tmp_path, rows)
    path = draw_curves(tmp_path)
    with Image.open(path) as picture:
        assert path.stat().st_size < 200_000 and min(picture.size) > 400
    (figure,) = figures
    assert len(figure.axes) == sum(bool(curves(panel, rows)) for panel in PANELS) > 5
    for axes in figure.axes:
        legend = axes.get_legend()
        assert (legend is not None) == (axes.get_title(loc="left") in LEGENDS)
        if legend:
            frame = legend.get_window_extent()
            assert frame.y0 >= axes.get_window_extent().y1 - 2, "above the curves"
            assert figure.bbox.x0 <= frame.x0 and frame.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= frame.y0 and frame.y1 <= figure.bbox.y1


def test_quantities_of_different_size_have_their_own_axes():
    titles = {name: panel.title for panel in PANELS for name in panel.names}
    own = ["loss", "eval/AP", "rate", "images_per_second", "grad_norm"]
    assert len({titles[name] for name in own}) == len(own)
    assert panel("losses").log, "its parts differ by powers of ten"


def test_each_data_set_has_its_curves():
    rows = judged([10, 20]) + judged([10, 20, 30], dataset="a") + judged([30], dataset="b")
    found = curves(panel("box AP"), rows)
    assert [(curve.series, curve.label, len(curve.steps)) for curve in found] == [
        (data, label, count) for data, count in (("unnamed", 2), ("a", 3), ("b", 1)) for label in ("AP", "AP50", "AP75")
    ]
    assert len({(curve.color, curve.style) for curve in found}) == len(found)
    (alone,) = {curve.series for curve in curves(panel("box AP"), judged([10], dataset="a"))}
    assert alone == "", "one data set needs no name"


def test_evaluations_with_other_options_have_their_curves():
    rows = judged([10, 20], dataset="a") + judged([20], dataset="a", options={"test.nms": 0.3, "log.images": 8})
    rows += judged([30], dataset="a", options={"test.ims_per_batch": 8, "log.report": False})
    found = curves(panel("box AP"), rows)
    assert {(curve.series, len(curve.steps)) for curve in found} == {("a", 3), ("a with test.nms=0.3", 1)}


def test_options_that_change_no_number_exist():
    options = flatten(base.get_config())
    assert options.keys() >= NEUTRAL and {name.split(".")[0] for name in options if "." in name} >= set(NEUTRAL_GROUPS)


def test_a_curve_goes_forward_where_an_earlier_checkpoint_was_evaluated_last():
    found = curves(panel("box AP"), judged([20, 30]) + judged([10]))
    assert [curve.steps.tolist() for curve in found] == [[10, 20, 30]] * 3


def test_what_is_no_number_leaves_a_gap():
    rows = [{"step": 1, "rate": 0.1}, {"step": 2, "rate": None}, {"step": 3, "rate": "x"}, {"step": 4, "rate": 0.2}]
    (curve,) = curves(panel("learning rate"), rows)
    np.testing.assert_array_equal(curve.values, [0.1, np.nan, np.nan, 0.2])
    assert curves(panel("learning rate"), [{"step": 1, "rate": None}, {"step": 2, "loss": 1.0}]) == []


@pytest.mark.parametrize("value", [0.0, -1.0, None, 1e-30, 1e30])
def test_any_values_can_be_drawn(tmp_path, value):
    rows = [row | dict.fromkeys(("loss_bbox", "rate", "grad_norm"), value) for row in training(range(5))]
    write(tmp_path, rows)
    assert draw_curves(tmp_path).exists()
    write(tmp_path, [])
    assert draw_curves(tmp_path).exists()


def test_smoothing_keeps_means_and_skips_gaps():
    values = np.r_[np.full(200, 2.0), np.nan, np.full(200, 2.0)]
    np.testing.assert_allclose(smooth(values), 2.0)
    np.testing.assert_array_equal(smooth(np.array([1.0, 5.0])), [1.0, 5.0])


def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    assert draw_curves(tmp_path) is None, "there is no log"
    write(tmp_path, training(range(3)))
    (tmp_path / curves_module.CURVES_FILE).mkdir()
    assert draw_curves(tmp_path) is None
    assert caplog.text.count("could not be drawn") == 2
