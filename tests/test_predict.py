"""The Python callable and ``--mode predict`` on images and videos; evaluation is the oracle."""

import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import jax.export
import numpy as np
import pytest
from conftest import ROOT, slow
from PIL import Image

import diou_jax
from diou_jax.command.import_weights import import_file
from diou_jax.configs import own
from diou_jax.data.loader import batches
from diou_jax.detection.rules import Thresholds
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate
from diou_jax.export.program import ImageRules, export_program, to_arrays
from diou_jax.options import build
from diou_jax.prediction import predict
from diou_jax.prediction.detector import Detector
from diou_jax.prediction.on_devices import OnDevices
from diou_jax.prediction.tiled import TiledDetection
from diou_jax.prediction.tiles import TileRules
from diou_jax.prediction.video import VideoReader


@pytest.fixture(scope="module")
def config(tiny_config):
    config = tiny_config()
    config.test.score_thresh = 0.02
    config.test.ims_per_batch = 1
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


@pytest.mark.parametrize("extreme", [False, slow(True)])
def test_sizes_may_differ_and_one_image_gives_one_result(detector, images, extreme):
    photo = images[1][0]
    sizes = [photo, photo[: len(photo) // 2]]
    sizes += [np.tile(photo, (3, 1, 1)), photo[:, :2], photo[:1, :1]] if extreme else []
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


def test_an_overlap_that_is_no_number_is_named(detector, images):
    with pytest.raises(UserError, match=r"nms='x': it must be a number, 0 or more"):
        detector(images[1][0], nms="x")


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
    ("bad", "words"),
    [
        (np.zeros((4, 4, 5), np.uint8), "image 0 is uint8 "),
        (np.zeros((0, 4, 3), np.uint8), "it has no pixels"),
        ([[1, 2]], "image 0 is list"),
        ("photo.jpg", "photo.jpg: cannot be read"),
    ],
)
def test_what_is_no_image_is_named(detector, bad, words):
    with pytest.raises(UserError, match=words):
        detector([bad])


def assert_same(one, other):
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.classes, other.classes)


def test_a_config_with_open_options_is_no_detector(tmp_path):
    for make in (
        lambda: Detector.from_file(tmp_path / "a.pth", own.get_config()),
        lambda: Detector(own.get_config(), {}, ()),
    ):
        with pytest.raises(UserError, match=r"is open, .* --mode train and --mode import choose it"):
            make()


def test_an_image_alone_is_a_batch_of_one_on_the_first_device(detector, images, monkeypatch):
    batches = []
    detect = detector._detect

    def noted(batch, thresholds, *, devices):
        batches.append((devices, len(batch.image)))
        return detect(batch, thresholds, devices=devices)

    monkeypatch.setattr(detector, "_detect", noted)
    alone = detector(images[1][0])
    together = detector(images[1][:3])
    assert batches == [(1, 1), (2, 2), (1, 1)]
    assert alone.device == "cpu:0" and alone.seconds > 0
    assert [result.device for result in together] == ["cpu:0", "cpu:1", "cpu:0"]
    assert alone.size == images[1][0].shape[:2] and len(alone.category_ids) == len(alone)
    assert alone.category_ids == tuple(detector.category_ids[number] for number in alone.classes)


def test_forms_of_images_may_be_mixed_and_come_from_an_iterator(detector, images, tmp_path):
    photo = images[1][0]
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    forms = [photo, tmp_path / "a.png", Image.fromarray(photo[..., ::-1]), photo / np.float32(255)]
    wanted = detector(photo)
    together = detector(iter([*forms, *forms]))
    assert len(together) == 8
    for result in together:
        assert_same(result, together[0])
        np.testing.assert_allclose(result.boxes, wanted.boxes, atol=1e-3)
    assert_same(detector(photo[..., ::-1], color="rgb"), wanted)
    assert_same(detector(str(tmp_path / "a.png")), wanted)
    with pytest.raises(UserError, match="image 1 is NoneType"):
        detector([photo, None])
    with pytest.raises(UserError, match="images is int; it must be an image or an iterable"):
        detector(3)


