"""Files that an evaluation could not write: its numbers are computed and printed all the same."""

import contextlib
import os
from collections.abc import Iterator

from absl import logging

from diou_jax.errors import UserError
from diou_jax.files import printable, reason


class Unwritten:
    """The files that could not be written, and why.

    A detection takes hours and its files seconds, so that a full disk must cost the files alone. Training goes on
    without them; a command whose purpose they are ends with `check`.
    """

    def __init__(self):
        self._reasons: dict[str, str] = {}

    @contextlib.contextmanager
    def noting(self, path: str | os.PathLike, written: list | None = None) -> Iterator[None]:
        """A context that writes `path`: an OSError becomes a warning; without one, `path` is added to `written`.

        So does a UserError that an OSError has caused.
        """
        try:
            yield
        except (OSError, UserError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            self._reasons[printable(path)] = reason(cause)
            logging.warning("%s cannot be written, and the work goes on without: %s", printable(path), reason(cause))
        else:
            if written is not None:
                written.append(path)

    def check(self) -> None:
        """Raises a UserError that names the files and reasons, if there are any."""
        if self._reasons:
            listed = ", ".join(f"{path} ({why})" for path, why in self._reasons.items())
            raise UserError(
                f"cannot be written: {listed}; the numbers above are complete, but what lies there is missing or old: "
                "mend this and run the command again"
            )
