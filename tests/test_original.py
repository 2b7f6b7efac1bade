"""The proof through the doors that users take: the original's file, an image, `Detector`; images and boxes, `losses`.

``test_proof_*.py`` compares the steps between: every map, RoI, score and gradient. Each test records the largest
deviation that it met; ``pytest -o junit_family=xunit1 --junitxml FILE`` keeps them. Golden files: model_r50fpn,
model_train.
"""

import jax
import jax.numpy as jnp
import numpy as np
import original
import pytest
import views
from original import BOX, LEVELS, LOSS, SCORE, largest, load, pair_of_a_class, resizing

from diou_jax import Detector
from diou_jax.configs import base
from diou_jax.data import packing
from diou_jax.data.buckets import Bucket
from diou_jax.data.view import flip_boxes
from diou_jax.detection import faster_rcnn, preprocess
from diou_jax.detection.anchors import cell_anchors, grid_anchors
from diou_jax.detection.heads import box
from diou_jax.weights.original import import_original


@pytest.fixture(scope="module")
def weights():
    return original.weights()


@pytest.fixture(scope="module")
def image(golden_set):
    return load("model_r50fpn.npz", golden_set)


@pytest.fixture(scope="module")
def detector(weights, image, tmp_path_factory):
    """From the file that the original's training writes, with its defaults; up to 300 detections."""
    torch = pytest.importorskip("torch")
    config = base.get_config()
    config.test.scale, config.test.max_size = resizing(image).values()
    config.test.detections_per_im = 300
    file = tmp_path_factory.mktemp("original") / "model_step1234.pth"
    model = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}
    torch.save({"step": 1234, "train_size": 117264, "batch_size": 16, "model": model, "optimizer": {}}, file)
    detector = Detector.from_file(file, config)
    file.unlink()
    return detector


@pytest.mark.parametrize(("name", "nms", "limit"), [("diou_b1.0", 0.5, 100), ("diou_b1.0_t0.3_lim300", 0.3, 300)])
def test_the_originals_file_finds_the_originals_detections(detector, image, record_property, name, nms, limit):
    """The image lies in a bucket of the default ones, larger than the original's padding."""
    found = detector(image["image_u8_bgr"], nms=nms)
    ours = np.column_stack([found.classes, found.boxes])[:limit]
    theirs = image[f"dets_{name}"]
    partner = pair_of_a_class(ours, theirs[:, :5], within=BOX)
    deviations = {
        "pixels": largest(ours[:, 1:], theirs[partner, 1:5]),
        "score": largest(found.scores[:limit], theirs[partner, 5]),
    }
    for kind, deviation in deviations.items():
        record_property(kind, deviation)
    assert deviations["score"] < SCORE


@pytest.fixture(scope="module")
def step(golden_set):
    return load("model_train.npz", golden_set)


@pytest.fixture(scope="module")
def trainer():
    return original.trainer()


