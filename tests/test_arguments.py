"""The meaning of the command line."""

import subprocess
import sys

import pytest
from conftest import ROOT

from diou_jax.command.arguments import help_text, parse
from diou_jax.command.flag_table import FLAGS, MODES
from diou_jax.command.option_names import resolve_name
from diou_jax.configs import base, ciou
from diou_jax.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Nothing here depends on the folder that the program is started in."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["ciou", "ciou.py", "configs/ciou.py", "configs/ciou"])
def test_a_config_is_all_that_is_needed(name):
    command = parse(["--config", name])
    assert command.workdir == "runs/ciou"
    assert "workdir runs/ciou," in command.lines[0]
    assert command.mode == "train_and_eval"
    assert command.config.to_dict() == ciou.get_config().to_dict()
    assert command.explicit == frozenset()


def test_the_argument_is_part_of_the_default_workdir():
    assert parse(["--config=ciou:r101"]).workdir == "runs/ciou_r101"
    assert parse(["--config=ciou:r101"]).config.resnets.blocks == (3, 4, 23, 3)


def test_a_workdir_that_is_named_is_taken_and_checking_has_none():
    assert parse(["--config", "ciou", "--workdir", "elsewhere"]).workdir == "elsewhere"
    command = parse(["--config", "ciou", "--mode", "check"])
    assert command.workdir is None
    assert command.lines == ()


@pytest.mark.parametrize("empty", [["--workdir", ""], ["--workdir="], ["--workdir", " "]])
def test_an_empty_workdir_is_refused(empty):
    with pytest.raises(UserError, match="--workdir is empty"):
        parse(["--config", "ciou", *empty])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--config.model.loss_type=giou", "giou"),
        ("--config.MODEL.LOSS_TYPE=giou", "giou"),
        ("--config.Model.Loss_Type=giou", "giou"),
        ("-config.model.loss_type=giou", "giou"),
    ],
)
def test_options_are_named_in_any_case_and_are_explicit(option, value):
    command = parse(["--config", "ciou", option])
    assert command.config.model.loss_type == value
    assert command.explicit == {"model.loss_type"}


