"""Real images: COCO photographs, blood cells in VOC's layout, nuclei with masks, VOC. Small models, few minutes."""

import contextlib
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.nn.functional import interpolate

from rethink_imagenet.data.coco import read_coco, trainable
from rethink_imagenet.data.images import load_image
from rethink_imagenet.data.loading import TrainingSamples
from rethink_imagenet.data.scenes import draw_scene
from rethink_imagenet.data.splits import count, nested_subset, read_splits, select
from rethink_imagenet.data.transforms import read_sample
from rethink_imagenet.detection.detectors import MINIATURE, build, mask_rcnn
from rethink_imagenet.evaluation.average_precision import evaluate
from rethink_imagenet.networks.normalization import SyncBatchNorm
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.recipes import RECIPES, miniature
from rethink_imagenet.study.studies import run_schedule

Command = Callable[..., subprocess.CompletedProcess[str]]
Sample = Callable[[str], Path]


def test_coco_is_read_as_pycocotools_reads_it(sample_data: Sample) -> None:
    root = sample_data("coco_mini_by")
    train, val = read_splits(root)
    assert (len(train), len(val), train.crowd.sum(), val.crowd.sum()) == (68, 74, 6, 8)
    assert len(train.category_ids) == 80 and max(train.category_ids) == 90
    assert val.left_out == {"images without objects": 2} and len(trainable(val)) == 72
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations" / "instances_train2017.json"))
    for m in range(0, 68, 7):
        here = train.objects(m)
        height, width = train.sizes[m].tolist()
        expected = truth.loadAnns(truth.getAnnIds(int(train.image_ids[m])))
        expected = [a for a in expected if a["bbox"][2] > 0 and a["bbox"][3] > 0]
        assert load_image(train, m).shape == (height, width, 3)
        for n, annotation in zip(range(here.start, here.stop), expected, strict=True):
            x, y, w, h = annotation["bbox"]
            assert np.allclose(train.boxes[n], [x, y, min(x + w, width), min(y + h, height)], atol=0.02)
            if not annotation["iscrowd"]:
                rings = [ring.astype(float).ravel().tolist() for ring in train.polygons[n]]
                mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, height, width)))
                assert (mask != truth.annToMask(annotation)).mean() < 1e-3


def test_masks_given_as_bitmaps_come_back_to_the_pixel(sample_data: Sample) -> None:
    root = sample_data("dsb2018_256")
    train, _ = read_splits(root)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(root / "annotations" / "instances_train.json"))
    for m in range(0, len(train), 40):
        annotations = truth.loadAnns(truth.getAnnIds(int(train.image_ids[m])))
        here = train.objects(m)
        for n, annotation in zip(range(here.start, here.stop), annotations, strict=True):
            rings = [ring.astype(float).ravel().tolist() for ring in train.polygons[n]]
            mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, 256, 256)))
            assert np.array_equal(mask, truth.annToMask(annotation))


def test_voc_layouts(sample_data: Sample) -> None:
    train, val = read_splits(sample_data("bccd"))
    assert (len(train), len(val), train.category_names) == (205, 87, ("Platelets", "RBC", "WBC"))
    assert train.left_out.get("boxes without area", 0) + val.left_out.get("boxes without area", 0) >= 1
    first, _ = read_splits(sample_data("voc2012_100"))
    assert first.difficult.any() and count(first)["instances"] == int((~first.difficult).sum())
    _, target = read_sample(first, int(np.flatnonzero(np.add.reduceat(first.difficult, first.starts[:-1]))[0]))
    assert not target["crowd"].any()


