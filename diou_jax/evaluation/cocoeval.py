"""pycocotools' COCOeval, which divides the classes among several processes where there are many detections.

Its loops are in Python, so that threads do not help: half a million detections, the most that COCO's validation set has
with 100 an image, take it half a minute. No class influences another, so each number is the same as in one process.
"""

import contextlib
import dataclasses
import heapq
import io
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from absl import logging
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

import diou_jax
from diou_jax.analysis.matches import FoundObjects, found_objects

# Fewer detections are scored in this process within about a second, a good part of which others would need to start.
LEAST_DETECTIONS = 20_000

# More processes gain little, since the largest class takes the longest.
MOST_PROCESSES = 8


@dataclasses.dataclass(frozen=True)
class Task:
    """The classes that one process scores.

    Attributes:
      kind: "bbox" or "segm".
      image_ids: ids of the images, integers.
      category_ids: ids of the classes.
      objects: annotations as COCO's, with ids from 1.
      detections: likewise.
      max_dets: number of detections per image and class that count.
      with_found: whether `Scored.found` is wanted.
    """

    kind: str
    image_ids: Sequence[int]
    category_ids: Sequence[int]
    objects: Sequence[Mapping]
    detections: Sequence[Mapping]
    max_dets: int
    with_found: bool


@dataclasses.dataclass(frozen=True)
class Scored:
    """COCOeval's arrays, -1 without ground truth, for N classes in ascending order of ids.

    Attributes:
      params: the parameters, with the images and classes.
      precision: float64 (IoU thresholds, recalls, N, sizes, limits of detections).
      recall: float64 (IoU thresholds, N, sizes, limits of detections).
      found: the detections with their matches, if they are wanted.
    """

    params: Params
    precision: np.ndarray
    recall: np.ndarray
    found: FoundObjects | None


def score(task: Task, *, processes: int | None = None) -> Scored:
    """The scores of a task; by default in as many processes as its detections are worth, and the machine has cores."""
    if processes is None:
        few = len(task.detections) < LEAST_DETECTIONS
        processes = 1 if few else min(_cores(), MOST_PROCESSES)
    parts = _divide(task, processes)
    if len(parts) > 1:
        try:
            return _join(task, _score_in_processes(parts))
        except OSError as error:
            logging.warning("no process can be started to score detections (%s); this one scores them", error)
    return score_here(task)


def score_here(task: Task) -> Scored:
    """The scores of a task in this process."""
    objects, detections = (_index(task, entries) for entries in (task.objects, task.detections))
    evaluation = COCOeval(objects, detections, task.kind)
    evaluation.params.maxDets = [1, 10, task.max_dets]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    found = found_objects(evaluation) if task.with_found else None
    return Scored(evaluation.params, evaluation.eval["precision"], evaluation.eval["recall"], found)


