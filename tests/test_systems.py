"""The paper's other systems on photographs: Keypoint R-CNN, Cascade Mask R-CNN and the switch to it, VGG-16, X152.

`pytest -m slow tests/test_systems.py` makes a step with the paper's largest model and prints its memory and time.
"""

import contextlib
import io
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models.detection import roi_heads
from torchvision.ops import box_iou

from rethink_imagenet.boxes import generator_of
from rethink_imagenet.cascade import CascadeHead, moved, switch_to_cascade
from rethink_imagenet.data import Dataset, read_coco, read_splits, trainable
from rethink_imagenet.detectors import (
    SMALL,
    Detector,
    build,
    cascade_mask_rcnn,
    check_from_scratch,
    vgg16_faster_rcnn,
)
from rethink_imagenet.heads import Cut, Samples, as_rois, sample_proposals
from rethink_imagenet.transforms import read_sample, resize, resized_size

Sample = Callable[[str], Path]
Target = dict[str, Any]


def batch_of(dataset: Dataset, positions: list[int], short: int = 160) -> tuple[list[Tensor], list[Target]]:
    """Some of a data set's images and targets, resized; draws are those of a seed."""
    pairs = [resize(*read_sample(dataset, m), short, 2 * short) for m in positions]
    return [image for image, _ in pairs], [target | {"seed": i} for i, (_, target) in enumerate(pairs)]


@pytest.fixture
def persons(sample_data: Sample) -> Dataset:
    """Photographs of persons with 17 keypoints."""
    return read_coco(sample_data("coco_mini_by") / "annotations" / "person_keypoints_train2017.json")


@pytest.fixture
def photographs(sample_data: Sample) -> tuple[list[Tensor], list[Target]]:
    """Three photographs with masks."""
    train, _ = read_splits(sample_data("coco_mini_by"))
    return batch_of(train, trainable(train)[:3].tolist())


def learn(model: Detector, images: list[Tensor], targets: list[Target], steps: int, rate: float) -> list[float]:
    """The summed losses of some iterations on the same batch."""
    optimizer, totals = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9), []
    for step in range(steps):
        total = sum(model(images, [t | {"seed": t["seed"] + 100 * step} for t in targets]).values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        totals.append(total.item())
    return totals


def test_images_without_a_visible_keypoint_are_left_out(persons: Dataset) -> None:
    """Against the records of the json, one by one."""
    content: Any = persons.ground_truth
    records = json.loads(Path(content).read_text())["annotations"]
    seen = {a["image_id"] for a in records if not a["iscrowd"] and a["num_keypoints"] > 0}
    assert set(persons.image_ids[trainable(persons, keypoints=True)].tolist()) == seen
    assert len(seen) == 15 and len(trainable(persons)) == 18


def regions_of(model: Detector, images: list[Tensor], targets: list[Target]) -> tuple[Cut, Samples]:
    """A pyramid to cut from, and samples from the objects moved about by a few pixels."""
    pyramid, sizes = model.features(images)
    torch.manual_seed(1)
    parts = []
    for target in targets:
        boxes = target["boxes"].repeat(20, 1)
        target.setdefault("crowd", torch.zeros(len(target["boxes"]), dtype=torch.bool))
        parts.append(sample_proposals(boxes + 3 * torch.randn_like(boxes), target, 10**6, generator_of(0)))
    return partial(model.regions, pyramid), Samples.gather(parts, targets, sizes)


def test_keypoint_loss_and_read_out_are_torchvisions(persons: Dataset) -> None:
    """On photographs, in double precision: the loss to 1e-6, keypoints to 1e-4 pixels."""
    images, targets = batch_of(persons, trainable(persons, keypoints=True)[:2].tolist())
    images = [image.double() for image in images]
    targets = [t | {key: t[key].double() for key in ("boxes", "keypoints")} for t in targets]
    torch.manual_seed(0)
    model = build(replace(SMALL, num_classes=1, masks=False, keypoints=17)).double().eval()
    head = model.keypoint_head
    assert head is not None
    with torch.no_grad():
        cut, samples = regions_of(model, images, targets)
        positive = samples.positive
        per_image = [positive[positive.image == b] for b in range(2)]
        theirs = roi_heads.keypointrcnn_loss(
            head.predict(cut, positive.rois).contiguous(), [each.rois[:, 1:] for each in per_image],
            [t["keypoints"] for t in targets], [each.objects for each in per_image],
        )  # fmt: skip
        ours = head.losses(cut, samples)["loss_keypoint"]
        found = model.detect(images)
        boxes = [detections["boxes"] for detections in found]
        keypoints, scores = roi_heads.heatmaps_to_keypoints(head.predict(cut, as_rois(boxes)), torch.cat(boxes))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6) and ours > 7
    assert len(keypoints) > 50
    torch.testing.assert_close(torch.cat([d["keypoints"] for d in found]).float(), keypoints, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([d["keypoint_scores"] for d in found]).float(), scores, atol=1e-4, rtol=0)


