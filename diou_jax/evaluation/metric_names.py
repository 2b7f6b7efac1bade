"""The metrics that an evaluation will give, and the choice of the one that decides which checkpoint is the best."""

import difflib
from collections.abc import Mapping, Sequence

from diou_jax.checkpoint.ranking import Criterion
from diou_jax.errors import UserError
from diou_jax.evaluation import coco_results, proposal_recall

AUTO = "auto"
SHOWN = 12  # names in a message


def detector_metrics(class_names: Sequence[str], *, max_dets: int, masks: bool) -> tuple[str, ...]:
    """Names of the metrics of a detector, as `coco_results.Summary.metrics` has them.

    Args:
      class_names: K names, background first.
      max_dets: detections per image and class that count.
      masks: whether masks are evaluated, too.
    """
    numbers = [f"AR{max_dets}" if name == "AR100" else name for name in coco_results.STATISTICS]
    numbers += [f"AP/{name}" for name in class_names[1:]]
    prefixes = ["eval", *(["eval/segm"] if masks else [])]
    return tuple(f"{prefix}/{name}" for prefix in prefixes for name in numbers)


def proposal_metrics() -> tuple[str, ...]:
    """Names of the metrics of an RPN that is trained alone, as `proposal_recall.Recall.metrics` has them.

    The first one is the recall of most proposals, which judges an RPN.
    """
    limits = sorted(proposal_recall.LIMITS, reverse=True)
    return tuple(f"eval/AR{size}@{limit}" for size in ("", "s", "m", "l") for limit in limits)


def find_criterion(text: str, metrics: Mapping[str, Sequence[str]]) -> Criterion | None:
    """The criterion that `checkpoint.best` names.

    Args:
      text: ``METRIC``, of the first test set that has it, or ``DATASET:METRIC``; "auto" takes the first metric of the
        first test set with annotations. ``eval/`` may be left out. Empty: none.
      metrics: names of the metrics of each test set with annotations.

    Raises:
      UserError: if no test set has the metric; the message names the nearest.
    """
    if not text or (text == AUTO and not metrics):
        return None
    if text == AUTO:
        dataset, names = next(iter(metrics.items()))
        return Criterion(dataset, names[0])
    for dataset, names in metrics.items():
        metric = text.removeprefix(f"{dataset}:")
        for name in (metric, f"eval/{metric}"):
            if name in names:
                return Criterion(dataset, name)
    if not metrics:
        raise UserError(
            f"checkpoint.best={text!r}: no test set has annotations, so there is no metric; set test.datasets"
        )
    known = [name.removeprefix("eval/") for name in next(iter(metrics.values()))]
    near = difflib.get_close_matches(text, known, SHOWN, 0.6) or known[:SHOWN]
    hint = "; test.losses=64 adds val/loss and its parts" if "val/" in text else ""
    raise UserError(
        f"checkpoint.best={text!r}: the evaluation of {', '.join(metrics)} gives no such metric; it gives "
        f"{', '.join(near)} and others, see the rows of metrics.jsonl{hint}"
    )
