"""A workdir remembers its run's config."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diou_jax.command import export_weights, import_weights, program
from diou_jax.command.arguments import parse
from diou_jax.command.stored_config import stored_config
from diou_jax.configs import base, ciou, shapes
from diou_jax.errors import UserError
from diou_jax.evaluation import evaluate
from diou_jax.nested_config import flatten, overwrite
from diou_jax.option_groups import NETWORK, SHAPES
from diou_jax.prediction import predict
from diou_jax.training import train


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(config)`` is a workdir that holds a run of the config."""
    monkeypatch.chdir(tmp_path)

    def write(config=None, **stored):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        content = json.loads(json.dumps((config or shapes.get_config()).to_dict())) | stored
        (folder / "config.json").write_text(json.dumps(content))
        return str(folder)

    return write


def predict_with(*arguments):
    return parse([*arguments, "--mode", "predict", "--input", "a", "--output", "b"])


@pytest.mark.parametrize("name", ["n" * 300, "runs/" + "n" * 256, "missing/" + "n" * 256])
def test_a_workdir_whose_name_no_system_takes_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert stored_config(name) is None
    for arguments in (
        ["--workdir", name],
        ["--workdir", name, "--config", "ciou"],
        ["--workdir", name, "--mode", "eval"],
    ):
        with pytest.raises(UserError, match=r"--workdir .*nnn: the name is too long; name a shorter one"):
            parse(arguments)


@pytest.mark.parametrize("config", [base.get_config("r101"), shapes.get_config()], ids=["base", "shapes"])
def test_a_config_comes_back_from_its_file_as_it_was(config):
    config.data.buckets = ((64, 96), (96, 64))
    config.test.soft_nms.beta1 = float("inf")
    restored = base.get_config()
    overwrite(restored, json.loads(json.dumps(config.to_dict())))
    assert flatten(restored) == flatten(config)
    assert all(type(value) is type(flatten(config)[name]) for name, value in flatten(restored).items())


@given(st.lists(st.lists(st.integers(1, 9), max_size=3), max_size=3), st.integers(-5, 5))
def test_lists_become_tuples_and_whole_numbers_fractions(buckets, decay):
    restored = base.get_config()
    overwrite(restored, {"data": {"buckets": buckets}, "solver": {"weight_decay": decay}, "own": {"option": [1]}})
    assert restored.data.buckets == tuple(map(tuple, buckets))
    assert type(restored.solver.weight_decay) is float
    assert restored.own.option == (1,)
    assert restored.solver.gamma == base.get_config().solver.gamma


def test_an_option_that_is_open_stays_so_and_takes_a_value_of_its_type(run):
    workdir = run(train=base.get_config().train.to_dict() | {"scales": None}, solver={"max_iter": None})
    command = parse(["--workdir", workdir, "--config.train.scales=(64,)"])
    assert command.config.train.scales == (64,)
    assert command.config.solver.max_iter is None
    with pytest.raises(UserError, match=r"max_iter"):
        parse(["--workdir", workdir, "--config.solver.max_iter=fast"])


def test_a_config_file_that_leaves_options_open_contradicts_nothing(run, tmp_path):
    file = tmp_path / "open.py"
    lines = ["from diou_jax.configs import shapes", "from ml_collections import config_dict", "def get_config():"]
    lines += ["    config = shapes.get_config()", "    del config.fpn.dim, config.test.scale"]
    lines += ["    config.fpn.dim = config.test.scale = config_dict.placeholder(int)", "    return config", ""]
    file.write_text("\n".join(lines))
    assert len(predict_with("--workdir", run(), "--config", str(file)).lines) == 1
    assert parse(["--config", str(file), "--config.FPN.DIM=64"]).config.fpn.dim == 64


def test_an_older_run_lacks_newer_options_which_have_their_defaults(run):
    workdir = run(base.get_config(), test={"nms": 0.3})
    restored = stored_config(workdir)
    assert (restored.test.nms, restored.test.scale) == (0.3, 800)


@pytest.mark.parametrize("mode", ["eval", "train", "train_and_eval", "export_torch", "predict", "check"])
def test_a_run_needs_no_config(run, mode):
    workdir = run()
    needed = {"predict": ["--input", "a", "--output", "b"], "export_torch": ["--output", "b"]}.get(mode, [])
    command = parse(["--workdir", workdir, "--mode", mode, *needed])
    assert flatten(command.config) == flatten(shapes.get_config())
    assert command.lines == (f"workdir {workdir}, config of the run in {workdir}",)


def test_options_override_the_run_and_are_said_one_in_a_line(run):
    command = predict_with("--workdir", run(), "--config.test.nms=0.3", "--config.TEST.SCALE=128")
    assert command.config.test.nms == 0.3
    assert command.lines[1:] == ("test.nms: 0.5 in the run, 0.3 here",)
    assert command.explicit == {"test.nms", "test.scale"}
    command = parse(["--workdir", run(), "--config.solver.max_iter=5000"])
    assert command.lines[1:] == ("solver.max_iter: 1850 in the run, 5000 here",)


