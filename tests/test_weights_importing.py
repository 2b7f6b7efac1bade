"""Golden files: resnet_pretrained_mapping, param_names, make_weights."""

import dataclasses
import importlib.util
import json
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import original_models
import pytest
from conftest import slow

from diou_jax.checkpoint.checkpoints import Checkpoints
from diou_jax.command.export_weights import export_torch
from diou_jax.command.import_weights import import_file
from diou_jax.configs import base
from diou_jax.errors import UserError
from diou_jax.models.conv import Conv
from diou_jax.models.norms import STATISTICS, UseBatchNorm
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.options.initial_weights import initial_variables, weight_source
from diou_jax.weights import detectron, imagenet, momentum, sources
from diou_jax.weights.original import export_original, original_tensors
from diou_jax.weights.record import Record


@pytest.fixture(scope="module")
def make_weights():
    from conftest import find_golden

    spec = importlib.util.spec_from_file_location("make_weights", find_golden("make_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_config(tiny_config, *, masks=False):
    """A config of the smallest network: two layers in the box head, or masks and GroupNorm everywhere."""
    config = tiny_config()
    config.resnets.use_gn = config.fpn.use_gn = config.mrcnn.use_gn = config.model.mask_on = masks
    if masks:
        config.fast_rcnn.roi_box_head = "roi_Xconv1fc_gn_head"
        config.fast_rcnn.num_stacked_convs, config.fast_rcnn.conv_head_dim = 1, 8
        config.mrcnn.num_convs, config.mrcnn.dim_reduced = 1, 8
        config.mrcnn.roi_xform_resolution, config.mrcnn.resolution = 4, 8
    config.resnets.freeze_at = 2
    config.solver.type = "SGD"
    return config


def random_tensors(variables, seed):
    """Random tensors of the original's file for this network."""
    rng = np.random.default_rng(seed)
    return {t.name: rng.normal(size=t.shape).astype(np.float32) for t in original_tensors(variables).values()}


def test_imagenet_weights_become_what_the_original_makes_of_them(golden, make_weights):
    data = golden("resnet_pretrained_mapping.npz")
    tensors, unused = imagenet.to_original(make_weights.imagenet_weights())
    names = {key.split("::")[0] for key in data}
    assert tensors.keys() == names and set(unused) == {"fc.weight", "fc.bias"}
    for name in names:
        assert tensors[name].shape == tuple(data[f"{name}::shape"])
        np.testing.assert_allclose(tensors[name].ravel()[:64], data[f"{name}::first64"], rtol=2e-6, atol=1e-6)
        total = np.float64(tensors[name]).sum()
        np.testing.assert_allclose(total, data[f"{name}::sum_f64"], rtol=1e-5, atol=1e-4)


def test_blobs_without_a_place():
    for blob in ("conv1_w_momentum", "fc1000_w", "lr", "kps_score_lowres_w", "res2_0_branch3_w", "head_conv1_bn_s"):
        assert detectron.original_name(blob, ()) is None


def test_a_deeper_body_has_other_blob_names():
    name = detectron.original_name("fpn_inner_res4_22_sum_lateral_w", ())
    assert name.startswith("Conv_Body.topdown_lateral_modules.0.")
    assert detectron.original_name("res4_22_branch2c_bn_b", ()) == "Conv_Body.conv_body.res4.22.bn3.bias"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["r50fpn", "mask_r50fpn", "mask_r50fpn_gn"])
def test_a_whole_detector_from_detectrons_file(tmp_path, model):
    weights = original_models.weights(model)
    blobs = {blob.strip(): weights[name] for name, *_, blob in original_models.maker().rows(model)}
    assert len(blobs) == len(weights)
    blobs |= {f"{name}_momentum": value for name, value in list(blobs.items())[:3]}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    source = sources.read_source(tmp_path / "model.pkl")
    assert source.kind == "Detectron's blobs" and source.num_classes == 81 and len(source.unused) == 3
    network = build.network(original_models.configs()[model], 81)
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), network.variable_shapes())
    variables, report = sources.import_tensors(source, blank)
    exported = export_original(variables)
    assert exported.keys() == weights.keys()
    for name, value in exported.items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    assert f"{len(weights)} tensors used" in report[0]


