"""Masks to learn from: pycocotools' pixels for outlines of all kinds, on a CPU and on the double of a device."""

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from rethink_imagenet.data.datasets import Polygons, trace
from rethink_imagenet.data.rasters import Outlines, outlines_of, raster_regions
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.detection.box_head import Samples
from rethink_imagenet.detection.mask_head import masks_to_draw
from tests.device_double import Device


def by_pycocotools(polygons: Polygons, boxes: Tensor, objects: Tensor, side: int = 28) -> Tensor:
    """One region after another, as Detectron does it."""
    masks = torch.zeros(len(boxes), side, side)
    for mask, box, n in zip(masks, boxes.numpy(), objects.tolist(), strict=True):
        scale = side / np.maximum(box[2:] - box[:2], 1)
        rings = [((ring - box[:2]) * scale).astype(float).ravel().tolist() for ring in polygons[n]]
        if rings:
            encoded = [coco_mask.frPyObjects([ring], side, side)[0] for ring in rings]
            mask[:] = torch.from_numpy(coco_mask.decode(coco_mask.merge(encoded)))
    return masks


def around(rng: np.random.Generator, vertices: int) -> np.ndarray:
    """A ring that does not meet itself, as annotators draw them."""
    angles, lengths = np.sort(rng.uniform(0, 2 * np.pi, vertices)), rng.uniform(0.4, 1, (vertices, 1))
    return lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)


KINDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "drawn": around,
    "scribbled": lambda rng, n: rng.normal(size=(n, 2)),
    "whole pixels": lambda rng, n: (around(rng, n) * 20).round() / 20,
    "half pixels": lambda rng, n: (rng.normal(size=(n, 2)) * 8).round() / 8,
    "doubled": lambda rng, n: np.repeat(around(rng, n), rng.integers(1, 4, n), axis=0),
    "upright line": lambda rng, n: np.stack([np.full(n, 0.3), rng.normal(size=n)], axis=1),
    "level line": lambda rng, n: np.stack([rng.normal(size=n), np.full(n, 0.3)], axis=1),
    "slanted line": lambda rng, n: rng.normal(size=(n, 1)) * rng.normal(size=(1, 2)),
    "point": lambda rng, n: np.zeros((n, 2)),
    "staircase": lambda rng, n: np.repeat(rng.integers(-5, 6, (n, 2)) / 5, 2, axis=0).ravel()[1:-1].reshape(-1, 2),
}


def draw(rng: np.random.Generator, number: int) -> tuple[Polygons, Tensor, Tensor]:
    """Objects of up to three rings of one kind each, and regions that fit them more or less."""
    objects = []
    for _ in range(number // 8 + 1):
        rings, kinds = int(rng.integers(0, 4)), rng.choice(list(KINDS), 3)
        centre, size = rng.uniform(0, 200, 2), 10 ** rng.uniform(-0.5, 2)
        shapes = [KINDS[kind](rng, int(rng.integers(3, 40))) for kind in kinds[:rings]]
        objects.append([(centre + rng.normal(size=2) * size / 4 + size * s).astype(np.float32) for s in shapes])
    which, boxes = rng.integers(0, len(objects), number), np.zeros((number, 4))
    for box, n in zip(boxes, which, strict=True):
        points = np.concatenate([*objects[n], rng.uniform(0, 200, (2, 2))][: max(1, len(objects[n]))])
        low, high = points.min(axis=0), points.max(axis=0)
        moved = np.concatenate([low, high]) + rng.normal(size=4) * np.tile(high - low + 1, 2) * rng.choice([0, 0.1, 1])
        box[:2], box[2:] = np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])
    boxes[::3] = boxes[::3].round()  # ties, and boxes without area
    boxes[::7, 2:] = boxes[::7, :2] + rng.uniform(0, 1.5, (len(boxes[::7]), 2))  # less than a pixel, or hardly more
    boxes[::5] = boxes[::5].clip(0, 150)  # at the borders of an image
    return Polygons.pack(objects), torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(which)


def check_draws(seed: int, draws: int, number: int) -> None:
    """None of the pixels differs, and there are many of both kinds."""
    rng, filled = np.random.default_rng(seed), []
    for _ in range(draws):
        polygons, boxes, objects = draw(rng, number)
        masks = raster_regions(outlines_of(polygons), boxes, objects, 0)
        different = (masks != by_pycocotools(polygons, boxes, objects)).flatten(1).any(dim=1)
        assert not different.any(), f"{int(different.sum())} regions of seed {seed}"
        filled.append(masks.mean())
    assert 0.1 < torch.stack(filled).mean() < 0.9


