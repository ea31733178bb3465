"""Our detectors against detectron2's, with the same random weights, on photographs.

detectron2 has to be compiled and is no dependency, so these run when asked for:
`pytest -m slow tests/test_detectron2.py`.
It computes boxes in 32 bits, in which two candidates with nearly equal scores may change places; detections are
compared as sets.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rethink_imagenet.detection.cascade import CascadeHead
from rethink_imagenet.detection.detectors import Detector
from rethink_imagenet.tools.conversion import PUBLISHED, from_detectron2, to_detectron2

pytestmark = pytest.mark.slow

FOLDERS = {"scratch": "Misc", "cascade": "Misc", "mask": "COCO-InstanceSegmentation", "faster": "COCO-Detection",
           "keypoint": "COCO-Keypoints"}  # fmt: skip
LOSSES = {"loss_objectness": "loss_rpn_cls", "loss_rpn_box_reg": "loss_rpn_loc", "loss_classifier": "loss_cls"}
Target = dict[str, Any]


def pair(name: str) -> tuple[Detector, Any]:
    """Our detector and detectron2's of that name, opinionated enough to rank what they find; every anchor is drawn."""
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.model_zoo import get_config_file
    from detectron2.modeling import build_model

    theirs = get_cfg()
    theirs.merge_from_file(get_config_file(f"{FOLDERS[name.split('_')[0]]}/{name}.yaml"))
    theirs.MODEL.DEVICE, theirs.MODEL.WEIGHTS = "cpu", ""
    theirs.MODEL.RPN.BATCH_SIZE_PER_IMAGE = theirs.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 10**6
    theirs.MODEL.RPN.POST_NMS_TOPK_TRAIN = theirs.MODEL.RPN.POST_NMS_TOPK_TEST = 60
    if name.endswith("syncbn"):  # which has the tensors of BN and needs a GPU
        parts = theirs.MODEL
        for part in (parts.RESNETS, parts.FPN, parts.ROI_BOX_HEAD, parts.ROI_MASK_HEAD):
            part.NORM = "BN"
    torch.manual_seed(0)
    model, config = build_model(theirs), PUBLISHED[name]
    rules = replace(config.conventions, post_nms=(60, 60))
    ours = Detector(replace(config, rpn_number=10**6, box_number=10**6, conventions=rules))
    from_detectron2(ours, model.state_dict())
    heads = ours.box_head.heads if isinstance(ours.box_head, CascadeHead) else [ours.box_head]
    for layer in (ours.rpn.head.conv, *(head.scores for head in heads)):
        layer.weight.data *= 20
    for key, buffer in ours.named_buffers():
        if config.norm == "frozen_bn" and key.endswith("running_var"):
            buffer.fill_(4.0)  # or what no normalization holds back would grow without bounds
    assert set(model.state_dict()) <= set(to_detectron2(ours))
    model.load_state_dict(to_detectron2(ours), strict=False)
    return ours, model


def as_theirs(images: list[Tensor], targets: list[Target]) -> list[dict[str, Any]]:
    """The batch as detectron2 takes it."""
    from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks

    batch = []
    for image, target in zip(images, targets, strict=True):
        found = Instances(tuple(image.shape[1:]))
        found.gt_boxes, found.gt_classes = Boxes(target["boxes"]), target["labels"] - 1
        if "keypoints" in target:
            found.gt_keypoints = Keypoints(target["keypoints"].float())
        else:
            objects = map(target["polygons"].__getitem__, range(len(target["labels"])))
            found.gt_masks = PolygonMasks([[ring.astype(float).ravel() for ring in rings] for rings in objects])
        batch.append({"image": 255 * image.flip(0), "instances": found})
    return batch


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "_FPN_" in name])
def test_losses_and_detections_are_detectron2s(request: pytest.FixtureRequest, name: str) -> None:
    """Losses to 5e-4; 19 of 20 detections to 0.05 pixels and 1e-3 of their score."""
    ours, theirs = pair(name)
    from detectron2.utils.events import EventStorage

    images, targets = request.getfixturevalue("persons" if ours.config.keypoints else "photographs")
    images = [image.float() for image in images]
    targets = [target | {"boxes": target["boxes"].float()} for target in targets]
    with torch.no_grad(), EventStorage():
        losses, expected = ours.train()(images, targets), theirs.train()(as_theirs(images, targets))
    assert len(losses) == len(expected) >= 4
    for name, loss in losses.items():
        kind, _, stage = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
        reference = expected[LOSSES.get(kind, kind) + (f"_stage{int(stage) - 1}" if stage else "")]
        assert loss.item() == pytest.approx(reference.item(), rel=5e-4), name
    with torch.no_grad():
        found = ours.eval().detect(images)
        reference = theirs.eval().inference(as_theirs(images, targets), do_postprocess=False)
    for mine, others in zip(found, reference, strict=True):
        assert len(mine["boxes"]) == pytest.approx(len(others), abs=2) and len(others) > 20
        apart = (mine["boxes"][:, None] - others.pred_boxes.tensor).abs().amax(dim=2)
        apart[mine["labels"][:, None] - 1 != others.pred_classes] = torch.inf
        nearest = apart.argmin(dim=1)
        good = (apart.amin(dim=1) < 0.05) & ((mine["scores"] - others.scores[nearest]).abs() < 1e-3)
        for key, theirs_, most in (("masks", "pred_masks", 1e-2), ("keypoints", "pred_keypoints", 0.1)):
            if key in mine:
                values = getattr(others, theirs_)[nearest]
                values = values[:, 0] if key == "masks" else values[..., :2]
                error = (mine[key][..., : values.shape[-1]] - values).abs().flatten(1).amax(dim=1)
                good &= error < most
        assert good.double().mean() > 0.95, good