def run_import(config, tensors, tmp_path, **options):
    torch = pytest.importorskip("torch")
    content = {"step": 41, "train_size": 1, "batch_size": 2, "model": {k: torch.tensor(v) for k, v in tensors.items()}}
    torch.save(content | {"optimizer": options.pop("optimizer", {})}, tmp_path / "model_step41.pth")
    import_file(config, tmp_path / "model_step41.pth", tmp_path / "run", **options)


@pytest.mark.parametrize("masks", [slow(False), True])
def test_import_writes_a_checkpoint_and_export_gives_the_file_back(tiny_config, tmp_path, capsys, masks):
    torch = pytest.importorskip("torch")
    config = small_config(tiny_config, masks=masks)
    variables = build.network(config, 7).variable_shapes()
    tensors = random_tensors(variables, 0)
    run_import(config, tensors, tmp_path)
    assert "tensors used" in capsys.readouterr().out
    lines = (tmp_path / "run" / "import.txt").read_text().splitlines()[1:]
    assert lines == [f"used {name} {value.shape}" for name, value in tensors.items()]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() == 0
        assert checkpoints.metadata()["class_names"][1:3] == ["ellipse", "rectangle"]
    export_torch(config, tmp_path / "run", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["model"].keys() == tensors.keys()
    for name, value in back["model"].items():
        np.testing.assert_array_equal(value.numpy(), tensors[name], err_msg=name)
    with pytest.raises(UserError, match="holds a run at step 0 already"):
        import_file(config, tmp_path / "model_step41.pth", tmp_path / "run")


def test_an_export_that_cannot_be_finished_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")

    def full(content, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")

    content = {"model": {"x": np.ones(3)}}
    monkeypatch.setattr("diou_jax.command.export_weights.original_checkpoint", lambda *_, **__: content)
    monkeypatch.setattr(torch, "save", full)
    (tmp_path / "x.pth").write_bytes(b"before")
    with pytest.raises(UserError, match=r"x\.pth cannot be written"):
        export_torch(None, tmp_path, tmp_path / "x.pth")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def torch_numbers(tensors, *, masks=False):
    """Parameters as torch numbers them in groups, weights, biases, GroupNorm's weights: names of each group."""
    frozen = (".res1.", ".res2.") if masks else (".bn", ".downsample.1", ".res1.", ".res2.")
    trained = [name for name in tensors if not any(part in name for part in frozen)]
    weights = [name for name in trained if name.endswith("weight")]
    return [
        [name for name in weights if tensors[name].ndim > 1],
        [name for name in trained if name.endswith("bias")],
        [name for name in weights if tensors[name].ndim == 1],
    ]


@pytest.mark.parametrize("masks", [False, True])
def test_momentum_is_taken_over_as_torch_numbers_it(tiny_config, tmp_path, masks):
    """Weights first, biases after, then GroupNorm's weights, in the model's order; frozen ones are not counted."""
    config = small_config(tiny_config, masks=masks)
    variables = build.network(config, 7).variable_shapes()
    tensors = random_tensors(variables, 0)
    torch = pytest.importorskip("torch")
    groups = torch_numbers(tensors, masks=masks)
    assert bool(groups[2]) == masks
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    rng = np.random.default_rng(1)
    momentum = {name: rng.normal(size=tensors[name].shape).astype(np.float32) for name in numbers}
    optimizer = {
        "state": {numbers[name]: {"momentum_buffer": torch.tensor(value)} for name, value in momentum.items()},
        "param_groups": [{"params": [numbers[name] for name in group]} for group in groups],
    }
    run_import(config, tensors, tmp_path, optimizer=optimizer, resume_optimizer=True)
    tx = build.make_optimizer(config, build.rule(config).schedule)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest() == 42
        state = checkpoints.restore(create_state(blank, tx, build.detector(config, 81).loss_names))
    assert int(state.step) == 42

    # The next update shows the momentum and the step: without gradient and decay it is the momentum alone.
    config.solver.weight_decay = 0.0
    tx = build.make_optimizer(config, build.rule(config).schedule)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, state.params), state.opt_state, state.params)
    moved = export_original(state.variables | {"params": optax.apply_updates(state.params, updates)})
    rate = float(build.learning_rate(config, build.rule(config).schedule)(42))
    for name in tensors:
        factor = 2 if config.solver.bias_double_lr and name.endswith("bias") else 1
        wanted = tensors[name] - factor * rate * 0.9 * momentum.get(name, 0)
        np.testing.assert_allclose(moved[name], wanted, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_momentum_is_refused_where_the_optimiser_has_no_place_for_it(tiny_config, kind):
    config = small_config(tiny_config)
    config.solver.type = kind
    variables = build.network(config, 7).variable_shapes()
    state = jax.eval_shape(build.make_optimizer(config, build.rule(config).schedule).init, variables["params"])
    tensors = random_tensors(variables, 0)
    source = sources.WeightSource("a checkpoint", tensors, (), step=42, optimizer={"state": {}, "param_groups": []})
    with pytest.raises(UserError, match=r"solver\.type: .* set solver\.type=SGD, or leave --resume_optimizer out"):
        momentum.resume(state, source, variables)


@pytest.mark.parametrize(
    ("edit", "freeze_at", "words"),
    [
        (dict.clear, 2, "holds no step and optimiser to resume; leave --resume_optimizer out"),
        (lambda optimizer: optimizer["state"].popitem(), 2, r"its optimiser has \d+ parameters, its model \d+"),
        (lambda optimizer: optimizer["param_groups"].pop(), 2, r"its optimiser has \d+ parameters, its model \d+"),
        (lambda optimizer: optimizer["state"][0].clear(), 2, r"its momentum does not match \S+weight; leave"),
        (
            lambda optimizer: optimizer["state"][0].update(momentum_buffer=np.zeros(3)),
            2,
            r"its momentum does not match \S+weight; leave",
        ),
        (lambda optimizer: None, 0, r"has no momentum of .*; is resnets\.freeze_at that of its run\?"),
    ],
    ids=["no optimiser", "no state", "no biases", "no buffer", "another shape", "other layers are frozen"],
)
def test_momentum_that_does_not_belong_to_the_network_is_refused(tiny_config, edit, freeze_at, words):
    config = small_config(tiny_config)
    tensors = random_tensors(build.network(config, 7).variable_shapes(), 0)
    groups = torch_numbers(tensors)[:2]
    names = [name for group in groups for name in group]
    optimizer = {
        "state": {number: {"momentum_buffer": tensors[name]} for number, name in enumerate(names)},
        "param_groups": [{"params": list(map(names.index, group))} for group in groups],
    }
    edit(optimizer)
    source = sources.WeightSource("a checkpoint", tensors, (), step=42, optimizer=optimizer)
    config.resnets.freeze_at = freeze_at
    variables = build.network(config, 7).variable_shapes()
    state = jax.eval_shape(build.make_optimizer(config, build.rule(config).schedule).init, variables["params"])
    with pytest.raises(UserError, match=words):
        momentum.resume(state, source, variables)


def test_what_does_not_fit_is_named_and_may_be_allowed(tiny_config, tmp_path):
    config = small_config(tiny_config)
    variables = build.network(config, 7).variable_shapes()
    tensors = random_tensors(variables, 0)
    tensors["RPN.FPN_RPN_conv.bias"] = np.zeros(3, np.float32)
    del tensors["Box_Head.fc2.weight"]
    tensors["Mask_Head.conv.weight"] = np.zeros(3, np.float32)
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    source = sources.WeightSource("a file", tensors, ())
    with pytest.raises(UserError) as error:
        sources.import_tensors(source, blank)
    for words in ("fc2.weight is missing", "FPN_RPN_conv.bias has shape (3,)", "Mask_Head.conv.weight has no place"):
        assert words in str(error.value)
    imported, report = sources.import_tensors(source, blank, allow=("RPN.", "Box_Head.fc2", "Mask_Head"))
    assert (imported["params"]["rpn"]["conv"]["bias"] == 0).all()
    assert sum("allowed" in line for line in report) == 3
    noted = dataclasses.replace(source, notes=("91 rows are read as COCO's",))
    assert "91 rows are read as COCO's" in sources.import_tensors(noted, blank, allow=("RPN.", "Box", "Mask"))[1]
    lines = sources.inventory(source, variables).splitlines()
    assert "missing Box_Head.fc2.weight (16, 16)" in lines and "unknown Mask_Head.conv.weight (3,)" in lines
    assert any(line.startswith("misshapen RPN.FPN_RPN_conv.bias (3,), not ") for line in lines)


@pytest.mark.slow
def test_a_body_alone_leaves_the_rest(tiny_config):
    config = small_config(tiny_config)
    network = build.network(config, 7)
    variables = network.init_variables(jax.random.key(0))
    body = {k: v for k, v in random_tensors(variables, 0).items() if k.startswith(sources.BODY)}
    imported, report = sources.import_tensors(sources.WeightSource("an ImageNet ResNet", body, ("fc.bias",)), variables)
    assert imported["params"]["neck"]["inner5"]["kernel"] is variables["params"]["neck"]["inner5"]["kernel"]
    exported = export_original(imported)
    assert all(np.array_equal(exported[name], body[name]) for name in body)
    assert "only the backbone" in " ".join(report)


def test_another_network_is_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"encoder.weight": np.ones(3, np.float32)}))
    with pytest.raises(UserError, match="no network that can be imported"):
        sources.read_source(tmp_path / "x.pkl")


