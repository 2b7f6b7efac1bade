import collections
import multiprocessing
import pickle
import signal
import time

import jax
import numpy as np
import pytest
from conftest import slow
from test_reader import SKIP, equal, make_dataset, make_train_reader

from diou_jax.data import catalog, coco, loader
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.dataset import BadImageError
from diou_jax.data.make_reader import train_reader
from diou_jax.errors import UserError


def test_batches_are_those_of_the_steps():
    reader = make_train_reader()
    for threads in (1, 3):
        for step, batch in enumerate(loader.batches(reader, 2, 9, threads=threads), start=2):
            equal(batch, reader(step)[0])
        assert step == 8


def test_resuming_gives_the_same_stream_bit_for_bit():
    reader = make_train_reader()
    stop = 2 * reader.steps + 1
    uninterrupted = list(loader.batches(reader, 0, stop))
    for start in (1, reader.steps, stop - 1):
        resumed = list(loader.batches(pickle.loads(pickle.dumps(reader)), start, stop))
        assert len(resumed) == stop - start
        jax.tree.map(np.testing.assert_array_equal, resumed, uninterrupted[start:])


def test_no_steps_no_batches():
    assert list(loader.batches(make_train_reader(), 5, 5)) == []


def test_an_error_in_a_thread_surfaces_with_the_files_name():
    reader = make_train_reader(make_dataset(bad=[2]))
    with pytest.raises(BadImageError, match=r"picture2\.png"):
        list(loader.batches(reader, 0, reader.steps, threads=2))


def test_skipped_images_are_named_and_counted_once(caplog):
    reader = make_train_reader(make_dataset(bad=[1, 2]), rules=SKIP)
    with caplog.at_level("WARNING"):
        list(loader.batches(reader, 0, 4 * reader.steps))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert {message.split(":")[1] for message in messages} == {" picture1.png", " picture2.png"}
    assert [message[-10:] for message in messages] == ["(1 so far)", "(2 so far)"]


def test_too_little_shared_memory_is_told_before_it_kills_a_worker(monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(loader.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match="use threads instead"):
        next(loader.batches(make_train_reader(), 0, 9, workers=2))


@pytest.mark.parametrize("bad", [slow(False), True])
def test_worker_processes_change_nothing(real_data, bad, tmp_path):
    root = real_data("coco128")
    images = root / "images" / "train2017"
    if bad:
        for path in images.iterdir():
            (tmp_path / path.name).symlink_to(path)
        (tmp_path / "000000000061.jpg").unlink()
        images = tmp_path
    dataset = coco.load(root / "annotations" / "instances_train2017.json", images)
    reader = train_reader(dataset, (Mirror(), ScaleChoice((100,), 167)), batch_size=2, seed=0)
    if bad:
        with pytest.raises(BadImageError, match=r"000000000061\.jpg: cannot be read"):
            list(loader.batches(reader, 0, reader.steps, workers=2, threads=2))
    else:
        stream = loader.batches(reader, 3, 1000, workers=2)
        for step in range(3, 9):
            batch = next(stream)
            assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))
            equal(batch, reader(step)[0])
        stream.close()
    assert not multiprocessing.active_children()


def test_a_killed_worker_ends_the_run_at_once(shapes_root):
    reader = train_reader(catalog.load(("train",), shapes_root), [ScaleChoice((64,), 64)], batch_size=2, seed=0)
    stream = loader.batches(reader, 0, 10**6, workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=f"(?i)process.*exit.*-{signal.SIGKILL:d}"):
        collections.deque(stream, maxlen=0)
    assert time.monotonic() - began < 60
