"""An RPN that is trained alone: whole runs on a small data set, with two devices."""

import pickle

import jax
import numpy as np
import pytest

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.command.import_weights import import_file
from diou_jax.configs import base, rpn
from diou_jax.data.loader import batches
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate
from diou_jax.options import build
from diou_jax.options.initial_weights import initial_variables
from diou_jax.prediction.detector import Detector
from diou_jax.reporting.run_log import read_metrics
from diou_jax.training import train
from diou_jax.training.watch import Watch
from diou_jax.weights.original import export_original, original_tensors
from diou_jax.weights.sources import read_source

SIZES, LIMITS = ("", "s", "m", "l"), (10, 100, 300, 1000)


@pytest.fixture(scope="module")
def make(tiny_config):
    """``make()``: the config of a run of the RPN alone, which takes a second."""

    def config():
        config = tiny_config()
        config.model.rpn_only = True
        return config

    return config


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """A run that was never interrupted, evaluated."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    evaluator = train.train(make(), str(workdir), then_evaluate=True)
    evaluate.evaluate(make(), str(workdir), evaluator)
    return workdir


def leaves(workdir):
    with Checkpoints(workdir, create=False) as checkpoints:
        return jax.tree_util.tree_leaves_with_path(checkpoints.stored_variables())


@pytest.mark.slow
def test_the_network_has_no_head_and_the_log_the_losses_of_the_rpn(finished):
    names = {jax.tree_util.keystr(path[:2]) for path, _ in leaves(finished)}
    learned = {"['params']['backbone']", "['params']['neck']", "['params']['rpn']"}
    assert names == learned | {"['affine']['backbone']"}
    training = [row for row in read_metrics(finished) if "loss" in row]
    assert [row["step"] for row in training] == [2, 4, 6, 8]
    for row in training:
        assert {name for name in row if name.startswith(("loss", "bbox", "acc"))} == {
            "loss",
            "loss_rpn_cls",
            "loss_rpn_bbox",
        }
        assert all(np.isfinite(value) for value in row.values())
        assert row["loss"] == pytest.approx(row["loss_rpn_cls"] + row["loss_rpn_bbox"], rel=1e-5)


@pytest.mark.slow
def test_an_evaluation_leaves_recall_a_file_pictures_and_curves(finished, make):
    (row,) = [row for row in read_metrics(finished) if "dataset" in row]
    assert row["step"] == 8 and {f"eval/AR{size}@{limit}" for size in SIZES for limit in LIMITS} < row.keys()
    assert 0 <= row["eval/AR@10"] <= row["eval/AR@100"] <= row["eval/AR@1000"] <= 1
    with np.load(finished / "rpn_proposals_val.npz") as file:
        table = dict(file)
    assert table["image_ids"].dtype == np.int64 and len(table["image_ids"]) == 6
    assert table["boxes"].shape == (len(table["scores"]), 4) and table["boxes"].dtype == np.float32
    counts = table["stops"] - table["starts"]
    assert 0 < counts.max() <= make().test.rpn_post_nms_top_n and counts.sum() == len(table["scores"])
    for start, stop in zip(table["starts"], table["stops"]):
        assert (np.diff(table["scores"][start:stop]) <= 0).all()
    assert table["boxes"].min() >= 0 and table["boxes"].max() <= 127  # the images have 128 pixels
    assert len(list((finished / "pictures").glob("*.jpg"))) == 2
    assert (finished / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_evaluation_can_be_repeated_and_counts_once(finished, make):
    before, config = (finished / "rpn_proposals_val.npz").read_bytes(), make()
    config.log.report = True
    rows = evaluate.evaluate(config, str(finished))
    assert (finished / "rpn_proposals_val.npz").read_bytes() == before
    judged = [row for row in read_metrics(finished) if "dataset" in row]
    assert len(judged) == 1 and judged[0]["eval/AR@100"] == rows[0]["eval/AR@100"]
    assert "Average recall of proposals" in (finished / "report.html").read_text()


@pytest.mark.slow
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_ends(make, finished, tmp_path, monkeypatch):
    def interrupted(reader, start, end, **options):
        for number, batch in enumerate(batches(reader, start, end, **options)):
            if start + number >= 4:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(train, "batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train(make(), str(tmp_path))
    train.train(make(), str(tmp_path))
    for (path, ours), (_, wanted) in zip(leaves(tmp_path), leaves(finished), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(wanted).tobytes(), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_proposals_are_those_in_which_the_whole_detector_looks_for_objects(tiny_config, make):
    """A detector with a box head and the RPN alone propose the same boxes with the same weights."""
    whole, alone = build.detector(tiny_config(), 5), build.detector(make(), 5)
    variables = whole.network.init_variables(jax.random.key(3))
    variables["params"]["rpn"]["logits"]["kernel"] *= 40.0
    config = make()
    batch, _ = build.eval_reader(config, build.dataset(config, config.test.datasets))(0)
    batch = batch.replace(present=batch.present & (np.arange(len(batch.present)) > 0))

    @jax.jit
    def both(variables, batch):
        pyramid = whole.pyramid(variables, batch, batch.padded_size)
        params = {name: value for name, value in variables["params"].items() if name != "box_head"}
        return whole.proposals(variables, pyramid, batch), alone.detect(variables | {"params": params}, batch)

    wanted, found = both(variables, batch)
    scale = batch.placement.scale[:, None, [1, 0, 1, 0]]
    limit = batch.original_size[:, None, [1, 0, 1, 0]] - 1
    for slot, present in enumerate(batch.present):
        valid = np.asarray(wanted.valid[slot]) & present
        np.testing.assert_array_equal(found.valid[slot], valid)
        np.testing.assert_array_equal(found.scores[slot], np.where(valid, wanted.scores[slot], 0))
        boxes = np.clip(np.asarray(wanted.boxes[slot]) / scale[slot], 0, limit[slot])
        np.testing.assert_allclose(found.boxes[slot], np.where(valid[:, None], boxes, 0), atol=1e-4)
    assert np.asarray(found.valid).sum() > 10 and not np.asarray(found.valid[0]).any()


@pytest.mark.slow
def test_detection_is_refused_with_the_reason(finished, make):
    with pytest.raises(UserError, match=r"model\.rpn_only=True: this network proposes boxes without classes"):
        Detector.from_checkpoint(finished)


def test_a_mask_head_is_refused():
    config = base.get_config()
    config.model.rpn_only = config.model.mask_on = True
    with pytest.raises(UserError, match=r"model\.mask_on=True: it must be False with model\.rpn_only=True"):
        base.check(config)


@pytest.mark.slow
def test_weights_go_out_under_the_original_s_names_and_come_back(finished, make, tmp_path):
    with Checkpoints(finished, create=False) as checkpoints:
        variables = checkpoints.stored_variables()
    file = tmp_path / "rpn.pkl"
    file.write_bytes(pickle.dumps({"model": export_original(variables)}))
    source = read_source(file)
    assert source.is_detector and source.num_classes is None
    assert {name.split(".")[0] for name in source.tensors} == {"Conv_Body", "RPN"}
    import_file(make(), file, tmp_path / "run")
    for (path, ours), (_, wanted) in zip(leaves(tmp_path / "run"), leaves(finished), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(wanted).tobytes(), jax.tree_util.keystr(path)
    config = make()
    config.init.checkpoint = str(file)
    taken, lines = initial_variables(config, build.network(config, 5), ("background", "a", "b", "c", "d"))
    assert not any("classes" in line for line in lines)
    np.testing.assert_array_equal(*(tree["params"]["rpn"]["conv"]["kernel"] for tree in (taken, variables)))


@pytest.mark.slow
def test_weights_of_a_whole_detector_need_a_word_for_their_head(tiny_config, make, tmp_path):
    shapes = build.network(tiny_config(), 7).variable_shapes()
    tensors = {one.name: np.ones(one.shape, np.float32) for one in original_tensors(shapes).values()}
    file = tmp_path / "whole.pkl"
    file.write_bytes(pickle.dumps({"model": tensors}))
    with pytest.raises(UserError, match=r"Box_\w+\.\w+\.\w+ has no place in this network"):
        import_file(make(), file, tmp_path / "refused")
    import_file(make(), file, tmp_path / "run", allow=["Box_"])
    assert all((np.asarray(leaf) == 1).all() for _, leaf in leaves(tmp_path / "run"))


def test_a_fall_of_recall_is_a_collapse():
    watch = Watch([{"step": 1, "dataset": "val", "eval/AR@1000": 0.4}])
    assert watch.sign_of_collapse({"step": 2, "dataset": "val", "eval/AR@1000": 0.3}) is None
    sign = watch.sign_of_collapse({"step": 3, "dataset": "val", "eval/AR@1000": 0.1})
    assert sign == "AR@1000 fell to 0.100 from 0.400: the run has collapsed"


def test_the_config_keeps_as_many_proposals_as_detectron_writes():
    config = rpn.get_config("r101")
    base.check(config)
    assert config.model.rpn_only and config.test.rpn_post_nms_top_n == 2000
    assert build.network(config, 81).variable_shapes()["params"].keys() == {"backbone", "neck", "rpn"}
