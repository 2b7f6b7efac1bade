"""Augmented testing with a small network of random weights: properties that hold for any weights."""

import collections

import cv2
import jax
import numpy as np
import pytest
from test_reader import make_dataset

from diou_jax.data.loader import batches
from diou_jax.data.passes import Pass
from diou_jax.detection.augmented import MASK_HEURISTICS
from diou_jax.detection.staged import StagedDetection
from diou_jax.devices import replicate, to_devices
from diou_jax.evaluation import evaluate
from diou_jax.options import build
from diou_jax.prediction.detector import Detector
from diou_jax.programs import Programs, compile_ahead
from diou_jax.reporting.run_log import RunLog

SIZES = ((48, 64), (36, 48), (48, 60))
NAMES = ("__background__", "a", "b", "c")


@pytest.fixture(scope="module")
def make_config(tiny_config):
    """``make_config(boxes, masks)``: a network of boxes and masks with these options of augmented testing, if any."""

    def make(boxes=None, masks=None):
        config = tiny_config()
        config.resnets.blocks = (1, 1, 1, 1)
        config.model.mask_on = True
        config.mrcnn.update(dim_reduced=8, num_convs=1, resolution=8, roi_xform_resolution=4)
        config.test.update(score_thresh=0.02, scale=48, max_size=64)
        for group, options in (("bbox_aug", boxes), ("mask_aug", masks)):
            if options is not None:
                config.test[group].update(enabled=True, **options)
        return config

    return make


@pytest.fixture(scope="module")
def variables(make_config):
    variables = build.network(make_config(), len(NAMES)).init_variables(jax.random.key(0))
    # Random heads score everything alike; louder ones give detections worth comparing.
    variables["params"]["box_head"]["logits"]["kernel"] *= 40.0
    variables["params"]["rpn"]["logits"]["kernel"] *= 40.0
    variables["params"]["mask_head"]["logits"]["kernel"] *= 20.0
    return variables


@pytest.fixture(scope="module")
def images():
    source = make_dataset(sizes=SIZES).source
    return [source.pixels(index) for index in range(len(SIZES))]


# Mirrored and usual are for both, the scale is for boxes alone, the aspect ratio for masks alone.
BOXES = {"h_flip": True, "scales": (32,), "max_size": 64}
MASKS = {"h_flip": True, "aspect_ratios": (0.75,)}


@pytest.fixture(scope="module")
def augmented(make_config, variables):
    """A detector whose boxes and masks come from three passes each."""
    return Detector(make_config(BOXES, MASKS), variables, NAMES)


@pytest.fixture(scope="module")
def usual(make_config, variables):
    return Detector(make_config(), variables, NAMES)


@pytest.fixture(scope="module")
def with_passes(make_config, variables, augmented):
    """``with_passes(boxes, masks)``: a detector with these options, which shares the programs of a pass."""

    def make(boxes, masks):
        detector = Detector(make_config(boxes, masks), variables, NAMES)
        shared = ("backbone", "candidates", "masks")
        detector._run._compiled.update({title: augmented._run._compiled[title] for title in shared})
        return detector

    return make


def found_in(detector, image):
    """The valid rows of the only image of a batch."""
    (batch,) = (group.batch for group in detector._batcher.groups([(0, image)]))
    found = jax.tree.map(np.asarray, detector._run(detector._variables, batch, None))
    return jax.tree.map(lambda x: x[0][found.valid[0]], found)


def assert_same(ours, theirs):
    """Equal detections, in any order among nearly equal scores."""
    assert len(ours.scores) == len(theirs.scores) > 0
    distance = np.abs(ours.boxes[:, None] - theirs.boxes).max(-1) + 100 * (ours.classes[:, None] != theirs.classes)
    partner = distance.argmin(1)
    assert sorted(partner) == list(range(len(partner)))
    np.testing.assert_allclose(ours.boxes, theirs.boxes[partner], atol=2e-3)
    np.testing.assert_allclose(ours.scores, theirs.scores[partner], atol=1e-5)
    np.testing.assert_allclose(ours.masks, theirs.masks[partner], atol=1e-4)


