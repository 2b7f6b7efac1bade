"""torchvision's Faster R-CNN, imported; tests/golden/make_torchvision.py wrote the numbers."""

import importlib.util
import pathlib
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import views
from views import at_scale

from diou_jax import boxes
from diou_jax.configs import base, torchvision
from diou_jax.data import coco_classes, packing
from diou_jax.data.buckets import Bucket
from diou_jax.data.loader import batches
from diou_jax.detection import anchors
from diou_jax.errors import UserError
from diou_jax.options import build
from diou_jax.options.initial_weights import weight_source
from diou_jax.prediction.detector import Detector
from diou_jax.weights.original import import_original, original_tensors
from diou_jax.weights.sources import read_source
from diou_jax.weights.torchvision import to_original

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_torchvision", GOLDEN / "make_torchvision.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found():
    with np.load(GOLDEN / "torchvision.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights(maker, found):
    shapes = (tuple(map(int, str(shape).split())) for shape in found["shapes"])
    return maker.weights(dict(zip(map(str, found["names"]), shapes, strict=True)))


@pytest.fixture(scope="module")
def weight_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fasterrcnn.pkl"
    path.write_bytes(pickle.dumps(weights))
    return path


@pytest.fixture(scope="module")
def detector(weight_file):
    config = torchvision.get_config()
    config.test.scale, config.test.max_size = 256, 448
    return Detector.from_file(weight_file, config)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_same_detections(detector, maker, found, number):
    result = detector(maker.images()[number])
    np.testing.assert_array_equal([detector.category_ids[c] for c in result.classes], found[f"{number}/labels"])
    np.testing.assert_allclose(result.scores, found[f"{number}/scores"], atol=2e-5)
    np.testing.assert_allclose(boxes.to_edges(result.boxes), found[f"{number}/boxes"], atol=1e-3)


@pytest.mark.slow
def test_the_same_masks(maker, record_property):
    """Of its Mask R-CNN: the cells of each detection's mask before they are pasted."""
    with np.load(GOLDEN / "torchvision_mask.npz") as file:
        theirs = dict(file)
    shapes = (tuple(map(int, str(shape).split())) for shape in theirs["shapes"])
    tensors, unused = to_original(maker.weights(dict(zip(map(str, theirs["names"]), shapes, strict=True))))
    assert not unused
    config = torchvision.get_config()
    config.model.mask_on = True
    detector = build.detector(config, 81)
    pixels = maker.images()[0]
    height, width = pixels.shape[:2]
    view = views.resized(pixels, target=height, max_size=width)
    example = packing.example(pixels, view, Bucket(height, width, height, width))
    batch = jax.tree.map(jnp.asarray, packing.pack([example], Bucket(height, width, height, width)))
    variables = import_original(tensors, detector.network.variable_shapes())
    ours = jax.tree.map(lambda x: np.asarray(x[0, :20]), jax.jit(detector.detect)(variables, batch))
    np.testing.assert_array_equal(np.array(coco_classes.IDS)[ours.classes], theirs["labels"])
    np.testing.assert_allclose(ours.scores, theirs["scores"], atol=2e-5)
    np.testing.assert_allclose(boxes.to_edges(ours.boxes), theirs["boxes"], atol=1e-3)
    deviation = np.abs(ours.masks - theirs["masks"][:, 0]).max()
    record_property("probability", float(deviation))
    assert deviation < 2e-5


@pytest.mark.parametrize("number", [0, 1])
def test_the_anchors_of_the_coarsest_level(maker, found, number):
    """The second image is 352 pixels high, no multiple of 64: its six rows are 58 pixels apart."""
    height, width = maker.images()[number].shape[:2]
    cell = anchors.torchvision_cell_anchors(size=512, aspect_ratios=(0.5, 1.0, 2.0))
    rows, columns = -(-height // 64), -(-width // 64)
    padded_size = jnp.array([[height, width]])
    ours = anchors.torchvision_grid_anchors(padded_size, rows, columns, stride=64, cell=cell)[0]
    theirs = found[f"{number}/anchors"][-len(ours) :]
    np.testing.assert_array_equal(boxes.to_edges(ours), theirs)


def test_older_names_and_what_is_not_used(weights, tmp_path):
    renamed = {
        name.replace("head.conv.0.0", "head.conv").replace(".0.weight", ".weight").replace(".0.bias", ".bias")
        if name.startswith(("rpn.", "backbone.fpn."))
        else name: value
        for name, value in weights.items()
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(weights))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(renamed | {"roi_heads.mask_head.x": np.ones(3)}))
    new, old = read_source(tmp_path / "a.pkl"), read_source(tmp_path / "b.pkl")
    assert new.num_classes == 81 and new.unused == () and old.unused == ("roi_heads.mask_head.x",)
    assert new.tensors.keys() == old.tensors.keys()
    for name, value in new.tensors.items():
        np.testing.assert_array_equal(old.tensors[name], value)


def test_the_mask_head_of_either_version(weights, tmp_path):
    """Its masks have a row for each of 91 categories, as the scores have; the transposed layer is as the original's."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    heads = {f"roi_heads.mask_head.{number}.0.weight": draw(256, 256, 3, 3) for number in range(4)}
    heads |= {f"roi_heads.mask_head.{number}.0.bias": draw(256) for number in range(4)}
    outputs = {
        "conv5_mask.weight": draw(256, 256, 2, 2),
        "conv5_mask.bias": draw(256),
        "mask_fcn_logits.weight": draw(91, 256, 1, 1),
        "mask_fcn_logits.bias": draw(91),
    }
    new = weights | heads | {f"roi_heads.mask_predictor.{name}": value for name, value in outputs.items()}
    old = {
        re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", name): new[name] for name in new
    }
    config = torchvision.get_config()
    config.model.mask_on = True
    shapes = {
        tensor.name: tensor.shape for tensor in original_tensors(build.network(config, 81).variable_shapes()).values()
    }
    for number, file in enumerate((new, old)):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps(file))
        source = weight_source(config, path)
        assert source.unused == ()
        assert {name: value.shape for name, value in source.tensors.items()} == shapes
        for layer in range(4):
            theirs = heads[f"roi_heads.mask_head.{layer}.0.weight"]
            np.testing.assert_array_equal(source.tensors[f"Mask_Head.conv_fcn.{2 * layer}.weight"], theirs)
        np.testing.assert_array_equal(source.tensors["Mask_Head.upconv.weight"], outputs["conv5_mask.weight"])
        rows = [max(number, 0) for number in coco_classes.IDS]  # 12 of 0 to 90 belong to no class of COCO
        np.testing.assert_array_equal(source.tensors["Mask_Outs.classify.bias"], outputs["mask_fcn_logits.bias"][rows])
        assert rows[12] == 13


def test_another_convention_is_refused_by_name(weight_file, maker):
    for option, words in (("pixel_means", "pixel_means="), ("resnets.stride_1x1", "stride_1x1=False")):
        config = torchvision.get_config()
        with config.unlocked():
            config.update_from_flattened_dict({option: base.get_config()[option] if "." not in option else True})
        with pytest.raises(UserError, match=words):
            weight_source(config, weight_file)
    config = torchvision.get_config()
    config.model.box_convention = "detectron"
    with pytest.raises(UserError, match=r"model\.box_convention=torchvision, not detectron"):
        weight_source(config, weight_file)
    config.model.box_convention = "pascal"
    with pytest.raises(UserError, match="must be one of detectron, torchvision"):
        base.check(config)


def test_edges_and_corner_pixels():
    corners = jnp.array([[10.0, 20.0, 29.0, 59.0]])  # 20 x 40 pixels, edges 10, 20, 30, 60
    np.testing.assert_allclose(boxes.to_input(corners, at_scale([2.0]), edges=True), [[20, 40, 59, 119]])
    np.testing.assert_allclose(boxes.to_input(corners, at_scale([2.0])), [[20, 40, 58, 118]])
    for edges in (False, True):
        there = boxes.to_input(corners, at_scale([1.7]), edges=edges)
        np.testing.assert_allclose(boxes.to_original(there, at_scale([1.7]), edges=edges), corners, rtol=1e-6)


@pytest.mark.slow
def test_a_train_step_under_torchvisions_convention_is_finite(tiny_config):
    """Anchors of each image's own and edges go through targets, sampling and losses."""
    config = tiny_config()
    config.model.box_convention = "torchvision"
    rule = build.rule(config)
    data = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(data.class_names), collect_scale=rule.schedule.collect_scale)
    batch = next(iter(batches(build.train_reader(config, data, rule.batch), 0, 1)))
    variables = detector.network.init_variables(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(batch.image))
    loss, metrics = jax.jit(detector.losses)(variables, batch, keys)
    assert np.isfinite(loss) and all(np.isfinite(value).all() for value in metrics.values())
    assert metrics["loss_rpn_bbox"] > 0
