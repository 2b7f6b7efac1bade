"""Names and layouts of the original's tensors. Golden file: param_names."""

import ast

import jax
import numpy as np
import pytest
from flax import traverse_util

from diou_jax.errors import UserError
from diou_jax.models.box_head import BoxHead
from diou_jax.models.fpn import FPN
from diou_jax.models.network import HeadModule, Network
from diou_jax.models.resnet import ResNet, frozen_stage
from diou_jax.models.rpn import RPNHead
from diou_jax.optimization.optimizer import parameter_group
from diou_jax.weights.original import export_original, import_original, original_tensors


def narrow(*, use_gn=False, class_agnostic=False):
    return Network(
        ResNet(blocks=(2, 1, 1, 1), width_per_group=4, stem_width=6, norm="group" if use_gn else "affine"),
        FPN(8, norm="group" if use_gn else "bias"),
        RPNHead(features=8),
        (HeadModule("box_head", lambda: BoxHead(num_classes=5, hidden=12, class_agnostic=class_agnostic), 3),),
    )


def draw(network, seed=0):
    """The original's state dict of a network, with values that are all different."""
    rng = np.random.default_rng(seed)
    tensors = original_tensors(network.variable_shapes()).values()
    return {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in tensors}


def test_names_shapes_and_groups_are_the_originals(golden_path):
    lines = golden_path("param_names.txt").read_text().splitlines()
    rows = {name: rest for name, *rest in (line.split("\t") for line in lines if line[0] != "#")}
    network = Network(ResNet(), FPN(), RPNHead(), (HeadModule("box_head", lambda: BoxHead(num_classes=81), 7),))
    tensors = original_tensors(network.variable_shapes())
    assert len(tensors) == 189
    assert {t.name: t.shape for t in tensors.values()} == {n: ast.literal_eval(row[0]) for n, row in rows.items()}

    for path, tensor in tensors.items():
        collection, path = path.split("/", 1)
        _, trained, group, _ = rows[tensor.name]
        group = {"0": "weight", "1": "bias", "-": "frozen"}[group]
        assert (group != "frozen") == (trained == "True")
        if collection == "affine":
            assert group == "frozen"
        else:
            assert parameter_group(path, lambda path: frozen_stage(path, 2)) == group


@pytest.mark.parametrize("options", [{}, {"class_agnostic": True}, {"use_gn": True}])
def test_import_and_export_are_exact_inverses(options):
    network = narrow(**options)
    shapes = network.variable_shapes()
    tensors = draw(network)
    assert len(tensors) == len(jax.tree.leaves(shapes))
    variables = import_original(tensors, shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    back = export_original(variables)
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)
    again = import_original(back, variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_layouts():
    network = narrow()
    tensors = draw(network)
    variables = import_original(tensors, network.variable_shapes())
    ours, theirs = variables["params"]["backbone"]["conv1"]["kernel"], tensors["Conv_Body.conv_body.res1.conv1.weight"]
    assert ours[3, 2, 5, 1] == theirs[3, 1, 2, 5]
    ours, theirs = variables["params"]["box_head"]["fc1"]["kernel"], tensors["Box_Head.fc1.weight"]
    assert ours.reshape(3, 3, 8, 12)[2, 1, 7, 4] == theirs.reshape(12, 8, 3, 3)[4, 7, 2, 1]
    ours, theirs = variables["params"]["box_head"]["deltas"]["kernel"], tensors["Box_Outs.bbox_pred.weight"]
    assert ours[11, 4 * 3 + 2] == theirs[4 * 3 + 2, 11]


def test_names_where_group_norm_stands_for_the_affine_layers():
    tensors = original_tensors(narrow(use_gn=True).variable_shapes())
    names = {path.removeprefix("params/"): tensor.name for path, tensor in tensors.items()}
    assert names["backbone/conv1/norm/scale"] == "Conv_Body.conv_body.res1.gn1.weight"
    assert names["backbone/res2_1/conv3/norm/bias"] == "Conv_Body.conv_body.res2.1.gn3.bias"
    assert names["backbone/res4_0/shortcut/norm/scale"] == "Conv_Body.conv_body.res4.0.downsample.1.weight"
    assert names["neck/inner5/kernel"] == "Conv_Body.conv_top.0.weight"
    assert names["neck/inner3/norm/bias"] == "Conv_Body.topdown_lateral_modules.1.conv_lateral.1.bias"
    assert names["neck/output2/norm/scale"] == "Conv_Body.posthoc_modules.3.1.weight"
    assert names["rpn/conv/bias"] == "RPN.FPN_RPN_conv.bias"


def test_whatever_does_not_fit_is_named_in_one_line():
    network = narrow()
    tensors = draw(network)
    del tensors["Box_Head.fc2.bias"]
    tensors["RPN.FPN_RPN_conv.weight"] = np.zeros((8, 8, 1, 1))
    tensors["Mask_Head.conv.weight"] = np.zeros(1)
    with pytest.raises(UserError) as error:
        import_original(tensors, network.variable_shapes())
    message = str(error.value)
    assert "\n" not in message
    assert "Box_Head.fc2.bias is missing" in message
    assert "RPN.FPN_RPN_conv.weight has shape (8, 8, 1, 1) instead of (8, 8, 3, 3)" in message
    assert "Mask_Head.conv.weight has no place" in message
    assert message.count(";") == 2


def test_imported_values_are_float32_whatever_the_file_holds():
    network = narrow()
    tensors = {name: value.astype(np.float64) for name, value in draw(network).items()}
    variables = import_original(tensors, network.variable_shapes())
    assert {x.dtype for x in traverse_util.flatten_dict(variables).values()} == {np.dtype("float32")}
