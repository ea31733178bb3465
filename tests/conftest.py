"""What all tests share: the sample data beside the project, and that where they are nothing is skipped."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rethink_imagenet.data.coco import read_coco, trainable
from rethink_imagenet.data.loading import TrainingSamples
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.data.transforms import read_sample, resize

from .launch import launch

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
Target = dict[str, Any]

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has processes ignore it


@pytest.fixture(scope="session")
def sample_data() -> Callable[[str], Path]:
    """A sample data set by name; skips the test where the folder of samples is absent."""

    def find(name: str) -> Path:
        folder = DATA / name
        if not folder.is_dir():
            pytest.skip(f"the sample data {folder} are not there")
        return folder

    return find


@pytest.fixture
def photographs(sample_data: Callable[[str], Path]) -> tuple[list[Tensor], list[Target]]:
    """Four photographs of different sizes, the last without objects."""
    train, _ = read_splits(sample_data("coco_mini_by"))
    samples = TrainingSamples(train, short=(128, 128), long=192)
    images, targets = [], []
    for p in (0, 3, 5, 8):
        image, target = samples[p]
        single = torch.where(~target["crowd"])[0]
        target = {"boxes": target["boxes"][single].double(), "labels": target["labels"][single],
                  "polygons": target["polygons"].select(single.tolist())}  # fmt: skip
        images.append(image.double())
        targets.append(target)
    targets[-1] = {"boxes": torch.zeros(0, 4).double(), "labels": torch.zeros(0, dtype=torch.int64),
                   "polygons": targets[-1]["polygons"].select([])}  # fmt: skip
    assert len({tuple(image.shape) for image in images}) > 1
    return images, targets


@pytest.fixture
def persons(sample_data: Callable[[str], Path]) -> tuple[list[Tensor], list[Target]]:
    """Four photographs of persons with keypoints, of different sizes."""
    data = read_coco(sample_data("coco_mini_by") / "annotations" / "person_keypoints_train2017.json")
    images, targets = [], []
    for m in trainable(data, keypoints=True)[:4].tolist():
        image, target = resize(*read_sample(data, m), 128, 192)
        single = ~target["crowd"]
        targets.append({key: target[key][single] for key in ("boxes", "labels", "keypoints")})
        targets[-1]["boxes"] = targets[-1]["boxes"].double()
        images.append(image.double())
    assert len({tuple(image.shape) for image in images}) > 1
    return images, targets


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run one of the console commands in a process and a folder of its own."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return launch([name, *arguments], cwd=tmp_path)

    return run


def failed_if_skipped(report: Any) -> Any:
    """With NO_SKIPS set, what is skipped has failed."""
    if report.skipped and os.environ.get("NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped though NO_SKIPS is set: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    """No test may be skipped where NO_SKIPS is set, unless there is no browser for it."""
    report = yield
    return report if item.get_closest_marker("browser") else failed_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> object:
    """And no whole file."""
    return failed_if_skipped((yield))
