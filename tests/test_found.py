"""Detections gathered batch by batch: masks pasted in threads, and exchanged between processes."""

import json
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT

from diou_jax import masks
from diou_jax.evaluation import found as found_module
from diou_jax.evaluation.found import Collector
from diou_jax.structures import Detections

SIZE = (40, 50)


def batch(rows, *, side=28, with_masks=True):
    """A batch of one device: rows, flags of presence, sizes, and detections of which every third is not valid."""
    rng = np.random.default_rng(np.array(rows) + 1)
    number, each = len(rows), 6
    corner = rng.uniform(0, 30, (1, number, each, 2))
    probabilities = rng.uniform(0, 1, (1, number, each, side, side)).astype(np.float32)
    detections = Detections(
        boxes=np.concatenate([corner, corner + 15], 3).astype(np.float32),
        scores=rng.uniform(0, 1, (1, number, each)).astype(np.float32),
        classes=rng.integers(1, 4, (1, number, each)).astype(np.int32),
        valid=np.broadcast_to(np.arange(each) % 3 > 0, (1, number, each)),
        masks=probabilities if with_masks else None,
    )
    present = np.array(rows)[None] >= 0
    return np.array(rows)[None], present, np.tile(np.array(SIZE), (1, number, 1)), detections


def collect(batches, **options):
    counts = []
    with Collector(mask_threshold=0.5) as collector:
        for *about, detections in (batch(rows, **options) for rows in batches):
            counts.append(collector.add(*about, detections=detections))
        return collector.all(), counts


def test_each_image_gets_its_own_masks():
    found, counts = collect([[3, 0], [2, -1]])
    assert sorted(found) == [0, 2, 3] and counts == [2, 1]
    *_, detections = batch([3, 0])
    valid = detections.valid[0, 1]
    one = found[0]
    np.testing.assert_array_equal(one.boxes, detections.boxes[0, 1][valid])
    np.testing.assert_array_equal(one.classes, detections.classes[0, 1][valid])
    wanted = masks.encode(detections.masks[0, 1][valid], one.boxes, height=SIZE[0], width=SIZE[1])
    assert len(wanted) == 4 and one.rles == wanted


def test_detections_without_masks():
    found, _ = collect([[0, 1]], with_masks=False)
    assert [one.rles for one in found.values()] == [None, None]
    assert len(found[0].scores) == 4


def test_detection_waits_where_pasting_is_slower(monkeypatch):
    """At most `WAITING` images and those in the threads hold their probabilities."""
    release, encode, calls = threading.Event(), masks.encode, []

    def slow(*arguments, **options):
        calls.append(release.wait(30))
        return encode(*arguments, **options)

    monkeypatch.setattr(found_module, "WAITING", 3)
    monkeypatch.setattr(masks, "encode", slow)
    added = []

    def add():
        with Collector(mask_threshold=0.5) as collector:
            for row in range(20):
                *about, detections = batch([row])
                collector.add(*about, detections=detections)
                added.append(row)
            added.append(len(collector.all()))

    thread = threading.Thread(target=add)
    thread.start()
    thread.join(0.3)
    assert len(added) == 3, "the fourth waits for the first"
    release.set()
    thread.join(30)
    assert added == [*range(20), 20] and calls == [True] * 20


def test_an_error_of_a_thread_ends_the_evaluation(monkeypatch):
    def broken(*_, **options):
        raise MemoryError("no memory for masks")

    monkeypatch.setattr(masks, "encode", broken)
    with pytest.raises(MemoryError, match="no memory for masks"):
        collect([[0]])


PROGRAM = """
import json, sys
sys.path.insert(0, "tests")
import jax
port, number = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
from test_found import collect
found, counts = collect([[[0, 1], [2, 3]], [[4, -1], [5, 6]]][step][int(number)] for step in range(2))
print(json.dumps([counts, {row: (one.boxes.tolist(), list(one.rles)) for row, one in sorted(found.items())}]))
"""


@pytest.mark.slow
def test_processes_exchange_run_lengths():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"cwd": ROOT, "env": os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}, "text": True}
    command = [sys.executable, "-c", PROGRAM, str(port)]
    started = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, **options) for n in range(2)]
    try:
        printed = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert printed[0] == printed[1]
    counts, found = printed[0]
    assert counts == [4, 3] and list(found) == [str(row) for row in range(7)]
    alone, _ = collect([[0, 1], [2, 3], [4, -1], [5, 6]])
    assert {int(row): (boxes, rles) for row, (boxes, rles) in found.items()} == {
        row: (one.boxes.tolist(), one.rles) for row, one in alone.items()
    }
