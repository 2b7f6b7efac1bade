"""Golden file: lr_schedule (the schedule for two images an iteration)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.optimization.batch_rule import OPTIONS, BatchRule, BatchSize, Schedule, adapt, divide
from diou_jax.options import build

WRITTEN = Schedule(base_lr=0.02, steps=(0, 60000, 80000), max_iter=90000, collect_scale=1.0)
WRITTEN_FOR = BatchSize(16, 8)


def adapted(images, devices, **options):
    return adapt(WRITTEN, BatchSize(images, devices), written_for=WRITTEN_FOR, **options)


def test_one_device_equals_the_original(golden):
    data = golden("lr_schedule.npz")
    rule = adapted(2, 1)
    assert (*rule.schedule.steps[1:], rule.schedule.max_iter) == tuple(data["bs2_solver"])
    assert rule.schedule.base_lr == pytest.approx(float(data["bs2_base_lr_f64"]), rel=1e-12)
    assert rule.schedule.collect_scale == 1.0
    assert any(line.startswith("solver.base_lr: 0.02 -> 0.0025 (--config.solver.base_lr=") for line in rule.changes)
    assert "images per iteration: 16 -> 2 (1 x 2)" in rule.changes


def test_nothing_changes_on_the_devices_that_the_config_was_written_for():
    rule = adapted(16, 8)
    assert (rule.schedule, rule.changes) == (WRITTEN, ())


def test_summed_iterations_shorten_the_schedule_only():
    rule = adapted(4, 2, iter_size=4)
    assert (rule.schedule.base_lr, rule.schedule.max_iter) == (0.005, 90000)


def test_a_larger_share_of_a_device_keeps_more_rois():
    rule = adapted(16, 1)
    assert (rule.batch.per_device, rule.schedule.collect_scale, rule.schedule.base_lr) == (16, 8.0, 0.02)
    assert any(line.startswith("fpn.rpn_collect_scale: 1.0 -> 8.0 (") for line in rule.changes)


def test_pinned():
    config = base.get_config()
    assert build.rule(config).schedule == adapted(4, 2).schedule != WRITTEN
    config.solver.scale_with_devices = False
    assert build.rule(config) == BatchRule(BatchSize(4, 2), WRITTEN)


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(UserError, match=r"train\.batch_size=5 cannot be divided among 2 devices; set it to 4"):
        divide(5, 2)


@given(explicit=st.sets(st.sampled_from(sorted(OPTIONS))), devices=st.integers(1, 7), batch=st.sampled_from([0, 420]))
def test_what_is_given_explicitly_stays_and_every_line_says_how_to_pin(explicit, devices, batch):
    images = batch or 2 * devices
    plain, rule = adapted(images, devices), adapted(images, devices, explicit=explicit)
    for option, field in OPTIONS.items():
        written, scaled = getattr(WRITTEN, field), getattr(plain.schedule, field)
        assert getattr(rule.schedule, field) == (written if option in explicit else scaled)
        lines = [line for line in rule.changes if line.startswith(option)]
        assert len(lines) == (scaled != written)
        for line in lines:
            pins = f"--config.{option}=" in line and "--config.solver.scale_with_devices=False" in line
            assert pins != (f"stays {written}" in line) and pins == (option not in explicit)


def test_adams_rate_stays_and_its_schedule_follows():
    rule = adapted(2, 1, scale_rate=False)
    assert (rule.schedule.base_lr, rule.schedule.max_iter) == (0.02, 720000)
    assert any("solver.base_lr stays 0.02" in line for line in rule.changes)


@pytest.mark.parametrize("policy", ["cosine", "linear"])
def test_an_annealed_rate_follows_the_batch_and_ends_with_the_adapted_run(policy):
    """Four images on two devices in place of sixteen: a quarter of the rate, four times the steps."""
    config = base.get_config()
    config.solver.lr_policy = policy
    rule = build.rule(config)
    rate = build.learning_rate(config, rule.schedule)
    warm, last = config.solver.warm_up_iters, 4 * config.solver.max_iter
    assert rule.schedule.max_iter == last and not any("solver.steps" in line for line in rule.changes)
    assert float(rate(warm)) == pytest.approx(0.02 / 4)
    assert float(rate(warm + (last - warm) // 2)) == pytest.approx(0.02 / 8)
    assert 0 < float(rate(last - 1)) < 1e-7
    config.solver.type = "AdamW"
    assert float(build.learning_rate(config, build.rule(config).schedule)(warm)) == pytest.approx(0.02)


@given(batch=st.integers(1, 64), devices=st.integers(2, 16))
def test_the_advice_to_a_run_that_goes_on_works(batch, devices):
    try:
        divide(batch, devices, resumed=True)
    except UserError as error:
        advised = re.search(r"go on with ([\d or]+), for example CUDA_VISIBLE_DEVICES=([\d,]+) ", str(error))
        counts = [int(count) for count in advised[1].split(" or ")]
        assert len(advised[2].split(",")) == max(counts) < devices
        assert "set it" not in str(error)
        for count in counts:
            assert divide(batch, count, resumed=True).images == batch
