"""The program of an exported detector: from the bytes of images to detections, with its weights as an argument."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export

from diou_jax.data.passes import Pass
from diou_jax.data.view import Size
from diou_jax.detection.faster_rcnn import FasterRCNN
from diou_jax.export.placing import batch_of_one_size, largest_input, place
from diou_jax.kernels import selection
from diou_jax.structures import Batch

Program: TypeAlias = Callable[..., dict[str, jax.Array]]

# JAX notes for every operation the lines of Python that made it: names of files suffice, and the last line.
LOCATIONS = {"jax_hlo_source_file_canonicalization_regex": ".*/", "jax_include_full_tracebacks_in_locations": False}


@dataclasses.dataclass(frozen=True)
class ImageRules:
    """The images that exported programs take.

    Attributes:
      looks: the way in which the network looks at an image.
      stride: the sides of the network's input are multiples of it.
      batch: B, images of a call.
      rgb: whether pixels are red, green, blue; else blue, green, red.
      any_size: whether images may be smaller than their arrays.
    """

    looks: Pass
    stride: int
    batch: int = 1
    rgb: bool = False
    any_size: bool = False


def to_arrays(variables: Mapping) -> dict[str, np.ndarray]:
    """Variables by name, in numpy's own dtypes: bfloat16 becomes the uint16 of the same bits."""
    flat = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    return {name: x.view(np.uint16) if x.dtype == jnp.bfloat16 else x for name, x in flat.items()}


def make_program(detector: FasterRCNN, rules: ImageRules, image_size: Size) -> Program:
    """The function of a program: ``detect(weights, images)``, with `rules.any_size` ``detect(weights, images, sizes)``.

    Args of the function:
      weights: folded variables, a result of `to_arrays`.
      images: uint8 (B, H, W, 3) with H and W of `image_size`.
      sizes: int32 (B, 2), heights and widths of images that lie in the upper left corner of their arrays. A height or
        width of 0 marks a row without an image.

    It returns the arrays of `Detections` by name. A row without an image has no detections.
    """
    looks, stride = rules.looks, rules.stride

    def detect(weights, images) -> dict[str, jax.Array]:
        batch = batch_of_one_size(looks, image_size, images=rules.batch, stride=stride)
        return run(weights, dataclasses.replace(jax.tree.map(jnp.asarray, batch), image=_bgr(images)))

    def detect_in_any_size(weights, images, sizes) -> dict[str, jax.Array]:
        shape = largest_input(looks, image_size, stride=stride)
        found = run(weights, place(_bgr(images), sizes, looks=looks, shape=shape, stride=stride))
        present = (sizes > 0).all(1)
        return {
            name: jnp.where(present.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)) for name, x in found.items()
        }

    def run(weights, batch: Batch):
        found = detector.detect(_variables(weights), batch)
        arrays = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        return {name: array for name, array in arrays.items() if array is not None}

    def _bgr(images):
        return images[..., ::-1] if rules.rgb else images

    return detect_in_any_size if rules.any_size else detect


def _variables(weights):
    """The variables that `to_arrays` was given."""
    flat = {
        name: jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
        for name, x in weights.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def export_program(
    detector: FasterRCNN,
    rules: ImageRules,
    image_size: Size,
    *,
    weights: Mapping[str, np.ndarray],
    platforms: Sequence[str],
    gpu_kernels: bool = False,
) -> export.Exported:
    """Traces a program of `make_program` and lowers it to StableHLO; nothing is compiled or computed.

    Args:
      detector: network and rules.
      rules: the images that the program takes.
      image_size: H and W.
      weights: the arrays that the program takes, or their shapes.
      platforms: JAX's names of the platforms that the program can run on.
      gpu_kernels: whether NVIDIA GPUs run the kernels of `diou_jax.kernels`, which need Hopper or later, instead of
        their references.
    """
    images = jax.ShapeDtypeStruct((rules.batch, *image_size, 3), jnp.uint8)
    sizes = [jax.ShapeDtypeStruct((rules.batch, 2), jnp.int32)] if rules.any_size else []
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    with selection.only(selection.NAMES if gpu_kernels else ()), _set(LOCATIONS):
        # A new function, since JAX keeps the traces of a function whatever kernels they took.
        function = jax.jit(make_program(detector, rules, image_size))
        return export.export(function, platforms=platforms)(shapes, images, *sizes)


@contextlib.contextmanager
def _set(values: Mapping[str, object]) -> Iterator[None]:
    """A context in which JAX's options have these values."""
    before = {name: jax.config.values[name] for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
