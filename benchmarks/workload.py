"""The work of the benchmarks of whole steps: the detector of configs/ciou.py and images that fill its input."""

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from diou_jax.compilation import earn_kernels, set_flags
from diou_jax.configs import ciou
from diou_jax.data.buckets import Bucket
from diou_jax.data.packing import example, pack
from diou_jax.data.view import image_scale, scaled
from diou_jax.models.network import Network
from diou_jax.options.initial_weights import initial_variables
from diou_jax.structures import Batch, Polygons

CLASSES = 81
OBJECTS = 8  # COCO has 7.3 boxes in an image that has any
VERTICES = 256  # of an outline; the largest of COCO have more, most have 25
# A learning rate so small that the untrained weights, and the work that depends on their outputs, stay the same.
RATE = 1e-6
SIZE, SMOKE_SIZE = (800, 1344), (64, 96)
CANVAS = 640  # the longer side of COCO's files, pixels


def prepare() -> None:
    """Prepares the process as a run does before it holds the device, see `diou_jax.compilation`."""
    set_flags()
    for line in earn_kernels("~/.cache/diou_jax"):
        print(line)


def make_config(
    *, smoke: bool, dtype: str = "bfloat16", size: tuple[int, int] = SIZE, masks: bool = False
) -> ConfigDict:
    """R-50-FPN for images of this size, with the mask head or without, or a sketch of it at 64 x 96."""
    config = ciou.get_config()
    config.model.mask_on = masks
    config.dtype = dtype
    config.solver.base_lr = RATE
    height, width = SMOKE_SIZE if smoke else size
    config.data.buckets = ((height, width), (width, height))
    config.train.scales, config.train.max_size = (height,), width
    config.test.scale, config.test.max_size = height, width
    if smoke:
        config.resnets.blocks = (1, 1, 1, 1)
        config.resnets.width_per_group = config.resnets.stem_width = 8
        config.fpn.dim = config.fast_rcnn.mlp_head_dim = config.mrcnn.dim_reduced = 16
        config.data.max_boxes = 16
        config.train.batch_size_per_im = config.train.rpn_batch_size_per_im = 16
        for rules in (config.train, config.test):
            rules.rpn_pre_nms_top_n = rules.rpn_post_nms_top_n = 32
    return config


def make_variables(config: ConfigDict, network: Network) -> dict:
    """Random variables under which activations neither vanish nor explode, so that scores and boxes differ.

    The frozen affine layers of the backbone expect pretrained weights. Here the first one brings pixels of 0 to 255 to
    the order of one, the last of each block is damped, since sixteen blocks add up, and the others are the identity.
    The kernels have the variance of He et al.
    """
    variables, _ = initial_variables(config, network, ())

    def enliven(path, value):
        if path.startswith("params/backbone/") and path.endswith("kernel"):
            return value * np.sqrt(6, dtype=np.float32)
        if path.endswith("scale"):
            factor = 1 / 64 if "backbone/conv1/" in path else 0.25 if "/conv3/" in path else 1.0
            return np.full(value.shape, factor, np.float32)
        return value

    flat = traverse_util.flatten_dict(variables, sep="/")
    return traverse_util.unflatten_dict({path: enliven(path, value) for path, value in flat.items()}, sep="/")


def draw_boxes(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float32 (OBJECTS, 4) boxes, log-uniform in their sides, inside an image."""
    size = np.array([width, height])
    sides = size * np.exp(random.uniform(np.log(0.05), np.log(0.8), (OBJECTS, 2)))
    corner = random.uniform(0, 1, (OBJECTS, 2)) * (size - sides)
    return np.concatenate([corner, corner + sides - 1], 1).astype(np.float32)


def draw_batch(config: ConfigDict, images: int, *, num_classes: int = CLASSES) -> Batch:
    """Numpy batch of noise whose pixels all lie inside, in files as large as COCO's."""
    height, width = config.data.buckets[0]
    source = round(height / 2.1), round(width / 2.1)
    # The canvas that a data set of photographs would have here, so that its batches take the same program.
    bucket = Bucket(height, width, *(min(CANVAS, 2 * side) for side in (height, width)))
    view = scaled(source, image_scale(*source, target=height, max_size=width))
    random = np.random.default_rng(0)
    examples = []
    for index in range(images):
        classes = random.integers(1, num_classes, OBJECTS, np.int32)
        examples.append(
            example(
                random.integers(0, 256, (*source, 3), np.uint8),
                view,
                bucket,
                annotations=(draw_boxes(random, *source), classes, np.zeros(OBJECTS, bool)),
                max_boxes=config.data.max_boxes,
                index=index,
            )
        )
    batch = pack(examples, bucket)
    if config.model.mask_on:
        batch = batch.replace(
            gt=batch.gt.replace(masks=ellipses(np.asarray(batch.gt.boxes), np.asarray(batch.gt.valid)))
        )
    return batch


def ellipses(boxes: np.ndarray, valid: np.ndarray) -> Polygons:
    """Outlines of `VERTICES` vertices that fill boxes (B, G, 4)."""
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle)], -1)
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    points = (centre[..., None, :] + half[..., None, :] * unit).astype(np.float32)
    return Polygons(points, np.where(valid[..., None], np.zeros(VERTICES, np.int32), -1))
