"""The exceptions that end a program with an exit code of its own: a user's mistake, and a signal."""

import signal


class UserError(Exception):
    """Bad input from the user; its message is one line that names the file, option or record and says how to mend it.

    The program prints the message without a traceback and exits with code 2. Any other exception but `Stopped` is a
    defect and keeps its traceback.
    """


class Stopped(Exception):  # noqa: N818
    """A signal ended the run; its checkpoint is written. The program exits with 128 plus the number of the signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on")
        self.exit_code = 128 + number
