"""Images per second of the train step, R-50-FPN with CIoU at 800 x 1344 in bfloat16, beside torchvision's.

    python benchmarks/train.py --root data/coco --datasets coco_2017_train
    python benchmarks/train.py --breakdown      # after the table, where the step's time goes
    python benchmarks/train.py --smoke          # a sketch of the network, small images; seconds on a CPU

The step is that of diou_jax.training.train: the same function, the state donated, nothing waits for the host but the
end of a burst of steps; times are medians over bursts, with the 10th and 90th percentile. "device" repeats one batch
that lies on the device, as uint8 pixels that the step resizes; "files" reads JPEGs, resizes them to the same shapes
and lies idle where they come too slowly. torchvision's data lie on the device, also where "files" is compared with it.
All figures are of one device, and the batch is the images of one device.

TFLOP/s are of one image's work times images per second. The work is "stated", two for each multiply-add that the
layers' shapes ask for with stem and res2 frozen, as every detector of this kind needs them, though ours leaves out most
of the RPN's backward pass; the share of the peak is of this; "counted" by JAX in the step before optimisation; and
counted in the "compiled" one, where calls of libraries may hide it. None of the counts sees into hand-written kernels,
and a loop's body counts once.
"""

import argparse
import pathlib
import tempfile
import time

import breakdown
import cv2
import jax
import numpy as np
import peers
import timing
import workload
from absl import flags
from input import draw
from ml_collections import ConfigDict

from diou_jax.compilation import cache_compilations
from diou_jax.data import loader
from diou_jax.devices import replicate, to_devices
from diou_jax.errors import UserError
from diou_jax.optimization.state import create_state
from diou_jax.options import build
from diou_jax.training.step import make_train_step

STATED = 1.142  # TFLOP for an image of 800 x 1344
COLUMNS = (
    "images",
    "data",
    "images/s",
    "step, ms (p10, p90)",
    "TFLOP/s, stated",
    "counted",
    "compiled",
    "share of peak",
    "peak memory, GB",
    "program's memory, GB",
    "compilation, s",
    "from cache, s",
    "times torchvision",
)


class Training:
    """The step for some images per device and its state, set up as `diou_jax.training.train` does.

    Attributes:
      config: the config of the run.
      images: number of images on a device.
      rule: the `BatchRule` of the config.
      detector, optimizer: those that the config describes.
    """

    def __init__(self, config: ConfigDict, images: int, *, num_classes: int):
        """Compiles nothing but the initialisation; the batch goes into `config`."""
        self.config, self.images, self._num_classes = config, images, num_classes
        self.config.train.batch_size = images * jax.device_count()
        self.rule = build.rule(self.config)
        self.detector = build.detector(self.config, num_classes, collect_scale=self.rule.schedule.collect_scale)
        self.optimizer = build.make_optimizer(self.config, self.rule.schedule)
        variables = workload.make_variables(self.config, self.detector.network)
        self.state = replicate(create_state(variables, self.optimizer, self.detector.loss_names))
        self._step = make_train_step(
            self.detector, self.optimizer, seed=self.config.rng_seed, iter_size=1, log_every=self.config.log.every
        )

    def __call__(self, batch):
        """Starts one update and returns its metrics, without waiting for them."""
        self.state, metrics = self._step(self.state, batch)
        return metrics

    def draw_batch(self):
        """A numpy batch of noise for all devices."""
        return workload.draw_batch(self.config, self.rule.batch.images, num_classes=self._num_classes)

    def compile(self, batch) -> tuple[float, jax.stages.Lowered, jax.stages.Compiled]:
        """Seconds to trace and compile, as at a start, and the program before and after optimisation."""
        jax.clear_caches()
        start = time.perf_counter()
        lowered = self._step.lower(self.state, batch)
        program = lowered.compile()
        return time.perf_counter() - start, lowered, program

    def from_files(self, dataset, *, threads: int, workers: int, bursts: int, length: int) -> np.ndarray:
        """Seconds per step (bursts,), reading included."""
        reader = build.train_reader(self.config, dataset, self.rule.batch)
        first = {}
        for step in range(reader.steps):
            first.setdefault(reader.schedule.entries(step).bucket, step)
            if len(first) == len(reader.buckets):
                break
        for step in first.values():  # compiled before the clock starts
            jax.block_until_ready(self(next(to_devices([reader(step)[0]], ahead=0))))
        host = loader.batches(reader, 0, 10**6, threads=threads, workers=workers)
        for _ in range(2 * threads * max(workers, 1)):  # images that were read before the clock starts do not count
            next(host)
        stream = to_devices(host, ahead=self.config.data.prefetch)
        seconds = timing.measure(lambda: self(next(stream)), jax.block_until_ready, bursts=bursts, length=length)
        stream.close()
        host.close()
        return seconds


def load(options):
    """The data set of the rows "files", or None."""
    config = workload.make_config(smoke=options.smoke)
    config.data.root = options.root
    try:
        return build.dataset(config, options.datasets)
    except UserError as error:
        print(f"no rows from files: {error}\n")
        return None


