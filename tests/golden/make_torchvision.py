"""Writes torchvision.npz: what torchvision's Faster R-CNN finds with the weights of `weights`, step by step.

python tests/golden/make_torchvision.py            (torch and torchvision are needed; made with 2.13 and 0.28)
python tests/golden/make_torchvision.py masks      (torchvision_mask.npz of its Mask R-CNN; made with 2.14 and 0.29)
python tests/golden/make_torchvision.py v2         (torchvision_v2.npz of fasterrcnn_resnet50_fpn_v2; with the same)
python tests/golden/make_torchvision.py v2 masks   (torchvision_v2_mask.npz of maskrcnn_resnet50_fpn_v2)
"""

import copy
import pathlib
import sys

import numpy as np

# The background and COCO's category ids.
USED = (*range(12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91))
# No resizing: torchvision samples a little elsewhere than OpenCV.
SIZES = ((256, 384), (352, 256))
# Deviations of what batch norm sees in the second version: its epsilon of 1e-5 is 1 % of the variance.
SMALL = 0.03


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep activations of order one, let some boxes win, and never a class that COCO does not have."""
    rng = np.random.default_rng(seed)
    tensors = {}
    second_version = "backbone.fpn.inner_blocks.0.1.weight" in shapes
    for name, shape in sorted(shapes.items()):
        if name.endswith("num_batches_tracked"):
            continue
        if len(shape) > 1:
            fan_in = np.prod(shape[1:])
            gain = {"cls_logits": 0.3, "bbox_pred": 0.1, "cls_score": 0.6}.get(name.split(".")[-2], 1.0)
            tensors[name] = rng.normal(0, gain * np.sqrt(2 / fan_in), shape)
        elif name.endswith("running_var"):
            tensors[name] = rng.uniform(0.5, 2.0, shape)
        elif name.endswith(("bn3.weight", "downsample.1.weight")):
            tensors[name] = rng.uniform(0.2, 0.5, shape)
        elif name.endswith("weight"):
            tensors[name] = rng.uniform(0.5, 1.5, shape)
        else:
            tensors[name] = rng.normal(0, 0.1, shape)
    if second_version:
        for name in filter(lambda name: name.endswith("running_var"), shapes):
            norm = name.removesuffix(".running_var")
            module, _, last = norm.rpartition(".")
            convolution = f"{module}.0" if last == "1" else norm.replace("bn", "conv")
            tensors[f"{convolution}.weight"] *= SMALL
            tensors[f"{norm}.running_mean"] *= SMALL
            tensors[name] *= SMALL**2
    unused = np.setdiff1d(np.arange(91), USED)
    tensors["roi_heads.box_predictor.cls_score.weight"][unused] = 0
    tensors["roi_heads.box_predictor.cls_score.bias"][unused] = -50
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def images() -> list[np.ndarray]:
    """Smooth uint8 BGR pictures."""
    rng = np.random.default_rng(1)
    made = []
    for height, width in SIZES:
        y, x = np.mgrid[:height, :width]
        waves = sum(
            a * np.sin(f * x + g * y + p)[..., None] * c
            for a, f, g, p, c in zip(
                rng.uniform(10, 40, 24),
                rng.uniform(-0.3, 0.3, 24),
                rng.uniform(-0.3, 0.3, 24),
                rng.uniform(0, 6, 24),
                rng.normal(size=(24, 3)),
            )
        )
        made.append(np.clip(waves + 120, 0, 255).astype(np.uint8))
    return made


def filled(make):
    """A model with the weights of `weights`, and the names and shapes of its tensors."""
    import torch

    model = make(weights=None, weights_backbone=None, min_size=256, max_size=448).eval()
    if not make.__name__.endswith("_v2"):
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0  # as with the published weights
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(shapes).items()}, strict=False)
    return model, {
        "names": np.array(list(shapes)),
        "shapes": np.array([" ".join(map(str, shape)) for shape in shapes.values()]),
    }


def to_tensor(image: np.ndarray):
    """An image as torchvision wants it: float RGB (3, H, W), 0 to 1."""
    import torch

    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float() / 255


def save(name, content):
    np.savez_compressed(pathlib.Path(__file__).parent / f"{name}.npz", **content)


def masks(make, name):
    """The 20 best detections in the first picture, and the cells of their masks before they are pasted."""
    import torch

    model, content = filled(make)
    with torch.inference_mode():
        inputs, _ = model.transform([to_tensor(images()[0])])
        pyramid = model.backbone(inputs.tensors)
        proposals, _ = model.rpn(inputs, pyramid)
        found = model.roi_heads(pyramid, proposals, inputs.image_sizes)[0][0]
    content |= {name: value[:20].numpy() for name, value in found.items()}
    print(len(found["scores"]), found["scores"][:5], found["masks"].std())
    save(name, content)


def boxes(make, name):
    """Pyramid, anchors, proposals and detections; of the second version also the RPN's outputs, and `training`."""
    import torch

    model, content = filled(make)
    for number, image in enumerate(images()):
        tensor = to_tensor(image)
        with torch.inference_mode():
            inputs, _ = model.transform([tensor])
            pyramid = model.backbone(inputs.tensors)
            proposals, _ = model.rpn(inputs, pyramid)
            anchors = model.rpn.anchor_generator(inputs, list(pyramid.values()))
            found = model([tensor])[0]
            outputs = model.rpn.head(list(pyramid.values()))
        content |= {f"{number}/{name}": value.numpy() for name, value in found.items()}
        content[f"{number}/anchors"] = anchors[0].numpy()[-3 * 48 :]
        content[f"{number}/proposals"] = proposals[0].numpy()[:200]
        content |= {f"{number}/p_{name}": value[0, :4].numpy() for name, value in pyramid.items() if name != "0"}
        if make.__name__.endswith("_v2"):
            content |= {
                f"{number}/{kind}_{level}": values[level][0].numpy()
                for kind, values in zip(("logits", "deltas"), outputs)
                for level in (2, 3, 4)
            }
        print(number, len(found["scores"]), found["scores"][:5], found["labels"][:5])
    if make.__name__.endswith("_v2"):
        content |= training(model)
    save(name, content)


