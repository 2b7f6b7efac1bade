"""Takes from the original's numbers what the tests read and what shows no photograph.

python tests/golden/trim.py FOLDER    (of all of the original's numbers)
"""

import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
SCORE_THRESH = 0.05  # of the detections: what does not exceed it takes no part
DETECTION = ("im_info", "im_shape", "im_scale_f64", "rois", "scores", "bbox_pred", "pred_boxes")
STEP = ("head/", "loss/", "metric/", "gt_", "is_crowd_", "rpn_", "rois", "labels_", "bbox_targets", "bbox_pred")


def main(folder: pathlib.Path) -> None:
    """Writes rpn_proposals.npz, model_r50fpn_outputs.npz and model_train_outputs.npz."""
    with np.load(folder / "rpn_proposals.npz") as file:
        names = [name for name in file if "rpn_probs" not in name and "/dist_" not in name]
        np.savez_compressed(HERE / "rpn_proposals.npz", **{name: file[name] for name in names})
    with np.load(folder / "model_r50fpn.npz") as file:
        names = [name for name in file if name in DETECTION or name.startswith(("rpn_cls", "rpn_bbox", "dets_"))]
        photo = {name: file[name] for name in names}
    candidate = photo["scores"] > SCORE_THRESH
    photo["scores"] *= candidate
    for name in ("bbox_pred", "pred_boxes"):
        photo[name] *= np.repeat(candidate, 4, axis=1)
    np.savez_compressed(HERE / "model_r50fpn_outputs.npz", **photo)
    with np.load(folder / "model_train.npz") as file:
        names = [name for name in file if name.startswith((*STEP, "im_info", "cls_score_train"))]
        names = [name for name in names if "_weights" not in name]
        np.savez_compressed(HERE / "model_train_outputs.npz", **{name: file[name] for name in names})


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
