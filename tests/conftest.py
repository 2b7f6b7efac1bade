"""Two fake CPU devices for every test, and the places of the reference numbers."""

import os

import fast_compilation

os.environ.setdefault("XLA_FLAGS", fast_compilation.FLAGS)
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"

import importlib
import pathlib
import sys

import jax
import jaxtyping
import numpy as np
import pytest
from absl import flags

# grain reads absl flags even where no absl app has parsed them.
flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def stating_shapes():
    """The modules whose signatures state shapes."""
    for folder in ("", "kernels", "detection", "models"):
        for file in sorted((ROOT / "diou_jax" / folder).glob("*.py")):
            if "from jaxtyping import" in file.read_text():
                yield ".".join(["diou_jax", *folder.split(), file.stem])


# Every call in the tests keeps to the shapes that these signatures state; an int may stand for a float.
jaxtyping.install_import_hook(
    list(stating_shapes()), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


def slow(*values):
    """A set of parameters that the default run leaves out, as the others show the same in less time."""
    return pytest.param(*values, marks=pytest.mark.slow)


def load_benchmark(name):
    """A module of benchmarks/, whose programs import each other by name."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


# A worker takes a file as a whole: one of these at the end would leave the other worker without work.
FIRST = ("test_train", "test_faults", "test_benchmarks", "test_processes", "test_faster_rcnn")


def pytest_collection_modifyitems(items):
    """The files that take longest go first."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(scope="module", autouse=True)
def own_programs():
    """A file's compiled programs go with it: in one process those of all files can exhaust memory, and XLA dies."""
    yield
    jax.clear_caches()


def find_golden(name: str, folder: str = "golden") -> pathlib.Path:
    """The path of a file of numbers that the original produced, or a skip that says which one is absent."""
    for place in (ROOT / "tests", SHARED):
        if (place / folder / name).exists():
            return place / folder / name
    pytest.skip(f"{folder}/{name} is not on this machine")


def golden_sets() -> list:
    """Both sets; where the drawn images are, they stand for the photographs in the default run."""
    drawn = any((place / "golden_drawn").is_dir() for place in (ROOT / "tests", SHARED))
    return [slow("golden") if drawn else "golden", "golden_drawn"]


@pytest.fixture(scope="module", params=golden_sets())
def golden_set(request) -> str:
    """The folder of the original's numbers from an image's bytes on: for photographs, and for drawn images."""
    return request.param


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


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A small `shapes` data set: 24 training and 6 test images."""
    from diou_jax.data import shapes

    root = tmp_path_factory.mktemp("data") / "shapes"
    counts = shapes.COUNTS
    shapes.COUNTS = {"train": 24, "val": 6}
    try:
        shapes.ensure(root)
    finally:
        shapes.COUNTS = counts
    return root


@pytest.fixture(scope="session")
def tiny_config(shapes_root, tmp_path_factory):
    """``tiny_config()`` is a config whose training takes a second, once compiled; compiled programs are shared."""
    from diou_jax.configs import shapes

    cache = tmp_path_factory.mktemp("cache")

    def make():
        config = shapes.get_config()
        config.data.source = "coco"
        config.data.root = str(shapes_root)
        config.resnets.use_gn = config.fpn.use_gn = False  # GroupNorm's gradients take long to compile
        config.resnets.width_per_group = 4
        config.resnets.stem_width = 8
        config.fpn.dim = 16
        config.fast_rcnn.mlp_head_dim = 16
        config.train.scales = (64,)
        config.train.max_size = 64
        config.train.ims_per_batch = 1
        config.train.batch_size_per_im = 16
        config.train.rpn_batch_size_per_im = 32
        config.train.rpn_pre_nms_top_n = 32
        config.train.rpn_post_nms_top_n = 32
        config.test.scale = 64
        config.test.max_size = 64
        config.test.ims_per_batch = 2
        config.test.rpn_pre_nms_top_n = 32
        config.test.rpn_post_nms_top_n = 16
        config.test.detections_per_im = 10
        config.test.compare_nms = False  # an evaluation would compile two more programs
        config.solver.max_iter = 8
        config.solver.steps = (0, 6)
        config.solver.warm_up_iters = 2
        config.solver.scale_with_devices = False
        config.checkpoint.every = 3
        config.log.every = 2
        config.log.images = 2
        config.log.report = False  # tests of the pages switch it on
        config.log.compilation_cache = str(cache)
        return config

    return make


@pytest.fixture(scope="session")
def tiny_mask_config(tiny_config):
    """``tiny_mask_config()`` is the tiny config with a small mask head."""

    def make():
        config = tiny_config()
        config.model.mask_on = True
        config.mrcnn.dim_reduced, config.mrcnn.num_convs = 8, 1
        config.mrcnn.resolution, config.mrcnn.roi_xform_resolution = 14, 7
        return config

    return make


@pytest.fixture
def hopper():
    """Skips where there is no GPU that Mosaic compiles for; else programs take all kernels, tried or not."""
    device = jax.devices()[0]
    if device.platform != "gpu" or float(device.compute_capability) < 9:
        pytest.skip("needs an NVIDIA GPU of compute capability 9.0 or more")
    from diou_jax.kernels import selection

    with selection.only(selection.NAMES):
        yield
