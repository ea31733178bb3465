"""Several looks at an image: one that changes nothing against the plain detector, the vote against loops, memory."""

import ctypes
import gc
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.datasets import Dataset
from rethink_imagenet.data.loading import EvaluationSamples
from rethink_imagenet.data.scenes import KEYPOINTS, write_scenes
from rethink_imagenet.data.splits import nested_subset, read_splits
from rethink_imagenet.detection.detectors import DEMO, VGG16, Detector, DetectorConfig, build
from rethink_imagenet.detection.keypoint_head import read_keypoints
from rethink_imagenet.evaluation import augmented_testing
from rethink_imagenet.evaluation.augmented_testing import (
    DETECTRON_PASSES,
    AugmentedDetector,
    Pass,
    WholeSamples,
    merge_boxes,
    passes_for,
)
from rethink_imagenet.evaluation.average_precision import predict

SYSTEMS: dict[str, DetectorConfig] = {
    "masks": DEMO,
    "boxes": replace(DEMO, masks=False),
    "masks and keypoints": replace(DEMO, keypoints=len(KEYPOINTS)),
    "cascade": replace(DEMO, cascade=True),
    "bf16": replace(DEMO, precision="bf16"),
    "one map": replace(VGG16, num_classes=8, hidden=64, pre_nms=(100, 100), box_number=24,
                       conventions=replace(VGG16.conventions, post_nms=(50, 50))),
}  # fmt: skip


def detector_of(config: DetectorConfig) -> Detector:
    """A random detector whose scores differ from region to region, so that suppression has something to do."""
    torch.manual_seed(0)
    detector = build(config).eval()
    for name, parameter in detector.named_parameters():
        if "scores.weight" in name or "deltas.weight" in name:
            parameter.data *= 20
    return detector


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=1, val=3)
    return read_coco(root / "annotations" / "instances_val.json")


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_look_is_the_plain_detector(system: str, scenes: Dataset) -> None:
    """Equal to the bit: boxes, scores, masks and keypoints."""
    detector = detector_of(SYSTEMS[system])
    plain = predict(detector, EvaluationSamples(scenes, 112, 1333), workers=0)
    single = AugmentedDetector(detector, [Pass(112, 1333)])
    assert len(plain) > 20
    assert predict(single, WholeSamples(scenes), workers=0) == plain


def test_one_look_at_photographs(sample_data: Callable[[str], Path]) -> None:
    """Images of many sizes, shrunk by factors that are not whole."""
    _, val = read_splits(sample_data("coco_mini_by"))
    few, detector = nested_subset(val, 4), detector_of(replace(DEMO, num_classes=80))
    plain = predict(detector, EvaluationSamples(few, 203, 301), workers=0)
    assert predict(AugmentedDetector(detector, [Pass(203, 301)]), WholeSamples(few), workers=0) == plain


