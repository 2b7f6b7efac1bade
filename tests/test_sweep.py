"""Several settings from one run of the network, with random weights: each gives the results of an evaluation alone."""

import collections
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diou_jax.command import settings as sweep_settings
from diou_jax.command.arguments import _override
from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.evaluation import compare
from diou_jax.evaluation import sweep as sweeping
from diou_jax.evaluation.compare import compare_runs
from diou_jax.evaluation.evaluate import Evaluator
from diou_jax.nested_config import flatten
from diou_jax.option_groups import AFTER_NETWORK
from diou_jax.options import build
from diou_jax.programs import Programs
from diou_jax.reporting.run_log import RunLog, read_metrics
from diou_jax.workdir.run_config import restore_config

STEP = 7


def settings(config, *texts):
    """The settings of ``--sweep``, as the command line makes them."""
    found = {}
    for options in sweep_settings.combinations(texts, config):
        one = _override(config.copy_and_resolve_references(), options)
        found[sweep_settings.checked_name(options, one)] = one
    return found


class Run:
    """A run with random weights, whose config and checkpoint are in memory."""

    def __init__(self, config):
        self.config = config
        config.resnets.blocks = (1, 1, 1, 1)
        config.test.score_thresh = 0.02
        config.test.rpn_nms_thresh = 0.95  # so that suppression has something to do
        config.log.images, config.log.report = 0, False
        self.names = build.dataset(config, config.test.datasets, masks=False).class_names
        rng = np.random.default_rng(0)

        def weights(path, leaf):
            """Random kernels, drawn by numpy because that compiles nothing; scores and boxes differ from RoI to RoI."""
            names = jax.tree_util.keystr(path)
            if "kernel" not in names:
                return jnp.full(leaf.shape, "scale" in names, leaf.dtype)
            inputs = leaf.shape[0] if leaf.ndim == 2 else leaf.size // leaf.shape[0]
            size = 0.01 if "backbone']['conv1" in names else 0.2 if "deltas" in names else 1.0
            return jnp.asarray(rng.normal(0, size * inputs**-0.5, leaf.shape), leaf.dtype)

        shapes = build.network(config, len(self.names)).variable_shapes()
        self.variables = jax.tree_util.tree_map_with_path(weights, shapes)

    def __call__(self, *_, **options):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def metadata(self):
        return {"class_names": self.names}

    def restore_variables(self, like, *, averaged):
        return self.variables

    def chosen(self):
        return STEP

    def alone(self, config, folder):
        """Evaluates one setting as usual; returns the log's row."""
        evaluator = Evaluator(config, str(folder), self.names)
        with RunLog(folder) as log:
            evaluator(self.variables, STEP, log)
        (row,) = read_metrics(folder)
        return row


@pytest.fixture(scope="module")
def boxes(tiny_config):
    return Run(tiny_config())


@pytest.fixture(scope="module")
def masks(tiny_mask_config):
    return Run(tiny_mask_config())


def equals_alone(run, workdir, found, monkeypatch, *, alone=None):
    """Asserts that a sweep leaves, in each setting's folder, the bytes that an evaluation of it alone leaves.

    Args:
      run: the run.
      workdir: folder for both.
      found: the settings.
      monkeypatch: pytest's.
      alone: names of the settings that are evaluated alone, too; each costs a compilation. None: all.

    Returns:
      The comparisons, how often the sweep called each program, and the different contents of the results files.
    """
    monkeypatch.setattr(sweeping, "Checkpoints", run)
    calls, call = collections.Counter(), Programs.__call__

    def count(self, tree, batch):
        calls[self.title.split()[0]] += 1
        return call(self, tree, batch)

    monkeypatch.setattr(Programs, "__call__", count)
    comparisons = sweeping.sweep(run.config, str(workdir), found)
    swept = dict(calls)
    assert swept["backbone"] == swept["candidates"] > 0
    for name in found if alone is None else alone:
        row = run.alone(found[name], workdir / "alone" / name)
        files = sorted((workdir / "alone" / name).glob("*_results.json"))
        assert len(files) == len(comparisons) > 0
        for file in files:
            assert (workdir / "sweep" / name / file.name).read_bytes() == file.read_bytes()
        assert read_metrics(workdir / "sweep" / name) == [row]
        assert restore_config(workdir / "sweep" / name).to_dict() == found[name].to_dict()
    contents = {file.read_bytes() for file in (workdir / "sweep").glob("*/*_results.json")}
    return comparisons, swept, contents


@pytest.mark.slow
def test_each_setting_gives_what_an_evaluation_of_it_alone_gives(boxes, tmp_path, monkeypatch, capsys):
    for module in (sweeping, compare):  # slower tests write real pages
        monkeypatch.setattr(module, "write_comparison", lambda path, *_, albums: path.write_text(",".join(albums)))
    found = settings(boxes.config, "test.nms=0.3,0.5", "test.detections_per_im=10")
    first, last = found
    (comparison,), calls, contents = equals_alone(boxes, tmp_path, found, monkeypatch, alone=[first])
    assert len(contents) == 2 and len(json.loads(next(iter(contents)))) > 10
    assert calls == {
        "backbone": calls["backbone"],
        "candidates": calls["backbone"],
        "suppression": 2 * calls["backbone"],
    }
    assert [side.name for side in comparison.sides] == list(found)
    assert comparison.options == {"test.nms": (0.3, 0.5)}
    assert (tmp_path / "sweep.html").read_text() == "val"
    assert not (tmp_path / "metrics.jsonl").exists()
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in found) and "difference of AP, 95 % interval" in printed
    # The folders are those of evaluated runs.
    (again,) = compare_runs([tmp_path / "sweep" / name for name in (first, last)], tmp_path / "compare.html")
    assert [side.name for side in again.sides] == [first, last] and [side.step for side in again.sides] == [STEP] * 2
    assert [side.statistics for side in again.sides] == [side.statistics for side in comparison.sides]
    # NaN does not equal NaN.
    assert repr(again.differences[0].intervals) == repr(comparison.differences[-1].intervals)
    assert again.options == comparison.options


@pytest.mark.slow
@pytest.mark.parametrize(
    ("texts", "alone"),
    [
        (["test.soft_nms.enabled=True,False", "mrcnn.thresh_binarize=0.5,0.4"], (0, 3)),
        (["test.bbox_vote.enabled=True,False", "test.bbox_vote.scoring_method=ID,AVG"], (1,)),
        (["test.detections_per_im=10,5", "test.score_thresh=0.02,0.22"], (3,)),
        (["test.diou_nms.beta1=0.6,inf"], (0, 1)),
    ],
)
def test_masks_are_those_of_an_evaluation_alone(masks, tmp_path, monkeypatch, texts, alone):
    found = settings(masks.config, *texts)
    names = [list(found)[place] for place in alone]
    comparisons, _, contents = equals_alone(masks, tmp_path, found, monkeypatch, alone=names)
    assert [comparison.kind for comparison in comparisons] == ["bbox", "segm"]
    assert "<html" in (tmp_path / "sweep.html").read_text()
    assert len(contents) > len(comparisons)


@pytest.mark.slow
def test_augmented_testing_is_swept_too(masks, tmp_path, monkeypatch):
    run = Run(masks.config.copy_and_resolve_references())
    run.config.test.bbox_aug.update(enabled=True, h_flip=True)
    run.config.test.mask_aug.update(enabled=True, h_flip=True)
    found = settings(run.config, "test.diou_nms.enabled=True,False")
    _, _, contents = equals_alone(run, tmp_path, found, monkeypatch)
    assert len(contents) == 4


@pytest.mark.slow
def test_greedy_and_diou_nms_beside_an_evaluation_change_nothing(masks, tmp_path, capsys):
    config = masks.config.copy_and_resolve_references()
    row = masks.alone(config, tmp_path / "without")
    config.test.compare_nms = True
    assert masks.alone(config, tmp_path / "with") == row
    for file in (tmp_path / "without").glob("*_results.json"):
        assert (tmp_path / "with" / file.name).read_bytes() == file.read_bytes()
    assert "kept by greedy NMS and by DIoU-NMS" in capsys.readouterr().out


