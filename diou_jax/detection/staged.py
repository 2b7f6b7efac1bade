"""Detection in stages, each a program of its own, so that those before or after suppression can be repeated.

Augmented testing repeats those before: every view of an image goes through the backbone once, and has proposals of its
own. A comparison of test options repeats those after: one pass of the network serves several selections.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from diou_jax.detection.augmented import MASK_HEURISTICS, unite
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.detection.rules import DetectionRules, Thresholds
from diou_jax.programs import Programs
from diou_jax.structures import AugmentedBatch, Batch, Detections

# A function of an argument that all devices share and one that is divided among them.
Function: TypeAlias = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Selection:
    """One way to choose detections among candidates.

    Attributes:
      rules: kind and thresholds of suppression, and the number of detections.
      masks: whether the heads after the first describe the detections.
    """

    rules: DetectionRules
    masks: bool = True


class StagedDetection:
    """``detect(variables, batch)`` of a `Batch` or `AugmentedBatch`, as `FasterRCNN.detect` of a `Batch`.

    It consists of programs of static shapes: three for each shape of a pass (backbone and neck, candidates, masks), one
    for each kind of selection, which suppresses, and one that combines masks. Selections that differ in thresholds
    alone share a program. A view that is used for boxes and masks goes through the backbone once; its maps stay on the
    device until its masks are made.
    """

    def __init__(
        self,
        detector: FasterRCNN,
        *,
        boxes: Sequence[int],
        masks: Sequence[int],
        heuristic: str,
        compiled: Callable[[str, Function], Programs],
        selections: Sequence[Selection] = (),
    ):
        """Prepares the programs.

        Args:
          detector: network and rules.
          boxes: numbers of the views whose boxes are united, in the order of their rows.
          masks: numbers of the views whose masks are combined; empty if the detector has no other head.
          heuristic: a name in `MASK_HEURISTICS`.
          compiled: turns a title for messages and a function of one device into its compiled form.
          selections: the selections that `several` makes; by default the detector's own.
        """
        assert detector.heads, "a network without a head that detects has no candidates"
        self._detector = detector
        self._boxes, self._masks = tuple(boxes), tuple(masks)
        self._combine_masks = MASK_HEURISTICS[heuristic]
        self._selections = tuple(selections) or (Selection(detector.detection_rules),)
        self._functions = {
            "backbone": self._pyramid,
            "candidates": self._candidates,
            "masks": self._describe,
            "combination of masks": self._combine,
        }
        self._suppressions: dict[DetectionRules, str] = {}
        for kind in dict.fromkeys(map(_without_thresholds, self._selections)):
            title = " ".join(["suppression", *([f"{len(self._suppressions) + 1}"] if self._suppressions else [])])
            self._suppressions[kind] = title
            self._functions[title] = functools.partial(_suppress, detector.with_rules(kind))
        self._compiled = {title: compiled(title, function) for title, function in self._functions.items()}

    def __call__(
        self, variables: dict, batch: Batch | AugmentedBatch, thresholds: Thresholds | None = None
    ) -> Detections:
        """The detections of the first selection in B images, pixels of their files, best first.

        Args:
          variables: the network's variables.
          batch: B images, in one or several views.
          thresholds: replace those of the selection.
        """
        first = self._selections[0]
        if thresholds is not None:
            first = dataclasses.replace(first, rules=dataclasses.replace(first.rules, thresholds=thresholds))
        return self._run(self._call, variables, batch, (first,))[0]

    def several(self, variables: dict, batch: Batch | AugmentedBatch) -> tuple[Detections, ...]:
        """The detections of each selection in B images, from one pass of the network over each view."""
        return self._run(self._call, variables, batch, self._selections)

    def has(self, batch: Any) -> bool:
        """Whether the programs for batches of this shape were compiled ahead."""
        return all(self._compiled["backbone"].has(view) for view in _views(batch))

    def programs(self, variables: dict, batch: Any) -> list[tuple[Programs, Any, Any]]:
        """The compiled functions of all selections, each with its two arguments or their shapes; nothing is computed.

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

        self._run(note, variables, batch, self._selections)
        return wanted

    def _call(self, title, *arguments):
        return self._compiled[title](*arguments)

    def _run(self, call, variables, batch, selections) -> tuple:
        views, with_masks = _views(batch), any(one.masks for one in selections)
        pyramids, candidates = {}, {}
        for number, view in enumerate(views):
            pyramid = call("backbone", variables, view)
            if number in self._boxes:
                candidates[number] = call("candidates", variables, (pyramid, view))
            if number in self._masks and with_masks:
                pyramids[number] = pyramid
            del pyramid  # it would keep the device's memory
        parts = tuple(candidates[number] for number in self._boxes)
        results: list[Detections] = []
        for place, one in enumerate(selections):
            if (known := _known(one, selections, results)) is not None:
                results.append(known)
                continue
            thresholds = Thresholds(*(np.float32(value) for value in one.rules.thresholds))
            found = call(self._suppressions[_without_thresholds(one)], thresholds, parts)
            if self._masks and one.masks:
                last = not any(later.masks for later in selections[place + 1 :])
                take = pyramids.pop if last else pyramids.__getitem__
                described = {
                    number: call("masks", variables, (take(number), views[number], found)) for number in tuple(pyramids)
                }
                found = call("combination of masks", (), tuple(described[number] for number in self._masks))
            results.append(found)
        return tuple(results)

    def _pyramid(self, variables, view):
        return self._detector.test_pyramid(variables, view)

    def _candidates(self, variables, inputs):
        return self._detector.candidates(variables, *inputs)

    def _describe(self, variables, inputs):
        pyramid, view, found = inputs
        return self._detector.describe(variables, pyramid, view, found=found)

    def _combine(self, nothing, described):
        if described[0].masks is None:
            return described[0]
        masks = jnp.stack([found.masks for found in described])
        valid = described[0].valid[..., None, None]
        return described[0].replace(masks=jnp.where(valid, self._combine_masks(masks), 0.0))


def _suppress(detector, thresholds, parts):
    return detector.heads[0].suppress(unite(parts), thresholds=thresholds)


def _known(selection, selections, results) -> Detections | None:
    """The result of an earlier selection by the same rules, without masks if the selection has none."""
    for earlier, found in zip(selections, results):
        if earlier.rules == selection.rules and earlier.masks >= selection.masks:
            return found if selection.masks else found.replace(masks=None)
    return None


def _without_thresholds(selection: Selection) -> DetectionRules:
    """The rules of a selection without thresholds, which are inputs of its program."""
    return dataclasses.replace(selection.rules, thresholds=Thresholds(0.0, 0.0))


def _views(batch) -> tuple[Batch, ...]:
    return batch.views if isinstance(batch, AugmentedBatch) else (batch,)
