"""Generates the tables of docs/options.md from the declarations of the options.

python -m diou_jax.options.page docs/options.md      # brings the page up to date
"""

import argparse
import pathlib
import re
import textwrap
from collections.abc import Callable

from diou_jax.configs.base import OPTIONS
from diou_jax.option_kinds import Option

GROUPS = {
    "General": ("",),
    "Model": ("model", "resnets", "group_norm", "batch_norm", "fpn", "fast_rcnn", "mrcnn"),
    "Training": ("train",),
    "Testing": ("test",),
    "Solver": ("solver",),
}
RENAMED, OURS = "Under another name", "Ours only"
FREE = "Options that may change when a run is resumed"


def tables() -> dict[str, list[str]]:
    """The lines of each table of options, by the heading above it."""
    same = [option for option in OPTIONS if option.original == ""]
    renamed = [option for option in OPTIONS if option.original]
    ours = [option for option in OPTIONS if option.original is None]
    found = {}
    for heading, groups in GROUPS.items():
        found[heading] = _table([one for one in same if one.name.rpartition(".")[0].split(".")[0] in groups])
    return found | {RENAMED: _table(renamed), OURS: _table(ours)}


def render(page: str) -> str:
    """The page with new tables of options; its other text stays."""
    for heading, lines in tables().items():
        pattern = rf"(^#+ {re.escape(heading)}\n.*?)^\| (?:Original \| )?Ours \| Default \|.*?\n(?!\|)"
        page, count = re.subn(pattern, _below_heading("\n".join(lines)), page, count=1, flags=re.M | re.S)
        if not count:
            raise ValueError(f"the page has no table of options under {heading!r}")
    return re.sub(
        rf"(^## {re.escape(FREE)}\n\n).*?(?=^## )", _below_heading(f"{free_options()}\n"), page, flags=re.M | re.S
    )


def free_options() -> str:
    """The paragraph on the options of a run that a later command may change."""
    names = ", ".join(f"`{option.name}`" for option in OPTIONS if option.free)
    text = f"A later command on the same workdir may give these another value; all others are refused: {names}."
    return textwrap.fill(text, 120, break_on_hyphens=False)


def _below_heading(table: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{match[1]}{table}\n"


def _table(options: list[Option]) -> list[str]:
    has_original = options[0].original is not None
    head = [*(["Original"] if has_original else []), "Ours", "Default", "Values", "Meaning"]
    rows = []
    for option in options:
        there = f"`{option.original or option.name.upper()}`" + (f" = {option.there}" if option.there else "")
        cells = [f"`{option.name}`", f"`{_text(option.default)}`", str(option.kind), option.meaning]
        rows.append(f"| {' | '.join([*([there] if has_original else []), *cells])} |")
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]


def _text(default):
    return repr(default).replace("'", '"')


def main() -> None:
    """Rewrites the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    page = parser.parse_args().page
    page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
