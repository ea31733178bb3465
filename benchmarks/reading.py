"""Annotations of COCO's train2017 size: reading them, beside json.load and pycocotools' index; memory of the workers.

The contenders take turns, each in a process of its own; seconds are processor time, and the medians count.

python benchmarks/reading.py            860,001 instances in 118,287 images, about five minutes and 6 GB of memory
python benchmarks/reading.py --share 0.1    a tenth of it
python benchmarks/reading.py --keep     the first, and the result into benchmarks/results
python benchmarks/reading.py polygons   200,000 images with 1,500,000 short polygons, by ours: at most 25 s, 2.5 GB
python benchmarks/reading.py crowded    training steps on an image of 800 x 1333 pixels with 3,000 objects: at most 6 GB
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import keep, row
from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.datasets import Dataset
from rethink_imagenet.data.loading import training_batches

IMAGES, INSTANCES, CLASSES = 118_287, 860_001, 80


def write_annotations(folder: Path, images: int, instances: int, points: tuple[int, int] = (6, 41)) -> Path:
    """A json like instances_train2017.json with polygons of 23 points on average, and its image files, all empty."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir()
    (folder / "train").mkdir()
    listed = []
    for i in range(images):
        listed.append({"id": i + 1, "file_name": f"{i + 1:012d}.jpg", "height": 480, "width": 640, "license": 1,
                       "coco_url": f"http://images.example.org/train/{i + 1:012d}.jpg"})  # fmt: skip
        (folder / "train" / listed[-1]["file_name"]).touch()
    where, classes = rng.integers(1, images + 1, instances), rng.integers(1, CLASSES + 1, instances)
    boxes = np.concatenate([rng.uniform(0, 300, (instances, 2)), rng.uniform(8, 180, (instances, 2))], axis=1)
    records = []
    for n, (box, corners) in enumerate(zip(boxes.round(2), rng.integers(*points, instances), strict=True), 1):
        ring = (rng.random((corners, 2)) * box[2:] + box[:2]).round(2).ravel().tolist()
        records.append({"id": n, "image_id": int(where[n - 1]), "category_id": int(classes[n - 1]), "iscrowd": 0,
                        "area": float(box[2] * box[3] / 2), "bbox": box.tolist(), "segmentation": [ring]})  # fmt: skip
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)]
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps({"images": listed, "annotations": records, "categories": categories}))
    return path


def read_by_json(path: Path) -> object:
    """json.load alone, which checks nothing."""
    with path.open(encoding="utf-8") as file:
        return json.load(file)


def read_by_pycocotools(path: Path) -> COCO:
    """json.load and pycocotools' index."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def timed(read: Callable[[Path], object], path: Path, send: Connection) -> None:
    """Send the seconds of processor time that reading took, and the GB that the process took at most."""
    start = time.process_time()
    content = read(path)
    send.send((time.process_time() - start, memory("VmHWM", "status")))
    del content


def measure(read: Callable[[Path], object], path: Path) -> tuple[float, float]:
    """Seconds of processor time, and GB at most, of reading in a process of its own."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=timed, args=(read, path, send))
    process.start()
    found = receive.recv()
    process.join()
    return found


def memory(field: str, file: str = "smaps_rollup", process: int | str = "self") -> float:
    """One of Linux' figures about a process, in GB."""
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


