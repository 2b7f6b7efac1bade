import json

import numpy as np
import pytest

from diou_jax.errors import UserError
from diou_jax.prediction.thresholds import (
    check_draw_threshold,
    class_numbers,
    overlap_threshold,
    read_score_threshold,
    score_thresholds,
)

NAMES = ("__background__", "cat", "dog", "potted plant", "dog")


def column(*args, **options):
    thresholds = score_thresholds(*args, NAMES, default=0.05, **options)
    assert thresholds.shape == (4, 1) and thresholds.dtype == np.float32
    return thresholds[:, 0].tolist()


def test_a_threshold_for_all_or_by_class_and_none_for_classes_that_are_not_wanted():
    low, half = (float(np.float32(x)) for x in (0.05, 0.5))
    assert column(None) == [low] * 4
    assert column(0.5) == [half] * 4
    assert column({"cat": 0.5}) == [half, low, low, low]
    assert column({"dog": 0.5}, classes=["dog"]) == [np.inf, half, np.inf, half]
    assert column(1, classes="cat") == [1, np.inf, np.inf, np.inf]


def test_classes_may_come_from_any_iterable_and_a_number_is_no_name():
    assert column(0.5, classes=(name for name in ["cat"])) == [0.5, np.inf, np.inf, np.inf]
    with pytest.raises(UserError, match="classes: the detector has no class 3; the nearest"):
        column(None, classes=3)


@pytest.mark.parametrize("bad", [1.01, -0.1, float("nan"), "0.5", True, {"cat": None}, {"cat": 2}, [0.5], 10**400])
def test_a_threshold_is_a_number_from_0_to_1(bad):
    with pytest.raises(UserError, match=r"score_threshold=.* must be a number from 0 to 1"):
        column(bad)


@pytest.mark.parametrize(
    ("name", "nearest"), [("Cat", "cat"), ("dogs", "dog"), ("plant", "potted plant"), ("__background__", ".*")]
)
def test_an_unknown_class_is_named_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"classes: the detector has no class '{name}'; the nearest is {nearest} \(it"):
        class_numbers([name], NAMES, option="classes")
    with pytest.raises(UserError, match="score_threshold: the detector has no class"):
        column({name: 0.5})
    with pytest.raises(UserError, match="classes is empty"):
        column(None, classes=[])


def test_the_flag_is_a_number_or_a_file(tmp_path):
    assert read_score_threshold("0.25") == 0.25
    file = tmp_path / "thresholds.json"
    file.write_text(json.dumps({"cat": 0.5, "dog": 0.25}))
    assert read_score_threshold(str(file)) == {"cat": 0.5, "dog": 0.25}
    file.write_text(json.dumps({"cat": 0.5}), encoding="utf-8-sig")
    assert read_score_threshold(str(file)) == {"cat": 0.5}
    deep = "[" * 100_000
    for content, words in (
        ("[0.5]", "it must hold"),
        ("{}", "it must hold"),
        ("{", "is no json"),
        (deep, r"thresholds\.json: it is nested too deeply; it must hold"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            read_score_threshold(str(file))
    with pytest.raises(UserError, match=r"high: it is neither a number nor a file"):
        read_score_threshold("high")


@pytest.mark.parametrize("bad", ["x", "0.5", object(), [0.5], -0.1, float("nan"), True, {}])
def test_an_overlap_is_a_number(bad):
    assert overlap_threshold(None, default=0.5) == overlap_threshold(np.float64(0.5), default=0.1) == np.float32(0.5)
    with pytest.raises(UserError, match=r"nms=.*: it must be a number, 0 or more"):
        overlap_threshold(bad, default=0.5)


@pytest.mark.parametrize("bad", [float("nan"), 1.01, -0.1, float("inf")])
def test_pictures_show_scores_above_a_score(bad):
    check_draw_threshold(0.0)
    check_draw_threshold(1.0)
    with pytest.raises(UserError, match=r"--draw_threshold=.*: it must be a number from 0 to 1"):
        check_draw_threshold(bad)
