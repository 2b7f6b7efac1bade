"""The Python callable and ``--mode predict``; evaluation is the oracle."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import jax.export
import numpy as np
import pytest
from conftest import ROOT

import diou_jax
from diou_jax.command.import_weights import import_file
from diou_jax.data.loader import batches
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate
from diou_jax.export.program import ImageRules, export_program, to_arrays
from diou_jax.options import build
from diou_jax.prediction import predict
from diou_jax.prediction.detector import Detector


@pytest.fixture(scope="module")
def config(tiny_config):
    config = tiny_config()
    config.test.score_thresh = 0.02
    return config


@pytest.fixture(scope="module")
def classes(config):
    """The data set's class names and category ids."""
    data = build.dataset(config, config.test.datasets)
    return data.class_names, data.category_ids


@pytest.fixture(scope="module")
def variables(config, classes):
    """Random weights that find something."""
    variables = build.network(config, len(classes[0])).init_variables(jax.random.key(0))
    variables["params"]["box_head"]["logits"]["kernel"] *= 40.0
    variables["params"]["rpn"]["logits"]["kernel"] *= 40.0
    return variables


@pytest.fixture(scope="module")
def detector(config, classes, variables):
    return Detector(config, variables, classes[0], category_ids=classes[1])


@pytest.fixture(scope="module")
def images(config):
    data = build.dataset(config, config.test.datasets)
    return data, [cv2.imdecode(np.frombuffer(data.read(i), np.uint8), cv2.IMREAD_COLOR) for i in range(len(data))]


@pytest.mark.slow
def test_it_finds_what_evaluation_finds(config, detector, images):
    data, photos = images
    reader = build.eval_reader(config, data)
    detect = evaluate.detect_function(detector._detector)
    seen = []
    wanted = evaluate.detect_all(detect, detector._variables, batches(reader, 0, reader.steps), progress=seen.append)
    assert len(seen) == reader.steps and sum(seen) == len(data)
    results = detector(photos)
    assert len(results) == len(photos) and sum(map(len, results)) > len(photos)
    for row, result in enumerate(results):
        assert len(result) == len(wanted[row].scores)
        np.testing.assert_array_equal(result.classes, wanted[row].classes)
        np.testing.assert_allclose(result.scores, wanted[row].scores, rtol=1e-5)
        np.testing.assert_allclose(result.boxes, wanted[row].boxes, atol=1e-3)
        assert result.names == tuple(data.class_names[c] for c in result.classes)
        assert (np.diff(result.scores) <= 0).all() and (result.classes >= 1).all()


def test_sizes_may_differ_and_one_image_gives_one_result(detector, images):
    photo = images[1][0]
    height = len(photo)
    sizes = [photo, photo[: height // 2], np.tile(photo, (3, 1, 1)), photo[:1, :1], photo[:, :2]]
    results = detector(sizes)
    assert len(results) == len(sizes)
    for image, result in zip(sizes, results, strict=True):
        alone = detector(image)
        np.testing.assert_array_equal(alone.boxes, result.boxes)
        assert (result.boxes[:, 2] <= image.shape[1] - 1).all() and (result.boxes[:, 3] <= image.shape[0] - 1).all()
        assert (result.boxes >= 0).all()
    assert detector([]) == []


def test_thresholds_cost_no_compilation(detector, images):
    photo = images[1][0]
    everything = detector(photo, score_threshold=0.0, nms=1.0)
    compiled = detector._run._cache_size()
    for threshold in (0.1, 0.2):
        high = detector(photo, score_threshold=threshold)
        assert (high.scores > threshold).all()
        assert len(high) <= len(everything)
    assert len(detector(photo, nms=0.05)) <= len(detector(photo, nms=0.9))
    assert detector._run._cache_size() == compiled


def test_an_exported_program_finds_the_same(config, detector, images):
    """tests/test_export.py has files, masks, batches and other dtypes; those take longer."""
    photo, network = images[1][0], build.detector(config, len(detector.class_names))
    size, weights = photo.shape[:2], to_arrays(detector._variables)
    rules = ImageRules(build.usual_pass(config), config.fpn.coarsest_stride)
    exported = export_program(network, rules, size, weights=weights, platforms=("cpu", "cuda"))
    program = jax.jit(jax.export.deserialize(exported.serialize()).call)
    found = jax.device_get(jax.tree.map(lambda x: x[0], program(weights, photo[None])))
    result, valid = detector(photo), found["valid"]
    assert valid.sum() == len(result) > 0
    np.testing.assert_array_equal(found["classes"][valid], result.classes)
    np.testing.assert_allclose(found["scores"][valid], result.scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["boxes"][valid], result.boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), [[1, 2]], "photo.jpg"]
)
def test_what_is_no_image_is_named(detector, bad):
    with pytest.raises(UserError, match="image 0 is"):
        detector([bad])


