"""Writes torchvision.npz: what torchvision's Faster R-CNN finds with the weights of `weights`, step by step.

python tests/golden/make_torchvision.py            (torch and torchvision are needed; made with 2.13 and 0.28)
python tests/golden/make_torchvision.py masks      (torchvision_mask.npz of its Mask R-CNN; made with 2.14 and 0.29)
"""

import pathlib
import sys

import numpy as np

# The background and COCO's category ids.
USED = (*range(12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91))
# No resizing: torchvision samples a little elsewhere than OpenCV.
SIZES = ((256, 384), (352, 256))


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep activations of order one, let some boxes win, and never a class that COCO does not have."""
    rng = np.random.default_rng(seed)
    tensors = {}
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
        elif "bn" in name and name.endswith("weight"):
            tensors[name] = rng.uniform(0.5, 1.5, shape)
        else:
            tensors[name] = rng.normal(0, 0.1, shape)
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
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0  # as with the published weights
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(shapes).items()}, strict=False)
    return model, {
        "names": np.array(list(shapes)),
        "shapes": np.array([" ".join(map(str, shape)) for shape in shapes.values()]),
    }


def masks():
    """The 20 best detections in the first picture, and the cells of their masks before they are pasted."""
    import torch
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    model, content = filled(maskrcnn_resnet50_fpn)
    tensor = torch.from_numpy(images()[0][..., ::-1].copy()).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        inputs, _ = model.transform([tensor])
        pyramid = model.backbone(inputs.tensors)
        proposals, _ = model.rpn(inputs, pyramid)
        found = model.roi_heads(pyramid, proposals, inputs.image_sizes)[0][0]
    content |= {name: value[:20].numpy() for name, value in found.items()}
    print(len(found["scores"]), found["scores"][:5], found["masks"].std())
    np.savez_compressed(pathlib.Path(__file__).parent / "torchvision_mask.npz", **content)


def main():
    import torch
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    model, content = filled(fasterrcnn_resnet50_fpn)
    for number, image in enumerate(images()):
        tensor = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            inputs, _ = model.transform([tensor])
            pyramid = model.backbone(inputs.tensors)
            proposals, _ = model.rpn(inputs, pyramid)
            anchors = model.rpn.anchor_generator(inputs, list(pyramid.values()))
            found = model([tensor])[0]
        content |= {f"{number}/{name}": value.numpy() for name, value in found.items()}
        content[f"{number}/anchors"] = anchors[0].numpy()[-3 * 48 :]
        content[f"{number}/proposals"] = proposals[0].numpy()[:200]
        content |= {f"{number}/p_{name}": value[0, :4].numpy() for name, value in pyramid.items() if name != "0"}
        print(number, len(found["scores"]), found["scores"][:5], found["labels"][:5])
    np.savez_compressed(pathlib.Path(__file__).parent / "torchvision.npz", **content)


if __name__ == "__main__":
    masks() if sys.argv[1:] == ["masks"] else main()
