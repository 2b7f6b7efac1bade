import io
import json
import math
import struct

import cv2
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from diou_jax.reporting.curves import draw_curves
from diou_jax.reporting.run_log import BOARD_SIDE, Progress, RunLog, print_line, read_metrics


def test_rows_are_json_and_what_is_not_finite_is_null(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(1, {"loss": np.float32(0.5), "rate": 0.1})
        log.scalars(2, {"loss": math.nan, "rate": math.inf})
        log.image(2, "pictures/1", np.zeros((8, 8, 3), np.uint8))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5, "rate": 0.1},
        {"step": 2, "loss": None, "rate": None},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_takes_no_step_twice(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(1, 6):
            log.scalars(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # cut off by a kill
    with RunLog(tmp_path, start_step=3) as log:
        for step in range(4, 8):
            log.scalars(step, {"loss": -step})
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["loss"] for row in rows] == [1, 2, 3, -4, -5, -6, -7]


def test_evaluating_later_keeps_the_rows(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(5, {"loss": 1})
    with RunLog(tmp_path) as log:
        log.scalars(5, {"eval/AP": 0.25})
    assert [sorted(row) for row in read_metrics(tmp_path)] == [["loss", "step"], ["eval/AP", "step"]]


def test_an_evaluation_with_other_options_stands_beside_the_runs_own(tmp_path):
    with RunLog(tmp_path) as log:
        for ap, options in ((0.1, None), (0.2, {}), (0.3, {"test.nms": 0.3}), (0.4, {"test.nms": 0.3})):
            log.scalars(5, {"eval/AP": ap}, dataset="a", options=options)
    assert [row["eval/AP"] for row in read_metrics(tmp_path)] == [0.2, 0.4]


@pytest.mark.parametrize("tail", ['{"step": 6, "lo', '{"step": 5, "loss": 5.0}'])
def test_what_a_kill_cut_off_does_not_take_a_later_row_with_it(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 4.0}\n' + tail)
    with RunLog(tmp_path) as log:
        log.scalars(5, {"eval/AP": 0.25})
        log.scalars(5, {"eval/AP": 0.5})
    rows = read_metrics(tmp_path)
    # Both rows are in the file; where a step is evaluated again, the last one counts.
    assert (tmp_path / "metrics.jsonl").read_text().count("eval/AP") == 2
    assert [row for row in rows if "eval/AP" in row] == [{"step": 5, "eval/AP": 0.5}]
    assert [row["step"] for row in rows if "loss" in row] == ([4, 5] if tail.endswith("}") else [4])


def test_evaluating_beside_a_training_run_loses_none_of_its_rows(tmp_path):
    with RunLog(tmp_path, start_step=0) as training:
        training.scalars(1, {"loss": 1})
        with RunLog(tmp_path) as evaluation:
            evaluation.scalars(1, {"eval/AP": 0.5})
        training.scalars(2, {"loss": 2})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 1, 2]


def tensorboard_events(workdir):
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])  # TFRecord: length, its checksum, the event, its checksum
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def tensorboard_points(workdir):
    """(step, name) of the points that TensorBoard shows: a start of a session hides earlier points from its step on."""
    points = []
    for event in tensorboard_events(workdir):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[0] < event.step]
        points += [(event.step, value.tag) for value in event.summary.value]
    return points