@pytest.mark.parametrize("seed", range(8))
def test_draws(seed: int) -> None:
    check_draws(seed, 1, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 105))
def test_a_hundred_thousand_draws(seed: int) -> None:
    check_draws(seed, 20, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_at_several_sizes(kind: str) -> None:
    """Boxes in doubles too, as tests have them, and sides that are no 28."""
    rng = np.random.default_rng(7)
    polygons = Polygons.pack([[(50 + 20 * KINDS[kind](rng, 12)).astype(np.float32)] for _ in range(20)])
    corners = rng.uniform(20, 60, (100, 2))
    boxes = torch.from_numpy(np.concatenate([corners, corners + rng.uniform(0, 50, (100, 2))], axis=1))
    objects = torch.arange(100) % 20
    for side in (1, 14, 28, 56):
        for precise in (boxes, boxes.float()):
            masks = raster_regions(outlines_of(polygons), precise, objects, 0, side)
            assert torch.equal(masks, by_pycocotools(polygons, precise, objects, side))


def test_annotated_outlines(sample_data: Callable[[str], Path]) -> None:
    """All objects of a real data set, in boxes that overlap them by more than half."""
    polygons = read_splits(sample_data("coco_mini_by"))[0].polygons
    assert polygons is not None
    rng, with_rings = np.random.default_rng(0), [n for n in range(len(polygons)) if polygons[n]]
    objects = np.repeat(with_rings, 3)
    points = [np.concatenate(polygons[n]) for n in objects]
    tight = np.stack([np.concatenate([p.min(axis=0), p.max(axis=0)]) for p in points])
    boxes = tight + rng.uniform(-0.15, 0.15, tight.shape) * np.tile(tight[:, 2:] - tight[:, :2], 2)
    regions, which = torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(objects)
    assert torch.equal(raster_regions(outlines_of(polygons), regions, which, 0),
                       by_pycocotools(polygons, regions, which))  # fmt: skip


def test_traced_bitmaps() -> None:
    """Outlines along the borders of pixels, with holes, give the bitmaps back."""
    torch.manual_seed(0)
    bitmaps = torch.rand(6, 28, 28) < torch.tensor([0.0, 0.1, 0.5, 0.7, 0.95, 1.0])[:, None, None]
    outlines = outlines_of(Polygons.pack([trace(bitmap.numpy()) for bitmap in bitmaps]))
    boxes = torch.tensor([[0.0, 0, 28, 28]]).expand(6, 4)
    assert torch.equal(raster_regions(outlines, boxes, torch.arange(6), 0), bitmaps.float())


@pytest.mark.parametrize("surplus", [0, 1, 70_000])
def test_on_a_device(surplus: int) -> None:
    """The same without a wait, in several pieces, whatever the number of edges is believed to be."""
    polygons, boxes, objects = draw(np.random.default_rng(1), 2000)
    outlines = outlines_of(polygons)
    most = int(outlines.numbers[objects].sum()) + surplus
    assert most > 2 * 2**15  # of a piece
    with Device() as device:
        sent = [x.to("cuda", non_blocking=True) for x in (outlines, boxes, objects)]
        found = raster_regions(*sent, most)
        assert device.waits == 0 and device.launches < 400, device.table()
        masks = found.cpu()
    assert torch.equal(masks, raster_regions(outlines, boxes, objects, 0))


def test_regions_of_a_batch() -> None:
    """Three images, the second without positive regions, the third without objects."""
    rng = np.random.default_rng(2)
    polygons, boxes, objects = draw(rng, 60)
    images = [polygons.select(range(3)), polygons, Polygons.pack([])]
    rois = torch.cat([torch.zeros(60, 1), boxes], dim=1)
    objects %= 3
    starts = [0, *accumulate(len(image) for image in images)]
    targets = [{"outlines": outlines_of(image), "boxes": torch.zeros(len(image), 4)} for image in images]
    numbers = [60, 0, 0]
    masks = masks_to_draw(Samples(rois, torch.ones(60), objects, targets, [(200, 200)] * 3, numbers, numbers))
    assert torch.equal(masks, by_pycocotools(polygons, boxes, objects))
    joined = Outlines.joined([target["outlines"] for target in targets])
    assert len(joined.numbers) == starts[-1] and int(joined.numbers.sum()) == len(joined.edges)
    with Device() as device:
        there = [{key: value.to("cuda", non_blocking=True) for key, value in target.items()} for target in targets]
        sent = (x.to("cuda", non_blocking=True) for x in (rois, torch.ones(60), objects))
        found = masks_to_draw(Samples(*sent, there, [(200, 200)] * 3, numbers, numbers))
        assert device.waits == 0, device.table()
        assert torch.equal(found.cpu(), masks)
