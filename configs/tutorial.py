"""A short run on small images that exercises the whole pipeline on COCO within hours on one GPU.

python main.py --config configs/tutorial.py
"""

from diou_jax.configs import base


def get_config(body: str = "r50"):
    config = base.get_config(body)
    config.num_gpus = 1
    config.train.scales = (500,)
    config.train.max_size = 833
    config.train.batch_size_per_im = 256
    config.test.scale = 500
    config.test.max_size = 833
    config.solver.base_lr = 0.0025
    config.solver.steps = (0, 30000, 40000)
    config.solver.max_iter = 60000
    return config
