"""How far a pass over images is: a bar on a terminal, a line now and then in a log file."""

import sys
from typing import Any

from tqdm import tqdm

from diou_jax.reporting.run_log import say

# Seconds between two lines where nobody watches.
INTERVAL = 30.0


class _Lines(tqdm):
    """Says each state on a line of its own, none before the first `INTERVAL` is over."""

    # The stubs have None; tqdm returns whether it wrote.
    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """As tqdm's; clears nothing at the end, as a line stays."""
        del pos
        if msg is None:
            say(str(self))
        return False


def images_progress(total: int, *, title: str, active: bool = True) -> tqdm:
    """Shows how many of `total` images are done, their rate and the time left; a context manager with ``update(n)``.

    Args:
      total: number of images.
      title: what is done with them.
      active: false in processes that keep quiet.
    """
    options: dict[str, Any] = {"total": total, "desc": title, "disable": not active, "leave": False}
    if sys.stderr.isatty():
        return tqdm(unit="image", dynamic_ncols=True, **options)
    layout = "{desc}: {n_fmt}/{total_fmt} images  {rate_noinv_fmt}  {remaining} left"
    return _Lines(
        unit=" img",
        bar_format=layout,
        mininterval=INTERVAL,
        maxinterval=INTERVAL,
        delay=INTERVAL,
        miniters=1,
        **options,
    )
