"""A RoI head of somebody else's: written outside the package, trained, logged and carried by checkpoints like ours."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diou_jax.boxes import to_input
from diou_jax.detection.loss import Loss
from diou_jax.detection.preprocess import normalise
from diou_jax.detection.rules import PoolingRules
from diou_jax.devices import replicate, to_devices
from diou_jax.models.network import HeadModule
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.reporting.curves import PANELS, curves
from diou_jax.reporting.run_log import Progress
from diou_jax.training.step import make_train_step

# A head of one's own costs a compilation of the whole step.
pytestmark = pytest.mark.slow


class MeanColour(nn.Module):
    """Pooled RoIs (B, R, H, W, C) to colours (B, R, 3)."""

    @nn.compact
    def __call__(self, pooled):
        return nn.Dense(3)(pooled.mean((2, 3)))


@dataclasses.dataclass(frozen=True)
class ColourHead:
    """Predicts the mean colour of the pixels inside each RoI."""

    pooling: PoolingRules
    weight: float = 0.1
    name: str = "colour_head"

    def module(self):
        return MeanColour()

    def losses(self, run, samples, batch):
        image = normalise(batch) / 64
        rows, columns = (jnp.arange(side) for side in image.shape[1:3])
        x1, y1, x2, y2 = (samples.input_rois[..., i, None] for i in range(4))
        inside_y, inside_x = (rows >= y1) & (rows <= y2), (columns >= x1) & (columns <= x2)
        total = jnp.einsum("bsy,bsx,byxc->bsc", inside_y.astype(float), inside_x.astype(float), image)
        wanted = total / jnp.maximum(inside_y.sum(-1) * inside_x.sum(-1), 1)[..., None]
        error = jnp.abs(run(samples.input_rois) - wanted).mean(-1)
        return {
            "loss_colour": Loss(jnp.where(samples.valid, error, 0).mean(), self.weight),
            "colour_worst": Loss(jnp.where(samples.valid, error, 0).max(), None),
        }

    def detect(self, run, found, batch, *, thresholds):
        return found.replace(keypoints=run(to_input(found.boxes, batch.placement)))


@pytest.fixture(scope="module")
def trained(tiny_config):
    """The detector with the second head, its rows of metrics, and its state after some steps on one batch."""
    config = tiny_config()
    rule = build.rule(config)
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names))
    head = ColourHead(detector.heads[0].pooling)
    heads = *detector.heads, head
    modules = *detector.network.heads, HeadModule(head.name, head.module(), head.pooling.resolution)
    detector = dataclasses.replace(detector, network=detector.network.clone(heads=modules), heads=heads)
    optimizer = optax.sgd(0.02)
    variables = detector.network.init_variables(jax.random.key(0))
    state = replicate(create_state(variables, optimizer, detector.loss_names))
    step = make_train_step(detector, optimizer, seed=0, iter_size=1, log_every=1)
    batch, _ = build.train_reader(config, data, rule.batch)(0)
    rows: list[dict[str, Any]] = []
    for _ in range(12):
        state, metrics = step(state, next(to_devices([batch], ahead=0)))
        rows.append({"step": len(rows) + 1, "rate": 0.02} | {name: float(value) for name, value in metrics.items()})
    return detector, rows, jax.device_get(state.variables), batch


def test_its_loss_falls_and_is_part_of_the_total(trained):
    detector, rows, _, _ = trained
    assert np.mean([row["loss_colour"] for row in rows[-3:]]) < 0.8 * rows[0]["loss_colour"]
    box, colour = detector.heads
    for row in rows:
        weights = {"loss_rpn_cls": 1, "loss_rpn_bbox": detector.rpn_loss_rules.box_weight}
        weights |= {"loss_cls": 1, "loss_bbox": box.box_weight, "loss_colour": colour.weight}
        assert row["loss"] == pytest.approx(sum(weight * row[name] for name, weight in weights.items()), rel=1e-5)


def test_log_line_and_curves_take_up_its_names(trained):
    detector, rows, _, _ = trained
    assert {"loss_colour", "colour_worst"} < set(detector.loss_names) < rows[0].keys()
    line = Progress(start=0, total=12, images_per_step=2).line(12, 0.0, rows[-1])
    assert f"colour {rows[-1]['loss_colour']:.3f}" in line and "worst" not in line
    losses = next(panel for panel in PANELS if panel.title == "losses")
    assert {"total", "cls", "bbox", "rpn_cls", "rpn_bbox", "colour"} == {curve.label for curve in curves(losses, rows)}


def test_it_adds_to_the_detections(trained):
    detector, _, variables, batch = trained
    found = jax.jit(detector.detect)(variables, jax.tree.map(jnp.asarray, batch))
    without = dataclasses.replace(detector, heads=detector.heads[:1])
    alone = jax.jit(without.detect)(variables, jax.tree.map(jnp.asarray, batch))
    assert found.keypoints.shape == (*found.scores.shape, 3) and alone.keypoints is None
    np.testing.assert_array_equal(found.boxes, alone.boxes)
