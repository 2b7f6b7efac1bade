"""Augmented testing: boxes of several views of an image are united before suppression, masks are averaged.

The field calls it test-time augmentation; the original has it as TEST.BBOX_AUG and TEST.MASK_AUG.
Every view goes through the backbone once, and has proposals of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.detection.rules import Thresholds
from diou_jax.programs import Programs
from diou_jax.structures import AugmentedBatch, Candidates, Detections

# A function of an argument that all devices share and one that is divided among them.
Function: TypeAlias = Callable[[Any, Any], Any]


def unite(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several passes, (B, K - 1, R of all passes, ...), in the order of the passes."""
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, 2), *parts)


def soft_average(masks: jax.Array) -> jax.Array:
    """The mean (B, D, M, M) of the probabilities (V, B, D, M, M) of V passes."""
    return masks.mean(0)


def soft_maximum(masks: jax.Array) -> jax.Array:
    """The largest of the probabilities of V passes; shapes as in `soft_average`."""
    return masks.max(0)


def logit_average(masks: jax.Array) -> jax.Array:
    """The probability of the mean logit of V passes; shapes as in `soft_average`."""
    return jax.nn.sigmoid(-jnp.log((1 - masks) / jnp.maximum(masks, 1e-20)).mean(0))


# TEST.MASK_AUG.HEUR
MASK_HEURISTICS = {"SOFT_AVG": soft_average, "SOFT_MAX": soft_maximum, "LOGIT_AVG": logit_average}


class AugmentedDetection:
    """``detect(variables, batch)`` of an `AugmentedBatch`, as `FasterRCNN.detect` of a `Batch`.

    It consists of programs of static shapes: three for each shape of a pass (backbone and neck, candidates, masks), and
    one each that suppresses and that combines masks. A view that is used for boxes and masks goes through the backbone
    once; its maps stay on the device until its masks are made.
    """

    def __init__(
        self,
        detector: FasterRCNN,
        *,
        boxes: Sequence[int],
        masks: Sequence[int],
        heuristic: str,
        compiled: Callable[[str, Function], Programs],
    ):
        """Prepares the programs.

        Args:
          detector: network and rules.
          boxes: numbers of the views whose boxes are united, in the order of their rows.
          masks: numbers of the views whose masks are combined; empty if the detector has no other head.
          heuristic: a name in `MASK_HEURISTICS`.
          compiled: turns a title for messages and a function of one device into its compiled form.
        """
        assert detector.heads, "augmented testing needs a head that detects"
        self._detector, self._head = detector, detector.heads[0]
        self._boxes, self._masks = tuple(boxes), tuple(masks)
        self._combine_masks = MASK_HEURISTICS[heuristic]
        self._functions = {
            "backbone": self._pyramid,
            "candidates": self._candidates,
            "suppression": self._suppress,
            "masks": self._describe,
            "combination of masks": self._combine,
        }
        self._compiled = {title: compiled(title, function) for title, function in self._functions.items()}

    def __call__(self, variables: dict, batch: AugmentedBatch, thresholds: Thresholds | None = None) -> Detections:
        """The detections in B images, pixels of their files, best first."""
        return self._run(lambda title, *arguments: self._compiled[title](*arguments), variables, batch, thresholds)

    def has(self, batch: Any) -> bool:
        """Whether the programs for batches of this shape were compiled ahead."""
        return all(self._compiled["backbone"].has(view) for view in batch.views)

    def programs(self, variables: dict, batch: Any) -> list[tuple[Programs, Any, Any]]:
        """The compiled functions of one call, each with its two arguments or their shapes; nothing is computed.

        Args:
          variables: the network's variables.
          batch: B images, which lie on the devices, so that every array has a leading axis of devices.
        """
        wanted = []

        def note(title, shared, divided):
            wanted.append((self._compiled[title], shared, divided))
            one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), divided)
            devices = jax.tree.leaves(batch)[0].shape[0]
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype),
                jax.eval_shape(self._functions[title], shared, one),
            )

        self._run(note, variables, batch, None)
        return wanted

    def _run(self, call, variables, batch, thresholds):
        default = self._detector.thresholds
        thresholds = Thresholds(*(np.float32(value) for value in thresholds or default))
        pyramids, candidates = {}, {}
        for number, view in enumerate(batch.views):
            pyramid = call("backbone", variables, view)
            if number in self._boxes:
                candidates[number] = call("candidates", variables, (pyramid, view))
            if number in self._masks:
                pyramids[number] = pyramid
            del pyramid  # it would keep the device's memory
        found = call("suppression", thresholds, tuple(candidates[number] for number in self._boxes))
        if not self._masks:
            return found
        described = {
            number: call("masks", variables, (pyramids.pop(number), batch.views[number], found))
            for number in tuple(pyramids)
        }
        return call("combination of masks", (), tuple(described[number] for number in self._masks))

    def _pyramid(self, variables, view):
        return self._detector.test_pyramid(variables, view)

    def _candidates(self, variables, inputs):
        return self._detector.candidates(variables, *inputs)

    def _suppress(self, thresholds, parts):
        return self._head.suppress(unite(parts), thresholds=thresholds)

    def _describe(self, variables, inputs):
        pyramid, view, found = inputs
        return self._detector.describe(variables, pyramid, view, found=found)

    def _combine(self, nothing, described):
        if described[0].masks is None:
            return described[0]
        masks = jnp.stack([found.masks for found in described])
        valid = described[0].valid[..., None, None]
        return described[0].replace(masks=jnp.where(valid, self._combine_masks(masks), 0.0))
