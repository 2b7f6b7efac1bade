"""Files of proposals: written, read, matched with a data set, and learnt from by Fast R-CNN."""

import dataclasses
import io
import json
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.boxes import to_input
from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.command.check_data import check_data
from diou_jax.configs import base
from diou_jax.data import proposals_file
from diou_jax.data.dataset import Dataset, make_records
from diou_jax.data.loader import batches
from diou_jax.data.proposals import NONE, in_view, make_table, pad
from diou_jax.data.view import mirrored, scaled, whole
from diou_jax.devices import replicate
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate
from diou_jax.options import build
from diou_jax.prediction.detector import Detector
from diou_jax.reporting.run_log import read_metrics
from diou_jax.structures import Proposals
from diou_jax.training import train
from diou_jax.training.diagnosis import load_batch


class Names:
    """A source of images that only have names."""

    def name(self, index):
        return f"{index}.jpg"


def dataset(ids, size=100):
    none = np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    records = make_records(ids, [none] * len(ids), heights=[size] * len(ids), widths=[size] * len(ids))
    return Dataset("val", records, Names(), ("background", "a"), (-1, 1))


def some(rng, count, size=100):
    """Boxes with corners below `size`, and descending scores."""
    corners = np.sort(rng.uniform(0, size, (count, 2, 2)), 1).reshape(-1, 4).astype(np.float32)
    return corners, np.sort(rng.random(count).astype(np.float32))[::-1]


def table_of(ids, counts, seed=0):
    rng = np.random.default_rng(seed)
    return make_table(ids, [some(rng, count) for count in counts])


def assert_same(found, wanted):
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name))


@pytest.mark.parametrize("ids", [[7, 3, 11], ["b", "7", "a"], [7, "a", 2**70], []])
def test_what_is_written_is_read(tmp_path, ids):
    table = table_of(ids, range(len(ids)))
    proposals_file.write(tmp_path / "p.npz", table)
    assert_same(proposals_file.read(tmp_path / "p.npz"), table)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


@pytest.mark.parametrize("field", ["ids", "indexes"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_detectrons_file_is_read(tmp_path, field, protocol):
    table = table_of([5, 9, 2], [3, 0, 4])
    rows = [table.of(index) for index in range(3)]
    boxes, scores = [list(column) for column in zip(*rows)]
    content = {"boxes": boxes, "scores": scores, field: [5, 9, 2], "cfg": "MODEL: {}"}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol))
    assert_same(proposals_file.read(tmp_path / "p.pkl"), table)
    del content["scores"]
    content["boxes"][1] = []
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol))
    read = proposals_file.read(tmp_path / "p.pkl")
    np.testing.assert_array_equal(read.boxes, table.boxes)
    assert not read.scores.any()


class Harm:
    """Runs a function when it is unpickled."""

    def __reduce__(self):
        return (print, ("harm",))


BOX = np.zeros((1, 4), np.float32)
BAD_PICKLES = {
    "code": ({"boxes": [BOX], "ids": [1], "cfg": Harm()}, "is refused, it holds more than arrays"),
    "a list": ([BOX], "it has no 'boxes'"),
    "no ids": ({"boxes": [BOX]}, "it has no 'ids'"),
    "fewer boxes": ({"boxes": [BOX], "ids": [1, 2]}, "has 2 ids of images and boxes of 1"),
    "fewer scores": ({"boxes": [BOX], "ids": [1], "scores": []}, "boxes of 1 images and scores of 0"),
    "five columns": ({"boxes": [np.zeros((1, 5))], "ids": [1]}, r"image 1 has boxes \(1, 5\) and 1 scores"),
    "a score too many": ({"boxes": [BOX], "ids": [1], "scores": [[1, 2]]}, r"boxes \(1, 4\) and 2 scores"),
    "texts": ({"boxes": [[["a"] * 4]], "ids": [1]}, "boxes or scores of image 1 are no numbers"),
    "odd ids": ({"boxes": [BOX], "ids": [(1, 2)]}, "ids of images must be whole numbers or texts"),
    "boxes that are a number": ({"boxes": 3, "ids": [1]}, "'boxes' is 3, and must be a list"),
    "ids that are a number": ({"boxes": [BOX], "ids": np.array(1)}, r"'ids' is array\(1\), and must be a list"),
    "scores that are a number": ({"boxes": [BOX], "ids": [1], "scores": 3}, "'scores' is 3, and must be a list"),
    "a number as the boxes of an image": ({"boxes": [3], "ids": [1]}, "boxes or scores of image 1 are no numbers"),
}


