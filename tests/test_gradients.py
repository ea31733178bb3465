"""Gradients against finite differences in double precision, and that nothing random stays frozen."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rethink_imagenet.detection.box_head import Samples, box_losses
from rethink_imagenet.detection.boxes import decode, encode
from rethink_imagenet.detection.conventions import CONVENTIONS, Conventions
from rethink_imagenet.detection.detectors import DEMO, VGG16, Detector, DetectorConfig, build, check_from_scratch
from rethink_imagenet.detection.keypoint_head import keypoint_cells, keypoint_loss
from rethink_imagenet.detection.mask_head import mask_loss
from rethink_imagenet.detection.pooling import roi_align_pyramid
from rethink_imagenet.detection.proposals import level_anchors, proposal_losses
from rethink_imagenet.networks.normalization import group_norm
from rethink_imagenet.randomness import Draws, generator_of

BOXES = torch.tensor([[4.0, 5, 30, 25], [10, 8, 60, 50]], dtype=torch.float64)


def leaf(*shape: int) -> Tensor:
    """Random numbers in double precision that want a gradient."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("ratio", "aligned"), [(2, False), (2, True), (0, True)])
def test_roi_align(ratio: int, aligned: bool) -> None:
    torch.manual_seed(0)
    pyramid = [leaf(1, 2, 16 // 2**k, 16 // 2**k) for k in range(4)]
    rois = torch.cat([torch.zeros(2, 1), BOXES], dim=1)

    def pooled(*features: Tensor) -> Tensor:
        return roi_align_pyramid(features, rois, 3, ratio, aligned, canonical=32)

    assert gradcheck(pooled, pyramid)


def test_group_norm() -> None:
    torch.manual_seed(0)
    layer = group_norm(8).double()
    assert gradcheck(lambda x, w, b: torch.nn.functional.group_norm(x, layer.num_groups, w, b, layer.eps),
                     (leaf(2, 8, 3, 2), leaf(8), leaf(8)))  # fmt: skip
    x = leaf(2, 8, 3, 2)
    assert gradcheck(layer, (x,))


def test_box_coding() -> None:
    torch.manual_seed(0)
    assert gradcheck(lambda deltas: decode(deltas, BOXES), (leaf(2, 4),))
    assert gradcheck(lambda boxes: encode(boxes, BOXES.flip(0)), (BOXES.clone().requires_grad_(),))


@pytest.mark.parametrize("system", CONVENTIONS)
@pytest.mark.parametrize("over", ["batch", "image"])
def test_losses(system: str, over: Literal["batch", "image"]) -> None:
    torch.manual_seed(0)
    rules: Conventions = replace(CONVENTIONS[system], normalize_over=over)
    rois = torch.cat([torch.tensor([[0.0], [0], [1]]), torch.cat([BOXES, BOXES[:1]]) + 1], dim=1).double()
    labels, objects = torch.tensor([1, 0, 2]), torch.tensor([0, 0, 0])
    of_image = [{"boxes": box[None]} for box in BOXES]
    samples = Samples(rois, labels, objects, of_image, [(64, 64)] * 2, [2, 1], [1, 1])

    def second(logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        return tuple(box_losses(logits, deltas, samples, rules.box).values())

    assert gradcheck(second, (leaf(3, 4), leaf(3, 4, 4)))
    drawn = (torch.rand(3, 5, 5) > 0.5).double()
    assert gradcheck(
        lambda m: mask_loss(m, drawn, torch.tensor([0, 0, 1]), 2, rules.mask.over)["loss_mask"], (leaf(3, 5, 5),)
    )

    points = torch.tensor([[[20.0, 20, 2], [6, 9, 1]], [[30, 30, 0], [50, 40, 2]]], dtype=torch.float64)
    cells, inside = keypoint_cells(points, BOXES, side=5)
    places = torch.tensor([0, 1])
    assert inside.sum() == 3
    assert gradcheck(
        lambda m: keypoint_loss(m, cells, inside, places, 2, rules.normalize_over)["loss_keypoint"], (leaf(2, 2, 5, 5),)
    )

    anchors = torch.cat([level_anchors(64 // s, 64 // s, s, (4,), rules.rpn.anchors) for s in (16, 32)]).double()
    target = {"boxes": BOXES}

    def first(logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        seeds = [generator_of(0), generator_of(1)]
        sizes = [(64, 64), (64, 64)]
        how = rules.rpn.losses
        return tuple(proposal_losses(anchors, logits, deltas, [target] * 2, sizes, seeds, 16, how).values())

    assert gradcheck(first, (leaf(2, len(anchors)), leaf(2, len(anchors), 4)))


def trained(config: DetectorConfig, images: int = 2) -> list[str]:
    """The tensors of a small detector that three steps with objects of all sizes do not move."""
    torch.manual_seed(0)
    model: Detector = build(config)
    check_from_scratch(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    boxes = torch.tensor([[10.0, 10, 40, 40], [130, 150, 190, 200], [60, 5, 160, 130], [20, 30, 270, 280]])
    bitmaps = torch.zeros(4, 288, 288, dtype=torch.bool)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.long().tolist(), strict=True):
        bitmap[y1:y2, x1:x2] = True
    keypoints = torch.cat([boxes.view(4, 2, 2) * 0.9 + 10, torch.full((4, 2, 1), 2.0)], dim=2)
    target = {"boxes": boxes, "labels": torch.tensor([1, 2, 3, 4]), "masks": bitmaps, "keypoints": keypoints}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        draws = Draws(tuple(range(1, images + 1)))
        losses = model([torch.rand(3, 288, 288)] * images, [target] * images, draws)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


@pytest.mark.parametrize("norm", ["gn", "bn", "none"])
@pytest.mark.parametrize("system", CONVENTIONS)
def test_a_step_moves_every_parameter(norm: str, system: str) -> None:
    """Nothing is frozen in any detector that may be trained from scratch."""
    rules = replace(CONVENTIONS[system], post_nms=(50, 50))
    assert trained(replace(DEMO, norm=norm, conventions=rules)) == []


SYSTEMS = {
    "keypoints": replace(DEMO, masks=False, keypoints=2),
    "cascade": replace(DEMO, cascade=True),
    "all at once": replace(DEMO, cascade=True, keypoints=2),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_moves_every_parameter_of_other_systems(system: str) -> None:
    assert trained(SYSTEMS[system]) == []


def test_a_step_moves_every_parameter_of_vgg() -> None:
    assert trained(replace(VGG16, num_classes=8, hidden=64, box_number=24, pre_nms=(100, 100)), images=1) == []
