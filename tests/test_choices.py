"""Options that own data leave open are chosen by one rule; an option that is given wins."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diou_jax.configs import base, mask_gn, own, shapes
from diou_jax.data import coco
from diou_jax.nested_config import flatten
from diou_jax.options.choices import FROM_WEIGHTS, Devices, Start, Statistics, fill, is_open, measure, resolve
from diou_jax.options.open_options import settle

CPU, GPU = Devices(1, "cpu"), Devices(1, "gpu")
BLOOD = Statistics(images=205, short=480, aspect=1.33, both_ways=False, small=0.08, large=0.5, most=28)


def resolved(data=BLOOD, start=Start(), devices=CPU, body="", **given):  # noqa: B008, frozen
    config = own.get_config(body)
    for name, value in given.items():
        group, option = name.split("__")
        config[group][option] = value
    return resolve(config, data, start=start, devices=devices)


@settings(deadline=None, max_examples=60)
@given(
    data=st.builds(
        Statistics,
        images=st.integers(1, 200_000),
        short=st.floats(1, 20_000),
        aspect=st.floats(1, 50),
        both_ways=st.booleans(),
        small=st.floats(0, 3),
        large=st.floats(0, 3),
        most=st.integers(0, 2000),
    ),
    start=st.sampled_from([Start(), Start("file")]),
    devices=st.builds(Devices, st.integers(1, 64), st.sampled_from(["cpu", "gpu"])),
)
def test_any_data_gets_a_config_that_passes_the_check(data, start, devices):
    config, lines = resolve(own.get_config(), data, start=start, devices=devices)
    assert not is_open(config) and flatten(config).keys() == flatten(base.get_config()).keys()
    base.check(config)
    assert 64 <= config.train.scales[0] <= 800 and config.train.max_size >= config.train.scales[0]
    assert config.train.max_size % 32 == 0 and 8 <= config.fpn.rpn_anchor_start_size <= 32
    assert 0 <= config.solver.warm_up_iters < config.solver.max_iter and config.data.max_boxes >= min(data.most, 8)
    assert list(config.solver.steps) == sorted(config.solver.steps) and config.train.ims_per_batch >= 1
    assert config.test.detections_per_im >= data.most
    assert all("\n" not in line and line.startswith("chosen  ") for line in lines)


def test_what_is_given_wins_and_decides_what_follows():
    config, lines = resolved(solver__max_iter=30, train__scales=(100, 150), train__batch_size=3)
    assert config.solver.max_iter == 30 and config.solver.steps == (0, 20, 26) and config.solver.warm_up_iters == 1
    assert config.train.scales == (100, 150) and config.test.scale == 150 and config.train.max_size == 224
    assert not any("solver.max_iter" in line or "train.scales" in line for line in lines)


def test_every_choice_that_matters_is_printed():
    _, lines = resolved()
    chosen = {line.split()[1] for line in lines}
    wanted = "train.scales train.max_size data.buckets data.max_boxes train.ims_per_batch solver.max_iter solver.steps"
    assert chosen >= {*wanted.split(), "solver.warm_up_iters", "solver.base_lr", "resnets.use_gn"}


@pytest.mark.parametrize("devices", [CPU, GPU])
def test_random_weights_get_groupnorm_and_others_the_frozen_body(devices):
    scratch, _ = resolved(devices=devices)
    assert scratch.resnets.use_gn and scratch.resnets.freeze_at == 0
    assert scratch.resnets.blocks == ((1, 1, 1, 1) if devices is CPU else (3, 4, 6, 3))
    frozen, lines = resolved(devices=devices, start=Start("R-50.pkl", {"resnets.stride_1x1": True}))
    assert not frozen.resnets.use_gn and frozen.resnets.freeze_at == 2 and frozen.fpn.dim == 256
    assert any("resnets.use_gn = False" in line and "R-50.pkl" in line for line in lines)


@pytest.mark.parametrize("devices", [CPU, GPU])
def test_batch_norm_that_is_given_takes_the_place_of_groupnorm(devices):
    config, lines = resolved(devices=devices, resnets__use_bn=True)
    base.check(config)
    assert not config.resnets.use_gn and not config.fpn.use_gn and config.fpn.use_bn
    assert config.resnets.freeze_at == 0 and config.fpn.mask_padding_train
    assert any("resnets.use_gn = False: batch norm is given" in line for line in lines)
    neck, _ = resolved(devices=devices, fpn__use_bn=True)
    base.check(neck)
    assert neck.resnets.use_gn and not neck.fpn.use_gn
    loaded, _ = resolved(start=Start("R-50.pth"), resnets__use_bn=True)
    assert loaded.resnets.freeze_at == 2 and not loaded.resnets.use_gn


def test_a_named_body_keeps_its_sizes():
    config, _ = resolved(body="r101_gn")
    assert config.resnets.blocks == (3, 4, 23, 3) and config.resnets.width_per_group == 64 and config.fpn.dim == 256


@pytest.mark.parametrize("run", [shapes, mask_gn])
def test_the_network_of_a_run_that_is_started_from_is_taken(run):
    network = {name: value for name, value in flatten(run.get_config()).items() if name in FROM_WEIGHTS}
    config, _ = resolved(start=Start("runs/run", network), devices=GPU)
    assert {name: value for name, value in flatten(config).items() if name in FROM_WEIGHTS} == network


def test_objects_that_would_vanish_are_named():
    tiny = Statistics(images=50, short=4000, aspect=1.5, both_ways=True, small=0.005, large=0.02, most=300)
    config, lines = resolved(tiny)
    assert any("will hardly be found" in line for line in lines)
    assert config.data.buckets == ((352, 352),) and config.data.max_boxes == 304
    assert config.test.detections_per_im == 450 and config.test.rpn_post_nms_top_n >= 450


def test_measure_looks_at_the_class_of_small_boxes(tmp_path):
    boxes = [(1, 40)] * 90 + [(2, 10)] * 10
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 100, "width": 200}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "bbox": [5, 5, side, side]} for i, (c, side) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "large"}, {"id": 2, "name": "small"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = measure(coco.load(tmp_path / "a.json", tmp_path))
    assert (data.images, data.short, data.aspect, data.most, data.both_ways) == (1, 100, 2, 100, False)
    np.testing.assert_allclose((data.small, data.large), (0.10, 0.40))


def test_filling_leaves_what_is_given_and_locks_nothing():
    config = fill(own.get_config(), {"solver.max_iter": 7, "solver.gamma": 0.5, "train.scales": [64]})
    assert config.solver.max_iter == 7 and config.solver.gamma == 0.1 and config.train.scales == (64,)


def test_a_run_that_goes_on_keeps_its_options(tiny_config, tmp_path, capsys):
    config = own.get_config()
    assert settle(tiny_config(), tmp_path).solver.max_iter == 8
    config.data.root = str(tiny_config().data.root)
    first = settle(config, tmp_path)
    said = capsys.readouterr().out
    assert "train: " in said and "chosen  solver.max_iter" in said
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    kept = flatten(json.loads(json.dumps(first.to_dict()))) | {"solver.max_iter": 4321}
    tree = {}
    for name, value in kept.items():
        *groups, option = name.split(".")
        group = tree
        for key in groups:
            group = group.setdefault(key, {})
        group[option] = value
    (tmp_path / "config.json").write_text(json.dumps(tree))
    config.test.scale = 96
    again = settle(config, tmp_path)
    assert again.solver.max_iter == 4321 and again.test.scale == 96 and again.train.scales == first.train.scales
    assert "open options are those of the run" in capsys.readouterr().out