def test_values_that_are_not_finite_are_refused(tiny_config):
    config = small_config(tiny_config)
    variables = build.network(config, 7).variable_shapes()
    tensors = random_tensors(variables, 0)
    tensors["Box_Head.fc2.bias"][3] = np.nan
    with pytest.raises(UserError, match=r"fc2\.bias holds values that are not finite"):
        sources.import_tensors(sources.WeightSource("a file", tensors, ()), variables)


def test_doubles_beyond_float32_are_refused(tiny_config):
    """They would become infinite."""
    variables = build.network(small_config(tiny_config), 7).variable_shapes()
    tensors = random_tensors(variables, 0)
    tensors["Box_Head.fc2.bias"] = tensors["Box_Head.fc2.bias"].astype(np.float64) * 1e39
    with pytest.raises(UserError, match=r"fc2\.bias holds values that are not finite as float32"):
        sources.import_tensors(sources.WeightSource("a file", tensors, ()), variables)


def test_scores_without_an_axis_do_not_fit(tiny_config):
    variables = build.network(small_config(tiny_config), 7).variable_shapes()
    tensors = random_tensors(variables, 0) | {sources.CLASSIFIER: np.array(1.0)}
    source = sources.WeightSource("a file", tensors, ())
    assert source.num_classes is None
    with pytest.raises(UserError, match=r"cls_score\.weight has shape \(\) instead of"):
        sources.import_tensors(source, variables)