@pytest.mark.parametrize("name", BAD_PICKLES)
def test_a_bad_pickle_is_refused_with_the_reason(tmp_path, name, capsys):
    content, words = BAD_PICKLES[name]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=rf"p\.pkl.*{words}"):
        proposals_file.read(tmp_path / "p.pkl")
    assert "harm" not in capsys.readouterr().out


GOOD = {
    "image_ids": np.array([1, 2]),
    "starts": np.array([0, 1]),
    "stops": np.array([1, 3]),
    "boxes": np.zeros((3, 4), np.float32),
    "scores": np.zeros(3, np.float32),
}
BAD_COLUMNS = {
    "no scores": ({"scores": None}, "it has no array 'scores'"),
    "objects": ({"image_ids": np.array([1, None], object)}, "is damaged or holds objects"),
    "ids of another kind": ({"image_ids": np.array([1.0, 2.0])}, "image_ids is float64"),
    "five columns": ({"boxes": np.zeros((3, 5), np.float32)}, r"boxes is float32 \(3, 5\)"),
    "whole boxes": ({"boxes": np.zeros((3, 4), int)}, "boxes is int64"),
    "fewer scores": ({"scores": np.zeros(2, np.float32)}, r"scores is float32 \(2,\)"),
    "fewer starts": ({"starts": np.array([0])}, "one for each of 2 images"),
    "beyond the end": ({"stops": np.array([1, 4])}, "must rise from 0 to 3"),
    "backwards": ({"starts": np.array([2, 1])}, "must rise from 0 to 3"),
    "before the start": ({"starts": np.array([-1, 1])}, "must rise from 0 to 3"),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_bad_columns_are_refused_with_the_reason(tmp_path, name):
    changed, words = BAD_COLUMNS[name]
    np.savez(tmp_path / "p.npz", **{key: value for key, value in (GOOD | changed).items() if value is not None})
    with pytest.raises(UserError, match=rf"p\.npz.*{words}"):
        proposals_file.read(tmp_path / "p.npz")


def npz_with(path, change):
    """An archive of good columns, whose files are changed by a function of their name and content."""
    np.savez(path / "good.npz", **GOOD)
    with zipfile.ZipFile(path / "good.npz") as good, zipfile.ZipFile(path / "p.npz", "w") as file:
        for name in good.namelist():
            file.writestr(*change(name, good.read(name)))


def test_an_entry_that_is_no_array_is_refused(tmp_path):
    npz_with(tmp_path, lambda name, content: ("boxes", b"no array") if name == "boxes.npy" else (name, content))
    with pytest.raises(UserError, match=r"p\.npz is no file of proposals: 'boxes' is no array"):
        proposals_file.read(tmp_path / "p.npz")


def test_an_array_that_claims_more_than_the_memory_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**14, 4)})
    npz_with(tmp_path, lambda name, content: (name, header.getvalue() if name == "boxes.npy" else content))
    with pytest.raises(UserError, match=r"p\.npz is damaged"):
        proposals_file.read(tmp_path / "p.npz")


