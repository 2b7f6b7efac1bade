"""The installed package: one name at the top level, and the same program from any folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_wheel({folder!r}))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the working tree, built from a copy by the call of pip and ``python -m build``."""
    pytest.importorskip("setuptools", "77")
    source, folder = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("diou_jax", "configs", "kernels"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    code = BUILD.format(folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_nothing_but_diou_jax_is_at_the_top_level(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"diou_jax"}
    every = {str(path.relative_to(ROOT)) for path in (ROOT / "diou_jax").rglob("*.py")}
    every |= {str(path.relative_to(ROOT)) for path in (ROOT / "diou_jax/reporting/templates").iterdir()}
    every |= {
        f"diou_jax/{path.relative_to(ROOT)}" for name in ("configs", "kernels") for path in (ROOT / name).glob("*.py")
    }
    assert every <= set(names)
    (scripts,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "diou-jax = diou_jax.command.program:main" in zipfile.ZipFile(wheel).read(scripts).decode()


def test_the_installed_program_works_beside_other_kernels_and_configs(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    for name in ("kernels", "configs"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise ImportError('somebody else s package')\n")
    code = """
import json, sys
from diou_jax.command.arguments import parse
from diou_jax.kernels import nms
from diou_jax.training import train
command = parse(["--config", "ciou"])
print(json.dumps([nms.__file__, train.__file__, command.workdir, command.config.model.loss_type]))
"""
    environment = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"}
    options = {"cwd": elsewhere, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", code], **options, check=False)
    assert done.returncode == 0, done.stderr
    *files, workdir, loss = json.loads(done.stdout)
    assert all(pathlib.Path(file).is_relative_to(site) for file in files)
    assert (workdir, loss) == ("runs/ciou", "ciou")
    done = subprocess.run([sys.executable, "-m", "diou_jax", "--config", "cio"], **options, check=False)
    assert done.returncode == 2
    assert "the nearest is configs/ciou.py" in done.stderr
