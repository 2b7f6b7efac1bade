"""Progress of a pass over images: a bar on a terminal, a line from time to time in a log file."""

import sys
from typing import Any

from tqdm import tqdm

from diou_jax.reporting.run_log import print_line

# Seconds between two lines if the output is not a terminal.
INTERVAL = 30.0


class _Lines(tqdm):
    """Prints each state on a line of its own, the first after `INTERVAL`."""

    # The stubs have None; tqdm returns whether it wrote.
    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """As tqdm's, except that nothing is cleared at the end, since lines stay."""
        del pos
        if msg is None:
            print_line(str(self))
        return False


def images_progress(total: int | None, *, title: str, active: bool = True, unit: str = "image") -> tqdm:
    """Shows how many of `total` images are done, their rate and the time left; a context manager with ``update(n)``.

    Args:
      total: number of images, None if unknown.
      title: name of the pass.
      active: False in processes that print nothing.
      unit: name of one of them, "frame" for videos.
    """
    options: dict[str, Any] = {"total": total, "desc": title, "disable": not active, "leave": False}
    if sys.stderr.isatty():
        return tqdm(unit=unit, dynamic_ncols=True, **options)
    done, left = ("{n_fmt}", "{elapsed} so far") if total is None else ("{n_fmt}/{total_fmt}", "{remaining} left")
    layout = f"{{desc}}: {done} {unit}s  {{rate_noinv_fmt}}  {left}"
    return _Lines(
        unit=" img" if unit == "image" else f" {unit}",
        bar_format=layout,
        mininterval=INTERVAL,
        maxinterval=INTERVAL,
        delay=INTERVAL,
        miniters=1,
        **options,
    )