def test_classes_and_thresholds_by_class_leave_out_the_others_before_the_limit(detector, images):
    photo = images[1][0]
    limit = detector._detector.heads[0].detection.detections_per_im
    compiled = detector._run._cache_size()
    everything = detector(photo, score_threshold=0.0)
    assert len(everything) == limit, "the limit takes effect"
    for name in set(detector.class_names[1:]):
        only = detector(photo, score_threshold=0.0, classes=[name])
        assert set(only.names) == {name}
        # Its detections among those of all classes, and more in the place of the others.
        mine = everything.scores[np.array(everything.names) == name]
        np.testing.assert_array_equal(only.scores[: len(mine)], mine)
        assert len(only) >= len(mine)
    first = everything.names[0]
    other = detector(photo, score_threshold={first: 1.0})
    assert first not in other.names and len(other)
    assert detector._run._cache_size() == compiled
    with pytest.raises(UserError, match="classes: the detector has no class 'rectangel'; the nearest is rectangle"):
        detector(photo, classes=["rectangel"])


@pytest.mark.slow
def test_an_image_in_a_single_tile_has_the_detections_of_the_image_in_one_piece(detector, images):
    """The candidates and their suppression are programs of their own here."""
    rules = TileRules(side=0, overlap=0, whole=True)
    tiled = TiledDetection(detector._detector, OnDevices(detector._variables), batcher=detector._batcher, rules=rules)
    for threshold in (0.0, 0.1):
        scores = np.full((len(detector.class_names) - 1, 1), threshold, np.float32)
        found = tiled(images[1][0], Thresholds(scores, np.float32(0.5)))
        wanted = detector(images[1][0], score_threshold=threshold, nms=0.5)
        assert found.valid.sum() == len(wanted) > 0
        np.testing.assert_array_equal(found.classes[found.valid], wanted.classes)
        np.testing.assert_allclose(found.scores[found.valid], wanted.scores, rtol=1e-5)
        np.testing.assert_allclose(found.boxes[found.valid], wanted.boxes, atol=1e-3)


def test_threads_may_share_a_detector(detector, images):
    photos = images[1][:3]
    wanted = [detector(photo) for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector, [photos[number % 3] for number in range(12)]))
    for number, result in enumerate(found):
        assert_same(result, wanted[number % 3])


def test_a_stream_takes_few_images_ahead(detector, images):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield images[1][0]

    results = detector.stream(endless())
    for _ in range(5):
        next(results)
        assert len(taken) <= 5 + 2 * 2
    results.close()


def test_from_checkpoint_and_from_file_are_the_same_detector(config, detector, variables, images, tmp_path):
    torch = pytest.importorskip("torch")
    from diou_jax.weights.original import export_original

    tensors = {k: torch.from_numpy(v.copy()) for k, v in export_original(variables).items()}
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
    assert predict.predict(config, workdir, photos, output=tmp_path / "out", wishes=predict.Wishes(draw_threshold=0.1))
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
    monkeypatch.setattr(predict.Detector, "from_checkpoint", lambda *_, **__: detector)


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


def read_video(path):
    with VideoReader(path) as reader:
        return reader.fps, [frame.image for frame in reader.frames()]


@pytest.fixture
def clip(images, tmp_path):
    """A video of 7 frames, of which the file's header counts 9."""
    path = tmp_path / "in" / "clip.avi"
    path.parent.mkdir()
    height, width = images[1][0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (width, height))
    for number in range(9):
        writer.write(images[1][number % 2])
    writer.release()
    content = path.read_bytes()
    frames = [match.start() for match in re.finditer(b"00dc", content)]
    path.write_bytes(content[: frames[8]])  # the first one names the stream
    return path


def test_a_video_becomes_a_video_and_a_json_for_each_frame(config, workdir, compiled, detector, clip, tmp_path, capsys):
    _, frames = read_video(clip)
    wishes = predict.Wishes(draw_threshold=0.1, score_threshold=0.0)
    assert predict.predict(config, workdir, clip, output=tmp_path / "out", wishes=wishes)
    (entry,) = results(tmp_path / "out")["videos"]
    assert (entry["file"], entry["video"], entry["frames"]) == ("clip.avi", "clip.avi.mp4", "clip.avi.jsonl")
    assert (entry["predicted"], entry["unread"], entry["every"], entry["complete"]) == (7, 2, 1, True)
    lines = [json.loads(line) for line in (tmp_path / "out" / entry["frames"]).read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(7))
    assert [line["seconds"] for line in lines] == pytest.approx(np.arange(7) / 12.5)
    assert entry["detections"] == sum(len(line["boxes"]) for line in lines) > 7
    for line, result in zip(lines, detector(frames, score_threshold=0.0), strict=True):
        np.testing.assert_allclose(line["boxes"], result.boxes, atol=1e-3)
        assert line["names"] == list(result.names)
    fps, drawn = read_video(tmp_path / "out" / entry["video"])
    assert fps == 12.5 and len(drawn) == 7 and drawn[0].shape == frames[0].shape
    assert np.abs(drawn[0].astype(int) - frames[0]).max() > 100, "boxes are drawn"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "clip.avi.jsonl",
        "clip.avi.mp4",
        "detections.json",
    ]
    said = capsys.readouterr().out
    assert "1 video with 7 frames" in said
    assert "clip.avi: 2 frames of the 9 that its header counts could not be read" in said


