"""Kernels that abort, hang, fail, differ, vary or dawdle are found out and not used; a verdict is remembered."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

from diou_jax.kernels import selection, trials, verdicts
from diou_jax.kernels.verdicts import Verdict

TESTS = str(pathlib.Path(__file__).parent)
CARD = ("NVIDIA H100 80GB HBM3", "580.0", "9.0")


@pytest.fixture(autouse=True)
def on_a_hopper(monkeypatch):
    """A machine that seems to have one, the environment's default, and no kernel accepted before or after."""
    monkeypatch.setattr(verdicts, "_jax_may_use_cuda", lambda: True)
    monkeypatch.setattr(verdicts, "_cards", lambda: [CARD])
    monkeypatch.setenv("DIOU_JAX_KERNELS", "auto")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # of the trials' processes
    monkeypatch.setenv("PYTHONPATH", f"{pathlib.Path(TESTS).parent}:{TESTS}")
    monkeypatch.syspath_prepend(TESTS)
    selection.accept(())
    yield
    selection.accept(())
    sys.modules.pop("faulty_trials", None)


def count_trials(monkeypatch, found):
    """Replaces the trials by their result; the list grows by the names of each time that they would have run."""
    calls = []

    def try_all(module, names):
        calls.append(list(names))
        return {name: found[name] for name in names}

    monkeypatch.setattr(verdicts, "try_all", try_all)
    return calls


PASSED = {name: Verdict(True, "0.1 ms, XLA's 0.2 ms") for name in trials.TRIALS}


@pytest.mark.slow
def test_each_fault_costs_one_trial():
    found = verdicts.try_all("faulty_trials", trial_seconds=6.0, all_seconds=90.0)
    wanted = {
        "differs": "differs from its reference",
        "aborts": "SIGABRT",
        "fails": "INTERNAL: no such instruction",
        "varies": "different results",
        "dawdles": "slower",
        "hangs": "did not end within 6 s",
    }
    for name, reason in wanted.items():
        assert not found[name].used, name
        assert found[name].final, name
        assert reason in found[name].reason, found[name].reason
    assert found["works"].used, found["works"].reason
    assert found["works again"].used, found["works again"].reason
    assert verdicts.accepted(found, "faulty_trials") == {"nms"}


def test_what_there_was_no_time_for_is_tried_again(tmp_path, monkeypatch):
    found = verdicts.try_all("faulty_trials", all_seconds=0.05)
    assert {(verdict.used, verdict.final) for verdict in found.values()} == {(False, False)}
    assert "next start" in found["works"].reason
    calls = count_trials(monkeypatch, PASSED | {"match": Verdict(False, "no time", final=False)})
    verdicts.earn(tmp_path)
    assert selection.accepted() == set(selection.NAMES) - {"match"}
    kept = verdicts.earn(tmp_path)
    assert calls == [list(trials.TRIALS), ["match"]]
    assert {line.split(",")[0]: "as decided before" in line for line in kept}["kernel nms of proposals: used"]


def test_a_library_takes_what_a_run_has_accepted_and_tries_nothing(tmp_path, monkeypatch):
    calls = count_trials(monkeypatch, PASSED | {"match": Verdict(False, "it is slower")})
    verdicts.recall(tmp_path)
    assert (calls, selection.accepted()) == ([], set())
    verdicts.earn(tmp_path)
    selection.accept(())
    verdicts.recall(tmp_path)
    assert selection.accepted() == set(selection.NAMES) - {"match"}
    selection.accept(["nms"])
    verdicts.recall(tmp_path)
    assert selection.accepted() == {"nms"}
    assert len(calls) == 1


def test_verdicts_are_kept_and_said(tmp_path, monkeypatch):
    calls = count_trials(monkeypatch, PASSED | {"match": Verdict(False, "its process died (SIGABRT): no message")})
    first = verdicts.earn(tmp_path)
    selection.accept(())
    second = verdicts.earn(tmp_path)
    assert len(calls) == 1
    assert selection.accepted() == {"nms", "roi_align", "roi_align_gradient"}
    assert len(first) == len(second) == len(trials.TRIALS)
    assert "kernel match: not used, its process died (SIGABRT): no message" in first
    assert "kernel nms of proposals: used, 0.1 ms, XLA's 0.2 ms, as decided before" in second


