"""`report.html`, the page of an evaluation: how good the detector is, how sure that is, and where it fails."""

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diou_jax.analysis.suppression import SideBySide
from diou_jax.reporting import curve_sections, error_sections
from diou_jax.reporting import report_sections as sections_of
from diou_jax.reporting.document import (
    Cell,
    Column,
    Document,
    Fact,
    Part,
    Section,
    Table,
    Text,
    address,
    count,
    number,
    number_cell,
)
from diou_jax.reporting.findings import Findings
from diou_jax.reporting.gallery import Album, worst_gallery
from diou_jax.reporting.rendering import write
from diou_jax.reporting.run_page import INDEX_FILE, REPORT_FILE
from diou_jax.reporting.run_sections import run_section
from diou_jax.reporting.suppression_section import suppression_blocks

# Names of the kinds of detections, COCO's "bbox" and "segm".
KINDS = {"bbox": "Boxes", "segm": "Masks"}


@dataclasses.dataclass(frozen=True)
class TestSet:
    """The evaluation of a test set.

    Attributes:
      name: its name.
      images: number of its images.
      unread: number of those that could not be read.
      detections: number of detections, or of proposals.
      seconds: time of detection.
      files: names of the files with results and score thresholds, beside the page.
      found: the analysis by kind, "bbox" and "segm"; empty without annotations.
      album: its images.
      recall: average recall by name, of proposals alone; else None.
      suppression: greedy NMS and DIoU-NMS side by side, if the evaluation has compared them.
    """

    __test__ = False  # no test, whatever pytest thinks of its name

    name: str
    images: int
    unread: int
    detections: int
    seconds: float
    files: Sequence[str]
    found: Mapping[str, Findings]
    album: Album
    recall: Mapping[str, float] | None = None
    suppression: SideBySide | None = None


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """The run that a report is about.

    Attributes:
      name: its name.
      step: number of updates of the weights.
      config: its config, by section.
      rows: its rows of metrics.
      data: pairs on the data sets.
      times: pairs on the time that was spent.
    """

    name: str
    step: int
    config: Mapping[str, Any]
    rows: Sequence[Mapping]
    data: Sequence[tuple[str, str]]
    times: Sequence[tuple[str, str]]


def write_report(workdir: str | os.PathLike, run: ReportedRun, test_sets: Sequence[TestSet]) -> pathlib.Path:
    """Writes the page into a folder and returns its path; raises OSError."""
    path = pathlib.Path(workdir) / REPORT_FILE
    index = (pathlib.Path(workdir) / INDEX_FILE).exists()
    write(path, report_document(run, test_sets, links=[(INDEX_FILE, "Page of the run")] if index else []))
    return path


def report_document(
    run: ReportedRun, test_sets: Sequence[TestSet], *, links: Sequence[tuple[str, str]] = ()
) -> Document:
    """The page of an evaluation."""
    several = len(test_sets) > 1
    about_run = run_section(run.config, run.rows, data=run.data, times=run.times)
    parts = []
    for place, test_set in enumerate(test_sets, start=1):
        part = _part(f"set{place}", test_set, title=test_set.name if several else "")
        if not several:
            part = dataclasses.replace(part, sections=[*part.sections, about_run])
        parts.append(part)
    if several:
        parts.append(Part("all", "", [about_run]))
    written = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    names = ", ".join(test_set.name for test_set in test_sets)
    files = [(address(name), name) for test_set in test_sets for name in test_set.files]
    return Document(
        f"Report on {run.name}",
        f"Evaluated on {names} · step {count(run.step)} · {written}",
        parts,
        [*links, *files],
        written=f"Written by diou-jax on {written}. This page needs no server and asks none for anything.",
    )


def _part(name: str, test_set: TestSet, *, title: str) -> Part:
    if test_set.recall is not None:
        return _recall_part(name, test_set, title=title)
    if not test_set.found:
        sentence = (
            f"{test_set.name} has no annotations, so there is nothing to compare with: the results files are for the "
            "server that has them."
        )
        return Part(name, title, [], [], _facts(test_set), sentence)
    return Part(
        name,
        title,
        _sections(name, test_set),
        _main(test_set),
        _facts(test_set),
        _sentence(list(test_set.found.values())),
    )


def _sentence(found: Sequence[Findings]) -> str:
    return error_sections.loss_sentence(found[0])


