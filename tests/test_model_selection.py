import json
import math

import pytest

from diou_jax.checkpoint.ranking import Criterion, rank_checkpoints
from diou_jax.errors import UserError
from diou_jax.evaluation.metric_names import detector_metrics, find_criterion, proposal_metrics
from diou_jax.training.model_selection import ModelSelection

AP = Criterion("val", "eval/AP")


def rows(value):
    return [{"dataset": "val", "eval/AP": value}]


def run(values, *, every=10, interrupted_after=None, **options):
    """Evaluates at each multiple of `every`; returns the step at which the run ends, or None, and the selection.

    With `interrupted_after` it goes on from the metadata of that evaluation's checkpoint, as they are on the disk.
    """
    selection = ModelSelection(AP, **options)
    for number, value in enumerate(values, start=1):
        selection.record(number * every, rows(value), counts=True)
        if selection.reason_to_stop():
            return number * every, selection
        if number == interrupted_after:
            stored = json.loads(json.dumps(selection.metadata(number * every)))
            selection = ModelSelection(AP, **options)
            selection.resume(stored)
    return None, selection


@pytest.mark.parametrize(
    ("values", "patience", "end"),
    [
        ([0.1, 0.2, 0.3, 0.4], 1, None),
        ([0.1, 0.3, 0.2, 0.3], 2, 40),  # a tie is no improvement
        ([0.1, 0.3, 0.2, 0.4, 0.3, 0.3], 2, 60),
        ([0.3, math.nan, math.nan], 2, 30),
        ([math.nan, math.nan], 2, 20),
        ([math.nan, 0.0, 0.0], 2, None),  # any value improves on none
        ([0.3, 0.2, 0.1, 0.0], 0, None),
    ],
)
@pytest.mark.parametrize("interrupted_after", [None, 1, 2])
def test_it_ends_after_so_many_evaluations_without_improvement(values, patience, end, interrupted_after):
    assert run(values, patience=patience, interrupted_after=interrupted_after)[0] == end


def test_an_improvement_must_exceed_min_delta_of_the_best_not_of_the_last():
    assert run([0.5, 0.5625, 0.625], patience=2, min_delta=0.0625)[0] is None  # 0.625 exceeds 0.5 by more
    assert run([0.5, 0.5625, 0.5625], patience=2, min_delta=0.0625)[0] == 30


def test_the_reason_names_metric_best_value_and_step():
    _, selection = run([0.1, 0.3, 0.2], patience=1)
    assert selection.reason_to_stop() == (
        "early stopping: AP of val has not improved on 0.3 of step 20 in 1 evaluations"
    )
    _, selection = run([math.nan], patience=1)
    assert selection.reason_to_stop() == "early stopping: AP of val had no value in 1 evaluations"


def test_a_longer_patience_goes_on_and_counts_from_where_it_was():
    _, stopped = run([0.3, 0.2, 0.1], patience=2)
    again = ModelSelection(AP, patience=3)
    again.resume(stopped.metadata(30))
    assert again.reason_to_stop() is None
    again.record(40, rows(0.2), counts=True)
    assert again.reason_to_stop()


def test_metadata_hold_the_evaluation_of_their_own_step_as_json():
    selection = ModelSelection(AP)
    assert "evaluation" not in selection.metadata(0)
    points = selection.record(10, [{"dataset": "val", "eval/AP": 0.5, "eval/APs": math.nan}], counts=True)
    assert points == {"best/AP": 0.5, "best/step": 10}
    stored = json.loads(json.dumps(selection.metadata(10), allow_nan=False))
    assert stored == {
        "best_by": {"dataset": "val", "metric": "eval/AP"},
        "early_stopping": {"step": 10, "value": 0.5, "waited": 0},
        "evaluation": [{"dataset": "val", "eval/AP": 0.5, "eval/APs": None}],
    }
    assert "evaluation" not in selection.metadata(11) and selection.was_evaluated(10)
    assert ModelSelection(None).metadata(10) == {}


def test_an_evaluation_between_the_regular_ones_does_not_count():
    selection = ModelSelection(AP, patience=1)
    selection.record(10, rows(0.5), counts=True)
    assert selection.record(13, rows(0.1), counts=False) == {} and selection.reason_to_stop() is None
    assert selection.metadata(13)["evaluation"] == rows(0.1)


def test_another_metric_starts_anew():
    _, selection = run([0.3, 0.2], patience=5)
    again = ModelSelection(Criterion("val", "eval/AP50"), patience=1)
    again.resume(selection.metadata(20))
    assert again.reason_to_stop() is None and again.metadata(20)["early_stopping"]["waited"] == 0


METRICS = {
    "val": detector_metrics(("__background__", "disc"), max_dets=200, masks=False),
    "more": detector_metrics(("__background__", "disc"), max_dets=200, masks=True),
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto", ("val", "eval/AP")),
        ("AP50", ("val", "eval/AP50")),
        ("eval/AP50", ("val", "eval/AP50")),
        ("AR200", ("val", "eval/AR200")),
        ("AP/disc", ("val", "eval/AP/disc")),
        ("segm/AP", ("more", "eval/segm/AP")),
        ("more:AP", ("more", "eval/AP")),
    ],
)
def test_the_metric_is_found_in_the_first_test_set_that_has_it(text, wanted):
    assert find_criterion(text, METRICS) == Criterion(*wanted)


def test_an_rpn_is_judged_by_its_recall_and_nothing_by_no_metric():
    assert find_criterion("auto", {"val": proposal_metrics()}) == Criterion("val", "eval/AR@1000")
    assert find_criterion("", METRICS) is None and find_criterion("auto", {}) is None


@pytest.mark.parametrize(
    ("text", "metrics", "words"),
    [
        ("AP95", METRICS, r"checkpoint.best='AP95'.*val, more gives no such metric; it gives AP75, AP50, AP"),
        ("val:segm/AP", METRICS, "no such metric"),
        ("AR100", METRICS, "AR200"),
        ("val/loss", METRICS, "test.losses=64 adds val/loss"),
        ("AP", {}, "no test set has annotations"),
    ],
)
def test_an_unknown_metric_is_refused_with_the_nearest(text, metrics, words):
    with pytest.raises(UserError, match=words):
        find_criterion(text, metrics)


@pytest.mark.parametrize("interrupted_after", [None, 1, 2, 3])
def test_the_best_so_far_is_the_best_checkpoint_and_patience_waits_for_min_delta(interrupted_after):
    """Gains below `min_delta` make the best value better, but do not renew the patience, and add up."""
    values = {10: 0.5, 20: 0.505, 30: 0.509, 40: 0.507}
    selection, stored = ModelSelection(AP, patience=3, min_delta=0.01), {}
    for step, value in values.items():
        points = selection.record(step, rows(value), counts=True)
        stored[step] = json.loads(json.dumps(selection.metadata(step)))
        best = rank_checkpoints(stored)[0]
        assert points == {"best/AP": values[best], "best/step": best}
        assert stored[step]["early_stopping"] == {"step": 10, "value": 0.5, "waited": step // 10 - 1}
        if step == 10 * (interrupted_after or 0):
            selection = ModelSelection(AP, patience=3, min_delta=0.01)
            selection.resume(stored[step])
    assert selection.reason_to_stop() == (
        "early stopping: AP of val has not improved on 0.5 of step 10 in 3 evaluations"
    )
