"""A process that tries kernels and writes each result, one line of JSON, to a pipe.

A kernel that fails aborts its process without an exception, and a kernel that never ends blocks it: the reader of the
pipe keeps the results before it, and learns how the process died or that its time is over.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class TrialProcess:
    """A process of trials, see `started`.

    Attributes:
      code: its exit code, negative for a signal; known once the process is over.
    """

    def __init__(self, process: subprocess.Popen, results: int):
        """The process and the pipe's end, a file descriptor, from which its lines are read."""
        self.code, self.printed = 0, ""
        self._process, self._results = process, results

    def rows(self, trial_seconds: float, end: float) -> Iterator[dict[str, Any] | None]:
        """The process' lines as they arrive; then None if a trial or all trials together exceed their time limit.

        Args:
          trial_seconds: limit from one line to the next; the start of the process counts for no trial.
          end: `time.monotonic` at which everything ends.
        """
        rest, limit = b"", end
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            while True:
                if not selector.select(max(limit - time.monotonic(), 0)):
                    yield None
                    return
                piece = os.read(self._results, 65536)
                if not piece:
                    return
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    limit = min(time.monotonic() + trial_seconds, end)
                    yield json.loads(line)

    def wait(self, seconds: float) -> None:
        """Gives the process this time to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=seconds)

    def how_it_died(self) -> str:
        """The signal or exit code and the last line that it printed, in words; once the process is over."""
        lines = [line for line in self.printed.splitlines() if line.strip()]
        last = lines[-1].strip()[:200] if lines else "no message"
        name = signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"
        return f"its process died ({name}): {last}"


@contextlib.contextmanager
def started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[TrialProcess]:
    """A context with a process of trials, which is killed at its end.

    Args:
      command: its words; ``--output`` and the file descriptor of the pipe, to which it writes, are appended.
      environment: its environment variables.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0), tempfile.TemporaryFile() as printed:
        try:
            process = subprocess.Popen(
                [*command, "--output", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[writing],
                env=environment,
            )
        finally:
            os.close(writing)
        trial_process = TrialProcess(process, reading)
        try:
            yield trial_process
        finally:
            process.kill()
            trial_process.code = process.wait()
            printed.seek(0)
            trial_process.printed = printed.read().decode(errors="replace")
