"""The time of a train step by its parts, which are compiled and timed one by one, each beside its roofline.

The table of ``train.py --breakdown``. A part by itself writes values to memory that the whole step may fuse, so the
parts' sum is not the step. Work is counted before optimisation, where convolutions still are convolutions, traffic
after it, where fusions are final; of a hand-written kernel only inputs and outputs can be seen.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from diou_jax.detection import loss, preprocess
from diou_jax.detection.proposals import propose
from diou_jax.devices import replicate, to_devices
from diou_jax.optimization.guard import gradient_norm, is_sound, select


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the step, ``function(learnt, fixed)``; its backward pass gives the gradient of `learnt` alone."""

    name: str
    function: Callable
    learnt: Any
    fixed: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function; TFLOP before optimisation, TB that it moves after."""

    call: Callable
    work: float
    traffic: float


def compile(function: Callable, *args) -> Program:
    """The program for these arguments."""
    lowered = jax.jit(function).lower(*args)
    program = lowered.compile()
    work, traffic = timing.cost(lowered), timing.cost(program)
    return Program(program, work.get("flops", 0.0) / 1e12, traffic.get("bytes accessed", 0.0) / 1e12)


def parts(detector, optimizer, state, batch) -> Iterator[tuple[Part, Program, Any]]:
    """The parts in the order of the step, with forward pass and result, which is the next one's input.

    They are those of `FasterRCNN.losses` and of the update of `make_train_step`, called one by one.
    """
    params, fixed_variables = state.params, {k: v for k, v in state.variables.items() if k != "params"}
    padded_size = batch.padded_size if detector.mask_padding_train else None
    keys = jax.random.split(jax.random.key(0), len(batch.image))
    result = None

    def network(name, method):
        """A function of the parameters of one module and its input."""

        def function(learnt, fixed):
            weights, inputs = learnt
            others = {kind: {name: values.get(name, {})} for kind, values in fixed_variables.items()}
            variables = {"params": {name: weights}, **others}
            return detector.network.apply(variables, inputs, fixed, method=method)

        return function

    def part(name, function, learnt=None, fixed=None):
        nonlocal result
        forward = compile(function, learnt, fixed)
        result = forward.call(learnt, fixed)
        return Part(name, function, learnt, fixed), forward, result

    yield part("resizing", lambda _, batch: preprocess.normalise(batch, detector.pixel_means), None, batch)
    backbone = network("backbone", lambda net, images, fixed: net.backbone(images, padded_size))
    yield part("backbone", lambda weights, images: backbone((weights, images), None), params["backbone"], result)
    # The outputs of frozen stages need no gradient.
    stages = max(detector.network.backbone.freeze_at - 1, 0)
    frozen, learnt = (dict(list(result.items())[part]) for part in (slice(stages), slice(stages, None)))
    neck = network("neck", lambda net, maps, frozen: net.neck(frozen | maps, padded_size))
    yield part("FPN", neck, (params["neck"], learnt), frozen)
    pyramid = result
    anchors = detector.anchor_generator(pyramid, batch.padded_size)
    label = lambda _, fixed: detector.label_anchors(anchors.replace(exists=fixed[0]), *fixed[1:])  # noqa: E731
    yield part("anchor targets", label, None, (anchors.exists, batch, keys))
    targets = result
    rpn = network("rpn", lambda net, pyramid, sampled: net.propose(pyramid, sampled, padded_size))
    yield part("RPN", rpn, (params["rpn"], pyramid), targets.sampled)
    rpn_outputs = result

    def choose_proposals(_, fixed):
        outputs, batch, exists = fixed
        there = anchors.replace(exists=exists)
        return propose(outputs, there, batch.image_size, placement=batch.placement, rules=detector.train_proposals)

    yield part("proposals", choose_proposals, None, (rpn_outputs, batch, anchors.exists))
    yield part("RoI sampling", lambda _, fixed: detector.sample(*fixed), None, (result, batch, keys))
    sampled = result
    box = detector.heads[0]
    pooled = {stride: pyramid[stride] for stride in detector.network.backbone.strides}
    pool = lambda maps, rois: detector.pool(maps, rois, rules=box.pooling, padded_size=padded_size)  # noqa: E731
    yield part("RoIAlign", pool, pooled, sampled.input_rois)
    head = network(box.name, lambda net, pooled, _: net.head(pooled, box.name))
    yield part("box head", head, (params[box.name], result))

    def losses(outputs, fixed):
        (rpn_outputs, head_outputs), (targets, sampled, gt) = outputs, fixed
        found = box.compare(head_outputs, sampled, box.targets(sampled, gt))
        return loss.total(detector.rpn_losses(rpn_outputs, targets) | found)

    yield part("losses", losses, (rpn_outputs, result), (targets, sampled, batch.gt))

    def update(_, fixed):
        gradient, state = fixed
        norm = gradient_norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        new = optax.apply_updates(state.params, updates), opt_state
        return norm, select(is_sound(norm, norm), new, (state.params, state.opt_state))

    yield part("optimiser", update, None, (filled(params, 1e-3), state))


def filled(like, value: float):
    """A pytree as `like`, with this value everywhere."""
    return jax.jit(lambda tree: jax.tree.map(lambda x: jnp.full_like(x, value), tree))(like)


def forward_and_backward(part: Part) -> Callable:
    """The part and the gradient of its parameters from that of its result, as one function."""

    def both(learnt, fixed, gradient):
        result, pull = jax.vjp(lambda learnt: part.function(learnt, fixed), learnt)
        return result, pull(gradient)

    return both


def table(training, options) -> None:
    """Prints the table of a `Training`; the parts are of one device's images."""
    images, repeats = training.images, {"bursts": options.bursts, "length": options.length}
    host, training.state = training.draw_batch(), replicate(training.state)
    split = next(to_devices([host], ahead=0))
    step = float(np.median(timing.measure(lambda: training(split), jax.block_until_ready, **repeats))) * 1e3
    device = jax.local_devices()[0]
    state = jax.device_put(training.state, device)
    batch = jax.device_put(jax.tree.map(lambda x: x[:images], host), device)

    def clock(program, *args):
        return float(np.median(timing.measure(lambda: program.call(*args), jax.block_until_ready, **repeats))) * 1e3

    print(f"\nWhere the step's time goes, {images} images; peaks: {options.peak_tflops:g} TFLOP/s, ", end="")
    print(f"{options.peak_tbs:g} TB/s\n")
    timing.head("part", "forward, ms", "backward, ms", "share of step", "TFLOP", "TFLOP/s", "roofline, ms", "bound by")
    total = 0.0
    for part, program, result in parts(training.detector, training.optimizer, state, batch):
        args = part.learnt, part.fixed
        there = taken = clock(program, *args)
        if part.learnt is not None:
            args = *args, filled(result, 1)
            program = compile(forward_and_backward(part), *args)
            taken = clock(program, *args)
        back = None if part.learnt is None else taken - there
        total += taken
        limits = {
            "arithmetic": program.work / options.peak_tflops * 1e3,
            "memory": program.traffic / options.peak_tbs * 1e3,
        }
        bound = max(limits, key=limits.get)
        share = f"{100 * taken / step:.1f} %"
        timing.line(part.name, there, back, share, program.work, program.work / taken * 1e3, limits[bound], bound)
    timing.line("sum", total, None, f"{100 * total / step:.1f} %", None, None, None, None)
    timing.line("the step", step, None, "100 %", None, None, None, None)
