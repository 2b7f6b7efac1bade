"""torchvision's Faster and Mask R-CNN, imported; tests/golden/make_torchvision.py wrote the numbers."""

import importlib.util
import pathlib
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import views
from flax import traverse_util
from views import at_scale

from diou_jax import boxes
from diou_jax.configs import base, own, torchvision
from diou_jax.data import coco_classes, packing
from diou_jax.data.buckets import Bucket
from diou_jax.data.loader import batches
from diou_jax.detection import anchors
from diou_jax.errors import UserError
from diou_jax.models.network import Network
from diou_jax.models.norms import STATISTICS, UseBatchNorm
from diou_jax.options import build
from diou_jax.options.choices import Devices, Statistics, resolve
from diou_jax.options.initial_weights import initial_variables, weight_source
from diou_jax.options.open_options import start_of
from diou_jax.prediction.detector import Detector
from diou_jax.weights import files
from diou_jax.weights.imagenet import MEANS
from diou_jax.weights.original import export_original, import_original, original_tensors
from diou_jax.weights.sources import read_source
from diou_jax.weights.torchvision import to_original

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_torchvision", GOLDEN / "make_torchvision.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(name):
    """The numbers in a file that `maker` wrote."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def weights_of(maker, content):
    """The weights that the model behind a file's numbers had."""
    shapes = (tuple(map(int, str(shape).split())) for shape in content["shapes"])
    return maker.weights(dict(zip(map(str, content["names"]), shapes, strict=True)))


@pytest.fixture(scope="module")
def found():
    return golden("torchvision")


@pytest.fixture(scope="module")
def found_v2():
    return golden("torchvision_v2")


@pytest.fixture(scope="module")
def weights(maker, found):
    return weights_of(maker, found)


@pytest.fixture(scope="module")
def weights_v2(maker, found_v2):
    return weights_of(maker, found_v2)


@pytest.fixture(scope="module")
def weight_file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fasterrcnn.pkl"
    path.write_bytes(pickle.dumps(weights))
    return path


@pytest.fixture(scope="module")
def weight_file_v2(weights_v2, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fasterrcnn_v2.pkl"
    path.write_bytes(pickle.dumps(weights_v2))
    return path


def small(config):
    """The config with a scale at which the pictures keep their size: none is resampled."""
    config.test.scale, config.test.max_size = 256, 448
    return config


@pytest.fixture(scope="module")
def detector(weight_file):
    return Detector.from_file(weight_file, small(torchvision.get_config()))


@pytest.fixture(scope="module")
def detector_v2(weight_file_v2):
    return Detector.from_file(weight_file_v2, small(torchvision.get_config("r50_bn")))


def batch_of(pixels):
    """A batch of one picture, not resized."""
    height, width = pixels.shape[:2]
    bucket = Bucket(height, width, height, width)
    view = views.resized(pixels, target=min(height, width), max_size=max(height, width))
    return jax.tree.map(jnp.asarray, packing.pack([packing.example(pixels, view, bucket)], bucket))


def compare_detections(detector, picture, theirs, number, record_property):
    result = detector(picture)
    np.testing.assert_array_equal([detector.category_ids[c] for c in result.classes], theirs[f"{number}/labels"])
    score = np.abs(result.scores - theirs[f"{number}/scores"]).max()
    pixels = np.abs(boxes.to_edges(result.boxes) - theirs[f"{number}/boxes"]).max()
    record_property("score", float(score))
    record_property("pixels", float(pixels))
    assert score < 2e-5 and pixels < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_same_detections(detector, maker, found, number, record_property):
    compare_detections(detector, maker.images()[number], found, number, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_same_detections_of_the_second_version(detector_v2, maker, found_v2, number, record_property):
    compare_detections(detector_v2, maker.images()[number], found_v2, number, record_property)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "body"), [("torchvision_mask", "r50"), ("torchvision_v2_mask", "r50_bn")])
def test_the_same_masks(maker, name, body, record_property):
    """Of its Mask R-CNN: the cells of each detection's mask before they are pasted."""
    theirs = golden(name)
    tensors, unused = to_original(weights_of(maker, theirs))
    assert not unused
    config = torchvision.get_config(body)
    config.model.mask_on = True
    detector = build.detector(config, 81)
    variables = import_original(tensors, detector.network.variable_shapes())
    found = jax.jit(detector.detect)(variables, batch_of(maker.images()[0]))
    ours = jax.tree.map(lambda x: np.asarray(x[0, :20]), found)
    np.testing.assert_array_equal(np.array(coco_classes.IDS)[ours.classes], theirs["labels"])
    np.testing.assert_allclose(ours.scores, theirs["scores"], atol=2e-5)
    np.testing.assert_allclose(boxes.to_edges(ours.boxes), theirs["boxes"], atol=1e-3)
    deviation = np.abs(ours.masks - theirs["masks"][:, 0]).max()
    record_property("probability", float(deviation))
    assert deviation < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("name", "body"), [("torchvision", "r50"), ("torchvision_v2", "r50_bn")])