@pytest.mark.parametrize("content", [b"", b"boxes", b"PK\x03\x04 half", b"\x80\x02", b"{}"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UserError, match=r"/p.* (is damaged|cannot be read|is refused)"):
        proposals_file.read(tmp_path / "p")
    with pytest.raises(UserError, match="cannot be read"):
        proposals_file.read(tmp_path / "absent")


def test_a_truncated_file_is_refused(tmp_path):
    proposals_file.write(tmp_path / "p.npz", table_of([1, 2], [300, 200]))
    whole_file = (tmp_path / "p.npz").read_bytes()
    (tmp_path / "p.npz").write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(UserError, match="is damaged"):
        proposals_file.read(tmp_path / "p.npz")


def test_proposals_follow_the_order_of_the_data_set(tmp_path):
    first, second = table_of([4, 9, 1], [2, 0, 5]), table_of([7, 2], [3, 1], seed=1)
    proposals_file.write(tmp_path / "1.npz", first)
    proposals_file.write(tmp_path / "2.npz", second)
    joined = proposals_file.attach(dataset([2, 1, 4, 7]), [tmp_path / "1.npz", tmp_path / "2.npz"]).proposals
    for index, wanted in enumerate([second.of(1), first.of(2), first.of(0), second.of(0)]):
        for found, column in zip(joined.of(index), wanted):
            np.testing.assert_array_equal(found, column)


def test_an_image_without_an_entry_is_an_error_and_one_without_a_proposal_a_fault(tmp_path, caplog):
    table = table_of([4, 9, 1], [2, 0, 5])
    table.boxes[3:5, 1] = np.nan, np.inf
    proposals_file.write(tmp_path / "p.npz", table)
    with pytest.raises(UserError, match=r"p\.npz: 2 of 4 images of val have no entry, the first with id 5"):
        proposals_file.attach(dataset([4, 5, 9, 6]), [tmp_path / "p.npz"])
    with pytest.raises(UserError, match="3 images have several entries, the first with id 4"):
        proposals_file.attach(dataset([4]), [tmp_path / "p.npz"] * 2)
    data = dataset([4, 9, 1])
    faults = proposals_file.attach(data, [tmp_path / "p.npz"]).faults
    assert faults.counts == {
        "proposals with coordinates that are not finite, which are left out": 2,
        "images without a proposal": 1,
    }
    assert list(faults.examples.values()) == [["2 of 2.jpg"], ["1.jpg"]]
    assert "2 proposals with coordinates that are not finite" in caplog.text and not data.faults.counts


def detectrons(boxes, height, width, limit):
    """Detectron's choice of an image's proposals, in plain Python."""
    kept, met = [], set()
    for x1, y1, x2, y2 in boxes.astype(np.float64):
        x1, x2 = (min(max(x, 0), width - 1) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), height - 1) for y in (y1, y2))
        rounded = tuple(int(np.rint(value)) for value in (x1, y1, x2, y2))
        if rounded in met:
            continue
        met.add(rounded)
        if x2 - x1 + 1 > 2 and y2 - y1 + 1 > 2:
            kept.append((x1, y1, x2, y2))
    return np.array(kept[:limit], np.float32).reshape(-1, 4)


@pytest.mark.parametrize("limit", [5, 400])
def test_the_usable_proposals_are_detectrons(limit):
    rng = np.random.default_rng(0)
    low = rng.uniform(-10, 60, (300, 2))
    boxes = np.concatenate([low, low + rng.uniform(-3, 12, (300, 2))], 1).astype(np.float32)
    boxes[::7] = boxes[1::7][: len(boxes[::7])] + 0.01  # nearly equal ones, most of which round to the same pixels
    table = make_table([1], [(boxes, np.linspace(1, 0, 300))])
    found = in_view(table, 0, whole((40, 50)), limit=limit)
    wanted = detectrons(boxes, 40, 50, limit)
    assert found.valid.sum() == len(wanted) and (limit == 5 or 50 < len(wanted) < 250)
    np.testing.assert_array_equal(found.boxes[: len(wanted)], wanted)
    assert not found.boxes[len(wanted) :].any() and (np.diff(found.scores[: len(wanted)]) < 0).all()
    assert found.boxes.shape == (limit, 4) and found.boxes.dtype == np.float32


