"""Batch norm against float64 by hand and against Flax's, over devices, in a frozen stage, in a step, in checkpoints."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint import random_state, same_bits, with_ema

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.detection.preprocess import normalise
from diou_jax.devices import AXIS, replicate, to_devices
from diou_jax.models.box_head import BoxHead
from diou_jax.models.norms import STATISTICS, BatchNorm, UseBatchNorm
from diou_jax.models.resnet import ResNet, frozen_stage
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.training.step import make_train_step

C = 3
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(shape, seed=0):
    return np.random.default_rng(seed).normal(5, 2, shape).astype(np.float32)


def some_variables(seed=1):
    scale, bias, mean, var = np.random.default_rng(seed).uniform(0.5, 2, (4, C)).astype(np.float32)
    return {"params": {"scale": scale, "bias": bias}, STATISTICS: {"mean": mean, "var": var}}


def by_hand(x, variables, momentum, epsilon):
    """Values and running statistics in float64; x holds the cells that count in rows."""
    x, p, s = x.astype(np.float64), variables["params"], variables[STATISTICS]
    mean, variance = x.mean(0), x.var(0)
    y = (x - mean) / np.sqrt(variance + epsilon) * p["scale"] + p["bias"]
    unbiased = x.var(0, ddof=1)
    return y, (1 - momentum) * s["mean"] + momentum * mean, (1 - momentum) * s["var"] + momentum * unbiased


def in_training(rules, variables, *args):
    apply = quick(lambda v, *args: BatchNorm(rules).apply(v, *args, mutable=[STATISTICS]))
    y, changed = apply(variables, *args)
    return np.asarray(y), changed[STATISTICS]


def test_in_training_the_statistics_are_the_batchs():
    rules, variables, x = UseBatchNorm(0.3, epsilon=0.01), some_variables(), draw((2, 4, 5, C))
    y, statistics = in_training(rules, variables, x)
    wanted, mean, var = by_hand(x.reshape(-1, C), variables, 0.3, 0.01)
    np.testing.assert_allclose(y.reshape(-1, C), wanted, atol=1e-5)  # values times factors reach 20
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-6)


def test_elsewhere_they_are_the_running_ones_which_stay():
    variables, x = some_variables(), draw((2, 4, 5, C))
    p, s = variables["params"], variables[STATISTICS]
    y = BatchNorm(UseBatchNorm(epsilon=0.01)).apply(variables, x)
    np.testing.assert_allclose(
        y, (x - s["mean"]) / np.sqrt(s["var"] + 0.01) * p["scale"] + p["bias"], rtol=1e-5, atol=1e-5
    )
    frozen, statistics = in_training(UseBatchNorm(epsilon=0.01, frozen=True), variables, x)
    np.testing.assert_allclose(frozen, y, atol=1e-6)
    same_bits(dict(statistics), jax.tree.map(jnp.asarray, s))


def test_values_and_gradients_are_those_of_flax():
    x, weights, variables = draw((2, 4, 5, C)), draw((2, 4, 5, C), 2), some_variables()
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)

    def loss(module, params, x):
        y, _ = module.apply({"params": params, STATISTICS: variables[STATISTICS]}, x, mutable=[STATISTICS])
        return (jnp.tanh(y) * weights).sum()

    def gradients(module):
        return quick(jax.value_and_grad(functools.partial(loss, module), argnums=(0, 1)))(variables["params"], x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients(BatchNorm()), gradients(theirs)
    )


def test_a_large_mean_costs_no_digits_once_it_is_known():
    """Of values about 1000 with a deviation of 0.01 the difference of mean squares alone would keep nothing."""
    x = (1000 + np.random.default_rng(0).normal(0, 0.01, (2, 8, 8, C))).astype(np.float32)
    variables = some_variables()
    variables[STATISTICS]["mean"] = np.full(C, 1000, np.float32)
    y, _ = in_training(UseBatchNorm(epsilon=1e-8), variables, x)
    wanted, *_ = by_hand(x.reshape(-1, C), variables, 0.1, 1e-8)
    np.testing.assert_allclose(y.reshape(-1, C), wanted, atol=0.02)


def test_padding_has_no_part_in_the_statistics():
    x, size = draw((2, 6, 8, C)), np.array([[24, 12], [7, 32]])
    variables, rules = some_variables(), UseBatchNorm()
    y, statistics = in_training(rules, variables, x, size, 4)
    inside = [np.s_[0, :6, :3], np.s_[1, :2, :8]]
    wanted, mean, var = by_hand(np.concatenate([x[part].reshape(-1, C) for part in inside]), variables, 0.1, 1e-5)
    np.testing.assert_allclose(np.concatenate([y[part].reshape(-1, C) for part in inside]), wanted, atol=3e-6)
    np.testing.assert_allclose(statistics["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-6)
    x[1, 2:] = x[0, :, 3:] = np.nan  # whatever is there
    again, same = in_training(rules, variables, x, size, 4)
    np.testing.assert_array_equal(again[0, :, :3], y[0, :, :3])
    same_bits(dict(same), dict(statistics))


def test_nothing_at_all_leaves_the_statistics_and_is_finite():
    variables, x = some_variables(), draw((2, 4, 4, C))
    y, statistics = in_training(UseBatchNorm(), variables, x, np.zeros((2, 2), np.int32), 1)
    assert np.isfinite(y).all()
    same_bits(dict(statistics), jax.tree.map(jnp.asarray, variables[STATISTICS]))
    gradient = quick(
        jax.grad(
            lambda x: BatchNorm().apply(variables, x, np.zeros((2, 2), np.int32), 1, mutable=[STATISTICS])[0].sum()
        )
    )(x)
    assert np.isfinite(gradient).all()


def test_two_devices_have_the_statistics_and_the_gradients_of_one():
    """Of the sum of both devices' losses, as gradients are averaged afterwards."""
    x, weights, variables = draw((2, 3, 4, 5, C)), draw((2, 3, 4, 5, C), 2), some_variables()

    def loss(rules, params, x, weights):
        y, changed = BatchNorm(rules).apply({**variables, "params": params}, x, mutable=[STATISTICS])
        return (jnp.tanh(y) * weights).sum(), changed[STATISTICS]

    def gradients(rules):
        return jax.value_and_grad(functools.partial(loss, rules), argnums=(0, 1), has_aux=True)

    (_, alone), (of_params, of_x) = quick(gradients(UseBatchNorm()))(
        variables["params"], x.reshape(-1, *x.shape[2:]), weights.reshape(-1, *x.shape[2:])
    )
    several = jax.pmap(gradients(UseBatchNorm(axis=AXIS)), AXIS, in_axes=(None, 0, 0))
    (_, statistics), (params_each, x_each) = several(variables["params"], x, weights)
    for name in ("mean", "var"):
        assert statistics[name][0].tobytes() == statistics[name][1].tobytes()
        np.testing.assert_allclose(statistics[name][0], alone[name], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.sum(0), b, rtol=1e-5), params_each, of_params)
    np.testing.assert_allclose(x_each.reshape(of_x.shape), of_x, atol=3e-5)