def test_the_same_proposals(maker, name, body, number, record_property):
    """The best 200. Where boxes lie beyond the image's right or lower edge, both versions leave them out."""
    theirs = golden(name)
    detector = build.detector(torchvision.get_config(body), 81)
    tensors, _ = to_original(weights_of(maker, theirs))
    variables = import_original(tensors, detector.network.variable_shapes())
    run = jax.jit(lambda v, batch: detector.proposals(v, detector.test_pyramid(v, batch), batch))
    found = run(variables, batch_of(maker.images()[number]))
    assert found.valid.all()
    deviation = np.abs(boxes.to_edges(found.boxes[0, :200]) - theirs[f"{number}/proposals"]).max()
    record_property("pixels", float(deviation))
    assert deviation < 1e-3


def zeros(like):
    return jnp.zeros(like.shape, like.dtype)


def deviation(ours, theirs):
    """The largest deviation, as a share of the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def network_of_v2(weights):
    """The network of the second version, whose batch norm needs no device axis, and its variables."""
    network = build.network(torchvision.get_config("r50_bn"), 81)
    variables = import_original(to_original(weights)[0], network.variable_shapes())
    norm = UseBatchNorm()
    return network.clone(
        backbone=network.backbone.clone(norm=norm, freeze_at=0), neck=network.neck.clone(norm=norm)
    ), variables


PYRAMID = {8: "p_1", 16: "p_2", 32: "p_3", 64: "p_pool"}  # stored levels by stride


@pytest.mark.slow
def test_pyramid_and_rpn_of_the_second_version(maker, weights_v2, found_v2, record_property):
    """With running statistics, as in tests; of both pictures, by themselves."""
    network, variables = network_of_v2(weights_v2)

    def run(variables, images):
        pyramid = network.apply(variables, images, method="pyramid")
        return pyramid, network.apply(variables, pyramid, method="propose")

    for number, picture in enumerate(maker.images()):
        pyramid, (logits, deltas) = jax.jit(run)(variables, picture[None] - np.float32(MEANS))
        found = {f"pyramid {stride}": (pyramid[stride][0, :, :, :4], name) for stride, name in PYRAMID.items()}
        for level, stride in enumerate((16, 32, 64), start=2):
            height, width = pyramid[stride].shape[1:3]
            found[f"logits {stride}"] = logits[level].reshape(height, width, 3), f"logits_{level}"
            found[f"deltas {stride}"] = deltas[level].reshape(height, width, 12), f"deltas_{level}"
        for what, (ours, name) in found.items():
            share = deviation(np.asarray(ours).transpose(2, 0, 1), found_v2[f"{number}/{name}"])
            record_property(f"{number} {what}", share)
            assert share < 2e-5, what


@pytest.mark.slow
def test_training_moves_the_statistics_as_torchs(maker, weights_v2, found_v2, record_property):
    """A forward pass of backbone and pyramid over two images: the batch's statistics normalise and are averaged.

    The numbers are float64's. Batch norm enlarges rounding from layer to layer; maps may be twice as far away as those
    of torch's own float32.
    """
    network, variables = network_of_v2(weights_v2)
    images = np.stack([picture[:256, :256] for picture in maker.images()]) - np.float32(MEANS)
    run = jax.jit(lambda v, x: network.apply(v, x, method="pyramid", mutable=[STATISTICS]))
    pyramid, changed = run(variables, images)
    maps = {
        name: deviation(np.asarray(pyramid[stride][..., :4]).transpose(0, 3, 1, 2), found_v2[f"training/{name}"])
        for stride, name in PYRAMID.items()
    }
    tensors = original_tensors(variables)
    ours = {
        tensors[path].name: np.asarray(value)[::16]
        for path, value in traverse_util.flatten_dict(changed, sep="/").items()
        if path.split("/")[1] in ("backbone", "neck")
    }
    names = {name.removeprefix("training/") for name in found_v2 if name.startswith("training/backbone.")}
    assert len(names) == 2 * (53 + 8) == len(ours)
    theirs, _ = to_original(weights_v2 | {name: found_v2[f"training/{name}"] for name in names})
    start, _ = to_original(weights_v2)
    statistics = {name: deviation(value, theirs[name]) for name, value in ours.items()}
    assert min(deviation(value, start[name][::16]) for name, value in ours.items()) > 0.01  # all have moved
    of_maps, of_statistics = max(maps.values()), max(statistics.values())
    record_property("maps", of_maps)
    record_property("statistics", of_statistics)
    assert of_statistics < 2e-5
    assert of_maps < 2 * found_v2["training/float32"][0]


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


@pytest.mark.parametrize(("classes", "kept"), [(91, 81), (90, 90), (364, 364)])
def test_rows_are_coco_categories_where_the_scores_have_91_and_the_report_says_so(tmp_path, classes, kept):
    """364 classes have as many scores as 91 have deltas of boxes."""
    predictor = {
        "cls_score.weight": np.arange(classes * 2.0).reshape(classes, 2),
        "cls_score.bias": np.arange(classes),
        "bbox_pred.weight": np.arange(classes * 8.0).reshape(4 * classes, 2),
        "bbox_pred.bias": np.arange(4 * classes),
    }
    body = {"backbone.body.conv1.weight": np.zeros((64, 3, 7, 7))}
    named = {f"roi_heads.box_predictor.{name}": value for name, value in predictor.items()}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({k: np.float32(v) for k, v in (body | named).items()}))
    source = read_source(tmp_path / "x.pkl")
    rows = [max(number, 0) for number in coco_classes.IDS] if kept == 81 else range(classes)
    for name, value in predictor.items():
        wanted = value.reshape(classes, -1)[np.array(rows)].reshape(-1, *value.shape[1:])
        np.testing.assert_array_equal(source.tensors[f"Box_Outs.{name}"], wanted)
    assert source.num_classes == kept
    assert source.notes == (("91 rows of its heads are read as COCO's category ids",) if kept == 81 else ())


def numbered(content):
    """A state dict with the names and shapes of a model, counters included; every tensor is filled with its number."""
    shapes = [tuple(map(int, str(shape).split())) for shape in content["shapes"]]
    return {
        str(name): np.broadcast_to(np.float32(number), shape)
        for number, (name, shape) in enumerate(zip(content["names"], shapes, strict=True), start=1)
    }


@pytest.fixture
def as_file(monkeypatch):
    """Lets a state dict be read under any path, without 170 MB on the disk."""

    def put(tensors):
        monkeypatch.setattr(files, "read", lambda path: files.WeightFile(tensors))
        return "w.pth"

    return put


def test_every_tensor_of_the_second_version_has_its_place(as_file, found_v2):
    config, given = torchvision.get_config("r50_bn"), numbered(found_v2)
    source = weight_source(config, as_file(given))
    wanted = {t.name: t.shape for t in original_tensors(build.network(config, 81).variable_shapes()).values()}
    assert {name: value.shape for name, value in source.tensors.items()} == wanted
    assert len(source.unused) == 53 + 8 + 4 and all(name.endswith("num_batches_tracked") for name in source.unused)
    for ours, theirs in {
        "Conv_Body.conv_body.res1.bn1.running_mean": "backbone.body.bn1.running_mean",
        "Conv_Body.conv_body.res2.0.downsample.1.running_var": "backbone.body.layer1.0.downsample.1.running_var",
        "Conv_Body.conv_body.res5.2.bn3.weight": "backbone.body.layer4.2.bn3.weight",
        "Conv_Body.topdown_lateral_modules.2.conv_lateral.1.bias": "backbone.fpn.inner_blocks.0.1.bias",
        "Conv_Body.posthoc_modules.0.0.weight": "backbone.fpn.layer_blocks.3.0.weight",
        "Conv_Body.conv_top.1.running_var": "backbone.fpn.inner_blocks.3.1.running_var",
        "RPN.FPN_RPN_conv.weight": "rpn.head.conv.0.0.weight",
        "RPN.FPN_RPN_conv2.weight": "rpn.head.conv.1.0.weight",
        "Box_Head.convs.9.weight": "roi_heads.box_head.3.0.weight",
        "Box_Head.convs.10.running_mean": "roi_heads.box_head.3.1.running_mean",
        "Box_Head.fc.weight": "roi_heads.box_head.5.weight",
    }.items():
        assert (source.tensors[ours] == given[theirs].flat[0]).all(), ours


V1 = "resnets.use_bn=False, fpn.use_bn=False, fast_rcnn.roi_box_head=roi_2mlp_head, fpn.rpn_num_convs=1"
V2 = "resnets.use_bn=True, fpn.use_bn=True, fast_rcnn.roi_box_head=roi_Xconv1fc_bn_head, fpn.rpn_num_convs=2"


@pytest.mark.parametrize(
    ("name", "body", "mend"),
    [
        ("torchvision", "r50_bn", f"{V1}. --config configs/torchvision.py has these"),
        ("torchvision_v2", "r50", f"{V2}. --config configs/torchvision.py:r50_bn has these"),
    ],
)
def test_a_config_of_the_other_version_is_refused_with_the_mend(as_file, name, body, mend):
    with pytest.raises(UserError, match=re.escape(f"The file is of a network with {mend}")):
        Detector.from_file(as_file(numbered(golden(name))), torchvision.get_config(body))


@pytest.mark.slow
def test_own_data_get_the_layers_of_the_second_version(as_file, found_v2, tmp_path):
    """Options that `configs/own.py` leaves open follow the file."""
    config = own.get_config()
    (tmp_path / "w.pth").touch()
    config.init.checkpoint = str(tmp_path / "w.pth")
    as_file(numbered(found_v2))
    data = Statistics(images=205, short=480, aspect=1.33, both_ways=False, small=0.08, large=0.5, most=28)
    resolved, _ = resolve(config, data, start=start_of(config), devices=Devices(1, "gpu"))
    base.check(resolved)
    shapes, wanted = (
        build.network(config, 81).variable_shapes() for config in (resolved, torchvision.get_config("r50_bn"))
    )
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, wanted)
    assert resolved.model.box_convention == "torchvision" and not resolved.resnets.stride_1x1


def test_a_run_starts_from_the_second_version(as_file, found_v2, tiny_config, tmp_path, monkeypatch):
    """Of a narrow network; other classes: all but the outputs is the file's, running statistics included."""
    monkeypatch.setattr(Network, "init_variables", lambda self, key: jax.tree.map(zeros, self.variable_shapes()))
    config = tiny_config()
    config.resnets.use_bn = config.fpn.use_bn = True
    config.fpn.rpn_num_convs, config.fast_rcnn.conv_head_dim = 2, 4
    config.fast_rcnn.roi_box_head = "roi_Xconv1fc_bn_head"
    config.resnets.stride_1x1, config.model.box_convention, config.pixel_means = False, "torchvision", MEANS
    tensors, _ = to_original(numbered(found_v2))
    names_there = list(map(str, found_v2["names"]))
    shapes = {t.name: t.shape for t in original_tensors(build.network(config, 91).variable_shapes()).values()}
    rng, given = np.random.default_rng(0), {}
    for name, shape in shapes.items():
        number = 1 if name.endswith("res1.conv1.weight") else round(tensors[name].flat[0])
        given[names_there[number - 1]] = rng.uniform(0.5, 2, shape).astype(np.float32)
    as_file(given)
    (tmp_path / "w.pth").touch()
    config.init.checkpoint = str(tmp_path / "w.pth")
    names = (coco_classes.NAMES[0], "dog", "unknown")
    variables, lines = initial_variables(config, build.network(config, 3), names)
    assert "classes taken over, by name: dog" in lines
    exported, wanted = export_original(variables), weight_source(config, tmp_path / "w.pth").tensors
    assert sum(name.endswith("running_var") for name in exported) > 20
    for name, value in exported.items():
        if not name.startswith("Box_Outs"):
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)
    rows = wanted["Box_Outs.cls_score.bias"][[0, coco_classes.NAMES.index("dog")]]
    np.testing.assert_array_equal(exported["Box_Outs.cls_score.bias"][:2], rows)


def test_another_convention_is_refused_by_name(weight_file):
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


def test_clipped_by_their_edges_boxes_beyond_the_image_have_no_area():
    """In an image of 10 x 8 pixels: inside, over two edges, beyond the right one, above the upper one."""
    edges = jnp.array([[1.5, 2, 3, 4], [-3, -2, 12, 8.5], [10.5, 2, 12, 4], [2, -5, 4, -1]])
    clipped = boxes.clip(edges - jnp.array([0, 0, 1, 1.0]), 8, 10, edges=True)
    wanted = [[1.5, 2, 3, 4], [0, 0, 10, 8], [10, 2, 10, 4], [2, 0, 4, 0]]
    np.testing.assert_array_equal(boxes.to_edges(clipped), wanted)
    np.testing.assert_array_equal(boxes.area(clipped) > 0, [True, True, False, False])


def test_another_epsilon_is_refused_by_name(as_file, found_v2):
    config = torchvision.get_config("r50_bn")
    config.batch_norm.epsilon = 1e-3
    with pytest.raises(UserError, match=r"batch_norm\.epsilon=1e-05, not 0\.001: configs/torchvision\.py:r50_bn has"):
        weight_source(config, as_file(numbered(found_v2)))


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
