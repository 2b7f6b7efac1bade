"""The record of options and classes in an exported weight file."""

import pickle

import numpy as np
import pytest

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.command.export_weights import original_checkpoint
from diou_jax.command.import_weights import import_file
from diou_jax.configs import own
from diou_jax.errors import UserError
from diou_jax.nested_config import flatten
from diou_jax.options import build
from diou_jax.options.choices import FROM_WEIGHTS, Devices, Statistics, resolve
from diou_jax.options.initial_weights import initial_variables
from diou_jax.options.open_options import start_of
from diou_jax.prediction.detector import Detector
from diou_jax.weights import files
from diou_jax.weights.original import export_original, original_tensors
from diou_jax.weights.record import KEY, Record
from diou_jax.weights.sources import read_source


@pytest.fixture(scope="module")
def exported(tiny_config, tmp_path_factory):
    """A config with torchvision's boxes, and a file that is written with it."""
    folder = tmp_path_factory.mktemp("exported")
    config = tiny_config()
    rng = np.random.default_rng(0)
    tensors = original_tensors(build.network(config, 7).variable_shapes()).values()
    content = {"step": 0, "model": {tensor.name: np.float32(rng.normal(size=tensor.shape)) for tensor in tensors}}
    (folder / "original.pkl").write_bytes(pickle.dumps(content))
    import_file(config, folder / "original.pkl", folder / "run")
    config.model.box_convention = "torchvision"
    (folder / "back.pkl").write_bytes(pickle.dumps(original_checkpoint(config, folder / "run")))
    return config, folder / "back.pkl"


@pytest.mark.slow
def test_the_file_says_which_network_and_which_classes_it_has(exported):
    config, file = exported
    source = read_source(file)
    assert source.kind == "an exported checkpoint" and source.step == 1
    assert source.record.options["fpn.dim"] == 16 and source.record.options["model.box_convention"] == "torchvision"
    assert source.record.class_names[1:] == build.dataset(config, config.train.datasets).class_names[1:]


@pytest.mark.slow
def test_it_is_read_by_a_config_with_its_options_and_refused_by_others(exported, tiny_config, tmp_path):
    config, file = exported
    with pytest.raises(UserError, match=r"wants model\.box_convention=torchvision, not detectron: set it"):
        import_file(tiny_config(), file, tmp_path / "refused")
    data = build.dataset(config, config.train.datasets)
    config = config.copy_and_resolve_references()
    config.train.datasets = ("no_such_set",)  # the file names its classes
    import_file(config, file, tmp_path / "run")
    with Checkpoints(tmp_path / "run", create=False) as checkpoints:
        assert tuple(checkpoints.metadata()["class_names"]) == data.class_names
        assert tuple(checkpoints.metadata()["category_ids"]) == data.category_ids
    assert Detector.from_file(file, config).class_names == data.class_names


@pytest.mark.slow
def test_options_left_open_are_taken_from_it(exported):
    config, file = exported
    data = Statistics(images=205, short=480, aspect=1.33, both_ways=False, small=0.08, large=0.5, most=28)
    start = start_of(own.get_config(), file)
    chosen, _ = resolve(own.get_config(), data, start=start, devices=Devices(1, "gpu"))
    here, there, given = flatten(chosen), flatten(config), flatten(own.get_config())
    left_open = {name for name in FROM_WEIGHTS & there.keys() if given[name] is None} - {"resnets.freeze_at"}
    assert left_open >= {"resnets.blocks", "fpn.dim", "model.box_convention"}
    assert {name: here[name] for name in left_open} == {name: there[name] for name in left_open}


@pytest.mark.slow
def test_rows_of_its_heads_follow_the_names_of_classes(exported):
    config, file = exported
    config = config.copy_and_resolve_references()
    config.init.checkpoint = str(file)
    source = read_source(file)
    names = source.record.class_names
    order = [0, *range(len(names) - 1, 0, -1)]
    variables, _ = initial_variables(config, build.network(config, len(names)), [names[row] for row in order])
    taken = export_original(variables)["Box_Outs.cls_score.weight"]
    np.testing.assert_array_equal(taken, source.tensors["Box_Outs.cls_score.weight"][order])


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_a_file_with_or_without_masks_starts_a_run_of_the_other_kind(tiny_config, tmp_path, there):
    config = tiny_config()
    config.mrcnn.num_convs, config.mrcnn.dim_reduced = 1, 8
    config.model.mask_on = there
    tensors = original_tensors(build.network(config, 7).variable_shapes()).values()
    content = {"model": {tensor.name: np.ones(tensor.shape, np.float32) for tensor in tensors}}
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content))
    config.model.mask_on, config.init.checkpoint = not there, str(tmp_path / "file.pkl")
    variables, lines = initial_variables(config, build.network(config, 7), [str(number) for number in range(7)])
    assert (variables["params"]["neck"]["inner5"]["kernel"] == 1).all()
    said = "mask_head: not used" if there else "mask_head: starts anew"
    assert any(line.startswith(said) for line in lines)
    if not there:
        assert np.std(variables["params"]["mask_head"]["upsample"]["kernel"]) > 0


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = Record({"fpn.dim": 16, "pixel_means": (1.0, 2.0, 3.0)}, ("background", "a"), (-1, 7))
    content = {"model": {"Conv_Body.a": np.zeros(1, np.float32)}, KEY: record.content()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    assert files.read(tmp_path / "w.pkl").record == record


def test_a_record_of_another_number_of_classes_is_refused(tmp_path):
    tensors = {"Conv_Body.a": np.zeros(1, np.float32), "Box_Outs.cls_score.weight": np.zeros((3, 4), np.float32)}
    content = {"model": tensors, KEY: Record({}, ("background", "a"), (-1, 7)).content()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"w\.pkl: its scores are of 3 classes, its record names 2"):
        read_source(tmp_path / "w.pkl")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (3, "damaged"),
        ({}, "damaged .KeyError"),
        ({"options": [], "class_names": [], "category_ids": []}, "damaged"),
        ({"options": {}, "class_names": ["background", "a"], "category_ids": [-1]}, "2 class names and 1 ids"),
        ({"options": {}, "class_names": ["background"], "category_ids": ["x"]}, "damaged .ValueError"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path, record, said):
    content = {"model": {"Conv_Body.a": np.zeros(1, np.float32)}, KEY: record}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=said) as error:
        files.read(tmp_path / "w.pkl")
    assert "w.pkl" in str(error.value)