def test_rois_that_do_not_exist_have_no_part_in_a_heads_statistics():
    head = BoxHead(4, hidden=8, num_convs=2, conv_features=6, norm=UseBatchNorm())
    pooled, valid = jnp.asarray(draw((2, 3, 4, 4, 5))), np.array([[True, False, True], [False, True, False]])
    variables = head.init(jax.random.key(0), pooled)
    apply = quick(lambda pooled, valid: head.apply(variables, pooled, valid=valid, mutable=[STATISTICS]))
    (logits, _), changed = apply(pooled, valid)
    (alone, _), wanted = apply(pooled[valid][None], np.ones((1, 3), bool))
    np.testing.assert_allclose(logits[valid], alone[0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), changed, wanted)


@pytest.mark.slow
def test_frozen_stages_keep_their_statistics():
    body = ResNet(blocks=(1, 1), width_per_group=2, stem_width=4, freeze_at=2, norm=UseBatchNorm())
    images = jnp.asarray(draw((1, 32, 32, 3)))
    variables = body.init(jax.random.key(0), images)
    _, changed = quick(lambda v, x: body.apply(v, x, mutable=[STATISTICS]))(variables, images)
    for module, values in changed[STATISTICS].items():
        same = jax.tree.map(lambda a, b: bool((a == b).all()), values, variables[STATISTICS][module])
        frozen = frozen_stage(f"backbone/{module}/", 2)
        assert all(x == frozen for x in jax.tree.leaves(same)), module
    assert {"conv1", "res2_0", "res3_0"} == changed[STATISTICS].keys()


