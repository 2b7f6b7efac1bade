import math

import pytest

from diou_jax.checkpoint.ranking import Criterion, rank_checkpoints, ranking

AP = Criterion("val", "eval/AP")
LOSS = Criterion("val", "val/loss")


def evaluation(value, metric="eval/AP"):
    return [{"dataset": "other", metric: 9.0}, {"dataset": "val", metric: value}]


def test_the_largest_comes_first_and_the_earliest_of_equal_ones():
    found = {step: evaluation(value) for step, value in {30: 0.2, 20: 0.5, 10: 0.5, 40: 0.4}.items()}
    assert ranking(found, AP) == [10, 20, 40, 30]


def test_the_smallest_loss_comes_first():
    found = {step: evaluation(value, "val/loss") for step, value in {10: 2.0, 20: 1.0, 30: 1.0}.items()}
    assert ranking(found, LOSS) == [20, 30, 10]


@pytest.mark.parametrize("nothing", [[], evaluation(math.nan), evaluation(None), [{"dataset": "val"}]])
def test_what_has_no_value_is_never_the_best(nothing):
    assert ranking({10: nothing}, AP) == []
    assert ranking({10: nothing, 20: evaluation(0.0)}, AP) == [20]


@pytest.mark.parametrize(
    ("metric", "smaller"),
    [
        ("eval/AP", False),
        ("eval/segm/AP50", False),
        ("eval/AP/loss", False),
        ("val/loss", True),
        ("val/loss_cls", True),
        ("val/bbox_iou", True),
        ("val/accuracy_cls", False),
    ],
)
def test_losses_are_better_if_smaller(metric, smaller):
    criterion = Criterion("val", metric)
    assert criterion.smaller_is_better == smaller
    assert criterion.is_better(1.0, 2.0) == smaller and criterion.is_better(2.0, 1.0) != smaller
    assert not criterion.is_better(1.0, 1.0)


def test_a_difference_must_exceed_the_least_one():
    assert not AP.is_better(0.75, 0.5, by=0.25) and AP.is_better(0.75, 0.5, by=0.125)
    assert not LOSS.is_better(0.5, 0.75, by=0.25) and LOSS.is_better(0.5, 0.75, by=0.125)
    assert AP.is_better(0.0, None, by=0.5) and not AP.is_better(None, 0.0) and not AP.is_better(None, None)


def test_the_newest_checkpoint_that_names_a_metric_decides_by_which_all_are_ranked():
    both = [{"dataset": "val", "eval/AP": 0.5, "val/loss": 1.0}], [{"dataset": "val", "eval/AP": 0.4, "val/loss": 0.5}]
    by_ap, by_loss = ({"dataset": "val", "metric": metric} for metric in ("eval/AP", "val/loss"))
    known = {10: {"best_by": by_ap, "evaluation": both[0]}, 20: {"best_by": by_ap, "evaluation": both[1]}, 5: {}}
    assert rank_checkpoints(known) == [10, 20]
    assert rank_checkpoints(known | {30: {"best_by": by_loss}, 40: {}}) == [20, 10]
    assert rank_checkpoints({5: {}}) == []
