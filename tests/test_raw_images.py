"""Images that cross as bytes: on a device they become what a worker makes of them for the CPU, and nothing waits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rethink_imagenet.data.datasets import Dataset
from rethink_imagenet.data.loading import EvaluationSamples, TrainingSamples, evaluation_batches, training_batches
from rethink_imagenet.data.scenes import write_crops, write_scenes
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.data.transforms import RawImage
from rethink_imagenet.evaluation.augmented_testing import WholeSamples
from rethink_imagenet.study.pretraining import ClassificationSamples
from tests.device_double import Device


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One of eight images is larger than what travels as an array."""
    folder = write_scenes(tmp_path_factory.mktemp("raw") / "scenes", train=8, val=2)
    return read_splits(folder)[0]


def assert_same(here: Any, there: Any, some: int) -> None:
    """Batches for the CPU and for a device hold the same images."""
    seen = 0
    with Device() as device:
        for (images, targets, *_), (raw, others, *_) in zip(here, there, strict=True):
            for image, bytes_, target, other in zip(images, raw, targets, others, strict=True):
                assert isinstance(bytes_, RawImage) and bytes_.pixels.dtype == torch.uint8
                device.reset()
                arrived = bytes_.to("cuda", non_blocking=True)
                assert device.waits == 0 and arrived.is_cuda and arrived.shape == bytes_.shape == image.shape
                torch.testing.assert_close(arrived.cpu(), image, rtol=1e-5, atol=1e-6)
                assert target["image_id"] == other["image_id"]
                seen += 1
    assert seen == some


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("short", [(96, 96), (60, 140)])
def test_training(workers: int, short: tuple[int, int], scenes: Dataset) -> None:
    """As large as the file, and at drawn sizes; mirrored and not."""
    samples = TrainingSamples(scenes, 3, short, 200)
    assert_same(*(training_batches(samples, 2, 0, 8, workers, device) for device in ("cpu", "mps")), some=16)
    assert len({samples.raw(p)[0].mirrored for p in range(16)}) == 2  # type: ignore[index]


def test_evaluation(scenes: Dataset) -> None:
    """Resized for a detector, whole for one that looks in passes."""
    for samples in (EvaluationSamples(scenes, 128, 160), WholeSamples(scenes)):
        assert_same(*(evaluation_batches(samples, 3, 0, device) for device in ("cpu", "mps")), some=8)


def test_pre_training(tmp_path: Path) -> None:
    """Crops are cut by the worker, and are bytes until they are sent."""
    samples = ClassificationSamples(write_crops(tmp_path / "crops", number=36), 32)
    assert_same(*(training_batches(samples, 4, 0, 3, 0, device) for device in ("cpu", "mps")), some=12)


def test_a_photograph_takes_a_quarter_or_less(scenes: Dataset, tmp_path: Path) -> None:
    """Handed over by a worker as bytes of the file, pinned where a GPU takes it."""
    pixels = torch.from_numpy(np.zeros((480, 640, 3), np.uint8)).permute(2, 0, 1)
    raw = RawImage(pixels, (800, 1067), mirrored=True)
    assert raw.to("cpu").nbytes > 11 * raw.pixels.nbytes and raw.to("cpu").shape == (3, 800, 1067)
    Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(tmp_path / "photograph.png")
