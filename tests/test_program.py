"""The door of the program: what it prints before any mode begins."""

import io

import pytest

from diou_jax.command import program


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "_run", lambda command: print("läuft"))


def ascii_console(monkeypatch):
    """Makes standard output and error those of an ASCII console; returns a function that gives what was printed."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(f"sys.{name}", stream)

    def printed():
        for stream in streams:
            stream.flush()
        return [stream.buffer.getvalue().decode() for stream in streams]

    return printed


def test_a_console_gets_escapes_for_letters_that_it_lacks(monkeypatch):
    printed = ascii_console(monkeypatch)
    program.main(["main.py", "--config", "ciou", "--workdir", "w/é\udcff"])
    assert printed() == ["workdir w/\\xe9\\udcff, config ciou\nl\\xe4uft\n", ""]


def test_an_error_is_one_line_on_any_console(monkeypatch):
    printed = ascii_console(monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        program.main(["main.py", "--config", "é"])
    out, err = printed()
    assert out == "" and err.startswith("error: --config \\xe9: ") and err.count("\n") == 1


def test_a_stream_of_another_kind_is_left_alone(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    program.main(["main.py", "--config", "ciou", "--workdir", "w/é"])