def test_a_value_may_stand_behind_a_space_and_options_before_the_config():
    arguments = ["--config.solver.max_iter", "20", "--noconfig.train.use_flipped", "--config.SOLVER.STEPS=(0,5)"]
    command = parse([*arguments, "--config.train.rpn_straddle_thresh", "-1", "--mode", "train", "--config", "ciou"])
    assert command.config.solver.max_iter == 20
    assert command.config.solver.steps == (0, 5)
    assert command.config.train.use_flipped is False
    assert command.config.train.rpn_straddle_thresh == -1
    assert command.explicit == {
        "solver.max_iter",
        "train.use_flipped",
        "solver.steps",
        "train.rpn_straddle_thresh",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config FILE is needed", "configs/ciou.py", "giou, iou"]),
        (["--mode", "eval"], ["--config FILE is needed"]),
        (["--workdir", "nothing", "--mode", "eval"], ["nothing holds no run", "--config"]),
        (["--config", "ciou", "more"], ["unknown argument 'more'"]),
        (["--config", "ciou", "--mode", "evaluate"], ["mode", "eval"]),
        (["--config", "ciou", "--mode", "predict"], ["--mode predict needs --input"]),
        (["--config", "ciou", "--mode", "import"], ["--mode import needs --source"]),
        (["--config", "ciou", "--wrkdir", "x"], ["wrkdir", "workdir"]),
        (["--config", "ciou", "--config.solver.base_lr=fast"], ["solver.base_lr", "fast"]),
        (["--config", "ciou", "--config.solver.max_iter=1.5"], ["solver.max_iter", "1.5"]),
        (["--config", "ciou", "--config.train.use_flipped=maybe"], ["use_flipped", "maybe"]),
        (
            ["--config", "ciou", "--config.test.nms=0.4", "--config.SOLVER.MAX_ITER=1e3"],
            ["solver.max_iter=1e3: it must be a whole number, 1 or more"],
        ),
        (["--config", "ciou", "--config.train.use_flipped=yes"], ["train.use_flipped=yes: it must be True or False"]),
        (["--config", "ciou", "--config.test.nms="], ["test.nms=: it must be a number from 0 to 1"]),
        (["--config", "ciou", "--config.solver.max_iter"], ["Missing value", "solver.max_iter"]),
        (["--config", "ciou", "--mode", "eval", "--sweep", "test.nms=0.4,low"], ["test.nms=low: it must be a number"]),
        (["--config", "ciou", "--config.test={}"], ["--config.test is a section", "test.nms"]),
        (["--config", "ciou", "--config.solver.steps[1]=5"], ["all of it", "solver.steps=(0, 60000, 80000)"]),
        (["--config", "ciou", "--config.TEST.DIOU_NMS.BETA9=1"], ["nearest is --config.test.diou_nms.beta1"]),
        (["--config", "ciou", "--config.DATA_LOADER.NUM_THREADS=2"], ["--config.data.threads"]),
        (
            ["--config", "ciou", "--config.MODEL.KEYPOINTS_ON=True"],
            ["MODEL.KEYPOINTS_ON", "keypoints are not supported"],
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_how_to_mend_it(arguments, words):
    with pytest.raises(UserError) as error:
        parse(arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_inputs_may_be_repeated_and_a_shell_may_have_made_several_of_one():
    arguments = ["--config", "ciou", "--mode", "predict", "--output", "found", "--classes", "cat,potted plant"]
    flags = parse([*arguments, "--input", "a", "--input", "b?.jpg"]).flags
    assert flags["input"] == ["a", "b?.jpg"] and flags["classes"] == ["cat", "potted plant"]
    assert flags["every"] == 1 and flags["video"] and flags["score_threshold"] is None
    flags = parse([*arguments, "--input", "a.jpg", "b.jpg", "c.jpg", "--novideo", "--every", "5"]).flags
    assert flags["input"] == ["a.jpg", "b.jpg", "c.jpg"] and flags["every"] == 5 and not flags["video"]
    with pytest.raises(UserError, match=r"unknown argument 'b\.jpg'"):
        parse(["--config", "ciou", "--input", "a.jpg", "b.jpg"])


def test_every_option_is_found_under_its_name_in_capitals():
    config = base.get_config()
    assert resolve_name("TEST.SOFT_NMS.BETA1", config) == "test.soft_nms.beta1"
    assert resolve_name("DTYPE", config) == "dtype"


def test_the_help_names_every_mode_and_flag_once():
    text = help_text("diou-jax")
    assert "diou-jax --config configs/ciou.py" in text
    lines = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert [line for line in lines if line in MODES] == list(MODES)
    assert sorted(line for line in lines if line.startswith("--") and "=" not in line) == sorted(
        f"--{flag.name}" for flag in FLAGS
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--every", "2"], "--every belongs to --mode predict, not to --mode train_and_eval"),
        (
            ["--mode", "eval", "--output", "x"],
            "--output belongs to --mode compare, predict, export or export_torch, not",
        ),
        (["--mode", "export", "--output", "x"], "--mode export needs --image_size"),
        (["--mode", "train", "--checkpoint", "best"], "--checkpoint belongs to --mode eval, predict, export or"),
    ],
)
def test_flags_belong_to_modes(arguments, words):
    with pytest.raises(UserError, match=words):
        parse(["--config", "configs/shapes.py", *arguments])


@pytest.mark.parametrize("start", [["main.py"], ["-m", "diou_jax"]])
def test_the_program_answers_before_jax_is_imported(start):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *start, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "python " + " ".join(start) in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported
    assert not imported & {"jax", "numpy.core", "diou_jax.training.train"}


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ("newest", "--checkpoint newest: it must be best, last or the step"),
        ("-3", "--checkpoint -3: it must be"),
    ],
)
def test_a_checkpoint_that_cannot_be_meant_is_refused(checkpoint, words):
    with pytest.raises(UserError, match=words):
        parse(["--config", "ciou", "--mode", "eval", f"--checkpoint={checkpoint}"])


def test_a_checkpoint_is_the_last_one_unless_another_is_named():
    assert parse(["--config", "ciou", "--mode", "eval"]).flags["checkpoint"] == "last"
    assert parse(["--config", "ciou", "--mode", "eval", "--checkpoint", "1200"]).flags["checkpoint"] == "1200"