def _index(task: Task, entries: Sequence[Mapping]) -> COCO:
    """The index of pycocotools for some entries. Unlike ``COCO.loadRes`` this accepts an empty list."""
    index = COCO()
    index.dataset = {
        # COCOeval asks for sizes but encodes nothing by them, since masks are encoded by the caller.
        "images": [{"id": image_id, "height": 0, "width": 0} for image_id in task.image_ids],
        "categories": [{"id": category_id} for category_id in task.category_ids],
        "annotations": entries,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _divide(task: Task, number: int) -> list[Task]:
    """A task as up to `number` tasks of about the same size, each with some of the classes."""
    number = max(min(number, len(task.category_ids)), 1)
    sizes = Counter(entry["category_id"] for entry in itertools.chain(task.objects, task.detections))
    parts: list[tuple[int, int, list[int]]] = [(0, part, []) for part in range(number)]
    for category_id in sorted(task.category_ids, key=lambda category_id: -sizes[category_id]):
        size, part, mine = heapq.heappop(parts)
        heapq.heappush(parts, (size + sizes[category_id], part, [*mine, category_id]))
    owner = {category_id: part for _, part, mine in parts for category_id in mine}
    entries: list[tuple[list, list]] = [([], []) for _ in parts]
    for place, column in enumerate((task.objects, task.detections)):
        for entry in column:
            entries[owner[entry["category_id"]]][place].append(entry)
    return [
        dataclasses.replace(task, category_ids=mine, objects=entries[part][0], detections=entries[part][1])
        for _, part, mine in parts
    ]


def _score_in_processes(tasks: Sequence[Task]) -> list[Scored]:
    """The scores of each task from a process of its own; if that process dies, from this one."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_Process.started()) for _ in tasks]
        for process, task in zip(processes, tasks, strict=True):
            process.send(task)
        found = []
        for process, task in zip(processes, tasks, strict=True):
            scored = process.receive()
            if scored is None:
                logging.warning("%s; its classes are scored in this process", process.how_it_died())
            found.append(score_here(task) if scored is None else scored)
        return found


@dataclasses.dataclass(frozen=True)
class _Process:
    """A process that scores one task.

    Attributes:
      process: the process, which reads the task from its standard input.
      scores: the pipe to which it writes the scores; standard output is for whatever libraries print.
      printed: a file of all that it prints.
    """

    process: subprocess.Popen
    scores: IO[bytes]
    printed: IO[bytes]

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator["_Process"]:
        """A context with a new process, which is killed at its end."""
        # The package may lie in a place that only this program's ``sys.path`` names.
        place = str(Path(diou_jax.__file__).parents[1])
        reading, writing = os.pipe()
        code = f"import sys; sys.path.append({place!r}); from {__name__} import serve; serve({writing})"
        with os.fdopen(reading, "rb") as scores, tempfile.TemporaryFile() as printed:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=printed,
                    stderr=printed,
                    pass_fds=[writing],
                    start_new_session=True,  # Ctrl-C interrupts this program, which then ends its processes
                )
            finally:
                os.close(writing)
            try:
                yield cls(process, scores, printed)
            finally:
                process.kill()
                process.wait()
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()

    def send(self, task: Task) -> None:
        """Sends the task; `receive` notices if the process has died."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pickle.dump(task, pipe, pickle.HIGHEST_PROTOCOL)

    def receive(self) -> Scored | None:
        """Waits for the scores; None if the process dies before."""
        try:
            return pickle.load(self.scores)
        except (EOFError, pickle.UnpicklingError):  # nothing, or a part
            return None

    def how_it_died(self) -> str:
        """The exit code and the last line that it printed, in words."""
        code = self.process.wait()
        self.printed.seek(0)
        lines = [line for line in self.printed.read().decode(errors="replace").splitlines() if line.strip()]
        last = lines[-1].strip()[:200] if lines else "no message"
        return f"a process that scores detections died with code {code} ({last})"


def serve(output: int) -> None:
    """The work of a process: reads a task from standard input and writes the scores to a file descriptor."""
    scored = score_here(pickle.load(sys.stdin.buffer))
    with os.fdopen(output, "wb") as pipe:
        pickle.dump(scored, pipe, pickle.HIGHEST_PROTOCOL)


def _join(task: Task, parts: Sequence[Scored]) -> Scored:
    """The scores of all classes of a task from those of its parts."""
    category_ids = np.unique(task.category_ids)
    columns = [np.searchsorted(category_ids, part.params.catIds) for part in parts]
    order = np.argsort(np.concatenate(columns))
    params = parts[0].params
    params.catIds = category_ids.tolist()
    return Scored(
        params,
        np.concatenate([part.precision for part in parts], 2)[:, :, order],
        np.concatenate([part.recall for part in parts], 1)[:, order],
        _join_found([part.found for part in parts], columns) if task.with_found else None,
    )


def _join_found(parts: Sequence[FoundObjects | None], columns: Sequence[np.ndarray]) -> FoundObjects:
    """The detections of all classes, from parts whose classes stand in some columns."""
    known = [part for part in parts if part is not None]
    renumbered = [
        dataclasses.replace(part, classes=mine[part.classes].astype(np.int32))
        for part, mine in zip(known, columns, strict=True)
    ]
    order = np.argsort(np.concatenate([part.classes for part in renumbered]), kind="stable")

    def joined(name):
        axis = -1 if name in ("matched", "ignored") else 0
        return np.concatenate([getattr(part, name) for part in renumbered], axis).take(order, axis)

    return FoundObjects(**{field.name: joined(field.name) for field in dataclasses.fields(FoundObjects)})
