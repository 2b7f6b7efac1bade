"""Exported detectors: the file gives the detections of `Detector`, without this package."""

import functools
import io
import json
import operator
import re
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from conftest import ROOT

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.command.export_detector import Request, export_detector, request
from diou_jax.data.buckets import Bucket
from diou_jax.data.packing import example
from diou_jax.data.passes import Pass
from diou_jax.errors import UserError
from diou_jax.export import container, saved_model
from diou_jax.export.placing import batch_of_one_size, largest_input, place
from diou_jax.export.program import ImageRules, export_program, to_arrays
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.prediction.detector import Detector

NAMES, IDS = ("background", "a", "b"), (-1, 3, 7)
FLAGS = {
    "image_size": ["48x64"],
    "batch": 1,
    "rgb": False,
    "any_size": False,
    "platforms": ["cpu"],
    "gpu_kernels": False,
    "format": "jax",
}


def blocks():
    """The blocks of Python of docs/export.md: load, call, paste."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def config(tiny_mask_config):
    config = tiny_mask_config()
    config.test.score_thresh = 0.02
    return config


@pytest.fixture(scope="module")
def variables(config):
    """Random weights that find something."""
    draw, shapes = np.random.default_rng(0), build.network(config, len(NAMES)).variable_shapes()

    def fill(path, x):
        name, layer = path[-1].key, path[-2].key
        if name != "kernel":
            return np.full(x.shape, 0.5 if name == "scale" else 0, np.float32)
        fan_in = x.size / x.shape[-1 if len(x.shape) == 2 else 0]
        deviation = {"conv": 0.01, "deltas": 0.001, "logits": 0.4}.get(layer, (3 * fan_in) ** -0.5)
        return draw.normal(0, deviation, x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.fixture(scope="module")
def export(config, variables, tmp_path_factory):
    """``export(sizes, **changes)`` writes a file as ``--mode export`` does, and returns its path."""

    def run(*sizes, platforms=("cpu",), gpu_kernels=False, dtype="float32", **changes):
        own = config.copy_and_resolve_references()
        own.dtype = dtype
        detector = build.detector(own, len(NAMES))
        weights = to_arrays(detector.network.folded(variables))
        rules = ImageRules(build.usual_pass(own), own.fpn.coarsest_stride, **changes)
        programs = {
            size: export_program(detector, rules, size, weights=weights, platforms=platforms, gpu_kernels=gpu_kernels)
            for size in sizes
        }
        path = tmp_path_factory.mktemp("export") / "detector.zip"
        about = container.describe(programs, rules, class_names=NAMES, category_ids=IDS)
        container.write(path, programs, weights, metadata=about)
        return path

    return run


def load(path, monkeypatch):
    """The names that the loader of the documentation defines."""
    monkeypatch.chdir(path.parent)
    names = {}
    exec(blocks()[0], names)
    return names


def photos(*sizes):
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_equal(found, row, result, *, boxes=1e-3, scores=1e-5):
    """A row of an exported program's detections is a result of `Detector`."""
    valid = found["valid"][row]
    assert valid.sum() == len(result) > 0
    np.testing.assert_array_equal(found["classes"][row][valid], result.classes)
    np.testing.assert_allclose(found["scores"][row][valid], result.scores, rtol=0, atol=scores)
    np.testing.assert_allclose(found["boxes"][row][valid], result.boxes, rtol=0, atol=boxes)
    assert not any(x[row][~valid].any() for x in found.values())


@pytest.mark.slow
def test_the_documented_loader_finds_what_the_detector_finds(config, variables, export, monkeypatch):
    names = load(export((64, 80), any_size=True, batch=3), monkeypatch)
    assert names["metadata"]["class_names"] == list(NAMES) and names["metadata"]["takes_sizes"]
    images = photos((64, 80), (40, 70))
    canvas = np.full((3, 64, 80, 3), 255, np.uint8)
    for row, image in zip(canvas, images):
        row[: image.shape[0], : image.shape[1]] = image
    sizes = np.array([*(image.shape[:2] for image in images), (0, 0)], np.int32)
    found = jax.device_get(names["programs"][64, 80](names["weights"], canvas, sizes))
    wanted = Detector(config, variables, NAMES)(images)
    exec(blocks()[2], names)
    for row, (image, result) in enumerate(zip(images, wanted)):
        assert_equal(found, row, result)
        pasted = [
            names["paste"](mask, box, image.shape[:2]) for mask, box in zip(found["masks"][row], found["boxes"][row])
        ]
        # A pixel whose probability is the threshold may lie on either side.
        assert (np.array(pasted)[: len(result)] != result.masks).mean() < 1e-4
    assert not found["valid"][2].any()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"rgb": True, "batch": 2}, {"dtype": "bfloat16"}])