def test_from_checkpoint_and_from_file_are_the_same_detector(config, detector, images, tmp_path):
    torch = pytest.importorskip("torch")
    from diou_jax.weights.original import export_original

    tensors = {k: torch.from_numpy(v.copy()) for k, v in export_original(detector._variables).items()}
    torch.save({"step": 3, "model": tensors, "optimizer": {}}, tmp_path / "model_step3.pth")
    import_file(config, tmp_path / "model_step3.pth", tmp_path / "run")
    photos = images[1][:2]
    wanted = detector(photos)
    for other in (
        diou_jax.Detector.from_checkpoint(tmp_path / "run"),
        diou_jax.Detector.from_file(tmp_path / "model_step3.pth", config),
    ):
        assert other.class_names == detector.class_names and other.category_ids == detector.category_ids
        for a, b in zip(other(photos), wanted, strict=True):
            np.testing.assert_array_equal(a.boxes, b.boxes)
            np.testing.assert_array_equal(a.scores, b.scores)


@pytest.fixture(scope="module")
def workdir(config, classes, variables, tmp_path_factory):
    from diou_jax.checkpoint.checkpoints import Checkpoints
    from diou_jax.optimization.state import create_state

    folder = tmp_path_factory.mktemp("run")
    state = create_state(variables, build.make_optimizer(config, build.rule(config).schedule), ("loss",))
    with Checkpoints(folder) as checkpoints:
        metadata = {"class_names": classes[0], "category_ids": classes[1]}
        checkpoints.save(state, 0, metadata)
    return folder


def results(output):
    return json.loads((output / "detections.json").read_text())


def test_a_folder_is_predicted_and_bad_files_do_not_stop_it(config, workdir, detector, images, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    cv2.imwrite(str(photos / "a.png"), images[1][0])
    cv2.imwrite(str(photos / "below" / "b.jpg"), images[1][1])
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (photos / "empty.png").write_bytes(b"")
    (photos / "notes.txt").write_text("not an image")
    os.mkfifo(photos / "pipe.jpg")
    assert predict.predict(config, workdir, photos, output=tmp_path / "out", draw_threshold=0.1)
    content = results(tmp_path / "out")
    assert [entry["file"] for entry in content["images"]] == ["a.png", "below/b.jpg"]
    wanted = detector(images[1][0])
    np.testing.assert_allclose(content["images"][0]["boxes"], wanted.boxes, atol=1e-3)
    assert content["images"][0]["names"] == list(wanted.names)
    assert wanted.rles is None and wanted.masks is None and "masks" not in content["images"][0]
    assert [entry["path"] for entry in content["images"]] == [f"{photos}/a.png", f"{photos}/below/b.jpg"]
    assert [entry["picture"] for entry in content["images"]] == ["a.png.jpg", "below/b.jpg.jpg"]
    for entry in content["images"]:
        assert cv2.imread(str(tmp_path / "out" / entry["picture"])).size
    said = capsys.readouterr().out
    assert "2 images" in said and "passed over: 1 file of another kind (.txt 1)" in said
    for name, line in zip(("broken.jpg", "empty.png", "pipe.jpg"), content["unreadable"], strict=True):
        assert name in line and f"not read: {line}" in said


@pytest.fixture
def compiled(detector, monkeypatch):
    """Prediction takes a detector whose programs are there already."""
    monkeypatch.setattr(predict.Detector, "from_checkpoint", lambda *_: detector)


def test_what_was_drawn_is_never_taken_for_an_image(config, workdir, compiled, images, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "a.png"), images[1][0])
    cv2.imwrite(str(photos / "b.jpg"), images[1][1])
    for output in (photos / "found", photos / "found", photos / "once more", tmp_path):
        predict.predict(config, workdir, photos, output=output)
        assert [entry["file"] for entry in results(output)["images"]] == ["a.png", "b.jpg"]
    predict.predict(config, workdir, tmp_path, output=tmp_path / "all")
    assert [entry["file"] for entry in results(tmp_path / "all")["images"]] == ["photos/a.png", "photos/b.jpg"]