def test_tensorboard_shows_evaluations_validation_losses_and_the_best_one(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(4, {"loss": 1.0})
        log.scalars(4, {"eval/AP": 0.5, "val/loss": 2.0, "val/loss_cls": math.nan}, dataset="set")
        log.scalars(4, {"best/AP": 0.5, "best/step": 4})
    names = ["train/loss", "eval/set/AP", "val/set/loss", "best/AP", "best/step"]
    assert tensorboard_points(tmp_path) == [(4, name) for name in names]


def test_pictures_for_tensorboard_are_small_jpegs(tmp_path):
    blobs = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    picture = cv2.resize(blobs, (2052, 1000), interpolation=cv2.INTER_CUBIC)
    with RunLog(tmp_path) as log:
        log.image(3, "detections/val/0", picture)
    (event,) = [event for event in tensorboard_events(tmp_path) if event.summary.value]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (3, "detections/val/0")
    shown = cv2.imdecode(np.frombuffer(value.image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert max(shown.shape) == BOARD_SIDE and (value.image.height, value.image.width) == shown.shape[:2]
    assert value.image.encoded_image_string[:2] == b"\xff\xd8" and len(value.image.encoded_image_string) < 200_000
    wanted = cv2.resize(picture, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(shown.astype(int) - wanted).mean() < 4, "blue stays blue"


def test_evaluations_of_several_data_sets_at_a_step_all_count(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(5, {"eval/AP": 0.5})
    rows = [{"step": 5, "dataset": name, "eval/AP": ap} for name, ap in (("a", 0.1), ("b", 0.2), ("a", 0.3))]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert [row["eval/AP"] for row in read_metrics(tmp_path)] == [0.5, 0.2, 0.3]


def test_a_line_that_the_console_cannot_print_is_escaped(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", console)
    print_line("café \udcff")
    assert console.buffer.getvalue() == b"caf\\xe9 \\udcff\n"


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path):
    with RunLog(tmp_path, start_step=0) as log:
        for step in range(1, 6):
            log.scalars(step, {"loss": step})
    with RunLog(tmp_path, start_step=3) as log:
        for step in range(4, 7):
            log.scalars(step, {"loss": step})
    with RunLog(tmp_path) as log:
        log.scalars(6, {"eval/AP": 0.5}, dataset="val")
    assert tensorboard_points(tmp_path) == [(step, "train/loss") for step in range(1, 7)] + [(6, "eval/val/AP")]


def test_rows_of_data_sets_stay_apart_whatever_a_class_is_called(tmp_path):
    with RunLog(tmp_path) as log:
        for ap, name in ((0.5, "val"), (0.1, "other"), (0.6, "val")):
            log.scalars(6, {"eval/AP": ap, "eval/AP/\ud800": ap}, dataset=name)
    assert [(row["dataset"], row["eval/AP"]) for row in read_metrics(tmp_path)] == [("other", 0.1), ("val", 0.6)]
    draw_curves(tmp_path)


def test_what_a_console_cannot_show_is_escaped(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, "ascii"))
    print_line("K\u00e4se \ud800")
    assert buffer.getvalue() == b"K\\xe4se \\ud800\n"


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path / "run", active=False) as log:
        log.scalars(1, {"loss": 1})
        log.image(1, "x", np.zeros((4, 4, 3), np.uint8))
    assert not (tmp_path / "run").exists()


def test_the_progress_line_says_what_is_left(monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress = Progress(start=100, total=1100, images_per_step=4)
    speed = progress.speed(200)
    assert speed == 40
    line = progress.line(200, speed, {"rate": 0.02, "loss": 1.5})
    assert line == "step 200/1100  rate 0.02  40.0 img/s  0:01:30 left  loss 1.500"
    # Nothing is known of the speed right after the first step, which was compiled.
    assert progress.line(101, 0.0, {"rate": 0.02, "loss": 1.5}) == "step 101/1100  rate 0.02  loss 1.500"


def test_a_full_disk_leaves_tensorboard_out_and_blocks_nothing(tmp_path, caplog):
    with RunLog(tmp_path) as log:
        log.scalars(1, {"loss": 1.0})
        log._board._file.close()
        with open("/dev/full", "ab") as log._board._file:
            for step in range(2, 40):  # more than any queue holds
                log.scalars(step, {"loss": 1.0, "rate": 0.1})
                log.image(step, "detections/val/0", np.zeros((8, 12, 3), np.uint8))
    assert tensorboard_points(tmp_path) == [(1, "train/loss")]
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 40))
    assert caplog.text.count("TensorBoard's events cannot be written, and the run goes on without") == 1