def evaluated_by_hand(annotations: Path, detections: Path, kind: str) -> float:
    """AP as pycocotools gives it when called step by step on the written files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(detections)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def test_some_images_are_evaluated_by_their_own_objects(sample_data: Sample) -> None:
    """Five images whose objects are all found have 100 AP by both rules, whatever stands in the others."""
    _, val = read_splits(sample_data("bccd"))
    few = select(val, np.arange(5))
    found = [
        {
            "image_id": int(few.image_ids[m]),
            "category_id": few.category_ids[few.labels[k] - 1],
            "bbox": [*few.boxes[k, :2].tolist(), *(few.boxes[k, 2:] - few.boxes[k, :2]).tolist()],
            "score": 1.0,
        }
        for m in range(5)
        for k in range(few.starts[m], few.starts[m + 1])
    ]
    figures = evaluate(few, found, masks=False)
    assert (figures["box"]["ap"], figures["voc"]["map"]) == (100, 100)
    assert evaluate(val, found, masks=False)["voc"]["map"] < 50


@pytest.mark.parametrize(
    ("number", "unit"), [(2, 110), *(pytest.param(*long, marks=pytest.mark.slow) for long in ((4, 170), (8, 250)))]
)
def test_photographs_are_learned_by_heart(sample_data: Sample, tmp_path: Path, number: int, unit: int) -> None:
    """Losses, targets and read-out fit together: trained and evaluated on the same images, more than 60 box AP."""
    root = sample_data("coco_mini_by")
    source = root / "annotations" / "instances_train2017.json"
    content = json.loads(source.read_text())
    kept = set(nested_subset(read_coco(source), number).image_ids.tolist())
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    few, again = tmp_path / "few.json", tmp_path / "again.json"
    for path in (few, again):
        path.write_text(json.dumps(content))
    train_set, val_set = read_coco(few, root / "train2017"), read_coco(again, root / "train2017")
    detector = replace(MINIATURE, num_classes=len(train_set.category_ids))
    plan = Plan(detector, (2,), unit=unit, rate=0.16, batch=4, short=(192, 192), long=320, evaluations=1)
    run_schedule(Experiment(plan, train_set, val_set, tmp_path / "out", execution=Execution(workers=1)), 2)
    results = json.loads((tmp_path / "out" / "2x" / "results.json").read_text())
    assert results["box"]["ap"] > 60, results["box"]
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        by_hand = evaluated_by_hand(few, tmp_path / "out" / "2x" / "detections.json", name)
        assert abs(by_hand - results[kind]["ap"]) < 1e-9


def test_scenes_are_less_alike_than_photographs(sample_data: Sample) -> None:
    """More of a channel's variance lies between drawn scenes than between photographs, in every layer with a norm."""
    train, _ = read_splits(sample_data("voc2007_trainval_160"))
    photographs = []
    for m in range(0, len(train), len(train) // 96):
        image = torch.from_numpy(load_image(train, m).copy()).permute(2, 0, 1)[None] / 255
        side = min(image.shape[2:])
        top, left = ((length - side) // 2 for length in image.shape[2:])
        square = image[:, :, top : top + side, left : left + side]
        photographs.append(interpolate(square, (96, 96), mode="bilinear", antialias=True)[0])
    scenes = [torch.from_numpy(draw_scene(0, n)[0]).permute(2, 0, 1) / 255 for n in range(len(photographs))]
    torch.manual_seed(0)
    model = build(miniature(RECIPES["figure4/r50-syncbn-scratch-6x"], 0.005).base.detector)
    shares: dict[str, list[float]] = {}

    def note(name: str, x: torch.Tensor) -> None:
        means = x.mean(dim=(2, 3))
        shares.setdefault(name, []).append((means.var(dim=0) / x.var(dim=(0, 2, 3))).mean().item())

    for name, layer in model.backbone.named_modules():
        if isinstance(layer, SyncBatchNorm):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
    with torch.no_grad():
        for images in (scenes, photographs):
            model.features(images)
    assert len(shares) > 10 and all(drawn > photographed for drawn, photographed in shares.values()), shares
    drawn, photographed = shares["body.conv1.1"]
    assert drawn > 2 * photographed, shares


def test_compare_on_photographs(command: Command, sample_data: Sample, tmp_path: Path) -> None:
    words = ["--data", sample_data("coco_mini_by"), "--model", "demo", "--unit", 4, "--batch", 4]
    done = command("rethink_compare", *words, "--schedules", "2,3", "--epochs", 0.05, "--out", "out")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "(74 images)" in results["data"][0] and all({"box", "mask"} <= run.keys() for run in results["runs"])


@pytest.mark.parametrize("name", ["bccd", pytest.param("dsb2018_256", marks=pytest.mark.slow)])
def test_train_on_cells(command: Command, sample_data: Sample, tmp_path: Path, name: str) -> None:
    """VOC's layout with boxes, COCO's with bitmaps: a real AP after a minute each, by VOC's rule as well."""
    words = ["--data", sample_data(name), "--model", "demo", "--batch", 4, "--rate", 0.08]
    done = command("rethink_train", *words, "--schedule", 2, "--unit", 60, "--out", name)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / name / "2x" / "results.json").read_text())
    assert results["box"]["ap50"] > 10, results["box"]
    assert ("voc" in results, "mask" in results) == (name == "bccd", name != "bccd")


def test_the_papers_detector_makes_a_step_at_full_size(sample_data: Sample) -> None:
    """R50-FPN GN at 800 x 1333: one step of training and one image detected."""
    train, _ = read_splits(sample_data("coco_mini_by"))
    image, target = TrainingSamples(train)[0]
    assert min(image.shape[1:]) == 800 or max(image.shape[1:]) == 1333
    torch.manual_seed(0)
    model = mask_rcnn()
    losses = model([image], [target])
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and len(losses) == 5
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        (found,) = model([image])
    assert found["masks"].shape[1:] == (1, *image.shape[1:]) and len(found["scores"]) <= 100
