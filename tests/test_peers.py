"""Our parts against independent implementations: torchvision's detector and pycocotools."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.models.detection.rpn import RPNHead as TorchvisionRPNHead

from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.loading import EvaluationSamples
from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.detection.boxes import encode
from rethink_imagenet.detection.detectors import DEMO, build, mask_rcnn
from rethink_imagenet.detection.proposals import RPN, ProposalSettings, RPNSettings, select_proposals
from rethink_imagenet.evaluation.average_precision import evaluate_coco, evaluate_voc, predict


def test_proposals_are_torchvisions() -> None:
    """Same weights and same anchors give the same proposals, scores aside, for two images of different size."""
    torch.manual_seed(0)
    ours = RPN(16, anchor_scales=(4,), settings=RPNSettings(proposals=ProposalSettings((60, 60)))).eval()
    generator = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)
    head = TorchvisionRPNHead(16, 3)
    theirs = RegionProposalNetwork(
        generator, head, 0.7, 0.3, 256, 0.5, {"training": 2000, "testing": 1000}, {"training": 60, "testing": 60}, 0.7
    ).eval()
    theirs.min_size = 1.0
    head.conv[0][0].load_state_dict(ours.head.conv.state_dict())
    head.cls_logits.load_state_dict(ours.head.objectness.state_dict())
    head.bbox_pred.load_state_dict(ours.head.deltas.state_dict())
    pyramid = [30 * torch.randn(2, 16, 96 // s, 96 // s) for s in (4, 8, 16)]
    images = ImageList(torch.zeros(2, 3, 96, 96), [(96, 96), (80, 64)])
    anchors = generator(images, pyramid)[0].split([p.shape[2] * p.shape[3] * 3 for p in pyramid])
    logits, deltas = ours.head(pyramid)
    proposals = select_proposals(list(anchors), logits, deltas, images.image_sizes, 1000, 60)
    expected, _ = theirs(images, dict(enumerate(pyramid)))
    for mine, reference in zip(proposals, expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-3, rtol=0)


def test_codes_in_double_precision() -> None:
    """Box deltas against the formula, written out with math on Python floats."""
    import math

    rng = np.random.default_rng(0)
    for _ in range(50):
        x1, y1, w, h, a1, b1, aw, ah = rng.uniform(1, 100, 8).tolist()
        box, reference = torch.tensor([[x1, y1, x1 + w, y1 + h]]), torch.tensor([[a1, b1, a1 + aw, b1 + ah]])
        shift = [10 * (x1 + w / 2 - a1 - aw / 2) / aw, 10 * (y1 + h / 2 - b1 - ah / 2) / ah]
        expected = [*shift, 5 * math.log(w / aw), 5 * math.log(h / ah)]
        deltas = encode(box.double(), reference.double())[0].tolist()
        assert deltas == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_papers_detector_has_detectrons_size() -> None:
    """R50-FPN GN 4conv1fc Mask R-CNN: parameters by part, counted by hand from Detectron's layers."""
    model = mask_rcnn()
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    lateral = sum(c * 256 + 512 for c in (256, 512, 1024, 2048))
    output = 4 * (256 * 256 * 9 + 512)
    assert count["backbone"] == 23_508_032 + lateral + output
    assert count["rpn"] == 256 * 256 * 9 + 256 + 257 * 3 + 257 * 12
    convolutions = 4 * (256 * 256 * 9 + 512)
    assert count["box_head"] == convolutions + 256 * 49 * 1024 + 1024 + 1025 * 81 + 1025 * 81 * 4
    assert count["mask_head"] == convolutions + 256 * 256 * 4 + 256 + 257 * 81


def test_figures_are_those_of_cocoeval_by_hand(tmp_path: Path) -> None:
    """Detections written to a file and evaluated by pycocotools' own sequence of calls give the same figures."""
    root = write_scenes(tmp_path / "scenes", train=1, val=12)
    dataset = read_coco(root / "annotations" / "instances_val.json")
    torch.manual_seed(0)
    model = build(DEMO).eval()
    found = predict(model, EvaluationSamples(dataset, 96), batch=4, workers=0)
    annotations = json.loads((root / "annotations" / "instances_val.json").read_text())["annotations"]
    found += [
        {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 0.5 + a["id"] / 1000}
        for a in annotations[::2]
    ]
    assert len(found) > 20
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(found))
    ours = evaluate_coco(root / "annotations" / "instances_val.json", path)
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(root / "annotations" / "instances_val.json"))
            evaluation = COCOeval(truth, truth.loadRes(str(path)), name)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        expected = [None if value == -1 else 100 * value for value in evaluation.stats]
        assert list(ours[kind].values()) == expected


def test_voc_map_by_brute_force() -> None:
    """VOC's AP against a slow restatement: precision at every recall that a prefix of the list reaches."""
    rng = np.random.default_rng(0)
    images, annotations, detections = [{"id": i} for i in range(8)], [], []
    for i in range(8):
        for _ in range(4):
            x, y = rng.uniform(0, 60, 2).tolist()
            box = [x, y, 20.0, 15.0]
            difficult = int(rng.random() < 0.2)
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": 1, "bbox": box,
                                "iscrowd": 0, "area": 300.0, "difficult": difficult})  # fmt: skip
            near = [x + float(rng.normal(0, 4)), y + float(rng.normal(0, 3)), 20.0, 15.0]
            detections.append({"image_id": i, "category_id": 1, "bbox": near, "score": float(rng.random())})

    def iou(a: list[float], b: list[float]) -> float:
        w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    taken, marks = set(), []
    for d in sorted(detections, key=lambda d: -d["score"]):
        here = [a for a in annotations if a["image_id"] == d["image_id"]]
        best = max(here, key=lambda a: iou(d["bbox"], a["bbox"]))
        if iou(d["bbox"], best["bbox"]) >= 0.5 and best["difficult"]:
            continue
        hit = iou(d["bbox"], best["bbox"]) >= 0.5 and best["id"] not in taken
        taken |= {best["id"]} if hit else set()
        marks.append(hit)
    total = sum(not a["difficult"] for a in annotations)
    points = [(sum(marks[: k + 1]) / total, sum(marks[: k + 1]) / (k + 1)) for k in range(len(marks))]
    area = sum(max(p for r, p in points if r >= k / total - 1e-9) / total for k in range(1, sum(marks) + 1))
    eleven = sum(max([p for r, p in points if r >= k / 10 - 1e-9], default=0) for k in range(11)) / 11
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    assert evaluate_voc(content, detections)["map"] == pytest.approx(100 * area)
    assert evaluate_voc(content, detections, eleven_points=True)["map"] == pytest.approx(100 * eleven)