def test_images_of_one_size(config, variables, export, monkeypatch, changes):
    names = load(export((48, 64), (64, 48), **changes), monkeypatch)
    own = config.copy_and_resolve_references()
    own.dtype = changes.get("dtype", "float32")
    detector = Detector(own, variables, NAMES)
    for size in ((48, 64), (64, 48)):
        images = np.stack(photos(*[size] * changes.get("batch", 1)))
        wanted = detector(list(images))
        given = images[..., ::-1] if changes.get("rgb") else images
        found = jax.device_get(names["programs"][size](names["weights"], given))
        for row, result in enumerate(wanted):
            assert_equal(found, row, result)


@pytest.mark.slow
def test_the_loader_needs_neither_this_package_nor_its_dependencies(export):
    path = export((128, 128))
    blocked = "import sys\nfor name in ('diou_jax', 'flax', 'optax', 'orbax', 'cv2'):\n    sys.modules[name] = None\n"
    program = blocked + blocks()[0] + blocks()[1].replace("if number > 0:", "if True:")
    run = subprocess.run([sys.executable, "-c", program], cwd=path.parent, capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 10


@pytest.mark.slow
def test_a_saved_model_finds_the_same(export, monkeypatch):
    tf = pytest.importorskip("tensorflow")
    size = (48, 64)
    path = export(size, any_size=True)
    names = load(path, monkeypatch)
    weights = jax.device_get(names["weights"])
    images, sizes = np.stack(photos(size)), np.array([(40, 60)], np.int32)
    wanted = jax.device_get(names["programs"][size](weights, images, sizes))
    with zipfile.ZipFile(path) as file:
        programs = {size: jax.export.deserialize(bytearray(file.read("programs/48x64.bin")))}
    folder = path.with_name("saved_model")
    saved_model.write(folder, programs, weights, metadata=names["metadata"])
    assert json.loads((folder / "metadata.json").read_text()) == names["metadata"]
    run = tf.saved_model.load(str(folder)).signatures["detect_48x64"]
    found = run(images=tf.constant(images), sizes=tf.constant(sizes))
    assert found.keys() == wanted.keys() and wanted["valid"].any()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), array, rtol=0, atol=1e-3 if name == "boxes" else 1e-5)
    with pytest.raises(UserError, match="exists already"):
        saved_model.write(folder, programs, weights, metadata={})


LOOKS = Pass(64, 100)


@pytest.mark.parametrize("canvas", [(90, 120), (120, 90)])
def test_a_program_places_images_as_the_host_does(canvas):
    shape = largest_input(LOOKS, canvas, stride=32)
    draw = np.random.default_rng(1)
    sizes = np.array(
        [canvas, (1, 1), (7, 8), (canvas[0], 3), (3, canvas[1]), *draw.integers(1, canvas, (59, 2))], np.int32
    )
    images = np.zeros((len(sizes), *canvas, 3), np.uint8)
    batch = jax.jit(functools.partial(place, looks=LOOKS, shape=shape, stride=32))(images, sizes)
    for row, size in enumerate(sizes.tolist()):
        view = LOOKS.view(tuple(size))
        if (size[0] <= size[1] and canvas[0] <= canvas[1]) or (size[0] >= size[1] and canvas[0] >= canvas[1]):
            assert view.size[0] <= shape[0] and view.size[1] <= shape[1]
        view = view.within(shape)
        wanted = example(np.zeros((*size, 3), np.uint8), view, Bucket(*shape, *canvas), stride=32)
        for name in ("rows", "columns", "image_size", "padded_size", "placement", "original_size"):
            placed = jax.tree.map(operator.itemgetter(row), getattr(batch, name))
            jax.tree.map(np.testing.assert_array_equal, placed, wanted[name])


def test_sizes_are_those_of_the_host():
    """Every size, since the view's sides are rounded."""
    canvas = (300, 300)
    looks, shape = Pass(800, 1333), (1344, 1344)
    sizes = np.stack(np.meshgrid(np.arange(1, 301, 7), np.arange(1, 301)), -1).reshape(-1, 2).astype(np.int32)
    run = jax.jit(lambda images, sizes: place(images, sizes, looks=looks, shape=shape, stride=32).image_size)
    views = run(np.zeros((len(sizes), *canvas, 3), np.uint8), sizes)
    np.testing.assert_array_equal(views, [looks.view(tuple(size)).size for size in sizes.tolist()])


def test_one_size_needs_the_smallest_input():
    batch = batch_of_one_size(LOOKS, (60, 91), images=2, stride=32)
    assert batch.image.shape == (2, 60, 91, 3)
    assert (batch.rows.index.shape[-1], batch.columns.index.shape[-1]) == (64, 128)
    np.testing.assert_array_equal(batch.image_size, [LOOKS.view((60, 91)).size] * 2)