def test_a_json_of_frames_on_a_full_disk_is_named(config, workdir, compiled, clip, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diou_jax.prediction.video_prediction.open", full, raising=False)
    with pytest.raises(UserError, match=r"out cannot be written: No space left"):
        predict.predict(config, workdir, clip, output=tmp_path / "out")


def test_every_third_frame_without_a_video(config, workdir, compiled, clip, tmp_path):
    wishes = predict.Wishes(every=3, write_video=False, classes=["star"], score_threshold=0.0)
    assert predict.predict(config, workdir, [clip, clip.parent], output=tmp_path / "out", wishes=wishes)
    (entry,) = results(tmp_path / "out")["videos"]
    assert entry["predicted"] == 3 and entry["video"] is None
    lines = [json.loads(line) for line in (tmp_path / "out" / "clip.avi.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 3, 6]
    assert {name for line in lines for name in line["names"]} == {"star"}
    wishes = predict.Wishes(every=3)
    assert predict.predict(config, workdir, clip, output=tmp_path / "out", wishes=wishes)
    fps, drawn = read_video(tmp_path / "out" / "clip.avi.mp4")
    assert fps == pytest.approx(12.5 / 3, rel=1e-3) and len(drawn) == 3


def test_what_was_found_before_a_signal_is_kept(
    config, workdir, compiled, detector, images, clip, tmp_path, monkeypatch
):
    """The signal comes while the fifth frame is detected; a photo was finished before."""
    cv2.imwrite(str(clip.parent / "a.png"), images[1][0])
    stream = detector.stream

    def interrupted(frames, **options):
        for number, result in enumerate(stream(frames, **options)):
            if number == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield result

    monkeypatch.setattr(detector, "stream", interrupted)
    monkeypatch.setattr("diou_jax.prediction.video_prediction.BEHIND", 1)
    with pytest.raises(SystemExit) as stopped:
        predict.predict(config, workdir, clip.parent, output=tmp_path / "out")
    assert stopped.value.code == 128 + signal.SIGTERM
    content = results(tmp_path / "out")
    assert [entry["file"] for entry in content["images"]] == ["a.png"]
    (entry,) = content["videos"]
    assert 3 <= entry["predicted"] <= 4 and not entry["complete"]
    assert len((tmp_path / "out" / "clip.avi.jsonl").read_text().splitlines()) == entry["predicted"]
    assert len(read_video(tmp_path / "out" / "clip.avi.mp4")[1]) == entry["predicted"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_video_without_a_frame_is_an_error_alone_and_a_line_among_others(config, workdir, compiled, clip, tmp_path):
    (clip.parent / "b.mp4").write_bytes(bytes(500))
    with pytest.raises(UserError, match=r"--input .*b\.mp4: not a video that can be opened"):
        predict.predict(config, workdir, clip.parent / "b.mp4", output=tmp_path / "out")
    assert predict.predict(config, workdir, clip.parent, output=tmp_path / "out")
    content = results(tmp_path / "out")
    assert len(content["videos"]) == 1 and "b.mp4: not a video" in content["unreadable"][0]


def test_inputs_of_several_folders_keep_their_folders(config, workdir, compiled, images, tmp_path):
    for folder in ("day1", "day2"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), images[1][0])
    predict.predict(config, workdir, [f"{tmp_path}/day?/*.png"], output=tmp_path / "out")
    assert [entry["picture"] for entry in results(tmp_path / "out")["images"]] == ["day1/a.png.jpg", "day2/a.png.jpg"]
    with pytest.raises(UserError, match="is where the images are"):
        predict.predict(config, workdir, [tmp_path / "day1", tmp_path / "day2"], output=tmp_path / "day2")


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
    with pytest.raises(UserError, match=r"--every=0: it must be a whole number"):
        predict.predict(config, workdir, tmp_path, output=tmp_path / "out", wishes=predict.Wishes(every=0))
    with pytest.raises(UserError, match=r"--draw_threshold=nan: it must be a number from 0 to 1"):
        predict.predict(
            config, workdir, tmp_path, output=tmp_path / "out", wishes=predict.Wishes(draw_threshold=float("nan"))
        )
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
