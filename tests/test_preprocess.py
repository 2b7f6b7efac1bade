import types

import jax
import numpy as np
import original
import pytest
import views

from diou_jax.data.taps import taps
from diou_jax.detection import preprocess

normalise = jax.jit(preprocess.normalise)


def batch(images, *, target, max_size, bucket, canvas, flip=False):
    seen = [views.resized(image, target=target, max_size=max_size, flip=flip) for image in images]
    rows, columns = jax.tree.map(lambda *leaves: np.stack(leaves), *(taps(view, tuple(bucket)) for view in seen))
    # Pixels beyond an image on its canvas must not matter.
    pixels = np.random.default_rng(0).integers(0, 256, (len(images), *canvas, 3), np.uint8)
    for row, image in zip(pixels, images):
        row[: image.shape[0], : image.shape[1]] = image
    size = np.array([view.size for view in seen], np.int32)
    return Input(rows=rows, columns=columns, image=pixels, image_size=size)


@jax.tree_util.register_pytree_node_class
class Input(types.SimpleNamespace):
    def tree_flatten(self):
        return list(vars(self).values()), tuple(vars(self))

    @classmethod
    def tree_unflatten(cls, names, leaves):
        return cls(**dict(zip(names, leaves)))


@pytest.mark.parametrize("case", range(3))
def test_the_input_equals_the_originals(golden, case):
    """preproc.npz, to 2e-5 grey levels, padding included."""
    expected = {key.split("/")[1]: value for key, value in golden("preproc.npz").items() if key[0] == str(case)}
    target, max_size = expected["target_max"].tolist()
    blob = expected["blob"][0].transpose(1, 2, 0)
    # The sums round as in a run, whose programs LLVM optimises.
    run = jax.jit(normalise, compiler_options={"xla_backend_optimization_level": 3})
    output = run(
        batch([expected["image_u8_bgr"]], target=target, max_size=max_size, bucket=blob.shape[:2], canvas=(64, 64))
    )
    np.testing.assert_allclose(output[0], blob, rtol=0, atol=2e-5)


def test_a_large_image_equals_the_originals(golden_set):
    """model_r50fpn.npz, to 2e-5 grey levels, in a larger bucket beside another image."""
    expected = original.load("model_r50fpn.npz", golden_set)
    image, blob = expected["image_u8_bgr"], expected["data"][0].transpose(1, 2, 0)
    places = {"bucket": np.add(blob.shape[:2], (32, 128)), "canvas": np.add(image.shape[:2], (12, 31))}
    output = np.asarray(normalise(batch([image[:99], image], **original.resizing(expected), **places)))[1]
    np.testing.assert_allclose(output[: blob.shape[0], : blob.shape[1]], blob, rtol=0, atol=2e-5)
    assert not output[blob.shape[0] :].any()
    assert not output[:, blob.shape[1] :].any()


def test_a_mirrored_image_is_the_image_of_the_mirrored_pixels(golden):
    image = golden("preproc.npz")["0/image_u8_bgr"]
    options = {"target": 64, "max_size": 120, "bucket": (64, 128), "canvas": (64, 96)}
    folded = normalise(batch([image], flip=True, **options))
    mirrored = normalise(batch([image[:, ::-1]], flip=False, **options))
    np.testing.assert_array_equal(folded, mirrored)
