"""The rooms of the package: which may import which; docs/architecture.md has them in order."""

import ast
import graphlib
import os
import pathlib

import pytest
from conftest import ROOT

PACKAGE = ROOT / "diou_jax"


def sources():
    """The package's files as (room, imported modules): a room is a folder, or a file beside the folders."""
    # The folders kernels and configs are links, which rglob does not follow.
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for file in (pathlib.Path(folder, name) for name in names if name.endswith(".py")):
            yield file.relative_to(PACKAGE).parts[0].removesuffix(".py"), set(imports(ast.parse(file.read_text())))


def imports(tree):
    """The dotted names that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms():
    """The rooms that each room imports."""
    found = {}
    for room, modules in sources():
        imported = {module.split(".")[1] for module in modules if module.startswith("diou_jax.")}
        found.setdefault(room, set()).update(imported - {room})
    return found


def test_no_circle_of_imports():
    graph = rooms()
    assert {"training", "optimization", "kernels", "configs", "errors"} <= graph.keys()
    assert "options" in graph["training"] and "option_kinds" in graph["configs"]
    assert {room for imported in graph.values() for room in imported} <= graph.keys()
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("room", ["weights", "models", "detection", "data", "kernels", "optimization", "checkpoint"])
def test_configs_end_at_the_options(room):
    modules = {module for folder, imported in sources() if folder == room for module in imported}
    assert modules, "no such room"
    ours = ("configs", "nested_config", "option_kinds", "options")
    refused = ("ml_collections", *(f"diou_jax.{name}" for name in ours))
    assert not [module for module in modules if module.startswith(refused)]


def test_the_analysis_needs_nothing_but_results_and_annotations():
    assert rooms()["analysis"] == {"errors"}


def test_kernels_import_nothing_else_of_the_package():
    assert rooms()["kernels"] == set()