def test_a_network_without_detections_is_refused(tiny_config, tmp_path):
    config = tiny_config()
    config.model.rpn_only = True
    with pytest.raises(UserError, match=r"--sweep: with model\.rpn_only=True there are no detections"):
        sweeping.sweep(config, str(tmp_path), settings(config, "test.nms=0.4,0.5"))


def test_only_options_after_the_network_are_taken_from_a_setting(tiny_config):
    config, other = tiny_config(), tiny_config()
    other.test.nms, other.test.scale = 0.3, 32
    taken = sweeping._with_setting(config, other)
    assert (taken.test.nms, taken.test.scale, config.test.nms) == (0.3, 64, 0.5)


class WithoutNetwork(sweeping._Sweep):
    """Settings whose detections are made up: none."""

    def __init__(self, config, configs, class_names):
        self._configs = configs
        self.detector = types.SimpleNamespace(network=types.SimpleNamespace(variable_shapes=dict))
        self.found: list[dict] = [{"bbox": []} for _ in configs]

    def __call__(self, sets, variables, step, *, folders, unwritten):
        assert list(folders) == list(self._configs) and all(folder.is_dir() for folder in folders.values())
        return self._judge(sets[0], self.found, step, folders=folders, unwritten=unwritten)


@pytest.fixture
def swept(boxes, tmp_path, monkeypatch):
    """``swept(*texts)`` sweeps without a network; returns the comparisons."""
    monkeypatch.setattr(sweeping, "_Sweep", WithoutNetwork)
    monkeypatch.setattr(sweeping, "Checkpoints", boxes)
    monkeypatch.setattr(sweeping, "write_comparison", lambda path, *_, albums: path.write_text(",".join(albums)))
    return lambda *texts: sweeping.sweep(boxes.config, str(tmp_path), settings(boxes.config, *texts))


def test_folders_of_many_options_have_short_names_and_are_made_before_the_detection(swept, tmp_path):
    options = [
        name for name in AFTER_NETWORK if name.startswith(("test.soft_nms.", "test.bbox_vote.", "test.diou_nms."))
    ]
    values = {name: flatten(base.get_config())[name] for name in options}
    (comparison,) = swept("test.nms=0.4,0.5", *(f"{name}={value}" for name, value in values.items()))
    names = [side.name for side in comparison.sides]
    assert len(names) == 2 and all(len(name) > 255 for name in names)
    folders = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert len(folders) == 2 and all(len(folder) <= 255 for folder in folders)
    assert sorted(side.folder for side in comparison.sides) == [str(tmp_path / "sweep" / name) for name in folders]
    for side in comparison.sides:
        assert restore_config(side.folder).test.nms == side.options["test.nms"]


def test_a_folder_that_cannot_be_made_is_named_before_the_detection(swept, tmp_path):
    (tmp_path / "sweep").touch()
    with pytest.raises(UserError, match=r"--sweep .*test\.nms=0\.4 cannot be made"):
        swept("test.nms=0.4,0.5")


def test_the_page_of_the_run_links_to_the_sweep(swept, boxes, tmp_path):
    swept("test.nms=0.4,0.5")
    assert not (tmp_path / "index.html").exists(), "log.report is off"
    boxes.config.log.report = True
    try:
        swept("test.nms=0.4,0.5")
    finally:
        boxes.config.log.report = False
    assert 'href="sweep.html"' in (tmp_path / "index.html").read_text()
    assert not (tmp_path / "tensorboard").exists() and not (tmp_path / "metrics.jsonl").exists()


def test_files_that_cannot_be_written_cost_no_number(swept, tmp_path, capsys):
    for name in ("bbox_val_results.json", "metrics.jsonl"):
        (tmp_path / "sweep" / "test.nms=0.4" / name).mkdir(parents=True)
    (tmp_path / "sweep.html").mkdir()
    with pytest.raises(UserError, match=r"cannot be written: .*bbox_val_results\.json .*metrics\.jsonl .*sweep\.html"):
        swept("test.nms=0.4,0.5")
    printed = capsys.readouterr().out
    assert " test.nms=0.5 " in printed and "the page is" not in printed
    assert (tmp_path / "sweep" / "test.nms=0.5" / "bbox_val_results.json").is_file()
