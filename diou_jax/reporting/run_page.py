"""`index.html`, the page of a run, which is written anew while it trains."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

from absl import logging

from diou_jax.checkpoint.metadata_file import stored_metadata
from diou_jax.checkpoint.ranking import rank_checkpoints, stored_criterion
from diou_jax.nested_config import flatten
from diou_jax.reporting.comparison_page import SWEEP_FILE
from diou_jax.reporting.document import Document, Fact, Part, Pictures, Section, address, count, number
from diou_jax.reporting.rendering import write
from diou_jax.reporting.run_log import EVENTS_FILE, RunLog, read_metrics
from diou_jax.reporting.run_sections import (
    curve_figures,
    environment_pairs,
    events_blocks,
    options_blocks,
    pairs_table,
)
from diou_jax.reporting.series import Series
from diou_jax.workdir.file_lock import FileLock, Held, Unsupported
from diou_jax.workdir.metrics_file import read_rows
from diou_jax.workdir.run_config import restore_config
from diou_jax.workdir.run_lock import LOCK_FILE

INDEX_FILE, REPORT_FILE, PICTURES = "index.html", "report.html", "pictures"

# Seconds after which a browser loads the page of a training run again.
REFRESH = 30

# The number of pictures that a page shows.
SHOWN = 8

# Files of a workdir that the page links to, with the links' texts.
PAGES = (
    (REPORT_FILE, "Report of the last evaluation"),
    (SWEEP_FILE, "Sweep of test options"),
    ("metrics.jsonl", "metrics.jsonl"),
    ("config.json", "config.json"),
)


@contextlib.contextmanager
def index_page(log: RunLog, *, active: bool) -> Iterator[None]:
    """A context that trains: its beginning and its end write the page of the run, if it is `active`."""
    if active:
        write_index(log, training=True)
    try:
        yield
    finally:
        if active:
            write_index(log, training=False)


def write_index(log: RunLog, *, training: bool) -> None:
    """Writes `index.html` into the workdir of a log, from the files that lie there; a failure is only logged.

    Args:
      log: the run's log.
      training: whether the run is going on; then browsers load the page again from time to time.
    """
    try:
        with log.spared(INDEX_FILE):
            write(log.workdir / INDEX_FILE, run_document(log.workdir, training=training))
    except Exception:  # whatever is wrong with a page, it must not end a run
        logging.exception("%s cannot be written, and the run goes on without it", INDEX_FILE)


def is_training(workdir: str | os.PathLike) -> bool:
    """Whether a training run holds the lock of its folder; without locks (`checkpoint.lock`) this is not known."""
    lock = pathlib.Path(workdir) / LOCK_FILE
    if not lock.is_file():
        return False
    try:
        with FileLock(lock):  # a killed run has left its file
            return False
    except Held:
        return True
    except (OSError, Unsupported):
        return False


def run_document(workdir: str | os.PathLike, *, training: bool) -> Document:
    """The page of a run from the files of its workdir."""
    workdir = pathlib.Path(workdir)
    rows = read_metrics(workdir)
    events = read_rows(workdir / EVENTS_FILE)
    restored = restore_config(workdir)
    config = {} if restored is None else restored.to_dict()
    options = flatten(config)
    step = max((row["step"] for row in rows), default=0)
    total = options.get("solver.max_iter", 0)
    sections = []
    if charts := curve_figures(rows):
        sections.append(Section("curves", "Curves", charts))
    if pictures := _newest_pictures(workdir):
        intro = "Detections of the last evaluation on the left, ground truth on the right."
        sections.append(Section("pictures", "Newest pictures", [Pictures(pictures)], intro))
    if listed := events_blocks(events):
        sections.append(Section("events", "Events", listed))
    sections.append(Section("options", "Options", options_blocks(config)))
    sections.append(Section("environment", "Environment", [pairs_table("Environment", environment_pairs())]))
    state = _state(step, total, training=training)
    links = [(name, text) for name, text in PAGES if (workdir / name).is_file()]
    name = workdir.resolve().name
    part = Part("run", "", sections, [_main(rows, step, total)], _facts(rows, workdir), state)
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return Document(
        f"Run {name}",
        f"{_about(options)} · written {written}",
        [part],
        links,
        REFRESH if training else 0,
        f"Written {written}" + (f"; loaded again every {REFRESH} s while the run trains." if training else "."),
    )


def _about(options: Mapping) -> str:
    if not options:
        return "no config"
    data = ", ".join(options.get("train.datasets", ()))
    loss = options["model.rpn_loss_type"] if options["model.rpn_only"] else options["model.loss_type"]
    what = "RPN alone" if options["model.rpn_only"] else "Mask R-CNN" if options["model.mask_on"] else "Faster R-CNN"
    return f"{what}, {loss} loss, trained on {data}"


def _state(step: int, total: int, *, training: bool) -> str:
    if training:
        return f"The run is training: step {count(step)} of {count(total)}."
    if total and step >= total:
        return f"The run is finished: all {count(total)} steps are done."
    return f"The run stands at step {count(step)} of {count(total)} and was not training when this page was written."


def _main(rows: Sequence[Mapping], step: int, total: int) -> list[Fact]:
    done = f"of {count(total)}" if total else ""
    facts = [Fact(count(step), "step", done)]
    for row in _last_evaluations(rows):
        for name, label in (("eval/AP", "AP"), ("eval/segm/AP", "mask AP"), ("eval/AR@1000", "AR@1000")):
            if isinstance(value := row.get(name), float | int):
                note = f"step {count(row['step'])}{Series.of(row).with_options()}"
                facts.append(Fact(number(value), f"{label}, {row['dataset']}", note))
    return facts


def _last_evaluations(rows: Sequence[Mapping]) -> list[Mapping]:
    """The newest row of evaluation of each data set."""
    last = {row["dataset"]: row for row in rows if "dataset" in row}
    return list(last.values())


def _facts(rows: Sequence[Mapping], workdir: pathlib.Path) -> list[Fact]:
    facts = []
    trained = [row for row in rows if "loss" in row]
    if trained:
        last = trained[-1]
        for name, value in last.items():
            if name.startswith("loss") and isinstance(value, float | int):
                facts.append(Fact(number(value), f"loss {name.removeprefix('loss_')}" if name != "loss" else "loss"))
        speeds = [row["images_per_second"] for row in trained[-20:] if row.get("images_per_second")]
        if speeds:
            facts.append(Fact(f"{sum(speeds) / len(speeds):.1f}", "images per second"))
    checkpoints = _checkpoints(workdir)
    if checkpoints:
        facts.append(Fact(count(max(checkpoints)), "last checkpoint"))
    criterion, order = stored_criterion(checkpoints), rank_checkpoints(checkpoints)
    if criterion is not None and order:
        step = order[0]
        value = criterion.value(checkpoints[step]["evaluation"]) or 0.0
        facts.append(Fact(count(step), "best checkpoint", f"{criterion.metric} {number(value)} on {criterion.dataset}"))
    return facts


def _checkpoints(workdir: pathlib.Path) -> dict[int, dict]:
    """The metadata of all checkpoints by step; empty where they cannot be read."""
    found: dict[int, dict] = {}
    with contextlib.suppress(OSError):
        for folder in (workdir / "checkpoints").iterdir():
            if folder.name.isascii() and folder.name.isdigit():
                found[int(folder.name)] = stored_metadata(folder) or {}
    return found


def _newest_pictures(workdir: pathlib.Path) -> list[tuple[str, str]]:
    """Relative address and text of the pictures of the last evaluation."""
    try:
        files = {path.name: path.stat().st_mtime_ns for path in (workdir / PICTURES).iterdir() if path.suffix == ".jpg"}
    except OSError:
        return []
    # An earlier checkpoint may have been evaluated last, so that the largest step is not always the newest.
    newest = max(files, key=lambda name: (files[name], name), default="")
    names = sorted(name for name in files if name.split("_")[0] == newest.split("_")[0])
    return [(f"{PICTURES}/{address(name)}", name) for name in names[:SHOWN]]
