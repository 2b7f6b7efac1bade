import sys

import pytest

from diou_jax.reporting import progress
from diou_jax.reporting.progress import INTERVAL, images_progress


@pytest.fixture
def clock(monkeypatch):
    """``clock(seconds)`` lets time pass for tqdm."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def forward(seconds):
        now[0] += seconds

    return forward


def test_a_log_file_gets_a_line_now_and_then(clock, capsys):
    with images_progress(5000, title="evaluation, step 9") as bar:
        for _ in range(50):
            clock(INTERVAL / 10)
            bar.update(15)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert 4 <= len(lines) <= 5 and said.err == ""
    assert all(line.startswith("evaluation, step 9: ") for line in lines)
    assert lines[1].startswith("evaluation, step 9: 300/5000 images   5.00 img/s  15:40 left")


def test_what_is_done_soon_says_nothing_into_a_log_file(clock, capsys):
    with images_progress(20, title="evaluation") as bar:
        for _ in range(20):
            clock(1)
            bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_that_goes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with images_progress(40, title="evaluation") as bar:
        bar.update(20)
        bar.refresh()
        assert "evaluation:  50%" in capsys.readouterr().err
    assert capsys.readouterr().out == ""


def test_other_processes_keep_quiet(monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with images_progress(40, title="evaluation", active=False) as bar:
            bar.update(20)
            bar.refresh()
    assert capsys.readouterr() == ("", "")
