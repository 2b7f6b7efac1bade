"""Settles the open options of a config: a resumed run keeps its own, for a new run they are chosen."""

import os
import pathlib

import jax
from ml_collections import ConfigDict

from diou_jax.compilation import prepare
from diou_jax.configs import base
from diou_jax.nested_config import flatten
from diou_jax.options import build
from diou_jax.options.choices import FROM_WEIGHTS, Choices, Devices, Start, fill, is_open, measure, resolve
from diou_jax.reporting.run_log import print_line
from diou_jax.weights.layer_options import layer_options
from diou_jax.weights.sources import read_source, wanted_options
from diou_jax.workdir.run_config import read_config


def settle(config: ConfigDict, workdir: str | os.PathLike = "", *, source: str | os.PathLike = "") -> ConfigDict:
    """A config without open options; logs the choices and the files of own data.

    Args:
      config: the given config; it is returned unchanged if nothing is open.
      workdir: the run's folder. If it has a checkpoint, the run's options are taken and nothing is chosen.
      source: a weight file that is imported; without one, the weights are those that the config names.

    Raises:
      UserError: if a given option has an invalid value, or data or weights that a choice depends on cannot be read.
    """
    if not is_open(config):
        return config
    lines = list(build.layout(config).lines) if config.data.source == "own" else []
    if stored := _of_run(workdir):
        choices = Choices(fill(config, stored))
        choices.set_defaults()
        config, chosen = choices.config, [f"open options are those of the run in {workdir}"]
    else:
        defaults = Choices(config)
        defaults.set_defaults()
        base.check(defaults.config)
        prepare(config.log.compilation_cache)
        data = build.dataset(config, config.train.datasets, masks=False)
        devices = Devices(jax.device_count(), "cpu" if jax.default_backend() == "cpu" else "gpu")
        config, chosen = resolve(config, measure(data), start=start_of(config, source), devices=devices)
    if jax.process_index() == 0:
        for line in [*lines, *chosen]:
            print_line(line)
    return config


def _of_run(workdir) -> dict:
    """The options of the run in `workdir` by name, if it has a checkpoint; else empty."""
    if not workdir or not any(pathlib.Path(workdir, "checkpoints").glob("[0-9]*")):
        return {}
    return _options(workdir)


def _options(workdir) -> dict:
    """The options of the run in `workdir` by name; empty if they cannot be read, which later readers report."""
    return flatten(read_config(workdir) or {})


def start_of(config: ConfigDict, source: str | os.PathLike = "") -> Start:
    """The weights that a run starts from, `source` or those that `config` names, and the options of their network.

    Raises:
      UserError: if the weight file cannot be read.
    """
    path = os.fspath(source) or config.init.checkpoint
    if path and not os.path.isfile(path):
        network = {name: value for name, value in _options(path).items() if name in FROM_WEIGHTS}
        return Start(path, network)
    path = path or config.resnets.imagenet_pretrained_weights
    if not path:
        return Start()
    read = read_source(path, imagenet_style=config.resnets.imagenet_style, batch_norm=bool(config.resnets.use_bn))
    layers = layer_options(read.tensors) if read.is_detector else {}
    return Start(path, {**read.record.options, **wanted_options(read), **layers})