@pytest.mark.slow
def test_a_program_for_gpus_calls_their_kernels(config):
    detector = build.detector(config, len(NAMES))
    weights = jax.eval_shape(detector.network.folded, detector.network.variable_shapes())
    weights = {"/".join(key.key for key in path): x for path, x in jax.tree_util.tree_leaves_with_path(weights)}
    rules = ImageRules(build.usual_pass(config), config.fpn.coarsest_stride)
    program = export_program(detector, rules, (48, 64), weights=weights, platforms=("cuda",), gpu_kernels=True)
    # Suppression of proposals and of detections, RoIAlign for boxes and for masks.
    assert re.findall(r"custom_call @(\w+)", program.mlir_module()) == ["mosaic_gpu_v2"] * 4
    assert program.platforms == ("cuda",) and not program.disabled_safety_checks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": ["48"]}, "--image_size=48: write HEIGHTxWIDTH"),
        ({"image_size": ["48x0"]}, "--image_size=48x0: write"),
        ({"image_size": ["48x64x3"]}, "write HEIGHTxWIDTH"),
        ({"image_size": ["48x99999999"]}, "from 1 to 65536"),
        ({"batch": 0}, "--batch=0"),
        ({"platforms": ["gpu"]}, "--platforms=gpu: name some of cpu, cuda"),
        ({"platforms": ["cpu", "cuda"], "gpu_kernels": True}, "add --platforms=cuda"),
        ({"platforms": ["cuda"], "gpu_kernels": True, "format": "saved_model"}, "leave --format=saved_model out"),
    ],
)
def test_impossible_requests_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        request(FLAGS | changes)


def test_a_request_names_every_size_once():
    assert request(FLAGS | {"image_size": ["48x64", "64X48", "48x64"]}) == Request(
        ((48, 64), (64, 48)), platforms=("cpu",)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.rpn_only": True}, "model.rpn_only=True"),
        ({"model.faster_rcnn": False}, "model.faster_rcnn=False"),
        ({"test.bbox_aug.enabled": True}, "--config.test.bbox_aug.enabled=False"),
    ],
)
def test_runs_without_one_detecting_program_are_refused(config, tmp_path, options, message):
    own = config.copy_and_resolve_references()
    own.update_from_flattened_dict(options)
    with pytest.raises(UserError, match=message):
        export_detector(own, tmp_path, tmp_path / "detector.zip", wanted=Request(((48, 64),)))


def test_an_output_that_cannot_be_written_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"--output .*there is no folder"):
        export_detector(config, tmp_path, tmp_path / "none" / "detector.zip", wanted=Request(((48, 64),)))


@pytest.mark.slow
def test_a_file_holds_the_same_bytes_every_time_and_no_path(export):
    first, second = (export((48, 64), platforms=("cpu", "cuda")) for _ in range(2))
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as file:
        assert file.namelist() == ["metadata.json", "weights.npz", "programs/48x64.bin"]
        metadata, program = json.loads(file.read("metadata.json")), file.read("programs/48x64.bin")
    assert metadata["platforms"] == ["cpu", "cuda"] and metadata["category_ids"] == list(IDS)
    assert str(ROOT).encode() not in program
    module = jax.export.deserialize(bytearray(program)).mlir_module()
    # One program for both platforms, which asks where it runs and needs nothing but StableHLO.
    assert "_platform_index" in module and "custom_call" not in module


def test_a_file_that_cannot_be_finished_leaves_nothing(export, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container.os, "replace", fail)
    with pytest.raises(UserError, match=r"detector.zip cannot be written: No space left on device"):
        container.write(tmp_path / "detector.zip", {}, {"x": np.zeros(3)}, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_stopped_export_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "detector.zip").write_bytes(b"before")
    monkeypatch.setattr(container.np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        container.write(tmp_path / "detector.zip", {}, {"x": np.zeros(3)}, metadata={})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.slow
def test_the_mode_exports_the_newest_checkpoint(config, variables, tmp_path, capsys):
    detector = build.detector(config, len(NAMES))
    optimizer = build.make_optimizer(config, build.rule(config).schedule)
    with Checkpoints(tmp_path) as checkpoints:
        state = create_state(variables, optimizer, detector.loss_names)
        checkpoints.save(state, 7, {"class_names": list(NAMES), "category_ids": list(IDS)})
    output = tmp_path / "detector.zip"
    export_detector(config, tmp_path, output, wanted=Request(((48, 64), (64, 48)), rgb=True))
    assert "programs 48x64, 64x48 for cpu, cuda" in capsys.readouterr().out
    with zipfile.ZipFile(output) as file:
        metadata = json.loads(file.read("metadata.json"))
        weights = dict(np.load(io.BytesIO(file.read("weights.npz"))))
    assert metadata["step"] == 7 and metadata["channels"] == "RGB" and metadata["class_names"] == list(NAMES)
    assert metadata["thresholds"] == {"score": 0.02, "nms": 0.5, "mask": 0.5}
    assert [one["file"] for one in metadata["programs"]] == ["programs/48x64.bin", "programs/64x48.bin"]
    folded = to_arrays(detector.network.folded(variables))
    assert weights.keys() == folded.keys()
    for name, array in folded.items():
        np.testing.assert_array_equal(weights[name], array)
