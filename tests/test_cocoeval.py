"""COCOeval in several processes gives the numbers of one process, bit for bit, whatever happens to the processes."""

import contextlib
import dataclasses
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from coco_scenes import draw_scene, score
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from diou_jax.analysis.matches import FoundObjects
from diou_jax.evaluation import cocoeval


def box_mask(box):
    """The box as a mask of 500 by 500 pixels."""
    return coco_mask.frPyObjects(np.array([box], np.float64), 500, 500)[0]


def task_of(seed, *, kind="bbox", **options):
    """A task of a random scene, with numbered objects and detections."""
    content, results = draw_scene(seed, **options)
    fields = {"iscrowd": 0}
    if kind == "segm":
        content["annotations"] = [one | {"segmentation": box_mask(one["bbox"])} for one in content["annotations"]]
        results = [one | {"segmentation": box_mask(one["bbox"])} for one in results]
    detections = [
        one | fields | {"id": number, "area": one["bbox"][2] * one["bbox"][3]} for number, one in enumerate(results, 1)
    ]
    ids = ([one["id"] for one in content[name]] for name in ("images", "categories"))
    return cocoeval.Task(kind, *ids, content["annotations"], detections, max_dets=100, with_found=True)


def assert_equal(one, other):
    np.testing.assert_array_equal(one.precision, other.precision)
    np.testing.assert_array_equal(one.recall, other.recall)
    assert list(one.params.catIds) == list(other.params.catIds)
    for field in dataclasses.fields(FoundObjects):
        mine, theirs = getattr(one.found, field.name), getattr(other.found, field.name)
        assert mine.dtype == theirs.dtype, field.name
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_the_classes(kind, processes):
    task = task_of(1, kind=kind, classes=7, images=9, found=30)
    divided = cocoeval.score(task, processes=processes)
    assert_equal(divided, cocoeval.score_here(task))

    # And these are pycocotools' own numbers.
    indices = []
    for entries in (task.objects, task.detections):
        index = COCO()
        index.dataset = {
            "images": [{"id": number, "height": 500, "width": 500} for number in task.image_ids],
            "categories": [{"id": number} for number in task.category_ids],
            "annotations": [dict(one) for one in entries],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        indices.append(index)
    theirs = COCOeval(*indices, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.evaluate()
        theirs.accumulate()
    np.testing.assert_array_equal(divided.precision, theirs.eval["precision"])
    np.testing.assert_array_equal(divided.recall, theirs.eval["recall"])


def test_the_largest_classes_are_in_different_parts():
    task = task_of(2, classes=6, images=20, found=30)
    parts = cocoeval._divide(task, 3)
    assert sorted(number for part in parts for number in part.category_ids) == list(task.category_ids)
    for name in ("objects", "detections"):
        wanted = {id(one) for one in getattr(task, name)}
        found = [one for part in parts for one in getattr(part, name)]
        assert {id(one) for one in found} == wanted and len(found) == len(wanted)
        assert all(one["category_id"] in part.category_ids for part in parts for one in getattr(part, name))
    sizes = [len(part.objects) + len(part.detections) for part in parts]
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.parametrize("missing", ["objects", "detections", "both"])
def test_classes_without_entries(missing):
    task = task_of(3, classes=4)
    left = {name: () for name in ("objects", "detections") if missing in (name, "both")}
    task = dataclasses.replace(task, **left)
    assert_equal(cocoeval.score(task, processes=3), cocoeval.score_here(task))


def test_few_detections_or_one_class_need_no_process(monkeypatch):
    def refused(tasks):
        raise AssertionError("a process was started")

    monkeypatch.setattr(cocoeval, "_score_in_processes", refused)
    task = task_of(4)
    assert_equal(cocoeval.score(task), cocoeval.score_here(task))
    monkeypatch.setattr(cocoeval, "LEAST_DETECTIONS", 1)
    one = task.category_ids[0]
    only = {
        name: [entry for entry in getattr(task, name) if entry["category_id"] == one]
        for name in ("objects", "detections")
    }
    single = dataclasses.replace(task, category_ids=[one], **only)
    assert_equal(cocoeval.score(single), cocoeval.score_here(single))


def test_many_detections_are_shared_by_default(tmp_path, monkeypatch):
    content, results = draw_scene(5, classes=5)
    alone = score(tmp_path, content, results)
    started = []
    monkeypatch.setattr(cocoeval, "LEAST_DETECTIONS", len(results))
    monkeypatch.setattr(cocoeval, "_cores", lambda: 3)
    run = cocoeval._score_in_processes
    monkeypatch.setattr(cocoeval, "_score_in_processes", lambda tasks: started.append(len(tasks)) or run(tasks))
    together = score(tmp_path, content, results)
    assert started == [3]
    assert repr(together) == repr(alone)  # a class without objects has an AP of NaN, which equals nothing
    for name in ("found", "true", "overlaps"):
        mine, theirs = getattr(together.matches, name), getattr(alone.matches, name)
        for field in dataclasses.fields(mine):
            np.testing.assert_array_equal(getattr(mine, field.name), getattr(theirs, field.name))


DYING = "import sys; print('no memory', file=sys.stderr); sys.exit(9)"


@pytest.mark.parametrize(
    ("program", "words"), [(DYING, "9 (no memory)"), ("", "0 (no message)")], ids=["dies", "says nothing"]
)
def test_a_process_that_dies_costs_time_and_nothing_else(monkeypatch, tmp_path, caplog, program, words):
    """It dies at once, so that the task may not reach it, either."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{program}"\n')
    python.chmod(0o755)
    task = task_of(6, classes=4, images=40, found=60)
    wanted = cocoeval.score_here(task)
    monkeypatch.setattr(sys, "executable", str(python))
    assert_equal(cocoeval.score(task, processes=2), wanted)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(f"a process that scores detections died with code {words}" in line for line in lines)


def test_where_no_process_can_be_started_this_one_scores(monkeypatch, tmp_path, caplog):
    task = task_of(8)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert_equal(cocoeval.score(task, processes=2), cocoeval.score_here(task))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no process can be started to score detections" in line and "No such file" in line


def test_an_interrupt_ends_the_processes(monkeypatch):
    started = []
    start = cocoeval.subprocess.Popen

    def noted(*arguments, **options):
        started.append(start(*arguments, **options))
        return started[-1]

    def interrupted(stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(cocoeval.subprocess, "Popen", noted)
    monkeypatch.setattr(pickle, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cocoeval.score(task_of(7), processes=2)
    assert len(started) == 2
    for process in started:
        assert process.returncode is not None
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_what_libraries_print_is_no_part_of_the_scores(monkeypatch, tmp_path):
    """A startup file of the user's Python prints before anything else does."""
    (tmp_path / "sitecustomize.py").write_text("import os\nprint('a line')\nos.write(1, b'a line of C')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    task = task_of(9)
    monkeypatch.setattr(cocoeval, "score_here", lambda task: pytest.fail("a process has died"))
    divided = cocoeval.score(task, processes=2)
    monkeypatch.undo()
    assert_equal(divided, cocoeval.score_here(task))


def test_its_processes_need_no_jax():
    """It would take seconds to import, and might take memory of a GPU."""
    program = "import diou_jax.evaluation.cocoeval, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