def with_statistics(state, seed):
    values = {"body": {"norm": {"mean": draw(4, seed), "var": draw(4, seed + 100)}}}
    return state.replace(statistics=values)


@pytest.mark.parametrize("averaged", [False, True])
def test_checkpoints_hold_the_statistics(tmp_path, averaged):
    def state(seed):
        found = with_statistics(random_state(seed), seed)
        if not averaged:
            return found
        found = with_ema(found)
        return found.replace(
            ema=dataclasses.replace(found.ema, statistics=jax.tree.map(lambda x: x / 3, found.statistics))
        )

    wanted, like = state(1), state(0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(wanted, 1, {})
    with Checkpoints(tmp_path) as checkpoints:
        same_bits(checkpoints.restore(like), wanted)
        same_bits(checkpoints.restore_variables(like.variables), wanted.averaged)
        same_bits(checkpoints.stored_variables(), wanted.averaged)
        same_bits(checkpoints.restore_variables(like.variables, averaged=False), wanted.variables)


@pytest.fixture
def normed_config(tiny_config):
    """A config with batch norm everywhere and a second convolution in the RPN."""

    def make():
        config = tiny_config()
        config.resnets.use_bn = config.fpn.use_bn = config.fpn.mask_padding_train = True
        config.fast_rcnn.roi_box_head = "roi_Xconv1fc_bn_head"
        config.fast_rcnn.num_stacked_convs, config.fast_rcnn.conv_head_dim = 1, 8
        config.fpn.rpn_num_convs = 2
        return config

    return make


@pytest.mark.slow
def test_a_step_of_two_devices_normalises_over_both(normed_config):
    """The backbone's first statistics are those of both devices' images together, and both devices agree on all."""
    config = normed_config()
    config.solver.ema_decay = 0.5
    rule, dataset = build.rule(config), build.dataset(config, config.train.datasets)
    batch, _ = build.train_reader(config, dataset, rule.batch)(0)
    detector = build.detector(config, len(dataset.class_names))
    variables = jax.device_get(detector.network.init_variables(jax.random.key(0)))
    optimizer = build.make_optimizer(config, rule.schedule)
    state = create_state(variables, optimizer, detector.loss_names, ema_decay=0.5)
    step = make_train_step(detector, optimizer, seed=7, iter_size=1, log_every=1)
    state, _ = step(replicate(state), next(to_devices([batch], ahead=0)))
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
        assert len(shards) == 2 and shards[0] == shards[1]

    body = detector.network.backbone.clone(norm=UseBatchNorm())
    own = {name: variables[name]["backbone"] for name in ("params", STATISTICS)}
    _, changed = quick(lambda batch: body.apply(own, normalise(batch), batch.padded_size, mutable=[STATISTICS]))(batch)
    found, wanted = state.statistics["backbone"], changed[STATISTICS]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), jax.device_get(found), wanted)
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), jax.device_get(state.statistics), variables[STATISTICS]
    )
    assert min(jax.tree.leaves(moved)) > 0  # no norm of any part was left out
    # The average starts at the initial statistics; after the first update it has moved by 1 - 1 / 10.
    expected = jax.tree.map(lambda a, b: a + 0.9 * (b - a), variables[STATISTICS], jax.device_get(state.statistics))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.averaged[STATISTICS], expected
    )
