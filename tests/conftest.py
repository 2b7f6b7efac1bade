"""Two fake CPU devices for every test, and the places of the reference numbers."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

import pathlib

import numpy as np
import pytest
from absl import flags

# grain reads absl flags even where no absl app has parsed them.
flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def find_golden(name: str) -> pathlib.Path:
    """The path of a file of numbers that the original produced, or a skip that says which one is absent."""
    for folder in (ROOT / "tests" / "golden", SHARED / "golden"):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"golden file {name} is not on this machine")


@pytest.fixture
def golden():
    """``golden("nms.npz")`` loads a golden file as a dict of arrays."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(find_golden(name)) as file:
            return dict(file)

    return load


@pytest.fixture
def golden_path():
    """``golden_path("toy")`` is the path of a golden file or folder."""
    return find_golden


@pytest.fixture
def real_data():
    """``real_data("coco128")`` is the folder of a small real data set, or a skip."""

    def locate(name: str) -> pathlib.Path:
        folder = SHARED / "data" / name
        if not folder.is_dir():
            pytest.skip(f"data set {name} is not on this machine")
        return folder

    return locate