def _main(test_set: TestSet) -> list[list[Fact]]:
    rows = []
    for kind, findings in test_set.found.items():
        statistics = findings.intervals.statistics
        prefix = "" if kind == "bbox" else "mask "
        ap = statistics["AP"]
        level = f"{100 * findings.intervals.level:.0f} %"
        finite = math.isfinite(ap.low) and math.isfinite(ap.high)
        span = f"{level} interval {number(ap.low)} to {number(ap.high)}" if finite else "too few images for an interval"
        first = Fact(number(ap.value), f"{prefix}AP", span)
        rows.append([first, *(Fact(number(statistics[name].value), f"{prefix}{name}") for name in ("AP50", "AP75"))])
    return rows


def _facts(test_set: TestSet) -> list[Fact]:
    facts = [Fact(count(test_set.images), "images", f"{test_set.unread} unreadable" if test_set.unread else "")]
    for findings in list(test_set.found.values())[:1]:
        true = findings.matches.true
        crowds = int(true.crowd.sum())
        objects = len(true) - crowds
        facts.append(Fact(count(objects), "objects", f"and {count(crowds)} regions to ignore" if crowds else ""))
        facts.append(Fact(count(len(findings.matches.class_names)), "classes"))
    what = "detections" if test_set.recall is None else "proposals"
    facts.append(Fact(count(test_set.detections), what))
    if test_set.seconds > 0:
        rate = test_set.images / test_set.seconds
        facts.append(Fact(f"{rate:.1f}", "images per second", "with loading and compilation"))
    return facts


def _recall_part(name: str, test_set: TestSet, *, title: str) -> Part:
    recall = test_set.recall or {}
    rows = [
        [Cell(key), number_cell(value if value >= 0 else float("nan"), bar=max(value, 0))]
        for key, value in recall.items()
    ]
    columns = [Column("number", False), Column("average recall")]
    intro = (
        "An RPN alone has no classes, so there is no AP: AR@100 is the share of objects that the best 100 proposals of "
        "each image cover, mean over IoU 0.50 to 0.95; ARs, ARm and ARl count small, medium and large objects only."
    )
    blocks = [Table("Average recall of proposals", columns, rows, sortable=False, narrow=True)] if rows else []
    main = [Fact(number(recall[key]), key) for key in ("AR@1000", "AR@100") if recall.get(key, -1) >= 0]
    sentence = "" if rows else f"{test_set.name} has no annotations, so there is no recall."
    return Part(
        name, title, [Section("recall", "Recall of proposals", blocks, intro)], [main], _facts(test_set), sentence
    )


def _sections(name: str, test_set: TestSet) -> list[Section]:
    kinds = [(KINDS[kind], findings) for kind, findings in test_set.found.items()]

    def each(make: Callable[[Findings, str, str], list]) -> list:
        """The blocks of every kind, below its name if there are several."""
        blocks = []
        for label, findings in kinds:
            own = make(findings, label, f"{name}{label.lower()}")
            blocks += sections_of.with_heading(own, label) if len(kinds) > 1 else own
        return blocks

    def pictures(findings, _, prefix):
        gallery = worst_gallery(findings, test_set.album, prefix)
        return [gallery] if gallery.photographs else [Text("No image costs AP.")]

    numbers_intro = (
        "The intervals say how much other images of the same source, as many as these, would change a number. They do "
        "not say how much another training run would, nor images of another source; with few objects they are too "
        "narrow."
    )
    suppression = (
        [
            Section(
                "suppression",
                "Greedy NMS and DIoU-NMS side by side",
                suppression_blocks(test_set.suppression, name),
                "Both get the same boxes and scores; a detection that only one of them keeps shows which was right.",
            )
        ]
        if test_set.suppression is not None
        else []
    )
    return [
        Section("numbers", "The numbers", sections_of.numbers(kinds), numbers_intro),
        Section(
            "classes",
            "Classes",
            each(lambda findings, label, _: sections_of.classes(findings, label)),
            "A click on a heading sorts. The best score is the threshold with the largest F1, the balance of precision "
            "and recall.",
        ),
        Section("curves", "Precision and recall", each(curve_sections.precision_recall_curves)),
        Section("scores", "Scores", each(curve_sections.scores)),
        Section(
            "confusion",
            "Confusion",
            each(lambda findings, label, _: error_sections.confusion_matrix(findings, label)),
        ),
        Section("size", "Size and crowdedness", each(sections_of.bins)),
        Section("losses", "Why AP is lost", each(error_sections.losses)),
        *suppression,
        Section("placement", "How well boxes fit", each(sections_of.placement)),
        Section(
            "worst",
            "The worst images",
            each(pictures),
            "The images whose mending would give most AP, detections on the left and objects on the right. The name "
            "leads to the file; a box tells more under the pointer.",
        ),
    ]
