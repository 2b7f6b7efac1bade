"""Names and layouts of the original's tensors. Golden files: param_names, and param_names_* of the further models."""

import ast

import jax
import numpy as np
import pytest
from conftest import find_golden
from flax import traverse_util

from diou_jax.configs import base, mask, mask_gn
from diou_jax.errors import UserError
from diou_jax.models.box_head import BoxHead
from diou_jax.models.fpn import FPN
from diou_jax.models.mask_head import MaskHead
from diou_jax.models.network import HeadModule, Network
from diou_jax.models.norms import UseAffine, UseBatchNorm, UseBias, UseGroupNorm
from diou_jax.models.resnet import ResNet, frozen_stage
from diou_jax.models.rpn import RPNHead
from diou_jax.optimization.optimizer import parameter_group
from diou_jax.options import build
from diou_jax.weights import detectron
from diou_jax.weights.original import export_original, import_original, original_tensors


def narrow(*, norm=UseBias(), class_agnostic=False, convs=0, rpn_convs=1):  # noqa: B008, frozen
    box = BoxHead(5, hidden=12, class_agnostic=class_agnostic, num_convs=convs, conv_features=10, norm=norm)
    masks = MaskHead(1 if class_agnostic else 5, num_convs=2, features=4, norm=norm)
    return Network(
        ResNet(blocks=(2, 1, 1, 1), width_per_group=4, stem_width=6, norm=UseAffine() if norm == UseBias() else norm),
        FPN(8, norm=norm),
        RPNHead(features=8, num_convs=rpn_convs),
        (HeadModule("box_head", box, 3), HeadModule("mask_head", masks, 4)),
    )


def draw(network, seed=0):
    """The original's state dict of a network, with values that are all different."""
    rng = np.random.default_rng(seed)
    tensors = original_tensors(network.variable_shapes()).values()
    return {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in tensors}


MODELS = {
    "r50fpn": (base.get_config(), {"weight": 57, "bias": 15, "norm": 0, "frozen": 117}),
    "mask_r50fpn": (mask.get_config(), {"weight": 63, "bias": 21, "norm": 0, "frozen": 117}),
    "mask_r50fpn_gn": (mask_gn.get_config(), {"weight": 66, "bias": 66, "norm": 58, "frozen": 33}),
    "r101fpn": (base.get_config("r101"), {"weight": 108, "bias": 15, "norm": 0, "frozen": 219}),
    "x101_32x8d_fpn": (base.get_config("x101_32x8d"), {"weight": 108, "bias": 15, "norm": 0, "frozen": 219}),
}


def table(model):
    """The original's tensors: name, shape, whether it is trained, number of its group, name of Detectron's blob."""
    lines = find_golden(f"param_names_{model}.txt", "golden2").read_text().splitlines()
    return [[cell.strip() for cell in line.split("\t")] for line in lines if line[0] != "#"]


@pytest.mark.parametrize("model", MODELS)
def test_names_shapes_and_groups_are_the_originals(model):
    config, counts = MODELS[model]
    rows = {name: rest for name, *rest in table(model)}
    tensors = original_tensors(build.network(config, 81).variable_shapes())
    assert {t.name: t.shape for t in tensors.values()} == {n: ast.literal_eval(row[0]) for n, row in rows.items()}

    groups = []
    for path, tensor in tensors.items():
        collection, path = path.split("/", 1)
        _, trained, group, _ = rows[tensor.name]
        group = {"0": "weight", "1": "bias", "2": "norm", "-": "frozen"}[group]
        groups.append(group)
        assert (group != "frozen") == (trained == "True")
        if collection == "affine":
            assert group == "frozen"
        else:
            assert parameter_group(path, lambda path: frozen_stage(path, config.resnets.freeze_at)) == group, path
    assert {group: groups.count(group) for group in counts} == counts


@pytest.mark.parametrize("model", MODELS)
def test_every_blob_of_detectron_has_its_place(model):
    rows = table(model)
    blobs = {blob: np.zeros(0) for *_, blob in rows}
    tensors, unused = detectron.to_original(blobs)
    assert unused == []
    assert list(tensors) == [name for name, *_ in rows]
    for name, *_, blob in rows:
        assert detectron.original_name(blob, blobs) == name