def test_pixel_means_in_another_number_are_other_means():
    record = Record({"pixel_means": [1.0, 2.0]})
    with pytest.raises(UserError, match=r"wants pixel_means=\[1\.0, 2\.0\], not \(1, 2, 3\)"):
        sources.check_style(sources.WeightSource("a file", {}, (), record=record), {"pixel_means": (1, 2, 3)})


def test_an_imported_workdir_keeps_its_config(tiny_config, tmp_path):
    config = small_config(tiny_config)
    run_import(config, random_tensors(build.network(config, 7).variable_shapes(), 0), tmp_path)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resnets"]["width_per_group"] == 4


def resnet_file(variables, path, *, style):
    """An ImageNet ResNet for a small body: folded tensors spread over batch-norm's four again."""
    rng = np.random.default_rng(0)
    shapes = {t.name: t.shape for t in original_tensors(variables).values() if t.name.startswith(sources.BODY)}
    tensors = {}
    for name, shape in shapes.items():
        module, leaf = name.removeprefix(sources.BODY).rsplit(".", 1)
        module = module.replace("res1.", "")
        for stage in range(2, 6):
            module = module.replace(f"res{stage}.", f"layer{stage - 1}.")
        tensors[f"{module}.{leaf}"] = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1 and leaf == "weight":
            tensors[f"{module}.running_mean"] = rng.normal(size=shape).astype(np.float32)
            tensors[f"{module}.running_var"] = np.float32(rng.uniform(0.5, 2, shape))
    energy = np.square(tensors["conv1.weight"]).sum((1, 2, 3))
    tensors["bn1.running_var"] *= energy * (57**2 if style == "caffe" else 1)
    path.write_bytes(pickle.dumps(tensors))
    return tensors