def keypoint_ap50(persons: Dataset, positions: list[int], model: Detector, short: int) -> float:
    """COCO's AP at an OKS of 0.5 on some images, by pycocotools, in percent."""
    results = []
    for m in positions:
        (image,), (target,) = batch_of(persons, [m], short)
        (found,) = model.detect([image])
        scale = torch.tensor([target["size"][1] / image.shape[2], target["size"][0] / image.shape[1], 1])
        for points, score in zip(found["keypoints"] * scale, found["scores"], strict=True):
            results.append({"image_id": target["image_id"], "category_id": 1, "score": score.item(),
                            "keypoints": points.flatten().tolist()})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(persons.ground_truth))
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.params.imgIds = persons.image_ids[positions].tolist()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[1])


def test_keypoints_of_photographs_are_learned_by_heart(persons: Dataset) -> None:
    """From images to OKS: two photographs of persons, more than 60 AP50 on them."""
    positions = trainable(persons, keypoints=True)[:2].tolist()
    images, targets = batch_of(persons, positions, short=160)
    torch.manual_seed(0)
    model = build(replace(SMALL, num_classes=1, masks=False, keypoints=17))
    check_from_scratch(model)
    totals = learn(model, images, targets, steps=80, rate=0.02)
    ap50 = keypoint_ap50(persons, positions, model.eval(), short=160)
    print(f"loss {totals[0]:.2f} to {totals[-1]:.2f}, keypoint AP50 {ap50:.1f}")
    assert ap50 > 60


def stage_overlaps(model: Detector, images: list[Tensor], targets: list[Target]) -> list[float]:
    """The mean overlap with objects of proposals that overlap one by 0.5, and of what each stage makes of them."""
    head = model.box_head
    assert isinstance(head, CascadeHead)
    pyramid, sizes = model.features(images)
    proposals, _ = model.rpn(pyramid, sizes)
    objects = [target["boxes"][~target["crowd"]] for target in targets]
    good = [box_iou(boxes, each).amax(dim=1) >= 0.5 for boxes, each in zip(proposals, objects, strict=True)]
    rois, means = as_rois([boxes[keep] for boxes, keep in zip(proposals, good, strict=True)]), []
    for layer in [None, *head.heads]:
        if layer is not None:
            _, codes, _ = layer.predict(partial(model.regions, pyramid), rois)
            rois = moved(rois, codes, layer.code_weights)
        each = [box_iou(rois[rois[:, 0] == b, 1:], objects[b]).amax(dim=1) for b in range(len(objects))]
        means.append(torch.cat(each).mean().item())
    return means


def test_each_stage_of_the_cascade_makes_boxes_better(sample_data: Sample) -> None:
    """Two pictures of blood cells learned by heart: proposals come nearer to their objects by all stages together."""
    train, _ = read_splits(sample_data("bccd"))
    images, targets = batch_of(train, trainable(train)[:2].tolist(), short=128)
    torch.manual_seed(0)
    model = build(replace(SMALL, num_classes=3, masks=False, cascade=True))
    check_from_scratch(model)
    totals = learn(model, images, targets, steps=80, rate=0.02)
    with torch.no_grad():
        means = stage_overlaps(model.eval(), images, targets)
    print("mean overlap of proposals and of each stage:", [round(mean, 3) for mean in means])
    assert totals[-1] < 0.6 * totals[0]
    assert means[1] > means[0] + 0.05 and means[3] >= means[1]


def box_cost(model: Detector, images: list[Tensor], targets: list[Target]) -> float:
    """The sum of the classification and box losses of all stages."""
    with torch.no_grad():
        losses = model.train()(images, targets)
    return sum(loss.item() for name, loss in losses.items() if name.startswith(("loss_classifier", "loss_box_reg")))


