"""Reads batches ahead in threads and processes, and yields them in order."""

import gc
import os
import shutil
from collections.abc import Iterator

import cv2
import grain
import jax
import numpy as np
from absl import logging

from diou_jax.data.augmented_reader import AugmentedReader
from diou_jax.data.reader import Reader
from diou_jax.data.stall import watched
from diou_jax.errors import UserError
from diou_jax.structures import Batch


def batches(
    reader: Reader | AugmentedReader,
    start: int,
    stop: int,
    *,
    threads: int = 1,
    workers: int = 0,
    timeout: float = 0.0,
) -> Iterator[Batch]:
    """Reads a process' batches of the steps `start` to `stop` - 1; threads and workers do not change their content.

    Decoding releases Python's global lock, so that threads use the cores almost as well as processes do, and need
    neither a start nor copies. Skipped images are counted and named in the log.

    Args:
      reader: makes the batch of a step.
      start: the first step.
      stop: the step after the last.
      threads: number of threads in each worker; each thread makes a whole batch.
      workers: number of processes, started as new interpreters (the program needs a main guard); 0 reads in this one.
      timeout: seconds without a batch after which the run ends; with 0 it only warns.

    Yields:
      Numpy batches.

    Raises:
      UserError: if an image cannot be read, no batch comes in time, or the machine has too little shared memory for
        `workers`.
    """
    if start >= stop:
        return
    dataset = grain.MapDataset.range(start, stop).map(reader)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    workers = min(workers, stop - start)
    if workers > 0:
        _check_shared_memory(reader, workers * (threads + 2) + 1)
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_start_worker)
    iterator = iter(dataset)
    skipped = set()
    try:
        for batch, messages in watched(iterator, lambda n: _describe(reader, start + n), timeout=timeout):
            for message in messages:
                if message not in skipped:
                    skipped.add(message)
                    logging.warning("image skipped: %s (%d so far)", message, len(skipped))
            # Batches are copied: one that is kept would hold its piece of grain's shared memory beyond the end.
            yield jax.tree.map(np.array, batch) if workers > 0 else batch
    finally:
        iterator.close()
        if workers > 0:
            # grain's iterators are reference cycles that own shared memory.
            del iterator
            gc.collect()


def _describe(reader, step):
    rows = reader.schedule.entries(step).index[reader.part]
    return f"step {step}: {', '.join(reader.dataset.image_name(int(row)) for row in rows)}"


def _start_worker(index: int, count: int) -> None:
    del index, count
    cv2.setNumThreads(0)  # each worker has threads of its own


def _check_shared_memory(reader, count):
    """Checks /dev/shm, often 64 MB in containers: if it were full, a worker would die of a bus error."""
    need = count * reader.image_bytes * (reader.part.stop - reader.part.start)
    if os.path.isdir("/dev/shm") and need > shutil.disk_usage("/dev/shm").free:
        raise UserError(
            f"data.workers: {count} batches need {need >> 20} MB of shared memory and /dev/shm has "
            f"{shutil.disk_usage('/dev/shm').free >> 20} MB free; use threads instead (docker run has --shm-size)"
        )