@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_the_style_of_an_imagenet_file_shows_in_its_statistics(tiny_config, tmp_path, style):
    config = small_config(tiny_config)
    resnet_file(build.network(config, 7).variable_shapes(), tmp_path / "r.pkl", style=style)
    assert sources.read_source(tmp_path / "r.pkl").style == style
    assert sources.read_source(tmp_path / "r.pkl", imagenet_style="caffe").style == "caffe"


def folded(tensors, *, variance):
    """The same network with batch normalisation folded into its convolutions, and an identity left in its place."""
    result = dict(tensors)
    for name in [name for name in tensors if name.endswith("running_var")]:
        norm = name.removesuffix(".running_var")
        convolution = norm.replace("downsample.1", "downsample.0").replace("bn", "conv") + ".weight"
        factor = tensors[f"{norm}.weight"] / np.sqrt(tensors[name] + imagenet.BATCH_NORM_EPSILON)
        result[convolution] = tensors[convolution] * factor[:, None, None, None]
        result[f"{norm}.bias"] = tensors[f"{norm}.bias"] - factor * tensors[f"{norm}.running_mean"]
        result[f"{norm}.weight"] = np.ones_like(factor)
        result[f"{norm}.running_mean"] = np.zeros_like(factor)
        result[name] = np.full_like(factor, variance)
    return result


@pytest.mark.parametrize("variance", [1.0, 1 - imagenet.BATCH_NORM_EPSILON])
@pytest.mark.parametrize("style", ["caffe", "torchvision"])
def test_a_folded_imagenet_file_is_read_with_the_option_only(tiny_config, tmp_path, style, variance):
    """Either reading of a file without statistics would be a guess, and one of them wrong without a word."""
    config, path = small_config(tiny_config), tmp_path / "folded.pkl"
    tensors = resnet_file(build.network(config, 7).variable_shapes(), tmp_path / "r.pkl", style=style)
    path.write_bytes(pickle.dumps(folded(tensors, variance=variance)))
    with pytest.raises(UserError, match=r"folded\.pkl: .* resnets\.imagenet_style=caffe .*=torchvision"):
        sources.read_source(path)
    plain, wanted = (sources.read_source(file, imagenet_style=style) for file in (path, tmp_path / "r.pkl"))
    # The function of a layer is kernel times scale, plus bias: folding must not change it.
    for stage in ("res1.conv1", "res2.0.conv2"):
        norm = stage.replace("conv", "bn")
        kernels, biases = (
            [
                source.tensors[f"{sources.BODY}{stage}.weight"]
                * source.tensors[f"{sources.BODY}{norm}.weight"][:, None, None, None]
                for source in (plain, wanted)
            ],
            [source.tensors[f"{sources.BODY}{norm}.bias"] for source in (plain, wanted)],
        )
        np.testing.assert_allclose(*kernels, rtol=2e-5)
        np.testing.assert_allclose(*biases, rtol=2e-5, atol=2e-5)


def test_an_imagenet_file_without_statistics_asks_for_the_option(tiny_config, tmp_path):
    config = small_config(tiny_config)
    tensors = resnet_file(build.network(config, 7).variable_shapes(), tmp_path / "r.pkl", style="caffe")
    bare = {name: value for name, value in tensors.items() if "running" not in name}
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(bare))
    with pytest.raises(UserError, match=r"set resnets\.imagenet_style=caffe"):
        sources.read_source(tmp_path / "bare.pkl")
    assert sources.read_source(tmp_path / "bare.pkl", imagenet_style="caffe").style == "caffe"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bn1.running_mean": None}, r"bn1 cannot be folded: the file has no bn1\.running_mean$"),
        ({"bn1.running_var": None}, r"bn1 cannot be folded: the file has no bn1\.running_var$"),
        ({"bn1.bias": np.zeros(3)}, r"bn1 cannot be folded: bn1\.weight, bn1\.bias, .* differ in shape"),
        ({"bn1.running_var": np.full(8, -1.0)}, r"bn1\.running_var holds a variance that is not positive"),
        ({"bn1.running_var": np.full(8, np.nan)}, r"bn1\.running_var holds a variance that is not positive"),
    ],
)
def test_a_batch_norm_that_cannot_be_folded_is_named(change, words):
    tensors = {f"bn1.{name}": np.ones(8, np.float32) for name in ("weight", "bias", "running_mean", "running_var")}
    tensors = {name: value for name, value in (tensors | change).items() if value is not None}
    with pytest.raises(UserError, match=words):
        imagenet.to_original(tensors)


