"""Our detector against torchvision's, with the same weights, on photographs.

Both compute in double precision: in 32 bits the two rank candidates with nearly equal scores in different orders, and
the comparison would be one of rounding. The chapter on conversion compares them in 32 bits, on two small images.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from rethink_imagenet.detection.conventions import TORCHVISION
from rethink_imagenet.detection.detectors import VGG16, Detector, DetectorConfig
from rethink_imagenet.detection.mask_head import bitmaps_of
from rethink_imagenet.tools.conversion import from_torchvision, to_torchvision, torchvision_model

Target = dict[str, Any]
# Every anchor and every proposal is drawn, so that chance has no part in the losses.
ALL = DetectorConfig(
    num_classes=90, rpn_number=10**6, box_number=10**6, conventions=replace(TORCHVISION, post_nms=(60, 60))
)
HEADS = {"gn": ("gn", "gn", (4, 1)), "frozen_bn": ("frozen_bn", "none", (0, 2))}


def pair(backbone: str, kind: str) -> tuple[Detector, FasterRCNN]:
    """Our detector and torchvision's with the same random weights, opinionated enough to rank what they find."""
    norm, head_norm, layers = HEADS[kind]
    torch.manual_seed(0)
    config = replace(ALL, backbone=backbone, norm=norm, head_norm=head_norm, box_layers=layers)
    ours, theirs = Detector(config), torchvision_model(config)
    for layer in (ours.rpn.head.conv, ours.box_head.scores):
        layer.weight.data *= 20
    theirs.load_state_dict(to_torchvision(ours))
    return ours.double(), theirs.double()


def with_bitmaps(images: list[Tensor], targets: list[Target]) -> list[Target]:
    """Targets as torchvision wants them."""
    masks = [bitmaps_of(t["polygons"], *image.shape[1:]) for image, t in zip(images, targets, strict=True)]
    return [{"boxes": t["boxes"], "labels": t["labels"], "masks": m} for t, m in zip(targets, masks, strict=True)]


@pytest.mark.parametrize("kind", HEADS)
def test_losses_on_photographs(photographs: tuple[list[Tensor], list[Target]], kind: str) -> None:
    """All five losses to 1e-6, images of several sizes and one without objects in the batch."""
    images, targets = photographs
    ours, theirs = pair("resnet50", kind)
    with torch.no_grad():
        losses = ours.train()(images, targets)
        expected = theirs.train()(images, with_bitmaps(images, targets))
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-6), name


@pytest.mark.parametrize("kind", HEADS)
def test_detections_on_photographs(photographs: tuple[list[Tensor], list[Target]], kind: str) -> None:
    """Proposals and boxes to 1e-6 pixels, scores to 1e-9, masks to 1e-6."""
    images = photographs[0][:2]
    ours, theirs = (model.eval() for model in pair("resnet50", kind))
    with torch.no_grad():
        pyramid, sizes = ours.features(images)
        proposals, _ = ours.rpn(pyramid, sizes)
        batch, _ = theirs.transform(images)
        expected_proposals, _ = theirs.rpn(batch, theirs.backbone(batch.tensors))
        found, expected = ours(images), theirs(images)
    for mine, reference in zip(proposals, expected_proposals, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-6, rtol=0)
    assert sum(len(detections["boxes"]) for detections in found) > 20
    for mine, reference in zip(found, expected, strict=True):
        assert torch.equal(mine["labels"], reference["labels"])
        for key, tolerance in (("boxes", 1e-6), ("scores", 1e-9), ("masks", 1e-6)):
            torch.testing.assert_close(mine[key], reference[key], atol=tolerance, rtol=0)


def test_gradients_on_photographs(photographs: tuple[list[Tensor], list[Target]]) -> None:
    """The gradient of the summed losses, tensor by tensor, to 1e-6 of its size."""
    images, targets = (both[-2:] for both in photographs)  # the last is without objects
    ours, theirs = pair("resnet18", "gn")
    sum(ours.train()(images, targets).values()).backward()
    sum(theirs.train()(images, with_bitmaps(images, targets)).values()).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    carrier = Detector(ours.config).double()
    from_torchvision(carrier, {name: torch.zeros_like(t) if expected.get(name) is None else expected[name]
                               for name, t in theirs.state_dict().items()})  # fmt: skip
    for name, reference in carrier.state_dict().items():
        gradient = gradients[name]
        assert gradient is not None, name
        error = (gradient - reference).norm() / reference.norm().clamp(min=1e-12)
        assert error < 1e-6, f"{name}: {error:.1e}"


def same_losses_and_detections(
    ours: Detector, theirs: nn.Module, images: list[Tensor], targets: list[Target], opinion: float = 20
) -> None:
    """Losses to 1e-6; boxes to 1e-6 pixels, scores to 1e-9, keypoints to 1e-3 pixels (torchvision's are 32 bits)."""
    for layer in (ours.rpn.head.conv, ours.box_head.scores):
        layer.weight.data *= opinion
    theirs.load_state_dict(to_torchvision(ours))
    ours, theirs = ours.double(), theirs.double()
    with torch.no_grad():
        losses, expected = ours.train()(images, targets), theirs.train()(images, [dict(t) for t in targets])
        found, reference = ours.eval()(images), theirs.eval()(images)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-6), name
    assert sum(len(detections["boxes"]) for detections in found) > 20
    for mine, other in zip(found, reference, strict=True):
        if "keypoints" in mine:
            other["keypoint_scores"] = other.pop("keypoints_scores")
        assert mine.keys() == other.keys() and torch.equal(mine["labels"], other["labels"])
        for key, tolerance in (("boxes", 1e-6), ("scores", 1e-9), ("keypoints", 1e-3), ("keypoint_scores", 1e-4)):
            if key in mine:
                torch.testing.assert_close(mine[key], other[key].double(), atol=tolerance, rtol=0)


def test_keypoint_rcnn_on_photographs(persons: tuple[list[Tensor], list[Target]]) -> None:
    """All five losses and the keypoints found, on photographs of persons."""
    images, targets = persons
    torch.manual_seed(0)
    config = replace(ALL, num_classes=1, backbone="resnet18", norm="frozen_bn", head_norm="none", box_layers=(0, 2),
                     masks=False, keypoints=17, keypoint_channels=32)  # fmt: skip
    same_losses_and_detections(Detector(config), torchvision_model(config), images, targets)


def test_vgg16_faster_rcnn_on_photographs(photographs: tuple[list[Tensor], list[Target]]) -> None:
    """All four losses and the boxes found, with fifteen anchors at each place of a single map."""
    images, targets = photographs
    torch.manual_seed(0)
    rules = replace(TORCHVISION, post_nms=(60, 60))
    config = replace(VGG16, num_classes=90, hidden=64, rpn_number=10**6, box_number=10**6, conventions=rules)
    same_losses_and_detections(Detector(config), torchvision_model(config), images[:3], targets[:3], opinion=2000)