@pytest.fixture(scope="module")
def batch(step, image):
    """The two images and their boxes as the loader would hand them over, the second one mirrored.

    Of the second image only the network's input is stored: it is black here.
    """
    height, width, scale = step["im_info"][1]
    images = image["image_u8_bgr"], np.zeros((round(height / scale), round(width / scale), 3), np.uint8)
    canvas = (-(-max(side) // 128) * 128 for side in zip(*(pixels.shape[:2] for pixels in images), strict=True))
    bucket = Bucket(*step["data"].shape[2:], *canvas)
    examples = []
    for number, pixels in enumerate(images):
        boxes, classes, crowd = (step[f"{name}_im{number}"] for name in ("gt_boxes", "gt_classes", "is_crowd"))
        flip = bool(step[f"flipped_im{number}"])
        if flip:
            boxes = flip_boxes(boxes, pixels.shape[1])  # as its file would have them
        view = views.resized(pixels, flip=flip, **resizing(image))
        examples.append(packing.example(pixels, view, bucket, annotations=(boxes, classes, crowd), max_boxes=8))
    return jax.tree.map(jnp.asarray, packing.pack(examples, bucket))


@pytest.fixture(scope="module")
def labelled(step):
    return original.labelled_anchors(step)


@pytest.fixture(scope="module")
def sampled(step):
    return original.sampled_rois(step)


@pytest.fixture(scope="module")
def trained(step, trainer, weights, batch, labelled, sampled):
    """`FasterRCNN.losses` with the stored draws in place of its own, and its own, which are kept.

    Which anchors and RoIs stand for the background is drawn, and no two random generators draw alike; all else of the
    step is ours.
    """
    own = {}

    def normalise(batch, means):
        own["input"] = preprocess_normalise(batch, means)
        return own["input"].at[1].set(step["data"][1].transpose(1, 2, 0))

    def sample_stored(self, proposals, batch, keys):
        samples = sample(self, proposals, batch, keys)
        own["sampled"] = samples, targets(self.heads[0], samples, batch.gt)
        return sampled.samples

    def losses_stored(self, outputs, anchor_targets):
        own["anchors"] = anchor_targets
        return rpn_losses(self, outputs, labelled)

    preprocess_normalise = preprocess.normalise
    sample, rpn_losses = faster_rcnn.FasterRCNN.sample, faster_rcnn.FasterRCNN.rpn_losses
    targets = box.BoxRoiHead.targets
    variables = import_original(weights, trainer.network.variable_shapes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "normalise", normalise)
        patch.setattr(faster_rcnn.FasterRCNN, "sample", sample_stored)
        patch.setattr(faster_rcnn.FasterRCNN, "rpn_losses", losses_stored)
        patch.setattr(box.BoxRoiHead, "targets", lambda *_: jnp.asarray(sampled.deltas))

        @jax.jit
        def losses(variables, batch, keys):
            return *trainer.losses(variables, batch, keys), dict(own)

        keys = jax.random.split(jax.random.key(0), 2)
        return jax.tree.map(np.asarray, losses(variables, batch, keys))


@pytest.mark.slow
def test_the_input_of_a_training_step(step, batch, trained, record_property):
    _, _, own = trained
    np.testing.assert_array_equal(batch.image_size, step["im_info"][:, :2])
    np.testing.assert_array_equal(batch.placement.scale, np.repeat(step["im_info"][:, 2:], 2, 1))
    np.testing.assert_array_equal(batch.gt.boxes[1, :2], step["gt_boxes_im1"])
    deviation = largest(own["input"][0], step["data"][0].transpose(1, 2, 0))
    record_property("grey_levels", deviation)
    assert deviation < 1e-4


def all_anchors(height, width):
    """Every level's anchors, (A, 4), in pixels of the network's input."""
    levels = []
    for stride in (4, 8, 16, 32, 64):
        cell = cell_anchors(stride=stride, size=8 * stride, aspect_ratios=(0.5, 1.0, 2.0))
        levels.append(grid_anchors(-(-height // stride), -(-width // stride), stride=stride, cell=cell))
    return np.concatenate(levels)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_anchors_drawn_in_a_training_step(step, trained, labelled, record_property, number):
    """All objects are taken, as there are fewer than may be; the background is drawn in the image, not its padding."""
    _, _, own = trained
    labels, theirs = own["anchors"].labels[number], labelled.labels[number]
    objects = theirs == 1
    np.testing.assert_array_equal(labels == 1, objects)
    assert (labels >= 0).sum() == 256
    corners = all_anchors(*step["data"].shape[2:])[labels >= 0]
    assert corners.min() >= 0
    assert (corners[:, [3, 2]] < step["im_info"][number, :2]).all()
    deviation = largest(own["anchors"].deltas[number][objects], labelled.deltas[number][objects])
    record_property("objects", int(objects.sum()))
    record_property("deltas", deviation)
    assert deviation < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_rois_drawn_in_a_training_step(trained, sampled, record_property, number):
    """As with the anchors; in the pixels that the box head is given."""
    _, _, own = trained
    (ours, deltas), theirs = (jax.tree.map(lambda x: x[number], x) for x in (own["sampled"], sampled))
    assert ours.valid.all()
    objects, wanted = ours.labels > 0, theirs.labels > 0
    found = np.column_stack([ours.labels, ours.input_rois])[objects]
    partner = pair_of_a_class(found, np.column_stack([theirs.labels, theirs.rois])[wanted], within=BOX)
    deviations = {
        "pixels": largest(found[:, 1:], theirs.rois[wanted][partner]),
        "deltas": largest(deltas[objects], theirs.deltas[wanted][partner]),
    }
    record_property("objects", int(wanted.sum()))
    for kind, deviation in deviations.items():
        record_property(kind, deviation)
    assert deviations["deltas"] < 1e-4


@pytest.mark.slow
def test_losses_of_a_training_step(step, trained, trainer, record_property):
    total, losses, _ = trained
    # The original logs the box loss with its weight.
    ours = {"total": total, "loss_bbox": trainer.heads[0].box_weight * losses["loss_bbox"]}
    ours |= {name: losses[name] for name in ("loss_cls", "loss_rpn_cls", "loss_rpn_bbox")}
    wanted = {"total": step["total_loss"]} | {name: step[f"loss/{name}"] for name in ("loss_bbox", "loss_cls")}
    for name in ("loss_rpn_cls", "loss_rpn_bbox"):
        wanted[name] = sum(np.float64(step[f"loss/{name}_fpn{level}"]) for level in LEVELS)
    assert ours.keys() == wanted.keys()
    deviations = {name: abs(float(ours[name]) / float(theirs) - 1) for name, theirs in wanted.items()}
    for name, deviation in deviations.items():
        record_property(name, deviation)
    assert max(deviations.values()) < LOSS, deviations