class Annotations:
    """Every image's objects without its pixels: what a worker touches of a data set."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, p: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        here = self.dataset.objects(p % len(self.dataset))
        outlines = self.dataset.polygons.select(range(here.start, here.stop)) if self.dataset.polygons else None
        assert outlines is not None
        owned = np.array([memory("Private") if p % 64 == 0 else 0.0])
        return owned, {"boxes": self.dataset.boxes[here], "points": outlines.points}


def measure_workers(path: Path) -> tuple[float, float]:
    """GB that one of two workers has to itself at the beginning, and after it has read all annotations."""
    dataset = read_coco(path)
    samples, owned, batches = Annotations(dataset), [], len(dataset) // 64
    for images, *_ in training_batches(samples, 64, 0, batches, workers=2):  # type: ignore[arg-type]
        owned.append(max(float(image[0]) for image in images))
    return owned[0], owned[-1]


def write_crowded(folder: Path, objects: int = 3000, height: int = 800, width: int = 1333) -> Path:
    """An image with so many objects, each with a polygon of eight corners."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "a.png", compress_level=1)
    boxes = np.concatenate([rng.random((objects, 2)) * (width - 60, height - 60), rng.uniform(8, 60, (objects, 2))], 1)
    around = np.array([(np.cos(turn), np.sin(turn)) for turn in np.arange(8) * np.pi / 4]) / 2 + 0.5
    records = [{"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": float(box[2] * box[3] / 2),
                "bbox": box.tolist(), "segmentation": [(around * box[2:] + box[:2]).ravel().tolist()]}
               for n, box in enumerate(boxes.round(2), 1)]  # fmt: skip
    listed = [{"id": 1, "file_name": "a.png", "height": height, "width": width}]
    path = folder / "instances_train.json"
    categories = [{"id": 1, "name": "class 1"}]
    path.write_text(json.dumps({"images": listed, "annotations": records, "categories": categories}))
    return path


def take_steps(path: Path) -> None:
    """Two training steps of the paper's Mask R-CNN on the image."""
    from rethink_imagenet.study.plans import Execution, Plan
    from rethink_imagenet.study.timing import measure_step

    plan = Plan(batch=1)
    plan = replace(plan, detector=replace(plan.detector, num_classes=1, masks=True))
    measure_step(plan, read_coco(path), Execution("cpu", 0))


def main_polygons() -> None:
    """Measure reading of many images with short polygons."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_annotations(Path(folder), 200_000, 1_500_000, (6, 13))
        print(f"{path.stat().st_size / 2**20:.0f} MB, 1,500,000 instances in 200,000 images", flush=True)
        for _ in range(3):
            print("ours         {:6.1f} s   {:5.2f} GB at most".format(*measure(read_coco, path)), flush=True)


def main_crowded() -> None:
    """Measure training on an image with many objects."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(take_steps, write_crowded(Path(folder)))
        print("two steps on 3,000 objects  {:6.1f} s   {:5.2f} GB at most".format(*found), flush=True)


def main(share: float = 1, times: int = 3, kept: bool = False) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_annotations(Path(folder), round(share * IMAGES), round(share * INSTANCES))
        print(f"{path.stat().st_size / 2**20:.0f} MB, {round(share * INSTANCES):,} instances", flush=True)
        contenders = {"json.load": read_by_json, "pycocotools": read_by_pycocotools, "ours": read_coco}
        rounds = [{name: measure(read, path) for name, read in contenders.items()} for _ in range(times)]
        middle = {
            name: tuple(median(values) for values in zip(*(found[name] for found in rounds), strict=True))
            for name in contenders
        }
        for name, (seconds, most) in middle.items():
            print(f"{name:12s} {seconds:6.1f} s   {most:5.2f} GB at most", flush=True)
        print(f"ours / pycocotools {middle['ours'][0] / middle['pycocotools'][0]:.2f}")
        if kept:
            (seconds, most), (_, most_of_json), (index, _) = (middle[x] for x in ("ours", "json.load", "pycocotools"))
            what, other = f"annotations of {round(share * INSTANCES):,} instances", "json.load and pycocotools' index"
            lines = [
                row(what, f"{seconds:.1f} s", f"{other} {index:.1f} s", index / seconds),
                row("of it memory at most", f"{most:.2f} GB", f"json.load {most_of_json:.2f} GB", most_of_json / most),
            ]
            keep("reading", lines, rounds=times)
        first, last = measure_workers(path)
        print(f"a worker has to itself {first:.2f} GB at first and {last:.2f} GB after all annotations")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = {"polygons": main_polygons, "crowded": main_crowded}
    parser.add_argument("part", nargs="?", choices=others, help="another measurement than that of COCO's size")
    parser.add_argument("--share", type=float, default=1, help="of COCO's size")
    parser.add_argument("--times", type=int, default=3, help="of which the median counts")
    parser.add_argument("--keep", action="store_true", help="the result into benchmarks/results, for the README")
    asked = parser.parse_args()
    if asked.part:
        others[asked.part]()
    else:
        main(asked.share, asked.times, asked.keep)
