"""The configs and the command line's answer to mistakes."""

import importlib
import pathlib
import subprocess
import sys

import pytest
from conftest import slow
from flax import traverse_util

from diou_jax.configs import base, ciou, lsj
from diou_jax.data.augmentation import longest_sides
from diou_jax.errors import UserError
from diou_jax.options import build
from diou_jax.training import train

ROOT = pathlib.Path(__file__).resolve().parent.parent
FULL_SIZE = ["smooth_l1", "iou", "giou", "diou", "ciou", "rpn_giou", "tutorial", "lsj"]


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("name", [*FULL_SIZE, "shapes"])
def test_every_config_has_just_the_options_of_the_base(name):
    config = importlib.import_module(f"diou_jax.configs.{name}").get_config()
    assert {path for path, _ in leaves(config)} == {path for path, _ in leaves(base.get_config())}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_argument_picks_the_body(name):
    config = importlib.import_module(f"diou_jax.configs.{name}").get_config("r101")
    assert config.resnets.blocks == (3, 4, 23, 3)


@pytest.mark.parametrize(
    ("name", "loss", "weight", "rpn_loss"),
    [
        ("smooth_l1", "smooth_l1", 1.0, "smooth_l1"),
        ("iou", "iou", 12.0, "smooth_l1"),
        ("giou", "giou", 12.0, "smooth_l1"),
        ("diou", "diou", 12.0, "smooth_l1"),
        ("ciou", "ciou", 12.0, "smooth_l1"),
        ("rpn_giou", "giou", 12.0, "giou"),
    ],
)
def test_losses_of_the_configs(name, loss, weight, rpn_loss):
    model = importlib.import_module(f"diou_jax.configs.{name}").get_config().model
    assert (model.loss_type, model.loss_bbox_weight, model.rpn_loss_type) == (loss, weight, rpn_loss)


@pytest.mark.parametrize("body", ["r50_bn", "r50", "r50_gn"])
def test_the_long_recipe_has_norms_in_neck_and_heads_and_one_square_input(body):
    """As torchvision's fasterrcnn_resnet50_fpn_v2 and maskrcnn_resnet50_fpn_v2."""
    config = lsj.get_config(body)
    config.model.mask_on = True
    base.check(config)
    paths = {"/".join(path) for path in traverse_util.flatten_dict(build.network(config, 81).variable_shapes())}
    for level in (2, 3, 4, 5):
        assert {f"params/neck/inner{level}/norm/scale", f"params/neck/output{level}/norm/scale"} <= paths
    heads = [path for path in paths if path.endswith("norm/scale") and path.startswith(("params/box", "params/mask"))]
    assert len(heads) == 4 + 4  # convolutions of each head
    assert ("params/backbone/res2_0/conv1/norm/scale" in paths) == (body != "r50")
    assert ("batch_stats/neck/inner2/norm/mean" in paths) == (body != "r50_gn")
    assert {"params/rpn/conv/kernel", "params/rpn/conv2/kernel"} <= paths and "params/rpn/conv3/kernel" not in paths
    assert longest_sides(build.train_augmentations(config)) == (1024, 1024)
    assert config.solver.max_iter * 64 / 118000 == 400
    assert [step * 64 / 118000 for step in config.solver.steps] == [0, 352, 384]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "configs/ciou.py", "--config.test.diou_nms.beta9=1"], ["beta9", "beta1"]),
        (["--config", "configs/ciou.py", "--config.tset.nms=0.3"], ["tset", "test"]),
        (["--config", "configs/ciou.py", "--config.solver.base_lr=fast"], ["solver.base_lr", "fast"]),
        (["--config", "configs/ciou.py:r99"], ["r99", "r101"]),
        (["--config", "configs/cioo.py"], ["configs/cioo.py"]),
        (["--confg", "configs/ciou.py"], ["confg", "config"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_code_2(arguments, words, tmp_path):
    done = run_main(*arguments, "--workdir", str(tmp_path / "run"))
    assert done.returncode == 2
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        slow([], ["instances_train2017.json does not exist", "configs/shapes.py"]),
        (["--config.model.loss_type=ciuo"], ["model.loss_type='ciuo'", "smooth_l1, sl1, iou, giou, diou, ciou"]),
        slow(["--mode=eval"], ["there is no checkpoint"]),
    ],
)
def test_a_mistake_found_later_is_one_line_and_code_2_too(options, words, tmp_path):
    root = f"--config.data.root={tmp_path / 'coco'}"
    done = run_main("--config", "configs/ciou.py", "--workdir", str(tmp_path / "run"), root, *options)
    assert done.returncode == 2
    (message,) = done.stderr.strip().splitlines()
    assert message.startswith("error: ")
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver.momentum": 1.5}, ["solver.momentum=1.5", "from 0 to 1"]),
        ({"solver.base_lr": -0.1}, ["solver.base_lr=-0.1", "from 0 to 1e+06"]),
        ({"solver.base_lr": 20.0, "solver.weight_decay": 0.1}, ["solver.weight_decay=0.1", "above 1"]),
        ({"test.soft_nms.method": "cubic"}, ["test.soft_nms.method='cubic'", "linear, gaussian, hard"]),
        ({"test.bbox_vote.scoring_method": "MAX"}, ["test.bbox_vote.scoring_method='MAX'", "ID, TEMP_AVG"]),
        ({"test.soft_nms.sigma": 0.0}, ["test.soft_nms.sigma=0.0", "positive"]),
        ({"test.diou_nms.beta1": -1.0}, ["test.diou_nms.beta1=-1.0", "positive"]),
    ],
)
def test_a_value_that_cannot_be_is_named_before_anything_is_read_or_written(options, words, tmp_path):
    config = ciou.get_config()
    config.data.root = str(tmp_path / "coco")
    config.update_from_flattened_dict(options)
    with pytest.raises(UserError) as error:
        train.train(config, str(tmp_path / "run"))
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "run").exists()


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
