"""Small charts that stand in a row of a table, written as SVG directly: a table may have a thousand."""

from collections.abc import Sequence

import numpy as np

# Width and height of the small charts in tables.
STRIP = (110, 34)


def curve_strip(x: np.ndarray, curves: Sequence[tuple[np.ndarray, str]]) -> str:
    """Curves (N,) in [0, 1] over x (N,) in [0, 1], each with a colour, as an SVG of the height of a table's row."""
    paths = []
    for y, color in curves:
        points = zip((STRIP[0] * x).tolist(), (STRIP[1] * (1 - np.nan_to_num(y))).tolist(), strict=True)
        path = "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in points)
        paths.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.4"/>')
    return _strip(paths)


def bar_strip(layers: Sequence[tuple[np.ndarray, str]]) -> str:
    """Counts (N,) by interval, layer upon layer, each with a colour, as an SVG of the height of a table's row."""
    total = np.sum([counts for counts, _ in layers], 0)
    factor = STRIP[1] / max(float(total.max(initial=0)), 1.0)
    width, below, paths = STRIP[0] / max(len(total), 1), np.zeros(len(total)), []
    for counts, color in layers:
        below = below + counts
        side = f"{0.9 * width:.1f}"
        path = "".join(
            f"M{place * width:.1f} {STRIP[1] - factor * top:.1f}h{side}v{factor * own:.1f}h-{side}z"
            for place, (top, own) in enumerate(zip(below.tolist(), counts.tolist(), strict=True))
            if own
        )
        paths.append(f'<path d="{path}" fill="{color}"/>')
    return _strip(paths)


def _strip(paths):
    width, height = STRIP
    frame = f'<path d="M0 0V{height}H{width}" fill="none" stroke="#8a8a8a" stroke-width="0.8"/>'
    box = f"-1 -2 {width + 2} {height + 4}"
    return f'<svg class="strip" viewBox="{box}" aria-hidden="true">{frame}{"".join(paths)}</svg>'