def test_images_of_equal_names_and_of_any_name_have_their_own_pictures(config, workdir, compiled, images, tmp_path):
    names = ["cam1/f.png", "cam2/f.png", "cam2/f.bmp", "f.png", "ä 画.png", f"{'x' * 251}.png"]
    names += [os.fsdecode(b"\xff\n.png")]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, images[1][0])[1].tobytes())
    predict.predict(config, workdir, tmp_path / "in", output=tmp_path / "out")
    entries = results(tmp_path / "out")["images"]
    assert sorted(entry["file"] for entry in entries) == sorted(names)
    assert len({entry["picture"] for entry in entries}) == len(names)
    for entry in entries:
        assert (tmp_path / "out" / entry["picture"]).is_file() and pathlib.Path(entry["path"]).is_file()


def test_a_single_file_that_cannot_be_read_is_no_success(config, workdir, compiled, tmp_path, capsys):
    for name, content, reason in (("a.jpg", b"\xff\xd8 no more", "not an image"), ("b.png", b"", "it is empty")):
        (tmp_path / name).write_bytes(content)
        assert not predict.predict(config, workdir, tmp_path / name, output=tmp_path / "out")
        assert reason in capsys.readouterr().out
        assert results(tmp_path / "out")["images"] == [] and len(results(tmp_path / "out")["unreadable"]) == 1


@pytest.mark.slow
def test_the_command_fails_where_nothing_could_be_read(config, workdir, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no more")
    options = f"--workdir {workdir} --mode predict --input {tmp_path}/a.jpg --output {tmp_path}/out"
    content = json.dumps(config.to_dict())
    code = "import json\nfrom diou_jax.configs import base\ndef get_config():\n    config = base.get_config()\n"
    (tmp_path / "config.py").write_text(f"{code}    config.update(json.loads({content!r}))\n    return config\n")
    command = [sys.executable, "main.py", "--config", str(tmp_path / "config.py"), *options.split()]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, ""), done.stderr
    assert "a.jpg: not an image that can be decoded" in done.stdout


def test_a_full_disk_is_named(config, workdir, compiled, images, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), images[1][0])

    def full(path, image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diou_jax.reporting.picture_files.write", full)
    with pytest.raises(UserError, match=r"out cannot be written: No space left"):
        predict.predict(config, workdir, tmp_path / "a.png", output=tmp_path / "out")
    assert results(tmp_path / "out")["images"] == []


def test_mistakes_are_named(config, workdir, images, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        predict.predict(config, workdir, tmp_path / "nothing", output=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image files"):
        predict.predict(config, workdir, tmp_path / "empty", output=tmp_path / "out")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    with pytest.raises(UserError, match="is a video: only images are read"):
        predict.predict(config, workdir, tmp_path / "clip.mp4", output=tmp_path / "out")
    cv2.imwrite(str(tmp_path / "empty" / "a.png"), images[1][0])
    with pytest.raises(UserError, match="is where the images are"):
        predict.predict(config, workdir, tmp_path / "empty", output=tmp_path / "empty")
    with pytest.raises(UserError, match="there is no checkpoint"):
        predict.predict(config, tmp_path / "no_run", tmp_path / "empty", output=tmp_path / "out")
    for place in ("/proc/none", "/proc", tmp_path / "clip.mp4"):
        with pytest.raises(UserError, match=rf"--output {place} cannot be"):
            predict.predict(config, workdir, tmp_path / "empty", output=place)
    # The picture of empty/a.png would be empty/out/a.png.jpg, which somebody's image has as its name.
    (tmp_path / "empty" / "out").mkdir()
    cv2.imwrite(str(tmp_path / "empty" / "out" / "a.png.jpg"), images[1][1])
    with pytest.raises(UserError, match=r"a\.png\.jpg would be overwritten"):
        predict.predict(config, workdir, tmp_path / "empty", output=tmp_path / "empty" / "out")