def test_switching_to_cascade_from_a_trained_detector(photographs: tuple[list[Tensor], list[Target]]) -> None:
    """Stages copied from the first cost less than half of random ones at the switch, and go on learning."""
    images, targets = photographs
    torch.manual_seed(0)
    plain = build(SMALL)
    learn(plain, images, targets, steps=50, rate=0.02)
    weights, momentum = switch_to_cascade(plain.state_dict(), {})
    assert momentum == {}
    copied, random = (build(replace(SMALL, cascade=True)) for _ in range(2))
    new = ("box_head.stages.0.codes", "box_head.stages.1", "box_head.stages.2")
    fresh = {name: tensor for name, tensor in random.state_dict().items() if name.startswith(new)}
    copied.load_state_dict(weights)
    random.load_state_dict(weights | fresh)
    models = {"plain": plain, "copied": copied, "random": random}
    costs = {name: box_cost(model, images, targets) for name, model in models.items()}
    print("box losses at the switch:", {name: round(cost, 3) for name, cost in costs.items()})
    assert costs["copied"] < 0.5 * costs["random"]
    totals = learn(copied, images, targets, steps=20, rate=0.02)
    assert min(totals[10:]) < totals[0]
    (found,) = copied.eval()(images[:1])
    assert found["masks"].shape == (len(found["boxes"]), 1, *images[0].shape[1:])


class Recorder:
    """The deviation of each layer's output, and the norm of the gradient that reaches it, in one step."""

    def __init__(self, model: Detector):
        self.outputs: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(partial(self.record, name))

    def record(self, name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """Called after a layer, before the ReLU that works in place."""
        self.outputs[name] = output.detach().std(dim=0).square().mean().sqrt().item()
        output.register_hook(lambda gradient: self.gradients.update({name: gradient.norm().item()}))


def test_vgg_keeps_its_scale_through_all_layers(photographs: tuple[list[Tensor], list[Target]]) -> None:
    """The paper's VGG-16 in full, fc6 and fc7 included: by its own initialization, and by PyTorch's default."""
    images, targets = photographs
    torch.manual_seed(0)
    model = vgg16_faster_rcnn(box_number=32, pre_nms=(1000, 1000))
    check_from_scratch(model)
    assert not any(isinstance(layer, nn.GroupNorm | nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    recorder = Recorder(model)
    deep = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    deep = [name for name in deep if name.startswith(("backbone", "box_head.fcs"))]
    assert len(deep) == 15
    spread = {}
    for kind in ("msra", "default"):
        if kind == "default":
            for name in deep:
                model.get_submodule(name).reset_parameters()
        losses = model(images[:2], targets[:2])
        sum(losses.values()).backward()
        for what, values in (("outputs", recorder.outputs), ("gradients", recorder.gradients)):
            scales = [values[name] for name in deep]
            spread[kind, what] = max(scales) / min(scales)
        if kind == "msra":
            assert losses["loss_classifier"].item() == pytest.approx(math.log(81), abs=0.3)
    print({" ".join(key): f"{value:.3g}" for key, value in spread.items()})
    assert spread["msra", "outputs"] < 30 and spread["msra", "gradients"] < 30
    assert spread["default", "outputs"] > 1e4 and spread["default", "gradients"] > 1e4


@pytest.mark.slow
def test_the_largest_model_makes_a_step_within_16_gb(sample_data: Sample) -> None:
    """X152 8x32d with cascade, two photographs of 320 x 480, weights, momentum and all: memory and time are printed."""
    train, _ = read_splits(sample_data("coco_mini_by"))
    fitting = [m for m in trainable(train) if resized_size(*train.sizes[m].tolist(), 320, 640) == (320, 480)]
    images, targets = batch_of(train, fitting[:2], short=320)
    assert [tuple(image.shape) for image in images] == [(3, 320, 480)] * 2
    torch.manual_seed(0)
    model = cascade_mask_rcnn()
    check_from_scratch(model)
    optimizer, seconds = torch.optim.SGD(model.parameters(), lr=0.0025, momentum=0.9), []
    for _ in range(2):  # the second with momentum in memory
        start = time.perf_counter()
        total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        assert total.isfinite()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.1f} M parameters, peak {peak:.2f} GB, {seconds[-1]:.1f} s an iteration")
    assert peak < 16