def test_the_run_s_own_scale_holds_against_a_config_file_s(run):
    config = shapes.get_config()
    config.test.scale, config.test.max_size = 96, 160
    command = predict_with("--workdir", run(config), "--config", "shapes")
    assert command.config.test.scale == 96
    said = "test.scale: 96 in the run, 128 in "
    assert any(
        line.startswith(said) and "the run's holds, --config.test.scale changes it" in line for line in command.lines
    )
    command = predict_with("--workdir", run(config), "--config", "shapes", "--config.test.scale=128")
    assert (command.config.test.scale, command.config.test.max_size) == (128, 160)
    assert "test.scale: 96 in the run, 128 here" in command.lines


def test_what_does_not_change_results_is_not_said(run):
    config = shapes.get_config()
    config.solver.max_iter, config.train.scales, config.log.every = 3, (64,), 7
    config.resnets.imagenet_pretrained_weights = "body.pth"
    assert len(predict_with("--workdir", run(config), "--config", "shapes").lines) == 1


def test_a_config_file_of_another_network_is_refused_by_option(run):
    with pytest.raises(UserError) as error:
        predict_with("--workdir", run(), "--config", "ciou")
    for words in (
        "fpn.dim: 48 in the run, 256 in",
        "resnets.blocks: (1, 1, 1, 1) in the run, (3, 4, 6, 3) in",
        "leave --config out",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("dtype", "bfloat16"), ("pixel_means", (1.0, 2.0, 3.0)), ("model.box_convention", "torchvision")],
)
def test_options_that_a_network_was_trained_with_are_the_network_s(run, option, value):
    config = ciou.get_config()
    config.update_from_flattened_dict({option: value})
    with pytest.raises(UserError, match=option):
        predict_with("--workdir", run(config), "--config", "ciou")
    text = f"--config.{option}={flatten(ciou.get_config())[option]}"
    assert any(
        line.startswith(option) for line in predict_with("--workdir", run(config), "--config", "ciou", text).lines
    )


def test_another_shape_of_parameters_is_refused_however_it_is_asked_for(run):
    with pytest.raises(UserError, match=r"another network: fpn\.dim: 48 in the run, 32 here"):
        predict_with("--workdir", run(), "--config.fpn.dim=32")


def test_options_that_are_named_exist():
    assert {*NETWORK, *SHAPES} <= flatten(base.get_config()).keys()


def test_a_config_file_of_a_training_run_is_taken_as_it_is(run):
    workdir = run()
    command = parse(["--workdir", workdir, "--config", "ciou"])
    assert flatten(command.config) == flatten(ciou.get_config())


@pytest.mark.parametrize("content", [None, "", '{"model": ', "[1]"])
def test_a_folder_without_a_config_that_can_be_read_needs_one(run, tmp_path, content):
    workdir = run()
    file = tmp_path / "run" / "config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match="holds no run to go on with; name --config as well"):
        parse(["--workdir", workdir])
    assert parse(["--workdir", workdir, "--config", "ciou", "--mode", "eval"]).config.fpn.dim == 256


def test_the_program_hands_over_what_was_asked_for(run, monkeypatch, capsys):
    calls = []
    for module, name in (
        (train, "train"),
        (evaluate, "evaluate"),
        (predict, "predict"),
        (import_weights, "import_file"),
        (export_weights, "export_torch"),
    ):

        def note(*values, name=name, **named):
            calls.append((name, values[1:], named))
            return f"result of {name}"

        monkeypatch.setattr(module, name, note)
    monkeypatch.setattr(
        predict, "predict", lambda *values, **named: calls.append(("predict", values[1:], named)) or True
    )
    workdir = run()
    start = ["main.py", "--workdir", workdir]
    program.main([*start, "--config.solver.max_iter=9"])
    with pytest.raises(SystemExit) as exit_:
        program.main([*start, "--mode", "predict", "--input", "a", "--output", "b", "--draw_threshold", "0.3"])
    assert exit_.value.code == 0
    program.main([*start, "--mode", "import", "--source", "c", "--allow", "x,y"])
    program.main([*start, "--mode", "export_torch", "--output", "d", "--checkpoint", "best"])
    assert calls == [
        ("train", (workdir,), {"explicit": frozenset({"solver.max_iter"}), "then_evaluate": True}),
        ("evaluate", (workdir, "result of train"), {"checkpoint": "last"}),
        (
            "predict",
            (workdir, ["a"]),
            {"output": "b", "wishes": predict.Wishes(draw_threshold=0.3), "checkpoint": "last"},
        ),
        ("import_file", ("c", workdir), {"resume_optimizer": False, "allow": ["x", "y"]}),
        ("export_torch", (workdir, "d"), {"checkpoint": "best"}),
    ]
    assert capsys.readouterr().out.startswith(
        f"workdir {workdir}, config of the run in {workdir}\nsolver.max_iter: 1850"
    )
