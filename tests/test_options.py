"""The options' declarations: every value outside its range is one line that names it, before anything is read."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.configs import base
from diou_jax.detection import box_vote, soft_nms
from diou_jax.errors import UserError
from diou_jax.losses import BOX_LOSSES
from diou_jax.option_kinds import MOST, Choice, Flag, Option, Real, Several, Text, WhichCheckpoint, Whole
from diou_jax.options import model
from diou_jax.training import train

# Values that users of such software have typed, and values that passed without a word or ended in a traceback.
WRONG = {
    "train.batch_size": [-1],
    "train.ims_per_batch": [0, -2],
    "train.scales": [(), (0,), (-600,), (600.5,), ("600",), 600, "600"],
    "train.max_size": [0],
    "train.batch_size_per_im": [0],
    "solver.max_iter": [0, -4, 1.5, True, math.nan, 2**31, 10**40],
    "solver.iter_size": [0],
    "solver.steps": [(0, 20, 10), (5, 5), (-1, 3), (0, 1.5), (0, 2**31)],
    "solver.type": ["adam", "SGDM", ""],
    "solver.warm_up_method": ["cosine"],
    "solver.lr_policy": ["step", "Cosine"],
    "solver.layer_decay": [0.0, 1.5],
    "solver.clip_norm": [-1.0, math.inf],
    "solver.base_lr": [-0.1, math.nan, math.inf, "0.1"],
    "solver.momentum": [1.5],
    "solver.ema_decay": [-0.1, 1.0, math.nan],
    "train.early_stopping.patience": [-1, 1.5],
    "train.early_stopping.min_delta": [-0.1],
    "test.losses": [-1],
    "fpn.rpn_aspect_ratios": [(), (0.0,), (-1.0, 1.0), (math.nan,)],
    "fpn.dim": [0],
    "fpn.roi_canonical_scale": [0],
    "fpn.rpn_collect_scale": [0.0],
    "fpn.coarsest_stride": [0, 16, 48],
    "resnets.blocks": [(1, 1), (3, 4, 0, 3), (1, 1, 1, 1, 1)],
    "resnets.freeze_at": [-1, 6],
    "resnets.stem_width": [0],
    "resnets.width_per_group": [0],
    "fast_rcnn.roi_xform_resolution": [0],
    "test.detections_per_im": [0],
    "test.rpn_pre_nms_top_n": [0],
    "train.rpn_post_nms_top_n": [0],
    "test.nms": [-1.0, 1.5],
    "test.score_thresh": [-0.1, 2.0],
    "test.every": [-7],
    "test.ims_per_batch": [0],
    "test.max_dets": [10],
    "test.soft_nms.method": ["cubic"],
    "data.threads": [0, -1],
    "data.workers": [-1],
    "data.buckets": [(64, 96), ((64,),), ((64, 96, 3),), ((0, 64),)],
    "data.max_boxes": [0],
    "data.max_vertices": [-1, 2, 5000],
    "data.timeout": [-1.0],
    "data.on_bad_image": ["ignore"],
    "data.source": ["voc"],
    "log.every": [0, -20],
    "checkpoint.every": [0],
    "checkpoint.keep": [-1, 0],
    "num_gpus": [0],
    "rng_seed": [-1, 2**31],
    "pixel_means": [(1.0, 2.0), ()],
    "init.which": ["newest", "", "-3", 5],
    "model.bbox_reg_weights": [(10.0, 10.0, 5.0), (0.0, 1.0, 1.0, 1.0)],
    "model.loss_bbox_weight": [-1.0],
    "model.loss_type": ["ciuo", ""],
}
BY_NAME = {option.name: option for option in base.OPTIONS}


def with_value(name, value):
    """A config whose option has a value, whatever its type."""
    config = base.get_config()
    group = config
    for key in name.split(".")[:-1]:
        group = group[key]
    with config.ignore_type():
        group[name.rsplit(".", 1)[-1]] = value
    return config


def refusal(config, **options) -> str:
    with pytest.raises(UserError) as error:
        base.check(config, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_has_no_meaning_is_named_with_the_range(name, value):
    message = refusal(with_value(name, value))
    assert message.startswith(f"{name}={value!r}: it must be ")


def test_the_largest_number_and_an_example_are_named_where_they_help():
    assert refusal(with_value("solver.max_iter", 2**31)).endswith("a whole number, 1 or more, up to 2147483647")
    assert refusal(with_value("solver.steps", (0, 2**31))).endswith(", up to 2147483647")
    assert refusal(with_value("solver.max_iter", 0)).endswith("a whole number, 1 or more")
    assert refusal(with_value("data.buckets", (128, 128))).endswith(", such as ((128, 128),)")


def test_it_is_refused_before_anything_is_read_or_written(tmp_path):
    config = with_value("data.root", str(tmp_path / "nowhere"))
    config.log.every = 0
    with pytest.raises(UserError, match=r"log\.every=0"):
        train.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"train.bg_thresh_lo": 0.6}, "train.bg_thresh_lo=0.6: it must not exceed train.bg_thresh_hi=0.5"),
        ({"train.rpn_negative_overlap": 0.8}, "train.rpn_negative_overlap=0.8"),
        ({"solver.steps": (800, 900)}, "solver.steps=(800, 900): it must begin with 0"),
        ({"data.buckets": ((64, 100),)}, "data.buckets=(64, 100)"),
        ({"solver.base_lr": 20.0, "solver.weight_decay": 0.1}, "above 1 weights grow"),
    ],
)
def test_what_two_options_say_together(changes, part):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    assert part in refusal(config)


def test_a_warm_up_that_is_given_ends_with_the_run_and_that_of_a_file_may_be_cut_short():
    config = base.get_config()
    config.solver.max_iter, config.solver.steps = 20, (0, 10)
    base.check(config)
    base.check(config, explicit={"solver.max_iter"})
    assert "solver.max_iter=20" in refusal(config, explicit={"solver.warm_up_iters"})


def test_the_nearest_choice_is_named():
    assert "the nearest is ciou" in refusal(with_value("model.loss_type", "cious"))


def test_values_of_other_types_that_mean_the_same():
    for name, value in (("solver.max_iter", np.int64(5)), ("train.scales", [600, 800]), ("solver.base_lr", 1)):
        base.check(with_value(name, value))


def test_choices_are_those_of_the_code():
    assert set(base.LOSSES) == set(BOX_LOSSES)
    assert BY_NAME["test.soft_nms.method"].kind == Choice(tuple(soft_nms.METHODS))
    assert set(base.VOTES) == set(box_vote.SCORING_METHODS)
    assert set(BY_NAME["dtype"].kind.names) == set(model.DTYPES)
    assert set(BY_NAME["model.box_convention"].kind.names) == set(model.BOX_RULES)


def test_every_option_is_declared_once_with_a_meaning_and_a_legal_default():
    assert len(BY_NAME) == len(base.OPTIONS)
    for option in base.OPTIONS:
        assert option.meaning
        assert option.kind.problem(option.default) is None, option.name
        assert re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", option.name)


def inside(kind):
    """Values that a kind allows."""
    match kind:
        case Flag():
            return st.booleans()
        case Whole(low, high):
            return st.integers(low, MOST if high is None else high)
        case Real():
            ends = [None if math.isinf(end) else end for end in (kind.low, kind.high)]
            return st.floats(
                *ends,
                allow_nan=False,
                allow_infinity=False,
                exclude_min=kind.above and ends[0] is not None,
                exclude_max=kind.below and ends[1] is not None,
            )
        case Choice(names):
            return st.sampled_from(names)
        case WhichCheckpoint():
            return st.one_of(st.sampled_from(["best", "last"]), st.integers(min_value=0).map(str))
        case Text(empty):
            return st.just("") if empty else st.just("name")
        case Several():
            count = kind.length if kind.length is not None else max(kind.least, 1)
            if kind.rising:
                return st.lists(inside(kind.of), min_size=count, unique=True).map(lambda x: tuple(sorted(x)))
            return st.lists(inside(kind.of), min_size=count, max_size=count).map(tuple)


def outside(kind):
    """Values that a kind does not allow: of other types, and beyond its ends."""
    anything = [st.none(), st.just(math.nan), st.just(object()), st.dictionaries(st.text(), st.none(), max_size=1)]
    match kind:
        case Whole(low, high):
            beyond = [st.integers(max_value=low - 1), st.booleans(), st.text(), st.just(low + 0.5)]
            return st.one_of(*anything, *beyond, st.integers(min_value=(MOST if high is None else high) + 1))
        case Real():
            beyond = [st.text(), st.booleans(), st.just(-math.inf)]
            if not math.isinf(kind.low):
                beyond.append(st.floats(max_value=kind.low, exclude_max=not kind.above, allow_nan=False))
            if not math.isinf(kind.high):
                beyond.append(st.floats(min_value=kind.high, exclude_min=not kind.below, allow_nan=False))
            return st.one_of(*anything, *beyond)
        case Flag():
            return st.one_of(*anything, st.integers(), st.text())
        case Choice(names):
            return st.one_of(*anything, st.integers(), st.text().filter(lambda text: text not in names))
        case Text():
            return st.one_of(*anything, st.integers(), st.just("a\0b"))
        case WhichCheckpoint():
            return st.one_of(*anything, st.integers(), st.sampled_from(["", "Best", "newest", "-3", "1.5", "last\n"]))
        case Several(of):
            return st.one_of(*anything, st.integers(), st.text(), st.lists(outside(of), min_size=1).map(tuple))


OPTION = st.sampled_from(base.OPTIONS)


@settings(deadline=None, max_examples=300)
@given(st.data(), OPTION)
def test_any_value_inside_is_allowed(data, option: Option):
    assert option.kind.problem(data.draw(inside(option.kind))) is None


@settings(deadline=None, max_examples=300)
@given(st.data(), OPTION)
def test_any_value_outside_is_refused(data, option: Option):
    problem = option.kind.problem(data.draw(outside(option.kind)))
    assert problem is not None
    assert problem.startswith(f"it must be {option.kind}") or isinstance(option.kind, Choice)


@pytest.mark.parametrize(("every", "best"), [(0, "auto"), (100, "")])
def test_early_stopping_needs_evaluations_and_a_metric(every, best):
    config = base.get_config()
    config.train.early_stopping.patience, config.test.every, config.checkpoint.best = 3, every, best
    with pytest.raises(UserError, match=r"train.early_stopping.patience=3: it counts evaluations, so test.every must"):
        base.check(config)
    config.test.every, config.checkpoint.best = 100, "AP"
    base.check(config)