def training(model) -> dict[str, np.ndarray]:
    """Pyramid and running statistics, some channels of each, of backbone and FPN in training, in float64.

    The batch has the left upper 256 x 256 pixels of both pictures, so that neither has padding. "float32" is how far
    torch's own float32 is away, the largest deviation of pyramid and statistics as a share of the largest value.
    """
    import torch

    model.train()
    with torch.no_grad():
        inputs = model.transform([to_tensor(image[:256, :256]) for image in images()])[0].tensors
        results = []
        for backbone in (copy.deepcopy(model.backbone), copy.deepcopy(model.backbone).double()):
            pyramid = backbone(inputs.to(backbone.fpn.inner_blocks[0][0].weight.dtype))
            result = {f"p_{name}": value[:, :4] for name, value in pyramid.items() if name != "0"}
            running = {name: value for name, value in backbone.state_dict().items() if "running" in name}
            results.append(result | {f"backbone.{name}": value[::16] for name, value in running.items()})
    single, double = results
    deviations = {name: float((single[name] - x).abs().max() / x.abs().max()) for name, x in double.items()}
    print(sorted(deviations.items(), key=lambda item: -item[1])[:6])
    worst = [max(x for name, x in deviations.items() if name.startswith(kind)) for kind in ("p_", "backbone.")]
    content = {f"training/{name}": value.float().numpy() for name, value in double.items()}
    return content | {"training/float32": np.array(worst)}


def main(second_version, with_masks):
    from torchvision.models import detection

    name = ("maskrcnn" if with_masks else "fasterrcnn") + "_resnet50_fpn" + ("_v2" if second_version else "")
    file = "torchvision" + ("_v2" if second_version else "") + ("_mask" if with_masks else "")
    (masks if with_masks else boxes)(getattr(detection, name), file)


if __name__ == "__main__":
    main("v2" in sys.argv[1:], "masks" in sys.argv[1:])
