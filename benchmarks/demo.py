"""Time a training step of the demonstration, data included, and RoIAlign against torchvision's: medians and ratios."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.ops import roi_align

from rethink_imagenet.data import read_coco
from rethink_imagenet.detectors import DEMO, build
from rethink_imagenet.pooling import roi_align_pyramid
from rethink_imagenet.scenes import write_scenes
from rethink_imagenet.training import optimizer_of, set_rate, step
from rethink_imagenet.transforms import TrainingSamples, training_batches


def median_milliseconds(function: Callable[[], object], repetitions: int = 15) -> float:
    """Median time of a call after two for warming up."""
    times = []
    for _ in range(repetitions + 2):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def training_step(iterations: int = 200) -> None:
    """Median step of 8 scenes of 96 pixels, from one batch to the next."""
    with tempfile.TemporaryDirectory() as temporary:
        root = write_scenes(Path(temporary) / "scenes", train=400, val=1)
        samples = TrainingSamples(read_coco(root / "annotations" / "instances_train.json"), short=(96, 96), long=96)
        torch.manual_seed(0)
        model = build(DEMO)
        optimizer = optimizer_of(model)
        set_rate(optimizer, 0.01)
        times, mark = [], time.perf_counter()
        for images, targets in training_batches(samples, 8, 0, iterations, workers=1):
            step(model, optimizer, images, targets)
            times.append(time.perf_counter() - mark)
            mark = time.perf_counter()
    half = times[len(times) // 2 :]
    low, high = statistics.quantiles(half, n=10)[0], statistics.quantiles(half, n=10)[-1]
    print(f"training step, 8 scenes of 96 px, data included: {statistics.median(half):.3f} s ({low:.3f} to {high:.3f})")


def pooling() -> None:
    """RoIAlign forward and backward on a map of 160 x 160 with 256 channels, two images, 1024 regions."""
    torch.manual_seed(0)
    feature = torch.randn(2, 256, 160, 160).to(memory_format=torch.channels_last).requires_grad_()
    corners = 400 * torch.rand(1024, 2)
    rois = torch.cat([torch.randint(2, (1024, 1)), corners, corners + 4 + 100 * torch.rand(1024, 2)], dim=1)
    weight = torch.randn(1024, 256, 7, 7)
    ours = median_milliseconds(lambda: (roi_align_pyramid([feature], rois, 7) * weight).sum().backward(), 5)
    theirs = median_milliseconds(lambda: (roi_align(feature, rois, 7, 0.25, 2) * weight).sum().backward(), 5)
    print(f"RoIAlign forward and backward: {ours:.0f} ms, torchvision's {theirs:.0f} ms, ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads")
    training_step()
    pooling()
