"""Host memory over epochs of reading: it has to stay flat.

    python benchmarks/memory.py --root data/coco --datasets coco_2017_train
    python benchmarks/memory.py --smoke          # drawn shapes, seconds

Prints the resident memory of this process and of its workers after each epoch, batches thrown away as they come.
"""

import argparse
import gc
import multiprocessing
import pathlib
import tempfile
import time

from absl import flags
from timing import head, header, line

from diou_jax.data import catalog, loader, shapes
from diou_jax.data.augmentation import Mirror, ScaleChoice
from diou_jax.data.make_reader import train_reader


def resident(pid: int | str) -> float:
    """The resident memory of a process, MB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    """Prints a line for each epoch, with threads and with worker processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root")
    parser.add_argument("--datasets", nargs="+", default=["train"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            shapes.ensure(folder)
        dataset = catalog.load(tuple(options.datasets), options.root or folder)
        scale, limit = (64, 64) if options.smoke else (800, 1333)
        reader = train_reader(dataset, (Mirror(), ScaleChoice((scale,), limit)), batch_size=options.batch, seed=0)
        print(header(f"Host memory, {len(dataset)} images, {reader.steps} batches of {options.batch} an epoch"))
        head("threads", "workers", "epoch", "MB", "MB of the workers", "batches/s")
        for threads, workers in ((4, 0), (1, 2)):
            stream = loader.batches(reader, 0, options.epochs * reader.steps, threads=threads, workers=workers)
            for epoch in range(options.epochs):
                began = time.perf_counter()
                for _ in range(reader.steps):
                    next(stream)
                speed = reader.steps / (time.perf_counter() - began)
                gc.collect()
                children = sum(resident(child.pid) for child in multiprocessing.active_children())
                line(threads, workers, epoch + 1, resident("self"), children, speed)
            stream.close()


if __name__ == "__main__":
    main()
