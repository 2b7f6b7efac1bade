"""Trainings that are compared: paired by seed, kept, gone on with; they are played here. And the recipe's parts."""

import contextlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import load_benchmark

from diou_jax.command.arguments import parse
from diou_jax.options import build

study = load_benchmark("study")


def play_trainings(monkeypatch, ap):
    """Plays trainings whose AP is ``ap(options)``; AP50 is 0.2 and 0.7 more at half and all of the steps.

    Returns the list of commands, which grows.
    """
    commands = []

    def play(command, *, stdout, **_):
        commands.append(command)
        options = dict(part.split("=", 1) for part in command if "=" in part)
        workdir = pathlib.Path(command[command.index("--workdir") + 1])
        workdir.mkdir(parents=True)
        steps, value = int(options["--config.solver.max_iter"]), ap(options)
        others = {f"eval/{name}": value for name in ("AP", "AP75", "APm", "APl")}
        rows = [{"step": step, "eval/AP50": value + more, **others} for step, more in ((steps // 2, 0.2), (steps, 0.7))]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(study.subprocess, "run", play)
    return commands


def test_the_interval_is_students():
    """Of 1, 2, 3: 4.3027, the 97.5th percentile of t with two degrees, times 1 / sqrt(3)."""
    np.testing.assert_allclose(study.interval([1, 2, 3]), (2, 2.484138), rtol=1e-6)
    mean, half = study.interval([0.5])
    assert mean == 0.5 and np.isnan(half)


def test_the_step_that_reached_the_target_is_between_two_evaluations():
    def rows(*values):
        return [{"step": 100 * i, "eval/AP": 0.1, "eval/AP50": ap} for i, ap in enumerate(values, start=1)]

    assert study.outcome(rows(0.4, 0.6, 1.0))["reached"] == 250
    assert study.outcome(rows(1.0))["reached"] == 80  # from 0 before the first update
    assert study.outcome(rows(0.8, 0.1))["reached"] == 100
    logged = [{"step": step, "images_per_second": rate} for step, rate in ((1, 9.0), (2, 8.0), (3, 0.1))]
    found = study.outcome([*logged, *rows(0.4, None, 0.79)])
    assert found["reached"] is None and found["rate"] == 8  # the third was paused


def test_differences_are_paired_by_seed():
    """Both vary by tenths over seeds, their difference by hundredths."""

    def result(seed, ap):
        sizes = {"AP50": ap, "AP75": ap, "APs": 0.2 if seed == 0 else None, "APm": ap, "APl": ap}
        return {"AP": ap, **sizes, "reached": 100 * seed or None, "rate": 10.0 * seed}

    aps = {"one": [0.1, 0.2, 0.3], "other": [0.12, 0.21, 0.33]}
    rows = study.compare({name: [result(*pair) for pair in enumerate(values)] for name, values in aps.items()})
    np.testing.assert_allclose(rows["other"]["difference"], (0.02, 4.302653 * 0.01 / np.sqrt(3)), rtol=1e-5)
    np.testing.assert_allclose(rows["other"]["seeds"], np.std(aps["other"], ddof=1))
    assert rows["one"]["difference"] == (0.0, 0.0) and rows["one"]["rate"] == 10
    assert rows["other"]["reached"] == 150 and rows["other"]["count"] == 2 and rows["other"]["APs"] is None
    assert study.shown(rows["other"]["difference"], signed=True) == "+0.020 ± 0.025"
    assert study.shown_reached(rows["other"], 3) == "150 (2 of 3)"


def test_a_training_is_kept_and_not_taken_for_another(monkeypatch, tmp_path, capsys):
    commands = play_trainings(monkeypatch, lambda options: 0.5)
    runs = study.Study(tmp_path, ("--config.a=1",), jobs=2)
    run = study.Run("part/one", 3, ("--config.b=2",), 100)
    first = runs.train_all([run])[run]
    assert first["AP"] == 0.5 and first["reached"] == pytest.approx(60)
    assert commands[0][-2:] == ["--config.a=1", "--config.b=2"] and "--config.test.every=10" in commands[0]
    assert runs.train_all([run])[run] == first and len(commands) == 1
    with pytest.raises(SystemExit, match=r"part/one\.json is from another command; choose another --out"):
        runs.train(study.Run("part/one", 3, ("--config.b=3",), 100))
    (tmp_path / "part" / "one.json").unlink()
    with pytest.raises(FileExistsError):  # the play of this run does not resume
        runs.train(run)
    assert len(commands) == 2
    capsys.readouterr()


def test_a_training_that_fails_names_its_log(monkeypatch, tmp_path):
    monkeypatch.setattr(study.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    with pytest.raises(SystemExit, match=r"part/one ended with code 2; .*one\.log has its log"):
        study.Study(tmp_path).train(study.Run("part/one", 0, (), 10))
    assert not list(tmp_path.glob("**/*.json"))


def test_arguments_that_are_no_options_of_trainings_are_refused(monkeypatch, capsys):
    def parse_all(*arguments):
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        with contextlib.ExitStack() as stack:
            return study.parse(study.make_parser("", "runs/x"), stack)

    given, options = parse_all("--data", "FOLDER", "--seeds", "2", "--config.a=1")
    assert (given.data, given.seeds, options) == ("FOLDER", 2, ("--config.a=1",)) and given.out.is_absolute()
    for arguments, words in (
        (("--data", "x", "--sede=1"), "unknown argument --sede=1"),
        ((), "--data FOLDER is needed"),
    ):
        with pytest.raises(SystemExit):
            parse_all(*arguments)
        assert words in capsys.readouterr().err


def test_every_part_of_the_recipe_is_a_valid_config_with_inputs_of_like_size():
    recipe = load_benchmark("recipe")
    for name, options in recipe.parts(224, 320).items():
        config = parse(["--config", "own", "--workdir", "unused", *options, "--config.data.root=unused"]).config
        if config.train.jitter:
            assert abs(config.train.jitter_size**2 / (224 * 320) - 1) < 0.1, name
    assert len({recipe.name_of(name) for name in recipe.parts(224, 320)}) == len(recipe.parts(224, 320))


def test_the_recipes_parts_are_compared_with_the_defaults(monkeypatch, tmp_path, capsys):
    recipe = load_benchmark("recipe")
    commands = play_trainings(
        monkeypatch, lambda o: 0.3 + 0.01 * int(o["--config.rng_seed"]) + 0.02 * ("--config.solver.ema_decay" in o)
    )
    chosen = {name: recipe.parts(64, 64)[name] for name in (recipe.BASELINE, "EMA", "cosine")}
    text = recipe.run_all(recipe.Study(tmp_path), chosen, seeds=2, steps=100)
    assert len(commands) == 6 and [c for c in commands if "--config.rng_seed=0" in c] == commands[:3]
    assert "| EMA | 0.325 ± " in text and "| +0.020 ± 0.000 |" in text and "| cosine | 0.305 ± " in text
    assert (tmp_path / "recipe.md").read_text() == text and (tmp_path / "recipe.png").stat().st_size > 5000
    assert json.loads((tmp_path / "recipe.json").read_text())["EMA"]["difference"][0] == pytest.approx(0.02)
    capsys.readouterr()


@pytest.mark.parametrize("divided", [False, True])
def test_all_classes_of_the_data_become_one(shapes_root, tmp_path, divided):
    recipe, folder = load_benchmark("recipe"), shapes_root
    if divided:
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "images").symlink_to(shapes_root / "images" / "train")
        (folder / "all.json").symlink_to(shapes_root / "annotations" / "instances_train.json")
    options = recipe.with_one_class(str(folder), tmp_path / "out")
    assert len(options) == (2 if divided else 4)
    config = parse(["--config", "own", "--workdir", "unused", f"--config.data.root={folder}", *options]).config
    parts = [build.dataset(config, [name], masks=False) for name in (*config.train.datasets, *config.test.datasets)]
    assert all(part.class_names[1:] == ("object",) for part in parts)
    assert sum(len(part.records) for part in parts) == (24 if divided else 30)
