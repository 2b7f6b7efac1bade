"""torchvision's Faster and Mask R-CNN at our sizes: the peer of train.py, inference.py and cpu.py.

It is `fasterrcnn_resnet50_fpn` without weights, with the frozen batch normalisation and the two frozen stages that it
has with weights, and with our number of classes; its numbers of proposals and RoIs equal ours by default. It
computes under autocast in bfloat16, or in float32, channels last, with cuDNN's search for the fastest convolutions.
Each measurement has a process of its own, so that no device memory is held beside ours.
"""

import functools
import importlib.util
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2
import numpy as np
import timing
import workload


def measure(function: Callable[..., Any], *args, **kwargs) -> Any:
    """``function(*args, **kwargs)`` of this file in a new process; None without torchvision or where it fails."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except (RuntimeError, ImportError) as error:  # out of memory is a RuntimeError, a build that does not fit too
            print(f"torchvision, {args}: {error}".splitlines()[0], file=sys.stderr)
            return None


def train(images: int, size: tuple[int, int], *, bursts: int, length: int) -> tuple[np.ndarray, float | None]:
    """Seconds per step (bursts,) with data on the device, and the peak of device memory in bytes."""
    import torch

    step, wait = training(images, size)
    seconds = timing.measure(step, wait, bursts=bursts, length=length)
    return seconds, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def training(
    images: int, size: tuple[int, int], *, dtype: str = "bfloat16", masks: bool = False
) -> tuple[Callable, Callable]:
    """A train step, the optimiser's included, and a function that waits for its result."""
    import torch

    model, device = _model(size, masks)
    random = np.random.default_rng(0)
    pixels = _pixels(images, size).to(device).float().div(255)
    targets = [
        {
            "boxes": torch.tensor(workload.draw_boxes(random, *size), device=device),
            "labels": torch.tensor(random.integers(1, workload.CLASSES, workload.OBJECTS), device=device),
        }
        for _ in range(images)
    ]
    for target in targets if masks else ():
        boxes = target["boxes"].cpu().numpy()[None]
        polygons = workload.ellipses(boxes, np.ones(boxes.shape[:2], bool)).points[0]
        filled = [cv2.fillPoly(np.zeros(size, np.uint8), [np.round(p).astype(np.int32)], 1) for p in polygons]
        target["masks"] = torch.tensor(np.array(filled), device=device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, workload.RATE, momentum=0.9, weight_decay=1e-4)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = sum(model(list(pixels), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step, functools.partial(_wait, device)


def detect(
    images: int, size: tuple[int, int], *, candidates: int, bursts: int, length: int, lone: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds per call: (bursts,) of calls in a row, (lone,) of lone calls, and of lone calls from host to host."""
    call, from_host, wait = detection(images, size, candidates=candidates)
    return (
        timing.measure(call, wait, bursts=bursts, length=length),
        timing.measure(call, wait, bursts=lone, length=1),
        timing.measure(from_host, wait, bursts=lone, length=1),
    )


def detection(
    images: int, size: tuple[int, int], *, candidates: int, dtype: str = "bfloat16", masks: bool = False
) -> tuple[Callable, Callable, Callable]:
    """A call on images on the device, one from host to host, and a function that waits for their results."""
    import torch

    model, device = _model(size, masks)
    model.eval()
    on_host = _pixels(images, size)
    on_device = on_host.to(device).float().div(255)
    if masks:
        model.transform.postprocess = lambda found, *_: found  # masks stay in their boxes

    def call(pixels=on_device):
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return model(list(pixels))

    def from_host():
        found = call(on_host.to(device).float().div(255))
        return [{name: value.cpu() for name, value in one.items()} for one in found]

    model.roi_heads.score_thresh = _threshold(model, call, images * candidates)
    return call, from_host, functools.partial(_wait, device)


def _model(size, masks=False):
    """The model, and the name of the device that it is on."""
    import torch
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    # `fasterrcnn_resnet50_fpn` would train every layer, batch statistics included, if it has no weights to start from.
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    for name, module in body.body.named_modules():
        if name.endswith("bn3"):
            module.weight.fill_(0.25)  # sixteen random blocks add up
    model = (MaskRCNN if masks else FasterRCNN)(body, workload.CLASSES, min_size=size[0], max_size=size[1])
    return model.to(device, memory_format=torch.channels_last), device


def _pixels(images, size):
    import torch

    return torch.randint(256, (images, 3, *size), dtype=torch.uint8)


def _threshold(model, call, candidates):
    """The score that this many boxes of the call exceed."""
    import torch

    logits = []
    hook = model.roi_heads.box_predictor.register_forward_hook(
        lambda module, inputs, outputs: logits.append(outputs[0])
    )
    call()
    hook.remove()
    scores = torch.softmax(logits[0].float(), 1)[:, 1:].flatten()
    return scores.topk(min(candidates + 1, len(scores))).values[-1].item()


def _wait(device, result):
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
