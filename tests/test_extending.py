"""docs/extending.md: every example runs, and every file that it names is there."""

import re

import jax
import pytest
from conftest import ROOT

from diou_jax.losses import BOX_LOSSES
from diou_jax.options import build

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


def test_the_optimiser_changes_every_parameter_of_the_backbone():
    example = {}
    exec(EXAMPLES["A backbone, and a network with one map"][0], example)
    config, params = example["config"], example["variables"]["params"]
    groups = build.make_optimizer(config, build.rule(config).schedule)
    state = jax.eval_shape(groups.init, params)
    weights = state.inner_states["weight"].inner_state[1].momentum["backbone"]
    assert {name: layer["kernel"] for name, layer in weights.items()} == {
        name: layer["kernel"] for name, layer in params["backbone"].items()
    }


def test_every_file_that_is_named_is_there():
    names = set(re.findall(r"`((?:diou_jax|configs|tests|docs)/[\w/.]*)`", TEXT))
    assert len(names) > 8
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []
