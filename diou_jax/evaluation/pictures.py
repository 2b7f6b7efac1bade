"""Pictures of an evaluation: detections beside the ground truth."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from diou_jax.data.annotations import id_key
from diou_jax.data.dataset import Dataset
from diou_jax.data.decoding import decode
from diou_jax.evaluation import true_masks
from diou_jax.evaluation.found import Found
from diou_jax.masks import Rle
from diou_jax.reporting import picture_files, visualize
from diou_jax.reporting.run_log import RunLog
from diou_jax.reporting.visualize import Objects


def write_pictures(
    dataset: Dataset,
    found: Mapping[int, Found],
    indices: Sequence[int],
    *,
    folder: pathlib.Path,
    step: int,
    log: RunLog,
) -> None:
    """Writes the pictures of some images, and adds them to TensorBoard and the trackers.

    Args:
      dataset: the test set.
      found: the detections by the image's index.
      indices: those of the images to draw.
      folder: the folder of pictures.
      step: number of updates of the weights.
      log: the run's log.
    """
    records, true = dataset.records, None
    if any(found[index].rles is not None for index in indices):
        sizes = {records.image_ids.tolist()[i]: (int(records.heights[i]), int(records.widths[i])) for i in indices}
        true = true_masks.by_box(dataset.annotation_files, sizes)
    for index in indices:
        picture = draw_beside_truth(dataset, index, found[index], true=true)
        name, prefix = picture_files.flat(dataset.image_name(index)), f"{dataset.name}_"
        name = f"{step:07d}_{prefix}{name.removeprefix(prefix)}"  # images often lie in a folder of the set's name
        with log.spared("pictures"):
            picture_files.write(folder / name, picture)
        log.image(step, f"detections/{dataset.name}/{index}", picture)


def draw_beside_truth(
    dataset: Dataset,
    index: int,
    found: Found,
    *,
    score_threshold: float = 0.5,
    true: Mapping[tuple, Rle] | None = None,
) -> np.ndarray:
    """A picture of detections beside ground truth, uint8 BGR; `true` has its masks, see `true_masks.by_box`."""
    records = dataset.records
    image = decode(
        dataset.read(index),
        dataset.image_name(index),
        height=int(records.heights[index]),
        width=int(records.widths[index]),
    )
    boxes, classes, crowd = records.annotations(index)
    key = id_key(records.image_ids.tolist()[index])
    of_truth = None if true is None else [true.get((key, *box)) for box in boxes.tolist()]
    shown = np.flatnonzero(found.scores >= score_threshold).tolist()
    rles = None if found.rles is None else [found.rles[row] for row in shown]
    return visualize.side_by_side(
        image,
        Objects(found.boxes[shown], found.classes[shown], scores=found.scores[shown], rles=rles),
        Objects(boxes, classes, crowd=crowd, rles=of_truth),
        class_names=dataset.class_names,
    )