@pytest.mark.parametrize("shape", [(8, 1, 7, 7), (8, 2, 7, 7), (8,)])
def test_a_first_convolution_of_other_images_does_not_fit(tiny_config, tmp_path, shape):
    """Of one channel it would otherwise be spread over three."""
    config = small_config(tiny_config)
    variables = build.network(config, 7).variable_shapes()
    tensors = resnet_file(variables, tmp_path / "r.pkl", style="torchvision")
    tensors["conv1.weight"] = np.ones(shape, np.float32)
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(tensors))
    source = sources.read_source(tmp_path / "r.pkl", imagenet_style="torchvision")
    with pytest.raises(UserError, match=r"res1\.conv1\.weight has shape .* instead of \(\d+, 3, 7, 7\)"):
        sources.import_tensors(source, variables)


def test_torchvisions_first_convolution_sees_the_same_image():
    """RGB of unit variance through the file's filters, and BGR less means through ours."""
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(8, 3, 7, 7)).astype(np.float32)
    image = rng.integers(0, 256, (1, 40, 40, 3)).astype(np.float64)
    theirs = (image[..., ::-1] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    ours = image - imagenet.MEANS

    def convolve(x, filters):
        with jax.default_matmul_precision("highest"):
            return jax.lax.conv_general_dilated(
                np.float32(x), filters, (2, 2), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
            )

    np.testing.assert_allclose(
        convolve(ours, imagenet.from_bgr(filters)), convolve(theirs, filters), rtol=1e-4, atol=1e-4
    )


def conv1_of(variables):
    """The first convolution's variables, by collection."""
    return {kind: tree["backbone"]["conv1"] for kind, tree in variables.items() if kind in ("params", STATISTICS)}


def test_the_statistics_of_torchvisions_first_convolution_hold_for_our_images(tiny_config, tmp_path):
    """Its filters are scaled and turned for our images, its outputs are the same, and so are their statistics."""
    config = small_config(tiny_config)
    affine = build.network(config, 7).variable_shapes()
    given = resnet_file(affine, tmp_path / "r.pkl", style="torchvision")
    config.resnets.use_bn, config.resnets.stride_1x1, config.pixel_means = True, False, imagenet.MEANS
    shapes = build.network(config, 7).variable_shapes()
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables, _ = sources.import_tensors(weight_source(config, tmp_path / "r.pkl"), blank)
    exported = export_original(variables)
    for name, value in given.items():
        if name != "conv1.weight":
            module, leaf = name.rsplit(".", 1)
            module = re.sub(r"layer(\d)", lambda match: f"res{int(match[1]) + 1}", module)
            module = module if module.startswith("res") else f"res1.{module}"
            np.testing.assert_array_equal(exported[f"{sources.BODY}{module}.{leaf}"], value, err_msg=name)

    image = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3)).astype(np.float64)
    theirs = (image[..., ::-1] / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    patches = np.lib.stride_tricks.sliding_window_view(np.pad(theirs, ((0, 0), (3, 3), (3, 3), (0, 0))), (7, 7), (1, 2))
    outputs = np.einsum("bhwcij,ocij->bhwo", patches[:, ::2, ::2], given["conv1.weight"].astype(np.float64))

    def normalised(mean, variance):
        factor = given["bn1.weight"] / np.sqrt(variance + 1e-5)
        return (outputs - mean) * factor + given["bn1.bias"]

    conv = Conv(outputs.shape[-1], 7, 2, norm_type=UseBatchNorm())
    ours = np.float32(image - imagenet.MEANS)
    tested = conv.apply(conv1_of(variables), ours)
    trained, changed = conv.apply(conv1_of(variables), ours, mutable=[STATISTICS])
    rows = outputs.reshape(-1, outputs.shape[-1])
    for found, wanted in (
        (tested, normalised(given["bn1.running_mean"], given["bn1.running_var"])),
        (trained, normalised(rows.mean(0), rows.var(0))),
        (changed[STATISTICS]["norm"]["mean"], 0.9 * given["bn1.running_mean"] + 0.1 * rows.mean(0)),
        (changed[STATISTICS]["norm"]["var"], 0.9 * given["bn1.running_var"] + 0.1 * rows.var(0, ddof=1)),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_batch_norm_without_statistics_in_the_file_is_refused_with_the_mend(tiny_config):
    config = small_config(tiny_config)
    tensors = random_tensors(build.network(config, 7).variable_shapes(), 0)
    body = {name: value for name, value in tensors.items() if name.startswith(sources.BODY)}
    config.resnets.use_bn = True
    shapes = build.network(config, 7).variable_shapes()
    with pytest.raises(UserError, match=r"The file is of a network with resnets\.use_bn=False\. "):
        sources.import_tensors(sources.WeightSource("Detectron's blobs", body, ()), shapes)


def test_a_mismatch_of_style_names_the_options(tiny_config, tmp_path):
    config = small_config(tiny_config)
    resnet_file(build.network(config, 7).variable_shapes(), tmp_path / "r.pkl", style="torchvision")
    config.resnets.stride_1x1 = True
    with pytest.raises(UserError, match=r"resnets\.stride_1x1=False, not True"):
        weight_source(config, tmp_path / "r.pkl")
    config.resnets.stride_1x1 = False
    with pytest.raises(UserError, match=r"pixel_means=\(103\.53"):
        weight_source(config, tmp_path / "r.pkl")
    config.pixel_means = imagenet.MEANS
    assert weight_source(config, tmp_path / "r.pkl").style == "torchvision"
    config.resnets.imagenet_style = "tensorflow"
    with pytest.raises(UserError, match="imagenet_style"):
        base.check(config)


@pytest.mark.slow
def test_a_run_starts_from_an_imagenet_body(tiny_config, tmp_path):
    config = small_config(tiny_config)
    network = build.network(config, 7)
    tensors = resnet_file(network.variable_shapes(), tmp_path / "r.pkl", style="caffe")
    config.resnets.stride_1x1 = True
    config.resnets.imagenet_pretrained_weights = str(tmp_path / "r.pkl")
    variables, report = initial_variables(config, network, ())
    wanted, _ = imagenet.to_original(tensors)
    exported = export_original(variables)
    for name, value in wanted.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)
    assert "caffe's style" in report[0]


def test_fine_tuning_takes_classes_by_name_from_a_run_and_from_a_file(tiny_config, tmp_path):
    config = small_config(tiny_config)
    tensors = random_tensors(build.network(config, 7).variable_shapes(), 0)
    run_import(config, tensors, tmp_path)
    config.init.checkpoint = str(tmp_path / "run")
    with Checkpoints(tmp_path / "run", create=False) as checkpoints:
        names = checkpoints.metadata()["class_names"]
    same, report = initial_variables(config, build.network(config, 7), names)
    assert len(report) == 2 and report[1] == f"classes taken over, by name: {', '.join(names[1:])}"
    for name, value in export_original(same).items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)
    other, report = initial_variables(config, build.network(config, 3), (names[0], names[4], "new"))
    assert report[1:3] == [f"classes taken over, by name: {names[4]}", "classes that start anew, by name: new"]
    for name, value in export_original(other).items():
        if not name.startswith("Box_Outs"):
            np.testing.assert_array_equal(value, tensors[name], err_msg=name)
    rows = export_original(other)["Box_Outs.cls_score.weight"]
    np.testing.assert_array_equal(rows[:2], tensors["Box_Outs.cls_score.weight"][[0, 4]])
    config.fpn.dim = 8
    with pytest.raises(UserError, match=r"init\.checkpoint=.* is of another network"):
        initial_variables(config, build.network(config, 7), names)
    config.init.checkpoint = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no checkpoint"):
        initial_variables(config, build.network(config, 7), names)
    config.init.checkpoint, config.init.which = str(tmp_path / "w.pkl"), "best"
    (tmp_path / "w.pkl").touch()
    with pytest.raises(UserError, match=r"init\.which=best: .* is a file, which has one set of weights"):
        initial_variables(config, build.network(config, 7), names)
    config.init.which = "newest"
    with pytest.raises(UserError, match=r"init\.which='newest': it must be best, last or the step of a checkpoint"):
        base.check(config)