@pytest.mark.parametrize("change", ["card", "driver", "jax", "source"])
def test_another_machine_or_version_is_tried_anew(tmp_path, monkeypatch, change):
    calls = count_trials(monkeypatch, PASSED)
    verdicts.earn(tmp_path)
    if change in ("card", "driver"):
        other = ("NVIDIA H200", *CARD[1:]) if change == "card" else (CARD[0], "581.0", CARD[2])
        monkeypatch.setattr(verdicts, "_cards", lambda: [other])
    if change == "jax":
        monkeypatch.setattr(verdicts.metadata, "version", lambda name: "99.0")
    if change == "source":
        monkeypatch.setattr(pathlib.Path, "read_bytes", lambda self: b"another kernel")
    verdicts.earn(tmp_path)
    assert len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"verdicts": {}}'])
def test_a_damaged_file_is_replaced(tmp_path, monkeypatch, content):
    calls = count_trials(monkeypatch, PASSED)
    verdicts.earn(tmp_path)
    (file,) = tmp_path.glob("kernels-*.json")
    file.write_text(content)
    verdicts.earn(tmp_path)
    assert len(calls) == 2
    assert json.loads(file.read_text())["key"]["cards"] == [list(CARD)]


def test_a_folder_that_cannot_be_written_keeps_no_run_from_starting(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    calls = count_trials(monkeypatch, PASSED)
    for folder in (tmp_path / "file" / "cache", None):
        verdicts.earn(folder)
        assert selection.accepted() == set(selection.NAMES)
    assert len(calls) == 2


@pytest.mark.parametrize("value", ["xla", "pallas"])
def test_nothing_is_tried_where_the_environment_decides(tmp_path, monkeypatch, value):
    monkeypatch.setenv("DIOU_JAX_KERNELS", value)
    calls = count_trials(monkeypatch, PASSED)
    assert verdicts.earn(tmp_path) == []
    assert calls == []


@pytest.mark.parametrize("cards", [[], [("NVIDIA A100", "580.0", "8.0")], [CARD, ("NVIDIA A100", "580.0", "8.0")]])
def test_without_hopper_nothing_is_tried_or_used(tmp_path, monkeypatch, cards):
    monkeypatch.setattr(verdicts, "_cards", lambda: cards)
    calls = count_trials(monkeypatch, PASSED)
    lines = verdicts.earn(tmp_path)
    assert calls == []
    assert selection.accepted() == set()
    assert all("older than Hopper" in line for line in lines)


@pytest.mark.parametrize(
    ("found", "right", "tolerance", "worst"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, 0.0),
        ([1.0, 2.0], [1.0, 2.5], 0.0, np.inf),
        ([1.0, np.nan], [1.0, 2.0], 0.1, np.inf),
        ([1.0, 2.0], [1.0, 2.2], 0.1, 0.2 / (0.1 * 2.42)),
    ],
)
def test_deviation(found, right, tolerance, worst):
    found, right = np.array(found, np.float32), np.array(right, np.float32)
    assert trials.deviation(found, right, tolerance) == pytest.approx(worst)


def test_bits_are_compared_not_values():
    tree = {"a": np.float32([0.0, np.nan]), "b": np.array([True, False]), "c": np.int32([[1]])}
    assert trials.same_bits(tree, {name: leaf.copy() for name, leaf in tree.items()})
    assert not trials.same_bits(tree, tree | {"a": np.float32([-0.0, np.nan])})
    assert not trials.same_bits(tree, tree | {"b": np.array([True, True])})
    assert not trials.same_bits(tree, tree | {"c": np.int32([1])})
    assert trials.deviation({"a": np.float32([-0.0])}, {"a": np.float32([0.0])}, 1e-4) == 0
    assert trials.deviation({"a": np.float32([1])}, {"a": np.float16([1])}, 1e-4) == np.inf


def test_only_the_kernels_own_repeats_must_agree():
    """A reference whose sums depend on the order of threads is no fault of the kernel."""
    import faulty_trials

    trial = dataclasses.replace(faulty_trials.TRIALS["works"], function=faulty_trials.varying_reference, tolerance=1e9)
    assert trials.run(trial, trial.inputs(np.random.default_rng(0)))["stable"]