@pytest.mark.slow
def test_the_usual_pass_alone_finds_what_a_usual_test_finds(with_passes, usual, images):
    alone = with_passes({}, {})
    assert isinstance(alone._run, StagedDetection) and not isinstance(usual._run, StagedDetection)
    ours, theirs = found_in(alone, images[0]), found_in(usual, images[0])
    assert len(theirs.scores) > 0
    for name in ("boxes", "scores", "classes", "masks"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_mirrored_image_has_mirrored_detections(with_passes, usual, images):
    """If every pass is also made over the mirrored image; a random network alone finds others there."""
    flips = {"h_flip": True, "scales": (32,), "max_size": 64, "scale_h_flip": True}
    image = images[0]
    mirrored = np.ascontiguousarray(image[:, ::-1])
    width = image.shape[1]

    def back(found):
        x1, y1, x2, y2 = found.boxes.T
        return found.replace(boxes=np.stack([width - 1 - x2, y1, width - 1 - x1, y2], 1), masks=found.masks[..., ::-1])

    detector = with_passes(flips, flips)
    assert_same(found_in(detector, image), back(found_in(detector, mirrored)))
    with pytest.raises(AssertionError):
        assert_same(found_in(usual, image), back(found_in(usual, mirrored)))


def test_boxes_of_several_passes_are_found(usual, augmented, images):
    ours, theirs = found_in(augmented, images[0]), found_in(usual, images[0])
    distance = np.abs(ours.boxes[:, None] - theirs.boxes).max(-1).min(1)
    assert (distance > 1).any() and (distance < 1e-3).any()


@pytest.mark.slow
def test_boxes_of_another_aspect_ratio_are_in_pixels_of_the_file(with_passes, usual, images):
    """The pass sees an image twice as wide, as one made by hand."""
    image = images[0]
    detector = with_passes({"aspect_ratios": (2.0,)}, None)
    (batch,) = (group.batch for group in detector._batcher.groups([(0, image)]))
    run, variables = detector._run._compiled, detector._variables
    rows = [run["candidates"](variables, (run["backbone"](variables, view), view)) for view in batch.views]
    wide = cv2.resize(image, (2 * image.shape[1], image.shape[0]))
    (plain,) = (group.batch for group in usual._batcher.groups([(0, wide)]))
    plain = plain.replace(aspect_ratio=np.ones(1, np.float32))
    theirs = run["candidates"](variables, (run["backbone"](variables, plain), plain))
    valid = np.asarray(theirs.valid[0, 0])
    assert batch.views[1].aspect_ratio[0] == 2 and valid.any()
    np.testing.assert_array_equal(rows[1].valid, theirs.valid)
    boxes, wanted = (np.asarray(one.boxes)[0][:, valid] for one in (rows[1], theirs))
    np.testing.assert_allclose(boxes * [2, 1, 2, 1], wanted, atol=1e-3)
    np.testing.assert_allclose(rows[1].scores[0][:, valid], theirs.scores[0][:, valid], atol=1e-6)


def test_an_image_goes_through_each_program_once(augmented, images, monkeypatch):
    calls = collections.Counter()
    run = Programs.__call__

    def count(self, tree, batch):
        calls[self.title] += 1
        return run(self, tree, batch)

    monkeypatch.setattr(Programs, "__call__", count)
    (batch,) = (group.batch for group in augmented._batcher.groups([(0, images[0])]))
    found = augmented._run(augmented._variables, batch)
    assert len(batch.views) == 4
    assert calls == {"backbone": 4, "candidates": 3, "suppression": 1, "masks": 3, "combination of masks": 1}
    assert found.masks.shape == (1, 10, 8, 8)


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_others_of_its_batch(augmented, images):
    together = augmented(images)
    assert sum(map(len, together)) > 0
    for image, result in zip(images, together, strict=True):
        alone = augmented(image)
        np.testing.assert_array_equal(alone.classes, result.classes)
        np.testing.assert_allclose(alone.boxes, result.boxes, atol=1e-4)
        np.testing.assert_allclose(alone.scores, result.scores, atol=1e-6)


def test_thresholds_of_a_call_hold(augmented, images):
    everything = augmented(images[0], score_threshold=0.0, nms=1.0)
    high = float(np.median(everything.scores))
    assert (augmented(images[0], score_threshold=high).scores > high).all()
    assert len(augmented(images[0], nms=0.05)) <= len(augmented(images[0], nms=0.9))


@pytest.mark.slow
def test_two_devices_find_what_one_finds(make_config, variables, images, augmented):
    """Programs that were compiled ahead are those that are called."""
    config = make_config(BOXES, MASKS)
    config.test.ims_per_batch = 1
    assert jax.local_device_count() == 2
    dataset = make_dataset(sizes=SIZES)
    detector = build.detector(config, len(NAMES))
    reader = build.eval_reader(config, dataset)
    detect = evaluate.detect_function(detector, config)
    everywhere = replicate(variables)
    wanted = []
    for batch in to_devices(reader.blanks(0, reader.steps), ahead=0):
        assert not detect.has(batch)
        wanted += detect.programs(everywhere, batch)
    compile_ahead(wanted)
    for program, _, divided in wanted:
        assert program.has(divided)
        program._function = None  # a call of another program would be an error
    found = evaluate.detect_all(detect, everywhere, batches(reader, 0, reader.steps))
    assert sorted(found) == [0, 1, 2]
    for index, image in enumerate(images):
        one = augmented(image)
        np.testing.assert_array_equal(found[index].classes, one.classes)
        np.testing.assert_allclose(found[index].boxes, one.boxes, atol=1e-4)
        np.testing.assert_allclose(found[index].scores, one.scores, atol=1e-6)
        assert len(found[index].rles) == len(one)


@pytest.mark.parametrize("name", MASK_HEURISTICS)
def test_masks_are_combined_as_in_the_original(name):
    """In float64, also where a probability is 0 or 1."""
    masks = np.random.default_rng(0).random((3, 2, 5, 4, 4)).astype(np.float32)
    masks[:, 0, 0] = 0.0
    masks[0, 1, 1], masks[1:, 1, 1] = 1.0, 0.25
    y = masks.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits = -np.log((1 - y) / np.maximum(y, 1e-20))
    wanted = {"SOFT_AVG": y.mean(0), "SOFT_MAX": y.max(0), "LOGIT_AVG": 1 / (1 + np.exp(-logits.mean(0)))}[name]
    ours = np.asarray(MASK_HEURISTICS[name](masks))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


@pytest.mark.slow
def test_detections_are_the_same_in_a_larger_bucket(make_config, variables, images):
    """The shapes are those of the usual pass, which is mirrored here, too."""
    config = make_config({"h_flip": True}, {})
    small = Detector(config, variables, NAMES)
    config.data.buckets = ((96, 128),)
    large = Detector(config, variables, NAMES)
    assert_same(found_in(large, images[0]), found_in(small, images[0]))


def test_equal_passes_vote_as_often_as_they_are_asked_for(make_config):
    config = make_config({"scales": (48, 48), "max_size": 64})
    passes = build.passes(config)
    assert passes.distinct == (Pass(48, 64),) and passes.boxes == (0, 0, 0)


@pytest.mark.slow
def test_a_whole_evaluation(make_config, tmp_path):
    """Boxes and masks are scored; the programs compiled for the first evaluation serve the next."""
    config = make_config(BOXES, MASKS)
    names = build.dataset(config, config.test.datasets).class_names
    variables = build.network(config, len(names)).init_variables(jax.random.key(0))
    evaluator = evaluate.Evaluator(config, str(tmp_path), names)
    assert evaluator.programs(variables)
    with RunLog(tmp_path) as log:
        (row,) = evaluator(variables, 1, log)
    assert 0 <= row["eval/AP"] <= 1
    assert (tmp_path / f"bbox_{row['dataset']}_results.json").exists()
    assert not evaluator.programs(variables)
