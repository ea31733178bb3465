"""COCO metrics of 5,000 images and 500,000 detections: against pycocotools, and what our own checks take.

python benchmarks/evaluation.py                    boxes; the median of 3, some minutes
python benchmarks/evaluation.py --kind mask        masks, which takes longer
python benchmarks/evaluation.py --parts            without pycocotools: where the time of `evaluate_coco` goes
"""

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import keep, row
from rethink_imagenet.data.coco import without_garbage_collection
from rethink_imagenet.evaluation.average_precision import STATISTICS, evaluate_coco
from rethink_imagenet.evaluation.records import FIELDS, KINDS, read_results, read_truth

CLASSES, OBJECTS, WIDTH, HEIGHT = 80, 7.3, 640, 480  # objects of an image, on average
CORNERS = 12  # of the outline of a mask


def outlines(boxes: np.ndarray, rng: np.random.Generator) -> list[list[float]]:
    """Polygons [N][2 * CORNERS] within boxes [N, 4], rough circles."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    reach = rng.uniform(0.8, 1, (len(boxes), CORNERS)) / 2
    around = np.stack([np.cos(angle) * reach, np.sin(angle) * reach], axis=2) + 0.5
    return (boxes[:, None, :2] + around * boxes[:, None, 2:]).reshape(len(boxes), -1).round(2).tolist()


def boxes_of(rng: np.random.Generator, number: int) -> np.ndarray:
    """Boxes [N, 4] within the image, many small ones."""
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
    return np.concatenate([rng.uniform(0, 1, (number, 2)) * ([WIDTH, HEIGHT] - sides), sides], axis=1).round(2)


def tables(images: int, detections: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Annotations in COCO's format, and detections near objects and elsewhere, each with a mask."""
    rng, pixels = np.random.default_rng(0), (HEIGHT, WIDTH)
    where = np.repeat(np.arange(1, images + 1), rng.poisson(OBJECTS, images))
    boxes, weights = boxes_of(rng, len(where)), 1 / np.arange(1, CLASSES + 1)
    labels = 1 + rng.choice(CLASSES, len(where), p=weights / weights.sum())
    annotations = [
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3] * 0.7, "iscrowd": 0,
         "segmentation": [outline]}
        for i, (image, label, box, outline) in enumerate(
            zip(where.tolist(), labels.tolist(), boxes.tolist(), outlines(boxes, rng), strict=True), 1
        )
    ]  # fmt: skip
    near = rng.choice(len(where), 2 * detections // 3)
    far = boxes_of(rng, detections - len(near))
    moved = boxes[near] + rng.normal(0, 0.1, (len(near), 4)) * boxes[near][:, [2, 3, 2, 3]]
    moved[:, 2:] = moved[:, 2:].clip(4, 300)
    found = np.concatenate([moved, far])
    found[:, :2] = found[:, :2].clip(0, [WIDTH, HEIGHT] - found[:, 2:])
    image = np.concatenate([where[near], rng.integers(1, images + 1, len(far))])
    label = np.concatenate([labels[near], rng.integers(1, CLASSES + 1, len(far))])
    results = []
    for one, what, box, outline, score in zip(
        image.tolist(), label.tolist(), found.tolist(), outlines(found, rng), rng.beta(0.6, 3, len(found)).tolist(),
        strict=True,
    ):  # fmt: skip
        encoded = coco_mask.frPyObjects([outline], *pixels)[0]
        mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        results.append({"image_id": one, "category_id": what, "bbox": box, "score": score, "segmentation": mask})
    content = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT, "file_name": ""} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)],
    }
    return content, results


def timed(action: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """Seconds of processor time and seconds by the clock that an action takes [2], and its result."""
    begun = np.array([time.process_time(), time.perf_counter()])
    result = action()
    return np.array([time.process_time(), time.perf_counter()]) - begun, result


def by_pycocotools(content: dict[str, Any], results: list[dict[str, Any]], kind: str) -> list[float]:
    """The figures in percent, by pycocotools alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**content, "annotations": [dict(record) for record in content["annotations"]]}
        truth.createIndex()
        wanted = ("image_id", "category_id", "score", FIELDS[kind])
        found = truth.loadRes([{key: result[key] for key in wanted} for result in results])
        evaluation = COCOeval(truth, found, KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("box", "mask"), default="box")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--times", type=int, default=3, help="of which the median counts")
    parser.add_argument("--parts", action="store_true", help="without pycocotools")
    parser.add_argument("--keep", action="store_true", help="the result into benchmarks/results, for the README")
    asked = parser.parse_args()
    kind, load = asked.kind, os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    content, results = tables(asked.images, asked.detections)
    seconds: dict[str, list[np.ndarray]] = {"annotations": [], "detections": [], "all": [], "pycocotools": []}
    for _ in range(asked.times):
        with without_garbage_collection():  # as in `evaluate_coco`
            taken, truth = timed(lambda: read_truth(content, [kind]))
            seconds["annotations"].append(taken)
            seconds["detections"].append(timed(lambda truth=truth: read_results(results, truth, [kind]))[0])
        taken, figures = timed(lambda: evaluate_coco(content, results, [kind]))
        seconds["all"].append(taken)
        if not asked.parts:
            taken, reference = timed(lambda: by_pycocotools(content, results, kind))
            seconds["pycocotools"].append(taken)
            pairs = zip((figures[kind][name] for name in STATISTICS[kind]), reference, strict=True)
            assert all(abs((-100 if one is None else one) - other) < 1e-10 for one, other in pairs)  # percent
    middle, by_clock = (
        {name: median(float(both[i]) for both in values) for name, values in seconds.items() if values} for i in (0, 1)
    )
    checks = middle["annotations"] + middle["detections"]
    print(f"{kind}: {len(content['annotations']):,} objects and {len(results):,} detections in {asked.images:,} images")
    print(f"seconds of processor time, median of {asked.times}; the load of the machine was {load:.1f} at the start")
    print(f"evaluate_coco {middle['all']:.2f}, {by_clock['all']:.2f} by the clock; ap {figures[kind]['ap']:.3f}")
    print(
        f"of it checks {checks:.2f}, which is {100 * checks / middle['all']:.1f} %: annotations "
        f"{middle['annotations']:.2f}, detections {middle['detections']:.2f}"
    )
    if not asked.parts:
        ratio, waited = (one["pycocotools"] / one["all"] for one in (middle, by_clock))
        print(
            f"pycocotools {middle['pycocotools']:.2f}, {ratio:.2f} times evaluate_coco; by the clock {waited:.2f} times"
        )
        if asked.keep:
            plural = {"box": "boxes", "mask": "masks"}[kind]
            what = f"COCO's figures, {plural} of {asked.images:,} images, {len(results):,} detections"
            ours, other = f"{middle['all']:.1f} s", f"pycocotools {middle['pycocotools']:.1f} s"
            share = f"{100 * checks / middle['all']:.0f} %"
            clock = f"{by_clock['all']:.1f} s", f"pycocotools {by_clock['pycocotools']:.1f} s"
            lines = [
                row(what, ours, other, ratio),
                row(f"the same by the clock, {plural}", *clock, waited),  # faster-coco-eval sums up in threads
                row(
                    f"of it {'our checks, boxes' if kind == 'box' else 'our checks, polygons encoded, areas of masks'}",
                    f"{checks:.2f} s",
                    "",
                    share,
                ),
            ]
            keep(f"evaluation-{kind}", lines, rounds=asked.times)


if __name__ == "__main__":
    main()
