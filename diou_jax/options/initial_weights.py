"""The weights that a run starts from, by the options that name their files."""

import os
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from diou_jax.checkpoint.checkpoints import LAST, Checkpoints
from diou_jax.data import coco_classes
from diou_jax.errors import UserError
from diou_jax.models.network import Network
from diou_jax.nested_config import flatten
from diou_jax.options import build
from diou_jax.weights.fine_tuning import fine_tune
from diou_jax.weights.sources import WeightSource, check_style, import_tensors, read_source


def weight_source(config: ConfigDict, path: str | os.PathLike) -> WeightSource:
    """A weight file; raises UserError if it cannot be read, or is meant for other images, strides or boxes."""
    source = read_source(path, imagenet_style=config.resnets.imagenet_style, batch_norm=config.resnets.use_bn)
    check_style(source, flatten(config))
    return source


def initial_variables(config: ConfigDict, network: Network, class_names: Sequence[str]) -> tuple[dict, list[str]]:
    """The weights that a run starts from, and lines that name their origin.

    Weights are random, drawn by `rng_seed`. `resnets.imagenet_pretrained_weights` replaces the backbone, then
    `init.checkpoint` replaces the network, by the checkpoint `init.which` if it is a workdir; rows of its heads are
    taken for classes with the same name.

    Args:
      config: the run's config.
      network: the network to be trained.
      class_names: names of its K classes, background first.

    Raises:
      UserError: if a file or folder is missing or does not fit.
    """
    variables = network.init_variables(jax.random.key(config.rng_seed))
    report: list[str] = []
    if path := config.resnets.imagenet_pretrained_weights:
        variables, report = import_tensors(weight_source(config, path), variables, backbone_only=True)
    if path := config.init.checkpoint:
        stored, names, origin = _weights_of(config, path)
        variables, lines = fine_tune(variables, stored, names=class_names, stored_names=names, source=path)
        report += [*origin, *lines]
    return variables, report


def _weights_of(config, path) -> tuple[dict, Sequence[str], list[str]]:
    """Variables of a run's workdir or of a weight file, the names of their classes, and lines on their origin."""
    which = config.init.which
    if os.path.isfile(path):
        if which != LAST:
            raise UserError(f"init.which={which}: init.checkpoint={path} is a file, which has one set of weights alone")
        source = weight_source(config, path)
        if not source.is_detector:
            raise UserError(
                f"init.checkpoint={path} is {source.kind}, a backbone alone; it belongs to "
                "resnets.imagenet_pretrained_weights"
            )
        # The file's network may have other heads than the run's.
        theirs = config.copy_and_resolve_references()
        theirs.model.mask_on, theirs.model.rpn_only = source.has_masks, source.num_classes is None
        # The RPN alone has no classes, so that any number stands for it.
        shapes = build.network(theirs, source.num_classes or 1).variable_shapes()
        variables, lines = import_tensors(source, shapes)
        names = source.record.class_names
        if not names and source.num_classes == len(coco_classes.NAMES):
            names = coco_classes.NAMES
        return variables, names, [f"weights of {path}", *lines]
    with Checkpoints(path, which=which, create=False) as checkpoints:
        variables, step = checkpoints.stored_variables(), checkpoints.chosen()
        return variables, checkpoints.metadata()["class_names"], [f"weights of {path} at step {step}"]
