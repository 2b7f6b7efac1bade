"""docs/extending.md: every example runs, and every file that it names is there."""

import re

import pytest
from conftest import ROOT

from diou_jax.losses import BOX_LOSSES

TEXT = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
EXAMPLES = {
    title: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for title, text in SECTIONS.items()
}


@pytest.fixture
def box_losses():
    """Removes the entries that an example adds."""
    before = dict(BOX_LOSSES)
    yield
    BOX_LOSSES.clear()
    BOX_LOSSES.update(before)


@pytest.mark.parametrize("title", [title for title, examples in EXAMPLES.items() if examples])
def test_an_example_runs(title, box_losses):
    (code,) = EXAMPLES[title]
    exec(compile(code, f"docs/extending.md: {title}", "exec"), {"__name__": "example"})


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r"`((?:diou_jax|configs|tests|docs)/[\w/.]*)`", TEXT))
    assert len(names) > 8
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []
