"""The order of evaluation, checkpoint and the end of a run, with made-up parts."""

import types

import pytest

from diou_jax.checkpoint.ranking import Criterion
from diou_jax.errors import UserError
from diou_jax.training.hooks import Evaluate, StopEarly, StoppedEarly
from diou_jax.training.loop import Moment
from diou_jax.training.model_selection import ModelSelection

STATE = types.SimpleNamespace(averaged="the average", variables="the parameters")


def moment(step, *, last=False):
    return Moment(step, is_last=last, is_logged=True, state=STATE, metrics={})


class Made:
    """An evaluator and the parts of a run, which note their calls; an evaluation fails at step 6."""

    def __init__(self, patience=0):
        self.seen, self.error = [], UserError("no image can be read")
        self.selection = ModelSelection(Criterion("val", "eval/AP"), patience=patience)
        self.log = types.SimpleNamespace(scalars=lambda step, points: self.seen.append(("log", step, *points)))
        self.progress = types.SimpleNamespace(restart=lambda step: None)

    def __call__(self, variables, step, log):
        self.seen.append(("evaluate", step, variables))
        if step == 6:
            raise self.error
        return [{"dataset": "val", "eval/AP": 0.5}]

    def note_collapse(self, step, row):
        self.seen.append(("watch", step))

    def print_line(self, line):
        self.seen.append(("print", line))

    def finish(self, moment):
        self.seen.append(("save", moment.step))

    def hook(self, **options):
        return Evaluate(self, self, every=2, save=self, selection=self.selection, **options)


def test_every_so_many_steps_and_the_last_are_evaluated():
    made = Made()
    for step in (1, 2, 3, 4):
        made.hook()(moment(step))
    made.hook(averaged=False)(moment(5, last=True))
    assert [event[1:] for event in made.seen if event[0] == "evaluate"] == [
        (2, "the average"),
        (4, "the average"),
        (5, "the parameters"),
    ]
    # The last step lies between the regular ones, so that it decides nothing but is kept with its checkpoint.
    assert [event for event in made.seen if event[0] == "log"] == [
        ("log", step, "best/AP", "best/step") for step in (2, 4)
    ]
    assert ("print", "best so far: AP 0.5 at step 2") in made.seen
    assert made.selection.metadata(5)["evaluation"]


@pytest.mark.parametrize("error", [UserError("no image can be read"), OSError(28, "No space left on device")])
def test_an_evaluation_that_fails_costs_no_step(error):
    made = Made()
    made.error = error
    with pytest.raises(type(error)):
        made.hook()(moment(6))
    assert made.seen == [("evaluate", 6, "the average"), ("save", 6)]


def test_the_run_ends_with_a_checkpoint_once_patience_is_over_but_not_at_its_last_step():
    made = Made(patience=1)
    stop = StopEarly(made.selection, made)
    for step, ends in ((2, False), (3, False), (4, True)):
        made.hook()(moment(step))
        if ends:
            with pytest.raises(StoppedEarly, match=r"AP of val has not improved on 0\.5 of step 2"):
                stop(moment(step))
        else:
            stop(moment(step))
    assert made.seen[-1] == ("save", 4)
    stop(moment(4, last=True))
