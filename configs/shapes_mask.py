"""A small mask detector on the embedded data set, from random weights, with the CIoU loss.

python main.py --config configs/shapes_mask.py
"""

from diou_jax.configs import shapes


def get_config(body: str = "r50"):
    config = shapes.get_config(body)
    config.model.mask_on = True
    # A quarter of the usual cells, since objects have 8 to 110 pixels.
    config.mrcnn.resolution = 14
    config.mrcnn.roi_xform_resolution = 7
    config.mrcnn.num_convs = 2
    config.mrcnn.dim_reduced = 32
    return config