def test_a_person_is_small_or_large_in_pixels_of_the_file(scenes: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []

    def noted(boxes: Tensor, passes: Sequence[Pass]) -> Tensor:
        asked.append(boxes)
        return passes_for(boxes, passes)

    monkeypatch.setattr(augmented_testing, "passes_for", noted)
    augmented = AugmentedDetector(detector_of(SYSTEMS["masks and keypoints"]), [Pass(48, 1333)])
    (found,) = augmented.detect([WholeSamples(scenes)[0][0]])
    assert len(found["boxes"]) and torch.equal(asked[0], found["boxes"])
    assert found["boxes"].max() > 48  # which the pass does not reach


def merged_by_loops(parts: list[dict[str, Tensor]]) -> list[tuple[int, float, list[float]]]:
    """Suppression and voting, a pair of boxes at a time, in double precision."""

    def iou(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    union = []
    for part in parts:
        columns = (part["labels"].tolist(), part["scores"].tolist(), part["boxes"].tolist())
        union += list(zip(*columns, strict=True))
    kept: list[tuple[int, float, list[float]]] = []
    for label, score, box in sorted(union, key=lambda row: -row[1]):
        if all(label != other or iou(box, place) <= 0.5 for other, _, place in kept):
            kept.append((label, score, box))
    out = []
    for label, score, box in kept[:100]:
        voters = [(s, b) for other, s, b in union if other == label and iou(box, b) >= 0.9]
        weights, places = zip(*voters, strict=True)
        out.append((label, score, np.average(places, axis=0, weights=weights).tolist()))
    return out


def test_union_and_vote_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    centres, parts = 40 + 200 * torch.rand(30, 2, generator=generator), []
    kinds = torch.randint(1, 4, (30,), generator=generator)
    for _ in range(6):
        corner = centres - 20 + torch.randn(30, 2, generator=generator)
        boxes = torch.cat([corner, corner + 40 + torch.randn(30, 2, generator=generator)], dim=1)
        parts.append({"boxes": boxes, "labels": kinds, "scores": torch.rand(30, generator=generator)})
    found, expected = merge_boxes(parts, 3), merged_by_loops(parts)
    assert found["labels"].tolist() == [label for label, _, _ in expected]
    assert found["scores"].tolist() == [score for _, score, _ in expected]
    assert found["boxes"].numpy() == pytest.approx(np.array([box for _, _, box in expected]), abs=1e-3)


class Recorder:
    """Stands in for a head: what it returns depends on the pass only."""

    def __init__(self, values: list[Tensor]) -> None:
        self.values = iter(values)

    def predict(self, *_: Any) -> Tensor:
        return next(self.values)


def test_heads_are_averaged_over_the_passes_that_count(scenes: Dataset) -> None:
    """Masks over all passes, heat maps without smaller ones for small people, mirrored ones turned back."""
    detector = detector_of(replace(DEMO, keypoints=len(KEYPOINTS)))
    passes = [Pass(96, 1333), Pass(64, 1333, flipped=True), Pass(128, 1333)]
    names = ("left_end", *(f"point {i}" for i in range(len(KEYPOINTS) - 2)), "right_end")
    augmented = AugmentedDetector(detector, passes, names)
    image = WholeSamples(scenes)[0][0]
    number = len(augmented.detect([image])[0]["boxes"])
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(number, 28, 28, generator=generator) for _ in passes]
    maps = [torch.randn(number, len(KEYPOINTS), 56, 56, generator=generator) for _ in passes]
    detector.mask_head.predict = Recorder(masks).predict  # type: ignore[union-attr, method-assign]
    detector.keypoint_head.predict = Recorder(maps).predict  # type: ignore[union-attr, method-assign]
    (found,) = augmented.detect([image])
    assert torch.allclose(found["masks"], (masks[0] + masks[1].flip(-1) + masks[2]) / 3, atol=1e-6)
    small = passes_for(found["boxes"], passes)
    assert (small[1] == 0).all(), "a scene is smaller than 150 x 150, so the smaller pass counts for nobody"
    expected, scores = read_keypoints((maps[0] + maps[2]) / 2, found["boxes"])
    assert torch.allclose(found["keypoints"], expected) and torch.allclose(found["keypoint_scores"], scores)


def test_mirrored_maps_are_those_of_the_other_side(scenes: Dataset) -> None:
    detector = detector_of(replace(DEMO, masks=False, keypoints=len(KEYPOINTS)))
    names = ("left_end", *(f"point {i}" for i in range(len(KEYPOINTS) - 2)), "right_end")
    augmented = AugmentedDetector(detector, [Pass(96, 1333, flipped=True)], names)
    image, maps = WholeSamples(scenes)[0][0], torch.randn(1, len(KEYPOINTS), 56, 56)
    detector.keypoint_head.predict = Recorder([maps]).predict  # type: ignore[union-attr, method-assign]
    found = {"boxes": torch.tensor([[10.0, 10, 50, 50]]), "labels": torch.ones(1, dtype=torch.long)}
    drawn = augmented.drawn(image, augmented.passes[0], found, augmented.frame(image))["maps"]
    assert torch.equal(drawn[:, 0], maps[:, -1].flip(-1)) and torch.equal(drawn[:, 1], maps[:, 1].flip(-1))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a process's peak memory")
def test_eighteen_looks_take_no_more_memory_than_the_largest() -> None:
    """Peak memory of all of Detectron's passes, at half of their scale, next to that of the largest alone."""
    detector = detector_of(replace(DEMO, masks=True))
    image = torch.rand(3, 480, 640)
    passes = [Pass(p.short // 2, p.long // 2, p.flipped) for p in DETECTRON_PASSES]

    def peak(looks: Sequence[Pass]) -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed goes back
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
        assert len(AugmentedDetector(detector, looks).detect([image])[0]["boxes"]) > 0
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]

    peak(passes)  # what the first detection of each size sets up stays
    assert peak(passes) - peak(passes[-1:]) < 40_000, "kilobytes"  # 91,000 with the maps of all looks kept