def speeds(seconds: np.ndarray, images: int, options) -> tuple:
    """The cells that follow from the time: images/s, step, stated TFLOP/s; and the share of the peak."""
    rate = images / float(np.median(seconds))
    done = None if options.smoke else rate * STATED
    share = None if done is None else f"{100 * done / options.peak_tflops:.1f} %"
    return rate, timing.spread(seconds), done, share


def run(images: int, dataset, peer, options) -> Training:
    """Prints the rows of a batch size."""
    repeats = {"bursts": options.bursts, "length": options.length}
    num_classes = workload.CLASSES if dataset is None else len(dataset.class_names)
    training = Training(workload.make_config(smoke=options.smoke), images, num_classes=num_classes)
    batch = next(to_devices([training.draw_batch()], ahead=0))
    cold, _, _ = training.compile(batch)
    cached, lowered, program = training.compile(batch)
    counted, executed = (work(stage) / images for stage in (lowered, program))
    seconds = timing.measure(lambda: training(batch), jax.block_until_ready, **repeats)
    theirs = None if peer is None else images / float(np.median(peer[0]))

    def report(data, seconds, memory=None, program_memory=None, cold=None, cached=None):
        rate, step, done, share = speeds(seconds, images, options)
        ratio = None if theirs is None else rate / theirs
        speed = done, counted * rate, executed * rate, share
        timing.line(images, data, rate, step, *speed, memory, program_memory, cold, cached, ratio)

    report("device", seconds, peak_memory(), program_size(program), cold, cached)
    if dataset is not None:
        reading = {"threads": options.threads, "workers": options.workers}
        report("files", training.from_files(dataset, **reading, **repeats))
    if peer is not None:
        rate, step, done, share = speeds(peer[0], images, options)
        memory = None if peer[1] is None else peer[1] / 1e9
        timing.line(images, "torchvision, device", rate, step, done, None, None, share, memory, None, None, None, 1.0)
    training.state = jax.device_get(training.state)  # the next training needs the memory of the device
    return training


def work(stage: jax.stages.Lowered | jax.stages.Compiled) -> float:
    """TFLOP of a program by JAX's cost analysis."""
    return timing.cost(stage).get("flops", 0.0) / 1e12


def peak_memory() -> float | None:
    """GB that the allocator has held at most since the program began; batches must grow for it to be the last one's."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] / 1e9 if statistics else None


def program_size(program: jax.stages.Compiled) -> float:
    """GB that a program holds: arguments, results and intermediate values."""
    memory = program.memory_analysis()
    sizes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (sizes + memory.temp_size_in_bytes) / 1e9


def main() -> None:
    """Prints one table, or two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 16, 32], help="images per device")
    parser.add_argument("--root", default="data/coco")
    parser.add_argument("--datasets", nargs="+", default=["coco_2017_train"])
    parser.add_argument("--threads", type=int, default=4, help="threads that read files, in each worker")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--bursts", type=int, default=20)
    parser.add_argument("--length", type=int, default=5, help="steps of a burst")
    parser.add_argument("--peak-tflops", type=float, default=790, help="TFLOP/s of bfloat16 matrix products, measured")
    parser.add_argument("--peak-tbs", type=float, default=4.3, help="TB/s of a copy in device memory, measured")
    parser.add_argument("--no-peer", action="store_true", help="leave torchvision out")
    parser.add_argument("--cache", help="folder that keeps compiled programs; by default none, so that both times show")
    parser.add_argument("--breakdown", type=int, nargs="?", const=16, help="images of the table of parts; 0: none")
    parser.add_argument(
        "--smoke", action="store_true", help="a small network and drawn images, once, with the breakdown"
    )
    options = parser.parse_args()
    workload.prepare()
    flags.FLAGS.mark_as_parsed()  # grain reads absl's flags
    cv2.setNumThreads(0)

    with tempfile.TemporaryDirectory() as folder:
        cache_compilations(options.cache or str(pathlib.Path(folder) / "cache"))
        if options.smoke:
            draw(pathlib.Path(folder), 8)
            options.root, options.datasets, options.threads = folder, ["drawn"], 1
            options.batches, options.bursts, options.length = [2], 1, 1
            options.breakdown = 2 if options.breakdown is None else options.breakdown
        size = workload.SMOKE_SIZE if options.smoke else workload.SIZE
        repeats = {"bursts": options.bursts, "length": options.length}
        batches = sorted({*options.batches, *filter(None, [options.breakdown])})
        # torchvision is measured first, since our programs keep the device's memory once they have it.
        theirs = (
            {}
            if options.smoke or options.no_peer
            else {n: peers.measure(peers.train, n, size, **repeats) for n in batches}
        )
        print(timing.header(f"Training, {size[0]} x {size[1]}, per device"))
        print(f"stated: {STATED} TFLOP an image; peak: {options.peak_tflops:g} TFLOP/s\n")
        dataset = load(options)
        timing.head(*COLUMNS)
        trainings = {images: run(images, dataset, theirs.get(images), options) for images in batches}
        if options.breakdown:
            breakdown.table(trainings[options.breakdown], options)


if __name__ == "__main__":
    main()
