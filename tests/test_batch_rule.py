"""Golden file: lr_schedule (the schedule for two images an iteration)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diou_jax.errors import UserError
from diou_jax.optimization.batch_rule import OPTIONS, adapt

WRITTEN = {
    "num_gpus": 8,
    "ims_per_batch": 2,
    "batch_size": 0,
    "iter_size": 1,
    "base_lr": 0.02,
    "steps": (0, 60000, 80000),
    "max_iter": 90000,
    "collect_scale": 1.0,
    "scale_with_devices": True,
}


def test_one_device_equals_the_original(golden):
    data = golden("lr_schedule.npz")
    rule = adapt(devices=1, **WRITTEN)
    assert (*rule.steps[1:], rule.max_iter) == tuple(data["bs2_solver"])
    assert rule.base_lr == pytest.approx(float(data["bs2_base_lr_f64"]), rel=1e-12)
    assert rule.collect_scale == 1.0
    assert any(line.startswith("solver.base_lr: 0.02 -> 0.0025 (--config.solver.base_lr=") for line in rule.changes)
    assert "images per iteration: 16 -> 2 (1 x 2)" in rule.changes


def test_nothing_changes_on_the_devices_that_the_config_was_written_for():
    rule = adapt(devices=8, **WRITTEN)
    assert (rule.base_lr, rule.steps, rule.max_iter, rule.changes) == (0.02, (0, 60000, 80000), 90000, ())


def test_summed_iterations_shorten_the_schedule_only():
    rule = adapt(devices=2, **WRITTEN | {"iter_size": 4})
    assert (rule.base_lr, rule.max_iter) == (0.005, 90000)


def test_a_larger_share_of_a_device_keeps_more_rois():
    rule = adapt(devices=1, **WRITTEN | {"batch_size": 16})
    assert (rule.images_per_device, rule.collect_scale, rule.base_lr) == (16, 8.0, 0.02)
    assert any(line.startswith("fpn.rpn_collect_scale: 1.0 -> 8.0 (") for line in rule.changes)


def test_pinned():
    rule = adapt(devices=3, **WRITTEN | {"scale_with_devices": False})
    assert (rule.batch_size, rule.base_lr, rule.max_iter, rule.changes) == (6, 0.02, 90000, ())


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(UserError, match=r"train\.batch_size=5 cannot be divided among 2 devices; set it to 4"):
        adapt(devices=2, **WRITTEN | {"batch_size": 5})


@given(explicit=st.sets(st.sampled_from(sorted(OPTIONS))), devices=st.integers(1, 7), batch=st.sampled_from([0, 420]))
def test_what_is_given_explicitly_stays_and_every_line_says_how_to_pin(explicit, devices, batch):
    options = WRITTEN | {"batch_size": batch}
    plain, rule = adapt(devices=devices, **options), adapt(devices=devices, **options, explicit=explicit)
    for option, field in OPTIONS.items():
        written = options[field]
        assert getattr(rule, field) == (written if option in explicit else getattr(plain, field))
        lines = [line for line in rule.changes if line.startswith(option)]
        assert len(lines) == (getattr(plain, field) != written)
        for line in lines:
            pins = f"--config.{option}=" in line and "--config.solver.scale_with_devices=False" in line
            assert pins != (f"stays {written}" in line) and pins == (option not in explicit)


def test_adams_rate_stays_and_its_schedule_follows():
    rule = adapt(devices=1, **WRITTEN, scale_rate=False)
    assert (rule.base_lr, rule.max_iter) == (0.02, 720000)
    assert any("solver.base_lr stays 0.02" in line for line in rule.changes)


@given(batch=st.integers(1, 64), devices=st.integers(2, 16))
def test_the_advice_to_a_run_that_goes_on_works(batch, devices):
    options = WRITTEN | {"batch_size": batch}
    try:
        adapt(devices=devices, **options, going_on=True)
    except UserError as error:
        advised = re.search(r"go on with ([\d or]+), for example CUDA_VISIBLE_DEVICES=([\d,]+) ", str(error))
        counts = [int(count) for count in advised[1].split(" or ")]
        assert len(advised[2].split(",")) == max(counts) < devices
        assert "set it" not in str(error)
        for count in counts:
            assert adapt(devices=count, **options, going_on=True).batch_size == batch
