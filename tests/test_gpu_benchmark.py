"""The one command for a GPU, rehearsed: a stage that fails costs itself, and every line is kept."""

import importlib.util
import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def gpu(monkeypatch):
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


def run(gpu, monkeypatch, out, stages, *options):
    """The exit code of the program with these stages, the rows of results.jsonl, and the report."""
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out), "--scratch", str(out / "scratch"), *options])
    with pytest.raises(SystemExit) as exit_:
        gpu.main()
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return exit_.value.code, rows, (out / "report.md").read_text()


@pytest.mark.slow
def test_an_abort_and_a_hang_cost_their_stage(gpu, monkeypatch, tmp_path):
    table = "print('| images | ms |\\n|---|---|\\n| 2 | 1.5 |', flush=True)"
    for name, ending in (("fine", ""), ("aborts", "import os; os.abort()"), ("hangs", "import time; time.sleep(600)")):
        (tmp_path / f"{name}.py").write_text(f"{table}\n{ending}\n")
    stages = [gpu.Stage(name, "", str(tmp_path / f"{name}.py"), 3.0, 0.0) for name in ("aborts", "hangs", "fine")]
    code, rows, report = run(gpu, monkeypatch, tmp_path / "out", stages)
    assert code
    assert [row for row in rows if "ms" in row] == [
        {"stage": name, "images": 2, "ms": 1.5} for name in ("aborts", "hangs", "fine")
    ]
    statuses = {row["stage"]: row["status"] for row in rows if "status" in row}
    assert statuses == {"aborts": "failed, signal 6", "hangs": "stopped after 3 s", "fine": "done"}
    assert "| fine | done |" in report


def test_wrong_arithmetic_ends_it(gpu, monkeypatch, tmp_path):
    (tmp_path / "wrong.py").write_text("import sys; sys.exit(3)")
    stages = [gpu.Stage(name, "", str(tmp_path / "wrong.py"), 9.0, 0.0) for name in ("device", "nms")]
    code, rows, _ = run(gpu, monkeypatch, tmp_path / "out", stages)
    assert code
    assert [row["stage"] for row in rows] == ["device"]


def test_what_does_not_fit_is_skipped_and_said(gpu, monkeypatch, tmp_path):
    stages = [gpu.Stage("long", "", "does_not_matter.py", 100.0, 90.0)]
    code, rows, report = run(gpu, monkeypatch, tmp_path / "out", stages, "--minutes", "1")
    assert code
    assert "skipped" in rows[0]["status"]
    assert "it needs 90" in report


def test_the_last_table_has_at_most_sixty_lines(gpu, tmp_path):
    statuses = {}
    with gpu.Report(tmp_path) as report:
        for stage in gpu.STAGES:
            report.begin(stage, "")
            report.line("| a | b |")
            report.line("|---|---|")
            for number in range(40):
                report.line(f"| {number} | x |")
            report.end("done", 1.0)
            statuses[stage.name] = "done", 1.0
        assert len(gpu.STAGES) < len(gpu.summary(statuses, report)) <= 60


def test_bad_news_comes_first_in_the_last_table(gpu, monkeypatch, tmp_path):
    (tmp_path / "table.py").write_text(
        "print('| trial | a | b | equal |\\n|---|---|---|---|')\n"
        'for number in range(70):\n    print(f\'| {number} | x | y | {"NO" if number == 50 else "yes"} |\')'
    )
    stages = [gpu.Stage("table", "", str(tmp_path / "table.py"), 9.0, 0.0, columns=("trial", "equal"))]
    _, _, report = run(gpu, monkeypatch, tmp_path / "out", stages)
    assert "| table | done | 0 | trial 50, equal NO |" in report


def test_stages_find_what_a_relative_path_names_and_keep_the_flags(gpu, monkeypatch, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "carried_wheel.py").write_text("")
    (tmp_path / "stage.py").write_text("import carried_wheel, os\nprint(os.environ['XLA_FLAGS'])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "site")
    monkeypatch.setenv("XLA_FLAGS", "--given")
    stages = [gpu.Stage("stage", "", str(tmp_path / "stage.py"), 9.0, 0.0, environment={"XLA_FLAGS": "--added"})]
    code, _, report = run(gpu, monkeypatch, tmp_path / "out", stages)
    assert code == 0, report
    assert "--given --added" in report


def test_a_second_call_keeps_the_report_of_the_first(gpu, monkeypatch, tmp_path):
    (tmp_path / "stage.py").write_text("print('hello')")
    for name in ("first", "second"):
        stages = [gpu.Stage(name, "", str(tmp_path / "stage.py"), 9.0, 0.0)]
        _, rows, report = run(gpu, monkeypatch, tmp_path / "out", stages)
    assert [row["stage"] for row in rows] == ["first", "second"]
    assert "# first" in report


@pytest.mark.slow
def test_the_smallest_rehearsal(gpu, monkeypatch, tmp_path):
    code, rows, report = run(
        gpu, monkeypatch, tmp_path / "out", gpu.STAGES, "--rehearse", "--stages", "device", "match"
    )
    assert code == 0, report
    assert {row["stage"]: row["status"] for row in rows if "status" in row} == {"device": "done", "match": "done"}
    assert any(row.get("ceiling") for row in rows)


def test_every_stage_is_a_program_that_exists(gpu):
    for stage in gpu.STAGES:
        assert (ROOT / stage.command.split()[0]).exists(), stage.name
