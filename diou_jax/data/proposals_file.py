"""Files of proposals: ours are written and read, Detectron's are read."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diou_jax import plain_pickle
from diou_jax.data.annotations import id_key
from diou_jax.data.dataset import EXAMPLES, Dataset, Faults
from diou_jax.data.proposals import ProposalTable, make_table
from diou_jax.errors import UserError
from diou_jax.files import regular_file, replacing

COLUMNS = tuple(field.name for field in dataclasses.fields(ProposalTable))


def write(path: str | os.PathLike, table: ProposalTable) -> None:
    """Writes a table atomically as an ``.npz`` file with an array for each of its columns."""
    # numpy would append .npz to the name of the draft, but not to an open file.
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez(file, **{name: getattr(table, name) for name in COLUMNS})


def read(path: str | os.PathLike) -> ProposalTable:
    """Reads a file of `write`, or Detectron's pickle with ``boxes``, ``ids`` and perhaps ``scores``.

    Nothing in a file is run: arrays of objects are refused, and pickles may hold arrays and containers only.

    Raises:
      UserError: if the file is missing, damaged or something else, or its columns do not fit each other.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
        table = _read_npz(path) if head.startswith(b"PK") else _of_detectron(path, plain_pickle.read(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if problem := _problem(table):
        raise UserError(f"{path} is no file of proposals: {problem}")
    return table


def attach(dataset: Dataset, files: Sequence[str | os.PathLike]) -> Dataset:
    """A data set with the proposals that files hold for its images; their other images are ignored.

    Proposals that are not finite and images without a proposal are counted and named, in the log, too.

    Raises:
      UserError: if a file cannot be read, an image has no entry, or several files have one.
    """
    tables: list[ProposalTable] = []
    entry: dict[int | str | None, tuple[int, int]] = {}
    twice = []
    for number, table in enumerate(map(read, files)):
        tables.append(table)
        for row, image in enumerate(table.image_ids.tolist()):
            if entry.setdefault(id_key(image), (number, row)) != (number, row):
                twice.append(image)
    names = ", ".join(map(str, files))
    if twice:
        raise UserError(f"{names}: {len(twice)} images have several entries, the first with id {twice[0]!r}")
    ids = dataset.records.image_ids.tolist()
    if missing := [image for image in ids if id_key(image) not in entry]:
        raise UserError(
            f"{names}: {len(missing)} of {len(ids)} images of {dataset.name} have no entry, the first with id "
            f"{missing[0]!r}; the files must be of the same data set"
        )
    places = [entry[id_key(image)] for image in ids]
    firsts = np.cumsum([0, *(len(table.boxes) for table in tables)])
    aligned = ProposalTable(
        image_ids=dataset.records.image_ids,
        starts=np.array([firsts[number] + tables[number].starts[row] for number, row in places], np.int64),
        stops=np.array([firsts[number] + tables[number].stops[row] for number, row in places], np.int64),
        boxes=tables[0].boxes if len(tables) == 1 else np.concatenate([table.boxes for table in tables]),
        scores=tables[0].scores if len(tables) == 1 else np.concatenate([table.scores for table in tables]),
    )
    found = _faults(dataset, aligned)
    found.report(f"{dataset.name}, {names}")
    faults = Faults()
    faults.merge(dataset.faults)
    faults.merge(found)
    return dataclasses.replace(dataset, proposals=aligned, faults=faults)


def _faults(dataset, table) -> Faults:
    faults = Faults()
    bad = np.concatenate([[0], np.cumsum(~np.isfinite(table.boxes).all(1))])
    count = bad[table.stops] - bad[table.starts]
    touched = np.flatnonzero(count)[:EXAMPLES].tolist()
    faults.add(
        "proposals with coordinates that are not finite, which are left out",
        *(f"{count[index]} of {dataset.image_name(index)}" for index in touched),
        count=int(count.sum()),
    )
    empty = np.flatnonzero(table.stops == table.starts)
    names = (dataset.image_name(index) for index in empty[:EXAMPLES].tolist())
    faults.add("images without a proposal", *names, count=len(empty))
    return faults


def _read_npz(path) -> ProposalTable:
    try:
        # numpy would leave a damaged file open that it opened itself.
        with path.open("rb") as file, np.load(file) as content:
            if missing := [name for name in COLUMNS if name not in content]:
                raise UserError(f"{path} is no file of proposals: it has no array {missing[0]!r}")
            columns = {name: content[name] for name in COLUMNS}
    except MemoryError:
        raise UserError(f"{path} is damaged: its arrays claim more than the memory of this machine") from None
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is damaged or holds objects: {type(error).__name__} {error}") from None
    # An entry of the archive that is no array is given as its bytes.
    if other := [name for name, column in columns.items() if not isinstance(column, np.ndarray)]:
        raise UserError(f"{path} is no file of proposals: {other[0]!r} is no array")
    return ProposalTable(**columns)


def _of_detectron(path, content: Any) -> ProposalTable:
    if not isinstance(content, Mapping) or "boxes" not in content:
        raise UserError(f"{path} is no file of proposals: it has no 'boxes'")
    ids = content.get("ids", content.get("indexes"))
    if ids is None:
        raise UserError(f"{path} is no file of proposals: it has no 'ids' of images")
    ids, boxes = _entries(path, "ids", ids), _entries(path, "boxes", content["boxes"])
    if len(ids) != len(boxes):
        raise UserError(f"{path} has {len(ids)} ids of images and boxes of {len(boxes)}")
    scores = content.get("scores")
    scores = None if scores is None else _entries(path, "scores", scores)
    if scores is not None and len(scores) != len(boxes):
        raise UserError(f"{path} has boxes of {len(boxes)} images and scores of {len(scores)}")
    pairs = []
    for row, (image, some) in enumerate(zip(ids, boxes)):
        try:
            some = np.asarray(some, np.float32)
            values = np.zeros(len(some)) if scores is None else scores[row]
            values = np.asarray(values, np.float32).reshape(-1)
        except (TypeError, ValueError):
            raise UserError(f"{path}: the boxes or scores of image {image!r} are no numbers") from None
        some = some.reshape(-1, 4) if some.size == 0 else some
        if some.ndim != 2 or some.shape[1] != 4 or len(some) != len(values):
            raise UserError(
                f"{path}: image {image!r} has boxes {some.shape} and {len(values)} scores; a box has four numbers and "
                "one score"
            )
        pairs.append((some, values))
    if not all(isinstance(image, (int, str, np.integer)) for image in ids):
        raise UserError(f"{path}: ids of images must be whole numbers or texts")
    return make_table(ids, pairs)


def _entries(path, name, value) -> list:
    """The entries of a list or an array, one for each image."""
    if not isinstance(value, (list, tuple, np.ndarray)) or (isinstance(value, np.ndarray) and value.ndim == 0):
        raise UserError(f"{path}: {name!r} is {value!r:.60}, and must be a list with an entry for each image")
    return list(value)


def _problem(table: ProposalTable) -> str | None:
    """The fault of a table's columns, in words, or None."""
    ids, starts, stops, boxes, scores = (getattr(table, name) for name in COLUMNS)
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        return f"image_ids is {ids.dtype} {ids.shape}, and must be a list of whole numbers or texts"
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind != "f":
        return f"boxes is {boxes.dtype} {boxes.shape}, and must be float32 (M, 4)"
    if scores.shape != boxes.shape[:1] or scores.dtype.kind != "f":
        return f"scores is {scores.dtype} {scores.shape}, and must be float32 {boxes.shape[:1]}"
    if not all(one.shape == ids.shape and one.dtype.kind in "iu" for one in (starts, stops)):
        return f"starts and stops must be whole numbers, one for each of {len(ids)} images"
    if len(ids) and not ((starts >= 0) & (starts <= stops) & (stops <= len(boxes))).all():
        return f"starts and stops must rise from 0 to {len(boxes)}, the number of boxes"
    return None
