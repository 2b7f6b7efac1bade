"""Signatures are short: values that belong together are one argument, the rest has its name at the call."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOST, MOST_POSITIONAL = 7, 3


def functions(tree, *, nested=False):
    """Every function below a node, and whether it is public: its name says so, and no function encloses it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            special = node.name.startswith("__") and node.name.endswith("__")
            yield node, not nested and (special or not node.name.startswith("_"))
            yield from functions(node, nested=True)
        else:
            yield from functions(node, nested=nested)


def offences(text):
    """A line for each function of a module that has too many parameters."""
    for node, public in functions(ast.parse(text)):
        arguments = node.args
        positional = [one for one in arguments.posonlyargs + arguments.args if one.arg not in ("self", "cls")]
        count = len(positional) + len(arguments.kwonlyargs)
        if count > MOST:
            yield f"{node.name} has {count} parameters"
        if public and len(positional) > MOST_POSITIONAL:
            yield f"{node.name} has {len(positional)} positional parameters"


def modules():
    """The package's files and those of the two folders that it links to, each once."""
    package = ROOT / "diou_jax"
    for folder in (package, ROOT / "kernels", ROOT / "configs"):
        for file in sorted(folder.rglob("*.py")):
            if not any(parent.is_symlink() for parent in file.relative_to(ROOT).parents):
                yield file


def test_no_function_has_more_parameters_than_a_reader_can_keep_apart():
    files = list(modules())
    assert len(files) > 100 and {file.name for file in files} >= {"roi_align.py", "base.py", "boxes.py"}
    found = [f"{file.relative_to(ROOT)}: {line}" for file in files for line in offences(file.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("def f(a, b, c, *, d, e, g, h): ...", []),
        ("def f(a, b, c, *, d, e, g, h, i): ...", ["f has 8 parameters"]),
        ("def f(a, b, c, d): ...", ["f has 4 positional parameters"]),
        ("def f(a, /, b, c, d): ...", ["f has 4 positional parameters"]),
        ("class A:\n  def __init__(self, a, b, c, d): ...", ["__init__ has 4 positional parameters"]),
        ("class A:\n  def f(self, a, b, c): ...", []),
        ("def _f(a, b, c, d, e, f, g): ...", []),
        ("async def _f(a, b, c, d, e, f, g, h): ...", ["_f has 8 parameters"]),
        ("def f():\n  def g(a, b, c, d): ...", []),
        ("if True:\n  def f(a, b, c, d): ...", ["f has 4 positional parameters"]),
    ],
)
def test_offences_are_found(text, wanted):
    assert list(offences(text)) == wanted
