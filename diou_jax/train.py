"""The training run: set up or resume, step, log, save."""

import time

import jax
from absl import logging
from ml_collections import ConfigDict

from diou_jax import build
from diou_jax.checkpoint import Checkpoints
from diou_jax.compilation import cache_compilations
from diou_jax.data.loader import batches
from diou_jax.logging import Progress, RunLog, draw_curves, say
from diou_jax.run_config import keep_config
from diou_jax.train_step import create_state, make_train_step, replicate, to_devices

# What the progress line shows, and what it is called there.
SHOWN = {
    "loss": "loss",
    "loss_rpn_cls": "rpn_cls",
    "loss_rpn_bbox": "rpn_bbox",
    "loss_cls": "cls",
    "loss_bbox": "bbox",
    "bbox_iou": "iou",
}


def train(config: ConfigDict, workdir: str) -> None:
    """Trains to `solver.max_iter`, from the newest checkpoint in `workdir` or from the start.

    Raises:
      UserError: the config, the data or the work folder does not allow it; nothing has been overwritten then.
    """
    build.check(config)
    cache_compilations(config.log.compilation_cache)
    rule = build.rule(config)
    optimizer = build.make_optimizer(config, rule)
    dataset = build.dataset(config, config.train.datasets)
    detector = build.detector(config, len(dataset.class_names), collect_scale=rule.collect_scale)
    reader = build.train_reader(config, dataset, rule)
    first = jax.process_index() == 0

    with Checkpoints(workdir, keep=config.checkpoint.keep) as checkpoints:
        if checkpoints.latest() is None:
            variables, origin = build.initial_variables(config, detector.network)
            state = create_state(variables, optimizer)
            keep_config(workdir, config.to_dict(), resuming=False)
        else:
            keep_config(workdir, config.to_dict(), resuming=True)
            shapes = detector.network.variable_shapes()
            state = checkpoints.restore(jax.eval_shape(lambda variables: create_state(variables, optimizer), shapes))
            origin = [f"resumed at step {checkpoints.latest()}"]
        state = replicate(state)
        start = int(state.step)
        if start >= rule.max_iter:
            say(f"{workdir} is trained: step {start} of {rule.max_iter}")
            return
        if first:
            announce(config, rule, dataset, reader, state, origin)
        step_function = make_train_step(
            detector,
            optimizer,
            seed=config.rng_seed,
            iter_size=config.solver.iter_size,
            log_every=config.log.every,
        )
        rate = build.rate(config, rule)
        metadata = {"class_names": dataset.class_names, "category_ids": dataset.category_ids}
        images = rule.batch_size * config.solver.iter_size
        with RunLog(workdir, start_step=start, active=first) as log:
            progress = Progress(start=start, total=rule.max_iter, images_per_step=images)
            stream = batches(reader, start, rule.max_iter, **build.loading(config))
            for step, batch in enumerate(to_devices(stream, ahead=config.data.prefetch), start=start + 1):
                began = time.perf_counter()
                state, metrics = step_function(state, batch)
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    if first:
                        say(f"the first step took {time.perf_counter() - began:.1f} s, compilation included")
                    progress.restart(step)
                if step % config.log.every == 0 or step == rule.max_iter:
                    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    speed = progress.speed(step)
                    values |= {"rate": float(rate(step - 1)), "images_per_second": speed}
                    log.scalars(step, values)
                    if first:
                        say(progress.line(step, speed, values, SHOWN))
                if step % config.checkpoint.every == 0 or step == rule.max_iter:
                    checkpoints.save(state, step, metadata)
        if first:
            draw_curves(workdir)


def announce(config, rule, dataset, reader, state, origin) -> None:
    """Says what is about to be trained; `origin` are lines on where its weights come from."""
    trainable = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {jax.process_count()} process(es)")
    say(f"{dataset.name}: {len(dataset)} images, {len(dataset.class_names) - 1} classes, {reader.steps} steps an epoch")
    say(f"{config.model.loss_type} loss, {trainable / 1e6:.2f} million parameters")
    for line in rule.changes:
        say(f"adapted to the devices  {line}")
    for line in origin:
        say(line)
    if not config.resnets.use_gn and not origin:
        logging.warning(
            "the body starts from random weights behind frozen affine layers, which seldom trains well; "
            "resnets.imagenet_pretrained_weights takes a file, resnets.use_gn=True is meant for random weights"
        )