def test_boxes_are_mirrored_and_cut_with_the_view():
    table = make_table([1], [([[10, 20, 29, 39], [np.nan, 0, 9, 9], [80, 0, 99, 9]], [0.9, 0.8, 0.7])])
    flipped = in_view(table, 0, mirrored((50, 100)), limit=3)
    np.testing.assert_array_equal(flipped.boxes, [[70, 20, 89, 39], [0, 0, 19, 9], [0, 0, 0, 0]])
    np.testing.assert_array_equal(flipped.valid, [True, True, False])
    np.testing.assert_array_equal(flipped.scores, np.float32([0.9, 0.7, 0]))
    larger = in_view(table, 0, scaled((50, 100), 2.0), limit=2)
    np.testing.assert_array_equal(larger.boxes, [[10, 20, 29, 39], [80, 0, 99, 9]])  # pixels of the original image
    assert not pad(*NONE, limit=2).valid.any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train.proposal_files": ("a",)}, r"train\.proposal_files=\('a',\): the RPN makes the proposals"),
        ({"model.rpn_only": True, "model.faster_rcnn": False}, r"model\.faster_rcnn=False: it must be True"),
        (
            {"model.faster_rcnn": False, "test.proposal_files": ("a", "b")},
            r"it must have a file for each of test\.data",
        ),
        ({"model.faster_rcnn": False, "train.proposal_limit": 0}, r"train\.proposal_limit=0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes, words):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        base.check(config)


# Whole runs of Fast R-CNN


@pytest.fixture(scope="module")
def make(tiny_config, tmp_path_factory):
    """``make()``: the config of a run of Fast R-CNN; its proposals lie near the objects or anywhere."""
    folder, plain = tmp_path_factory.mktemp("proposals"), tiny_config()
    for name in ("train", "val"):
        records, rng, rows = build.dataset(plain, (name,)).records, np.random.default_rng(0), []
        for index in range(len(records)):
            near = np.repeat(records.annotations(index)[0], 6, 0)
            near = near + rng.normal(0, 3, near.shape)
            rows.append((np.concatenate([near, some(rng, 12, 128)[0]]), np.linspace(1, 0, len(near) + 12)))
        proposals_file.write(folder / f"{name}.npz", make_table(records.image_ids.tolist(), rows))

    def config():
        config = tiny_config()
        config.model.faster_rcnn = False
        config.train.proposal_files, config.test.proposal_files = (
            (str(folder / "train.npz"),),
            (str(folder / "val.npz"),),
        )
        config.train.proposal_limit, config.test.proposal_limit = 40, 30
        return config

    return config


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    evaluator = train.train(make(), str(workdir), then_evaluate=True)
    evaluate.evaluate(make(), str(workdir), evaluator)
    return workdir


@pytest.mark.slow
def test_a_run_on_proposals_has_no_rpn_and_finite_losses(finished):
    with Checkpoints(finished, create=False) as checkpoints:
        assert checkpoints.stored_variables()["params"].keys() == {"backbone", "neck", "box_head"}
    training = [row for row in read_metrics(finished) if "loss" in row]
    assert [row["step"] for row in training] == [2, 4, 6, 8]
    for row in training:
        assert {name for name in row if name.startswith("loss")} == {"loss", "loss_cls", "loss_bbox"}
        assert all(np.isfinite(value) for value in row.values())
    assert "eval/AP50" in read_metrics(finished)[-1]
    assert isinstance(json.loads((finished / "bbox_val_results.json").read_text()), list)


@pytest.mark.slow
def test_going_on_ends_where_an_uninterrupted_run_ends(make, finished, tmp_path):
    config = make()
    config.solver.max_iter = 3  # the compiled step does not know it, so that both runs share a program
    train.train(config, str(tmp_path))
    train.train(make(), str(tmp_path))
    ended = []
    for folder in (tmp_path, finished):
        with Checkpoints(folder, create=False) as checkpoints:
            ended.append(checkpoints.stored_variables())
    for (path, ours), (_, wanted) in zip(*map(jax.tree_util.tree_leaves_with_path, ended), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(wanted).tobytes(), jax.tree_util.keystr(path)


def test_heads_learn_from_the_ground_truth_and_the_proposals_of_the_file(make):
    config = make()
    data = build.with_train_proposals(config, build.dataset(config, config.train.datasets))
    batch, _ = build.train_reader(config, data, build.rule(config).batch)(0)
    assert batch.proposals.boxes.shape == (2, 40, 4) and batch.proposals.valid.any(1).all()
    detector = build.detector(config, len(data.class_names))
    given = detector.precomputed(batch)
    wanted = np.asarray(to_input(batch.proposals.boxes, batch.placement))
    np.testing.assert_array_equal(given.boxes, np.where(batch.proposals.valid[..., None], wanted, 0))
    samples = detector.sample(given, batch, jax.random.split(jax.random.key(0), 2))
    for slot in range(2):
        valid = np.asarray(samples.valid[slot])
        known = np.concatenate([batch.gt.boxes[slot][batch.gt.valid[slot]], batch.proposals.boxes[slot]])
        distance = np.abs(np.asarray(samples.rois[slot])[valid][:, None] - known).max(-1).min(1)
        assert valid.sum() > 8 and distance.max() < 1e-4


@pytest.mark.slow
def test_heads_detect_in_the_proposals_of_the_file_alone(make, finished):
    """A box head that leaves boxes where they are finds some of the file's boxes, and no others."""
    config = make()
    data = build.with_test_proposals(config, build.dataset(config, ("val",)), "val")
    detector = build.detector(config, len(data.class_names))
    variables = detector.network.init_variables(jax.random.key(0))
    head = variables["params"]["box_head"]
    head["deltas"] = jax.tree.map(jnp.zeros_like, head["deltas"])
    head["logits"]["bias"] = head["logits"]["bias"].at[1].set(5.0)  # everything is of the first class
    reader = build.eval_reader(config, data)
    found = evaluate.detect_all(
        evaluate.detect_function(detector),
        replicate(detector.network.folded(variables)),
        batches(reader, 0, reader.steps),
    )
    assert len(found) == len(data) == 6
    for index, detections in found.items():
        size = int(data.records.heights[index]), int(data.records.widths[index])
        given = in_view(data.proposals, index, whole(size), limit=30)
        distance = np.abs(detections.boxes[:, None] - given.boxes[given.valid]).max(-1)
        assert len(detections.boxes) and distance.min(1).max() < 1e-3


@pytest.mark.slow
def test_other_proposals_are_other_data(make, finished, tmp_path):
    config = make()
    content = dict(np.load(config.train.proposal_files[0]))
    np.savez(tmp_path / "moved.npz", **content)
    config.train.proposal_files = (str(tmp_path / "moved.npz"),)
    train.train(config, str(finished))
    content["boxes"][0] += 1
    np.savez(tmp_path / "moved.npz", **content)
    with pytest.raises(UserError, match=r"was trained on 24 images"):
        train.train(config, str(finished))


@pytest.mark.slow
def test_what_needs_a_file_says_so(make, finished):
    config = make()
    data = build.dataset(config, config.train.datasets)
    config.train.proposal_files = config.test.proposal_files = ()
    with pytest.raises(
        UserError, match=r"train\.proposal_files=\(\): with model\.faster_rcnn=False it must name a file"
    ):
        build.with_train_proposals(config, data)
    with pytest.raises(UserError, match=r"test\.proposal_files=\(\)"):
        evaluate.evaluate(config, str(finished))
    with pytest.raises(UserError, match=r"model\.faster_rcnn=False: this network makes no proposals"):
        Detector.from_checkpoint(finished)


def test_a_check_reads_the_proposals_too(make, capsys, tmp_path):
    config = make()
    assert check_data(config)
    content = dict(np.load(config.test.proposal_files[0]))
    content["boxes"][:2] = np.nan
    np.savez(tmp_path / "bad.npz", **content)
    config.test.proposal_files = (str(tmp_path / "bad.npz"),)
    config.train.proposal_files = (str(tmp_path / "absent.npz"),)
    capsys.readouterr()
    assert not check_data(config)
    said = capsys.readouterr().out
    assert "problem: 2 proposals with coordinates that are not finite" in said
    assert "problem: 1 data sets that are refused" in said and "absent.npz: cannot be read" in said


def test_a_batch_that_is_kept_for_diagnosis_keeps_its_proposals(make, tmp_path):
    from flax import serialization, traverse_util

    config = make()
    data = build.with_train_proposals(config, build.dataset(config, config.train.datasets))
    batch, _ = build.train_reader(config, data, build.rule(config).batch)(0)
    fields = traverse_util.flatten_dict(serialization.to_state_dict(batch), sep=".")
    np.savez(tmp_path / "batch.npz", **{name: value for name, value in fields.items() if value is not None})
    loaded = load_batch(tmp_path / "batch.npz")
    assert isinstance(loaded.proposals, Proposals)
    jax.tree.map(np.testing.assert_array_equal, loaded, batch)