@pytest.mark.parametrize("model", MODELS)
def test_blobs_that_the_original_leaves_out_are_left_out(model):
    lines = find_golden(f"param_names_{model}.txt", "golden2").read_text().splitlines()
    orphans = next(line for line in lines if line.startswith("# orphans")).split(":")[1].split()
    blobs = {*orphans, *(blob for *_, blob in table(model))}
    assert len(orphans) > 50
    assert not [blob for blob in orphans if detectron.original_name(blob, blobs)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_agnostic": True},
        {"convs": 2},
        {"norm": UseGroupNorm(), "convs": 2},
        {"norm": UseBatchNorm(), "convs": 2, "rpn_convs": 3},
    ],
)
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
    ours, theirs = variables["params"]["mask_head"]["upsample"]["kernel"], tensors["Mask_Head.upconv.weight"]
    assert ours[3, 1, 0, 2] == theirs[2, 3, 1, 0]
    ours, theirs = variables["params"]["mask_head"]["logits"]["kernel"], tensors["Mask_Outs.classify.weight"]
    assert ours[4, 0, 0, 2] == theirs[4, 2, 0, 0]


def test_behind_convolutions_a_layer_takes_their_channels():
    network = narrow(convs=2)
    tensors = draw(network)
    kernel = import_original(tensors, network.variable_shapes())["params"]["box_head"]["fc"]["kernel"]
    assert kernel.reshape(3, 3, 10, 12)[2, 1, 9, 4] == tensors["Box_Head.fc.weight"].reshape(12, 10, 3, 3)[4, 9, 2, 1]


def test_names_where_group_norm_stands_for_the_affine_layers():
    tensors = original_tensors(narrow(norm=UseGroupNorm(), convs=2).variable_shapes())
    names = {path.removeprefix("params/"): tensor.name for path, tensor in tensors.items()}
    assert names["backbone/conv1/norm/scale"] == "Conv_Body.conv_body.res1.gn1.weight"
    assert names["backbone/res2_1/conv3/norm/bias"] == "Conv_Body.conv_body.res2.1.gn3.bias"
    assert names["backbone/res4_0/shortcut/norm/scale"] == "Conv_Body.conv_body.res4.0.downsample.1.weight"
    assert names["neck/inner5/kernel"] == "Conv_Body.conv_top.0.weight"
    assert names["neck/inner3/norm/bias"] == "Conv_Body.topdown_lateral_modules.1.conv_lateral.1.bias"
    assert names["neck/output2/norm/scale"] == "Conv_Body.posthoc_modules.3.1.weight"
    assert names["rpn/conv/bias"] == "RPN.FPN_RPN_conv.bias"
    assert names["box_head/conv2/kernel"] == "Box_Head.convs.3.weight"
    assert names["mask_head/conv2/norm/scale"] == "Mask_Head.conv_fcn.4.weight"
    assert names["mask_head/upsample/bias"] == "Mask_Head.upconv.bias"


def test_names_where_batch_norm_learns():
    """In the original's style, where GroupNorm has its names; the ends are torch's."""
    tensors = original_tensors(narrow(norm=UseBatchNorm(), convs=2, rpn_convs=2).variable_shapes())
    names = {path: tensor.name for path, tensor in tensors.items()}
    body = "Conv_Body.conv_body"
    assert names["params/backbone/conv1/norm/scale"] == f"{body}.res1.bn1.weight"
    assert names["batch_stats/backbone/res2_0/conv1/norm/mean"] == f"{body}.res2.0.bn1.running_mean"
    assert names["batch_stats/backbone/res4_0/shortcut/norm/var"] == f"{body}.res4.0.downsample.1.running_var"
    assert names["params/backbone/res4_0/shortcut/kernel"] == f"{body}.res4.0.downsample.0.weight"
    assert names["batch_stats/neck/inner5/norm/var"] == "Conv_Body.conv_top.1.running_var"
    assert names["params/neck/output2/norm/bias"] == "Conv_Body.posthoc_modules.3.1.bias"
    assert names["params/rpn/conv/kernel"] == "RPN.FPN_RPN_conv.weight"
    assert names["params/rpn/conv2/bias"] == "RPN.FPN_RPN_conv2.bias"
    assert names["batch_stats/box_head/conv2/norm/mean"] == "Box_Head.convs.4.running_mean"
    assert names["batch_stats/mask_head/conv1/norm/var"] == "Mask_Head.conv_fcn.1.running_var"
    assert len(set(names.values())) == len(names)


def test_names_of_convolutions_with_biases():
    """No golden model has them in the box head."""
    tensors = original_tensors(narrow(convs=2).variable_shapes())
    names = {path.removeprefix("params/"): tensor.name for path, tensor in tensors.items()}
    blobs = ["head_conv1_w", "head_conv1_b", "head_conv2_w", "head_conv2_b", "fc6_w", "fc6_b"]
    for ours, blob in zip(["conv1", "conv2", "fc"], blobs[::2], strict=True):
        assert names[f"box_head/{ours}/kernel"] == detectron.original_name(blob, blobs)
    assert detectron.original_name("head_conv2_b", blobs) == "Box_Head.convs.2.bias"


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
