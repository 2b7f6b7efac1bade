"""docs/options.md and configs/base.py say the same."""

import fnmatch
import pathlib
import re

from diou_jax.configs import base
from diou_jax.options.page import render

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "options.md"


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def rows(section):
    """The cells of the tables in a second-level section, without their heads."""
    text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S)[1]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    heads = {i for i, line in enumerate(lines) if set(line) <= set("|-")}
    wanted = [line for i, line in enumerate(lines) if i not in heads and i + 1 not in heads]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in wanted]


def code(cell):
    """The text of a cell in backticks."""
    return re.findall(r"`([^`]*)`", cell)


OPTIONS = dict(leaves(base.get_config()))
SAME, RENAMED, OURS = (rows(name) for name in ("The original's name in lower case", "Under another name", "Ours only"))
DESCRIBED = [row[1:3] for row in SAME] + [row[1:3] for row in RENAMED if len(row) == 5] + [row[:2] for row in OURS]


def test_the_page_is_as_the_options_are_declared():
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "python -m diou_jax.options.page docs/options.md"


def test_every_option_is_described_once_and_no_other():
    names = [code(name)[0] for name, _ in DESCRIBED]
    assert sorted(names) == sorted(OPTIONS)


def test_the_defaults_are_right():
    stated = {code(name)[0]: eval(code(default)[0], {"__builtins__": {}}) for name, default in DESCRIBED}
    assert stated == OPTIONS


def test_every_option_has_a_meaning():
    assert all(row[-1] for row in SAME + RENAMED + OURS)


def test_names_are_the_original_s_in_lower_case_where_the_page_says_so():
    assert [code(row[0])[0].lower() for row in SAME] == [code(row[1])[0] for row in SAME]


def test_what_is_mentioned_elsewhere_exists():
    mentioned = set(code(PAGE.read_text(encoding="utf-8")))
    sections = tuple(f"{name}." for name, value in base.get_config().items() if hasattr(value, "items"))
    options = {name.split("=")[0] for name in mentioned if name.startswith(sections)}
    assert options <= set(OPTIONS)


def test_what_is_left_out_is_not_there():
    left_out = [name.lower() for row in rows("Left out") for name in code(row[0])]
    assert len(left_out) == len(set(left_out)) > 70
    ours = [code(row[0])[0].lower() for row in SAME + RENAMED]
    assert not [name for name in [*OPTIONS, *ours] if any(fnmatch.fnmatch(name, pattern) for pattern in left_out)]


def test_every_body_is_named():
    assert set(base.BODIES) <= set(code(PAGE.read_text(encoding="utf-8")))
